"""Put people's grades into a calibration's directory: into its probe's scale and its config."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace

from calibrate.blind import ReadingRoom
from calibrate.calibration import Calibration
from calibrate.grades import Grades
from calibrate.readers import graded_pairs, infer
from calibrate.schema import ReadersSection, ScaleSection
from probes.correction import FittedScale, fit_correction
from probes.scale import Scale


def apply_grades(room: ReadingRoom, grades: Grades) -> tuple[ReadersSection, list[str]]:
    """Write what the grades say into the config, and correct the probe's scale if it is the judge.

    Everything else that was measured stays as it was. The probe is corrected from how it was
    fitted, so that the same grades change nothing a second time.

    Returns: the config's new section, and what changed, a line each; no lines if nothing did.
    Raises: as `readers.infer`; ArtefactError if the directory cannot be written.
    """
    before = Calibration.load(room.directory)
    section, probe = infer(room, grades), before.probe
    if before.config.measured.judges[0] == "probe" and probe is not None:
        pairs = graded_pairs(room, grades)
        fitted = fit_correction(pairs.scores, pairs.somewhat)
        probe = probe.rescaled(fitted.scale)
        section = section.model_copy(update={"scale": _scale_section(fitted)})
    measured = before.config.measured.model_copy(update={"readers": section})
    config = before.config.model_copy(update={"measured": measured})
    after = replace(before, config=config, probe=probe)
    changes = list(_changes(before, after))
    if changes:
        after.save(room.directory)
    return section, changes


def _scale_section(fitted: FittedScale) -> ScaleSection:
    facts = asdict(fitted)
    del facts["scale"]
    return ScaleSection(**facts, **asdict(fitted.scale))


def _changes(before: Calibration, after: Calibration) -> Iterator[str]:
    if before.config != after.config:
        yield "steering.json: measured.readers; report.html shows it"
    if before.probe is not None and after.probe is not None:
        old, new = before.probe.scale, after.probe.scale
        if old != new:
            yield f"probe/probe.json: {_said(new)}; it was {_said(old)}"


def _said(scale: Scale) -> str:
    return f"log-odds × {scale.slope:.3g} {scale.offset:+.3g}"
