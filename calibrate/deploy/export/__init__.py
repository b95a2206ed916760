"""Exports: one steering config, in the files of its consumers.

Every export derives from the config, refuses with a reason what its format cannot express, and
proves itself: it is loaded back the way its consumer loads it, and must reproduce the reference
log-probabilities that are kept in the config, before it is moved to where it was asked for.

To add a format:
1. Write a module here with a class as `exporter.Exporter` describes. Derive it from `EveryPosition`
   if the format steers every position, else from `AnyModel` and write `check_config`; set `name`.
2. Set what differs: `directory` if it writes one, `suffix` if the file's name must end so,
   `needs_model` if `write` or `serve` reads the model. What `published` ones write names no place
   on this machine: the model goes by `place`. Refuse a model in `check_model`.
3. `write` puts the files at `path`; `baked` gives α·v. For a single file, sign its contents
   (`common.marks.signature`) and let `wrote` recognise that; directories are marked by `target`.
4. `serve` says how to use the export; `renders` tells whether prompts come out as they did for the
   calibration without anybody's help. `loaded_back` reads what was written as the consumer does;
   `with_shifts` and `unsteered` give the log-probabilities. Import the consumer's library inside.
5. Add the module and class to FORMATS in common/export_formats.py; run scripts/write_cli_docs.py.
   The tests over FORMATS then cover it.
6. In tests/deploy, name a single-file format in SINGLE of test_never_destroys.py and in `target` of
   test_export.py, and test it there with the consumer itself.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from calibrate.artefact.config import SteeringConfig
from calibrate.common.errors import InputError, VerificationFailed, did_you_mean
from calibrate.common.export_formats import FORMATS
from calibrate.common.progress import SILENT, Progress
from calibrate.deploy.checks import TOLERANCES
from calibrate.deploy.diagnosis import distance
from calibrate.deploy.export.exporter import Exported, Exporter, to_be_given
from calibrate.deploy.export.restored import restored
from calibrate.deploy.export.target import Target, target_for
from calibrate.deploy.verify import open_model
from calibrate.models.model import LoadedModel, preserving_model_state
from calibrate.search.reference import next_log_probs

__all__ = ["FORMATS", "Exported", "check_request", "export"]


def export(
    config: SteeringConfig,
    format_name: str,
    to: str | Path,
    loaded: LoadedModel | None = None,
    check: bool = True,
    progress: Progress = SILENT,
    source: str | Path | None = None,
    published: bool = False,
) -> Exported:
    """Write a config in the format of a consumer, having checked what was written.

    format_name: one of FORMATS. to: a file or a directory, as the format has it; an earlier
        export there is replaced, and nothing else (`calibrate.deploy.export.target`).
    loaded: the model the config is for (default: what `deploy.verify.open_model` loads); it comes
        back as it was.
    check: load it back and compare; without, nothing is proved.
    source: the directory the config came from.
    published: whether others are to read it, so that it must name no place on this machine.

    Raises: ExportRefused if the format cannot express the config; ArtefactError if it cannot be
        written there; VerificationFailed if what was written does not reproduce the reference.
        Nothing is then changed.
    """
    exporter, target = _planned(config, format_name, to, source, published)
    model = loaded
    if model is None and (check or exporter.needs_model):
        model = open_model(config, progress=progress)
    if model is None:
        with target.writing() as path:
            exporter.write(config, None, path, target.given)
        return Exported(target.given, _served(exporter, config, None, target))
    with preserving_model_state(model), restored(model.model):
        subject = exporter.subject(model)
        exporter.check_model(config, subject)
        with target.writing() as path:
            exporter.write(config, subject, path, target.given)
            gap = _gap(exporter, config, subject, path) if check else None
        served = _served(exporter, config, subject, target)
    return Exported(target.given, served, gap, TOLERANCES[config.model.dtype] if check else None)


def check_request(
    config: SteeringConfig, format_name: str, to: str | Path, source: str | Path | None = None
) -> None:
    """Raise what `export` would without a model: the format, what it can express, the place."""
    _planned(config, format_name, to, source)


def _planned(
    config: SteeringConfig,
    format_name: str,
    to: str | Path,
    source: str | Path | None,
    published: bool = False,
) -> tuple[Exporter, Target]:
    exporter = _exporter(format_name, published)
    exporter.check_config(config)
    return exporter, target_for(exporter, to, source)


def _served(
    exporter: Exporter, config: SteeringConfig, model: LoadedModel | None, target: Target
) -> tuple[str, ...]:
    """What to do with an export, a line each."""
    lines = exporter.serve(config, model, target.given)
    return lines if exporter.renders else (*lines, *to_be_given(config))


def _exporter(name: str, published: bool = False) -> Exporter:
    if name not in FORMATS:
        raise InputError(
            f"--format must be one of {', '.join(FORMATS)}, got {name!r}"
            f"{did_you_mean(name, FORMATS)}"
        )
    module, kind = FORMATS[name]
    made = getattr(import_module(f"calibrate.deploy.export.{module}"), kind)
    exporter: Exporter = made(published)
    return exporter


def _gap(exporter: Exporter, config: SteeringConfig, model: LoadedModel, path: Path) -> float:
    """How far what was written is from the reference; raises if it is too far."""
    reference, tolerance = config.reference, TOLERANCES[config.model.dtype]
    unsteered = next_log_probs(model, reference.input_ids)
    with exporter.loaded_back(config, model, path) as steered:
        found = distance(steered(reference.input_ids), unsteered, reference)
    if not found.within(tolerance):
        raise VerificationFailed(
            f"the {exporter.name} export must reproduce the reference log-probabilities: "
            f"{found.why_not(tolerance)}; nothing was kept. Does `calibrate verify` pass with this "
            "model?"
        )
    return found.gap
