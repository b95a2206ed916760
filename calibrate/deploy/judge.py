"""A judge outside of a calibration, by its name or by the directory of its probe."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import probes
from calibrate.artefact.config import CONFIG_FILE, load
from calibrate.artefact.saved import PROBE_FOLDER
from calibrate.common.errors import InputError, did_you_mean
from calibrate.common.progress import SILENT, Progress
from calibrate.common.settings import Settings
from calibrate.deploy.verify import open_model
from calibrate.engine.loading import load_model
from calibrate.judging.choice import check_judges
from calibrate.judging.panel import judge_from_texts, judge_without_texts
from calibrate.models.model import LoadedModel
from calibrate.texts.concept import read_concept
from probes import Probe, Reader
from probes.judges import NAMED

MODEL = "smollm2"  # what judges read with by default


def open_judge(
    judge: str,
    concept: str | None = None,
    model: str | None = None,
    progress: Progress = SILENT,
    **place: Any,
) -> Reader:
    """Make a judge, with what it looks for.

    judge: a name (`probes.judges`); for the probe, the directory of a calibration or of the probe.
    concept: what it looks for; None for a probe, which knows. For the embedding judge, which learns
        from the concept's texts, a built-in name or a file; for others any words.
    model: what a probe or `question` reads with; None for the probe's own, or MODEL.
    place: other arguments of `load_model`.
    Raises: InputError if there is no such judge, or it cannot be made of this.
    """
    if Path(judge).is_dir():
        return _probe_in(Path(judge), concept, model, progress, place)
    if judge in ("auto", "probe") or not (":" in judge or judge in NAMED):
        names = [name for name in NAMED if name != "auto"]
        raise InputError(
            f"judge must be {', '.join(names)}, module:function, or the directory of a finished "
            f"calibration or of a probe, got {judge!r}{did_you_mean(judge, names)}"
        )
    settings = Settings()
    check_judges(judge, None, settings)
    if concept is None:
        raise InputError(f"judge {judge!r} must know what to look for; give it with --concept")

    @cache
    def loaded() -> LoadedModel:
        return load_model(model or MODEL, progress=progress, **place)

    ready = judge_without_texts(judge, loaded, settings, progress, **place)
    if ready is not None:
        return Reader(ready, concept, judge)
    known = read_concept(concept)
    return Reader(judge_from_texts(judge, known.name, known.split()["probe"]), known.name, judge)


def _probe_in(
    directory: Path,
    concept: str | None,
    model: str | None,
    progress: Progress,
    place: dict[str, Any],
) -> Reader:
    """The probe of a calibration's directory, or of its own."""
    if (directory / CONFIG_FILE).exists():
        config = load(directory)
        if not (directory / PROBE_FOLDER).is_dir():
            by = config.measured.judges[0]
            raise InputError(
                f"{directory} must hold a probe, but its replies were read by {by!r}; hold that to "
                f"the texts: calibrate judge {by} --concept {config.concept.name}"
            )
        probe = probes.load(directory / PROBE_FOLDER)
        _require_concept(probe, concept, directory)
        opened = open_model(config, model, progress=progress, **place)
    else:
        probe = probes.load(directory)
        _require_concept(probe, concept, directory)
        opened = load_model(model or probe.model_id, progress=progress, **place)
    return Reader(probe.on(opened), probe.concept, "probe")


def _require_concept(probe: Probe, concept: str | None, directory: Path) -> None:
    if concept not in (None, probe.concept):
        raise InputError(
            f"--concept must be {probe.concept!r}, which the probe in {directory} was fitted for, "
            f"got {concept!r}"
        )
