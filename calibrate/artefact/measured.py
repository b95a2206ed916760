"""The results of verification, as sections of the config."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calibrate.artefact.measured_sections import (
    AlongSection,
    AuditSection,
    ControlsSection,
    DeltaCESection,
    FluencySection,
    GuardSection,
    LongRunSection,
    MeasuredSection,
    PresenceScaleSection,
    PresenceSection,
)
from calibrate.common.settings import Settings
from calibrate.engine.generation import Completion
from calibrate.judging.guard import Guarded
from calibrate.search.long_run import LOOP_MARGIN, WINDOW, Along, LongRun
from calibrate.search.verification import Controls, Verified
from probes import Learned


def measured_section(
    verified: Verified, judges: Sequence[str], learned: Learned | None, settings: Settings
) -> MeasuredSection:
    """Return what the verification measured, as the config has it."""
    confidence = settings.confidence
    rise = verified.budget.delta_ce
    return MeasuredSection(
        judges=list(judges),
        delta_ce=DeltaCESection(
            **vars(rise.with_interval(confidence)),
            upper=rise.upper(confidence),
            corpus=verified.corpus_kind,
            n_sequences=len(rise.counts),
            n_tokens=int(rise.counts.sum()),
        ),
        presence=_presence_section(verified, learned, confidence),
        controls=_controls_section(verified.controls, confidence),
        audit=_audit_section(verified, confidence),
        fluency=_fluency_section(verified, confidence),
        long_run=_long_run_section(verified.long_run, confidence),
        guard=guard_section(verified.guarded, confidence),
    )


def _controls_section(controls: Controls | None, confidence: float) -> ControlsSection | None:
    if controls is None:
        return None
    return ControlsSection(
        random_vector=controls.random_vector.with_interval(confidence),
        prompt_only=controls.prompt_only.with_interval(confidence),
    )


def _presence_section(
    verified: Verified, learned: Learned | None, confidence: float
) -> PresenceSection:
    steered, plain = verified.presence, verified.baseline
    return PresenceSection(
        **vars(steered.estimate.with_interval(confidence)),
        baseline=plain.estimate.value,
        baseline_interval=plain.estimate.interval(confidence),
        change=verified.change.with_interval(confidence),
        detectable=verified.detectable,
        n_replies=verified.n_replies,
        explained_by_length=verified.explained_by_length,
        n_prompts=len(steered.estimate.counts),
        n_completions=int(steered.estimate.counts.sum()),
        empty=steered.empty,
        empty_baseline=plain.empty,
        unanswered=_unanswered(steered.completions),
        unanswered_baseline=_unanswered(plain.completions),
        clear=steered.clear,
        clear_baseline=plain.clear,
        scale=None if learned is None else _scale_section(learned),
    )


def _scale_section(learned: Learned) -> PresenceScaleSection:
    return PresenceScaleSection(
        source=learned.source,
        teacher=learned.teacher,
        n_texts=learned.n_texts,
        auc=learned.quality.auc,
        calibration_error=learned.quality.calibration_error,
    )


def _audit_section(verified: Verified, confidence: float) -> AuditSection | None:
    audit = verified.audit
    if audit is None:
        return None
    return AuditSection(
        **vars(audit.presence.with_interval(confidence)),
        judge=audit.judge,
        baseline=audit.baseline.value,
        change=audit.change.with_interval(confidence),
        agreement=audit.agreement,
        opinion=audit.opinion,
    )


def _fluency_section(verified: Verified, confidence: float) -> FluencySection:
    steered, plain = verified.fluency, verified.fluency_baseline
    return FluencySection(
        log_prob=steered.log_prob.value,
        log_prob_baseline=plain.log_prob.value,
        drop=verified.fluency_drop.with_interval(confidence),
        drop_upper=verified.fluency_drop.upper(confidence),
        distinct_2=steered.distinct_2,
        distinct_2_baseline=plain.distinct_2,
        longest_loop=steered.longest_loop,
        longest_loop_baseline=plain.longest_loop,
        n_tokens=steered.n_tokens,
        n_tokens_baseline=plain.n_tokens,
    )


def _long_run_section(long_run: LongRun | None, confidence: float) -> LongRunSection | None:
    if long_run is None:
        return None
    return LongRunSection(
        n_tokens=long_run.n_tokens,
        n_prompts=len(long_run.loops.counts),
        window=WINDOW,
        loops=long_run.loops.value,
        loops_baseline=long_run.loops_baseline.value,
        loop_excess=long_run.excess.with_interval(confidence),
        margin=LOOP_MARGIN,
        steered=_along_section(long_run.steered),
        unsteered=_along_section(long_run.unsteered),
    )


def guard_section(guarded: Guarded | None, confidence: float) -> GuardSection | None:
    """How the guard's questions were answered, as the config has it."""
    if guarded is None:
        return None
    return GuardSection(
        name=guarded.name,
        sha256=guarded.sha256,
        n_questions=len(guarded.accuracy.counts),
        accuracy=guarded.accuracy.with_interval(confidence),
        baseline=guarded.baseline.value,
        drop=guarded.drop.with_interval(confidence),
        drop_upper=guarded.drop_upper(confidence),
    )


def _along_section(along: Along) -> AlongSection:
    return AlongSection(
        loops=along.loops.tolist(),
        presence=[None if np.isnan(share) else float(share) for share in along.presence],
        log_prob=along.log_prob.tolist(),
        n_replies=along.n_replies.tolist(),
    )


def _unanswered(completions: Sequence[Completion]) -> float:
    """Share of the replies that end inside the thought, before any answer."""
    return sum(not reply.answered for reply in completions) / len(completions)
