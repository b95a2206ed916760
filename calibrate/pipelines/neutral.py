"""A calibration as it may be published: it names no place on the machine that it was made on.

Models that are files or directories go by their last part, as do judges of such models, and the
address of a judge's server is left out. Nothing that is measured or checked depends on these.
"""

from __future__ import annotations

import re
from dataclasses import replace

from calibrate.artefact.config import SteeringConfig
from calibrate.artefact.measured_sections import MeasuredSection, PresenceSection
from calibrate.deploy.finished import Calibration
from calibrate.engine.loading import is_hub_id
from probes import Probe
from probes.judges import NAMED


def neutral(result: Calibration) -> Calibration:
    """The same calibration, naming no path and no server."""
    config = _neutral_config(result.config)
    probe, frontier = result.probe, result.frontier
    return Calibration(
        config,
        result.evidence,
        None if probe is None else _neutral_probe(probe),
        None if frontier is None else frontier.model_copy(update={"model": config.model.id}),
    )


def _neutral_config(config: SteeringConfig) -> SteeringConfig:
    beside, provenance = config.beside, config.provenance
    settings = {**provenance.settings, "judge_url": None}
    if beside is not None:
        beside = beside.model_copy(update={"judge": _neutral_judge(beside.judge)})
    return config.model_copy(
        update={
            "model": replace(config.model, id=_neutral_model(config.model.id)),
            "measured": _neutral_measured(config.measured),
            "provenance": provenance.model_copy(update={"settings": settings}),
            "beside": beside,
        }
    )


def _neutral_measured(measured: MeasuredSection) -> MeasuredSection:
    audit = measured.audit
    if audit is not None:
        audit = replace(audit, judge=_neutral_judge(audit.judge))
    judges = [_neutral_judge(name) for name in measured.judges]
    presence = _neutral_presence(measured.presence)
    return measured.model_copy(update={"judges": judges, "audit": audit, "presence": presence})


def _neutral_presence(presence: PresenceSection) -> PresenceSection:
    scale = presence.scale
    if scale is None or scale.teacher is None:
        return presence
    teacher = _neutral_judge(scale.teacher)
    return replace(presence, scale=scale.model_copy(update={"teacher": teacher}))


def _neutral_probe(probe: Probe) -> Probe:
    teacher = probe.learned.teacher
    learned = replace(probe.learned, teacher=teacher and _neutral_judge(teacher))
    return replace(probe, model_id=_neutral_model(probe.model_id), learned=learned)


def _neutral_judge(name: str) -> str:
    """A judge's name; the model in it as a model goes, and a function's as it is."""
    kind, colon, model = name.partition(":")
    return f"{kind}:{_neutral_model(model)}" if colon and kind in NAMED else name


def _neutral_model(name: str) -> str:
    """A hub id, an embedded model or a class as it is, and a path by its last part."""
    if is_hub_id(name):
        return name
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1]
