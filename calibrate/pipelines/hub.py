"""Put a calibration on the Hugging Face Hub, with a model card made from its evidence.

A file of the repository is replaced or removed only if an earlier push put it there: one that its
own list names. That list is believed only beside a card that has the digest it gives.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from glob import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from calibrate.artefact.config import SteeringConfig
from calibrate.artefact.hub import REPOSITORY, SUMS_FILE, sums_in, sums_of
from calibrate.artefact.saved import load
from calibrate.common.errors import ArtefactError, CalibrateError, InputError
from calibrate.common.files import making
from calibrate.common.marks import TOOL, names_us, sha256_of
from calibrate.common.progress import SILENT, Progress
from calibrate.deploy.export import FORMATS, export
from calibrate.deploy.finished import Calibration
from calibrate.deploy.verify import open_model
from calibrate.models.model import LoadedModel
from calibrate.models.unreadable import first_line
from calibrate.pipelines.card import card
from calibrate.pipelines.neutral import neutral

CARD_FILE = "README.md"
EXPORTS = "exports"
SUFFIXES = {"gguf": ".gguf", "lm-eval": ".pt", "svec": ".svec"}  # of the exports' files


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

    Files that an earlier push put there, and this one lacks, are removed; no other is, nor
    replaced. What is put there names no place on this machine (`calibrate.pipelines.neutral`).

    repository: USER/NAME; made if it is not there. formats: exports to put beside it, each checked
        as `calibrate export` does. private: whether a new repository is. dry_run: a folder to
        write instead, whole or not at all. model, options: another place to load the model from,
        for exports, and other arguments of `load_model`.
    Raises: InputError for a name or format that does not exist; ArtefactError if the directory
        holds no calibration, or the repository a file of other origin that would be replaced, or it
        cannot be written.
    """
    found = REPOSITORY.fullmatch(repository)
    if found is None or found["revision"] is not None:
        raise InputError(f"the repository must be USER/NAME, got {repository!r}")
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise InputError(f"exports must be of {', '.join(FORMATS)}, got {', '.join(unknown)}")
    opened = partial(open_model, model=model, progress=progress, **options)
    if dry_run is not None:
        target = Path(dry_run)
        if os.path.lexists(target):
            raise ArtefactError(f"{target} must not exist yet, since files are written there")
        with making(target) as folder:
            _write(directory, repository, folder, formats, opened)
        return Pushed(str(target), _names(target))
    api = HfApi()
    with _reaching(repository):
        _pushed_before(api, repository, [CARD_FILE, SUMS_FILE])  # before anything is made
    with TemporaryDirectory() as work:
        folder = Path(work)
        _write(directory, repository, folder, formats, opened)
        return Pushed(_send(api, folder, repository, private), _names(folder))


def _send(api: HfApi, folder: Path, repository: str, private: bool) -> str:
    """Upload a folder, and return the repository's address."""
    with _reaching(repository):
        names = _names(folder)
        left_over = _pushed_before(api, repository, names) - {*names}
        url = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message=f"Pushed by {TOOL}",
            delete_patterns=[escape(name) for name in sorted(left_over)],
        )
    return str(url)


@contextmanager
def _reaching(repository: str) -> Iterator[None]:
    """Say of what the hub refuses which repository it is about."""
    try:
        yield
    except CalibrateError:
        raise
    except Exception as error:  # the hub's own errors, and those of its HTTP library
        raise ArtefactError(
            f"{repository} cannot be written ({first_line(error)}); log in with `hf auth login`, "
            "or write a folder with --dry-run"
        ) from error


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


def _pushed_before(api: HfApi, repository: str, names: Collection[str]) -> set[str]:
    """The files that an earlier push put into a repository, as its own list has them.

    names: what is to be put there.
    Raises: ArtefactError if one of these is there already and no push put it there, or the card has
        been changed since, or the list is no such list.
    """
    there = _files_in(api, repository)
    with TemporaryDirectory() as work:
        listed = _listed(api, repository, Path(work)) if there >= {CARD_FILE, SUMS_FILE} else {}
        ours = {*listed, *({SUMS_FILE} if listed else ())}
        if CARD_FILE in there:
            held = Path(api.hf_hub_download(repository, CARD_FILE, local_dir=work))
            is_ours = listed.get(CARD_FILE) == sha256_of(held) if listed else names_us(held)
            ours = ours | {CARD_FILE} if is_ours else set()
    if foreign := sorted(there & {*names} - ours):
        raise ArtefactError(
            f"{repository} must be new, or hold what was pushed there and not changed since; it "
            f"has another {foreign[0]}, which is not replaced; delete or rename it there"
        )
    return set(listed)


def _files_in(api: HfApi, repository: str) -> set[str]:
    """The names of a repository's files; none if there is no such repository yet."""
    try:
        return set(api.list_repo_files(repository))
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return set()


def _listed(api: HfApi, repository: str, work: Path) -> dict[str, str]:
    """The digests of what an earlier push put there, by the file's name."""
    try:
        return sums_in(Path(api.hf_hub_download(repository, SUMS_FILE, local_dir=work)))
    except ValueError as error:
        raise ArtefactError(
            f"the {SUMS_FILE} of {repository} must be as `calibrate push` writes it, since it says "
            f"which files an earlier push left there, got another ({first_line(error)}); mend it, "
            "or delete it and those files"
        ) from error


def _names(folder: Path) -> tuple[str, ...]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return tuple(sorted(path.relative_to(folder).as_posix() for path in found))
