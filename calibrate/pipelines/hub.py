"""Put a calibration on the Hugging Face Hub, with a model card made from its evidence."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from glob import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi, ModelCardData
from jinja2 import Environment, PackageLoader

from calibrate.artefact.config import SteeringConfig
from calibrate.artefact.hub import REPOSITORY, SUMS_FILE, sums_in, sums_of
from calibrate.artefact.saved import load
from calibrate.common.errors import ArtefactError, CalibrateError, InputError
from calibrate.common.files import made
from calibrate.common.marks import TOOL, names_us
from calibrate.common.progress import SILENT, Progress
from calibrate.deploy.export import FORMATS, export
from calibrate.deploy.export.exporter import to_be_given
from calibrate.deploy.export.place import commit_of, hub_id_of
from calibrate.deploy.export.svec import entered
from calibrate.deploy.finished import Calibration
from calibrate.deploy.verify import open_model
from calibrate.models.model import LoadedModel
from calibrate.models.unreadable import first_line
from calibrate.pipelines.neutral import neutral

CARD_FILE = "README.md"
EXPORTS = "exports"
SUFFIXES = {"gguf": ".gguf", "lm-eval": ".pt", "svec": ".svec"}  # of the exports' files
OPTIONS = (  # settings that the command line has an option for, of the same name
    "ce_budget", "goal", "negatives", "positions", "pooling", "normalize", "min_gain", "trials",
    "long_run", "seed", "confidence", "max_fluency_drop", "max_guard_drop",
)  # fmt: skip
TAGS = ("activation-steering", "steering-vector", "representation-engineering", TOOL)


@dataclass(frozen=True)
class Pushed:
    """Where a calibration was put: a repository's address, or a folder on a dry run."""

    place: str
    files: tuple[str, ...]


def push(
    directory: str | Path,
    repository: str,
    *,
    formats: Sequence[str] = (),
    private: bool = True,
    dry_run: str | Path | None = None,
    model: str | None = None,
    progress: Progress = SILENT,
    **options: Any,
) -> Pushed:
    """Put a finished calibration, exports, pictures and a card into a repository of the Hub.

    Files that an earlier push put there, and this one lacks, are removed. What is put there names
    no place on this machine (`calibrate.pipelines.neutral`).

    repository: USER/NAME; made if it is not there. formats: exports to put beside it, each checked
        as `calibrate export` does. private: whether a new repository is. dry_run: a folder to
        write instead. model, options: another place to load the model from, for exports, and other
        arguments of `load_model`.
    Raises: InputError for a name or format that does not exist; ArtefactError if the directory
        holds no calibration, or the repository a README.md of other origin, or it cannot be
        written.
    """
    found = REPOSITORY.fullmatch(repository)
    if found is None or found["revision"] is not None:
        raise InputError(f"the repository must be USER/NAME, got {repository!r}")
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise InputError(f"exports must be of {', '.join(FORMATS)}, got {', '.join(unknown)}")
    opened = partial(open_model, model=model, progress=progress, **options)
    target = None if dry_run is None else Path(dry_run)
    if target is not None and target.exists():
        raise ArtefactError(f"{target} must not exist yet, since files are written there")
    with TemporaryDirectory() as work:
        folder = Path(work)
        _write(directory, repository, folder, formats, opened)
        if target is None:
            return Pushed(_send(folder, repository, private), _names(folder))
        with made(target):
            shutil.copytree(folder, target, dirs_exist_ok=True)
        return Pushed(str(target), _names(target))


def _send(folder: Path, repository: str, private: bool) -> str:
    """Upload a folder, and return the repository's address."""
    api = HfApi()
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        left_over = _pushed_before(api, repository) - set(_names(folder))
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message=f"Pushed by {TOOL}",
            delete_patterns=[escape(name) for name in sorted(left_over)],
        )
    except CalibrateError:
        raise
    except Exception as error:  # the hub's own errors, and those of its HTTP library
        raise ArtefactError(
            f"{repository} cannot be written ({first_line(error)}); log in with `hf auth login`, "
            "or write a folder with --dry-run"
        ) from error
    return str(url)


def _write(
    directory: str | Path,
    repository: str,
    folder: Path,
    formats: Sequence[str],
    opened: Callable[[SteeringConfig], LoadedModel],
) -> None:
    """Everything the repository is to hold; opened: loads a config's model, for exports."""
    found = Calibration(*load(directory))
    loaded = opened(found.config) if formats else None
    result = neutral(found)
    result.save(folder)
    served = _export(result, folder, formats, loaded)
    text = card(result, repository, served, sorted(path.name for path in folder.glob("*.png")))
    (folder / CARD_FILE).write_text(text, encoding="utf-8")
    (folder / SUMS_FILE).write_bytes(sums_of(folder))


def _export(
    result: Calibration, folder: Path, formats: Sequence[str], loaded: LoadedModel | None
) -> dict[str, str]:
    """Write the exports; where each is in the repository, by format."""
    if not formats:
        return {}
    (folder / EXPORTS).mkdir()
    served, concept = {}, re.sub(r"[^\w.-]+", "-", result.config.concept.name)
    for name in dict.fromkeys(formats):
        file = f"{name}-{concept}{SUFFIXES.get(name, '')}"
        export(result.config, name, folder / EXPORTS / file, loaded, published=True)
        served[name] = f"{EXPORTS}/{file}"
    return served


def card(
    result: Calibration, repository: str, exports: dict[str, str], pictures: Sequence[str]
) -> str:
    """The model card of a calibration: metadata, evidence, use, limits and reproduction.

    exports: where each is in the repository, by format.
    """
    config = result.config
    data = ModelCardData(
        base_model=hub_id_of(config),
        library_name=TOOL,
        tags=list(TAGS),
        pipeline_tag="text-generation",
    )
    return _environment().get_template("card.md").render(
        metadata=data.to_yaml(), config=config, evidence=result.evidence, repository=repository,
        exports=exports, pictures=pictures, given=to_be_given(config), entered=entered(config),
        command=command_of(config), tool=TOOL, commit=commit_of(config, hub_id_of(config)),
    )  # fmt: skip


def command_of(config: SteeringConfig) -> str:
    """The command that gives the same config again, but for what only files can say."""
    settings, defaults = config.settings, type(config.settings)()
    words = ["calibrate", "--model", config.model.id, "--concept", config.concept.name]
    layer = config.provenance.settings.get("layer", defaults.layer)
    if layer not in (None, defaults.layer):
        words += ["--layer", ",".join(map(str, layer)) if isinstance(layer, list) else str(layer)]
    for name in OPTIONS:
        option, value = f"--{name.replace('_', '-')}", getattr(settings, name)
        if value != getattr(defaults, name):
            words += [option] if value is True else [option, str(value)]
    return shlex.join(words)


def _pushed_before(api: HfApi, repository: str) -> set[str]:
    """The files that an earlier push put into a repository, as its own list has them.

    Raises: ArtefactError if the repository has a card that we did not write, or no such list.
    """
    with TemporaryDirectory() as work:
        card = _fetched(api, repository, CARD_FILE, work)
        if card is None:
            return set()
        if not names_us(card):
            raise ArtefactError(
                f"{repository} must be new, or hold a calibration; it has a {CARD_FILE} of other "
                "origin, which is not replaced"
            )
        sums = _fetched(api, repository, SUMS_FILE, work)
        try:
            return set() if sums is None else set(sums_in(sums))
        except ValueError as error:
            raise ArtefactError(
                f"the {SUMS_FILE} of {repository} must be as `calibrate push` writes it, since it "
                f"says which files an earlier push left there, got another ({first_line(error)}); "
                "mend it, or delete it and those files"
            ) from error


def _fetched(api: HfApi, repository: str, name: str, work: str) -> Path | None:
    """A file of the repository, brought here; None if it has none."""
    if not api.file_exists(repository, name):
        return None
    return Path(api.hf_hub_download(repository, name, local_dir=work))


def _names(folder: Path) -> tuple[str, ...]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return tuple(sorted(path.relative_to(folder).as_posix() for path in found))


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("calibrate.pipelines", "templates"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
