"""Put people's grades into a calibration's directory: into its probe's scale and its config."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from calibrate.artefact import saved
from calibrate.artefact.config import SteeringConfig
from calibrate.artefact.grades import Grades
from calibrate.artefact.measured_sections import ReadersSection, ScaleSection
from calibrate.deploy.grading.blind import ReadingRoom
from calibrate.deploy.grading.readers import graded_pairs, infer
from probes import Probe
from probes.correction import FittedScale, fit_correction
from probes.scale import Scale


def apply_grades(room: ReadingRoom, grades: Grades) -> tuple[ReadersSection, list[str]]:
    """Write what the grades say into the config, and correct the probe's scale if it is the judge.

    Everything else that was measured stays as it was. The probe is corrected from how it was
    fitted, so that the same grades change nothing a second time.

    Returns: the config's new section, and what changed, a line each; no lines if nothing did.
    Raises: as `readers.infer`; ArtefactError if the directory cannot be written, or holds another
        calibration by now.
    """
    section = infer(room, grades)
    with saved.changing(room.directory, room.config.provenance.fingerprint) as found:
        return _put(room, grades, section, found)


def _put(
    room: ReadingRoom, grades: Grades, section: ReadersSection, found: saved.Saved
) -> tuple[ReadersSection, list[str]]:
    """Put a section into a calibration, and write what it changes."""
    config, evidence, probe, frontier = found
    corrected = probe
    if config.measured.judges[0] == "probe" and probe is not None:
        pairs = graded_pairs(room, grades)
        fitted = fit_correction(pairs.scores, pairs.somewhat)
        corrected = probe.rescaled(fitted.scale)
        section = section.model_copy(update={"scale": _scale_section(fitted)})
    measured = config.measured.model_copy(update={"readers": section})
    after = config.model_copy(update={"measured": measured})
    changes = [*_config_changes(config, after), *_probe_changes(probe, corrected)]
    if changes:
        saved.save(room.directory, after, evidence, corrected, frontier)
    return section, changes


def _scale_section(fitted: FittedScale) -> ScaleSection:
    facts = asdict(fitted)
    del facts["scale"]
    return ScaleSection(**facts, **asdict(fitted.scale))


def _config_changes(before: SteeringConfig, after: SteeringConfig) -> Iterator[str]:
    if before != after:
        yield "steering.json: measured.readers; report.html shows it"


def _probe_changes(before: Probe | None, after: Probe | None) -> Iterator[str]:
    if before is not None and after is not None and before.scale != after.scale:
        yield f"probe/probe.json: {_said(after.scale)}; it was {_said(before.scale)}"


def _said(scale: Scale) -> str:
    return f"log-odds × {scale.slope:.3g} {scale.offset:+.3g}"
