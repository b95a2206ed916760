"""What was verified, as sections of the config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from calibrate.artefact.measured_sections import (
    AlongSection,
    AuditSection,
    ControlsSection,
    DeltaCESection,
    FluencySection,
    LongRunSection,
    MeasuredSection,
    PresenceScaleSection,
    PresenceSection,
)
from calibrate.common.record import IntervalSection
from calibrate.common.settings import Settings
from calibrate.engine.generation import Completion
from calibrate.search.long_run import LOOP_MARGIN, WINDOW, Along, LongRun
from calibrate.search.verification import Verified
from probes import Learned

if TYPE_CHECKING:
    from calibrate.common.estimate import RatioEstimate


def measured_section(
    verified: Verified, judges: Sequence[str], learned: Learned | None, settings: Settings
) -> MeasuredSection:
    """Return what the verification measured, as the config has it."""
    confidence = settings.confidence
    rise = verified.budget.delta_ce
    presence, baseline = verified.presence.estimate, verified.baseline.estimate
    return MeasuredSection(
        judges=list(judges),
        delta_ce=DeltaCESection(
            **_interval(rise, confidence),
            upper=rise.upper(confidence),
            corpus=verified.corpus_kind,
            n_sequences=len(rise.counts),
            n_tokens=int(rise.counts.sum()),
        ),
        presence=PresenceSection(
            **_interval(presence, confidence),
            baseline=baseline.value,
            baseline_interval=baseline.interval(confidence),
            change=IntervalSection(**_interval(verified.change, confidence)),
            detectable=verified.detectable,
            n_replies=verified.n_replies,
            explained_by_length=verified.explained_by_length,
            n_prompts=len(presence.counts),
            n_completions=int(presence.counts.sum()),
            empty=verified.presence.empty,
            empty_baseline=verified.baseline.empty,
            unanswered=_unanswered(verified.presence.completions),
            unanswered_baseline=_unanswered(verified.baseline.completions),
            clear=verified.presence.clear,
            clear_baseline=verified.baseline.clear,
            scale=None if learned is None else _scale_section(learned),
        ),
        controls=ControlsSection(
            random_vector=IntervalSection(**_interval(verified.random_vector, confidence)),
            prompt_only=IntervalSection(**_interval(verified.prompt_only, confidence)),
        ),
        audit=_audit_section(verified, confidence),
        fluency=_fluency_section(verified, confidence),
        long_run=_long_run_section(verified.long_run, confidence),
    )


def _scale_section(learned: Learned) -> PresenceScaleSection:
    return PresenceScaleSection(
        source=learned.source,
        teacher=learned.teacher,
        n_texts=learned.n_texts,
        auc=IntervalSection(**asdict(learned.quality.auc)),
        calibration_error=IntervalSection(**asdict(learned.quality.calibration_error)),
    )


def _audit_section(verified: Verified, confidence: float) -> AuditSection | None:
    found = verified.audit
    if found is None:
        return None
    return AuditSection(
        **_interval(found.presence, confidence),
        judge=found.judge,
        baseline=found.baseline.value,
        change=IntervalSection(**_interval(found.change, confidence)),
        agreement=found.agreement,
        opinion=found.opinion,
    )


def _fluency_section(verified: Verified, confidence: float) -> FluencySection:
    steered, plain = verified.fluency, verified.fluency_baseline
    return FluencySection(
        log_prob=steered.log_prob.value,
        log_prob_baseline=plain.log_prob.value,
        drop=IntervalSection(**_interval(verified.fluency_drop, confidence)),
        drop_upper=verified.fluency_drop.upper(confidence),
        distinct_2=steered.distinct_2,
        distinct_2_baseline=plain.distinct_2,
        longest_loop=steered.longest_loop,
        longest_loop_baseline=plain.longest_loop,
        n_tokens=steered.n_tokens,
        n_tokens_baseline=plain.n_tokens,
    )


def _long_run_section(found: LongRun | None, confidence: float) -> LongRunSection | None:
    if found is None:
        return None
    return LongRunSection(
        n_tokens=found.n_tokens,
        n_prompts=len(found.loops.counts),
        window=WINDOW,
        loops=found.loops.value,
        loops_baseline=found.loops_baseline.value,
        loop_excess=IntervalSection(**_interval(found.excess, confidence)),
        margin=LOOP_MARGIN,
        steered=_along_section(found.steered),
        unsteered=_along_section(found.unsteered),
    )


def _along_section(along: Along) -> AlongSection:
    return AlongSection(
        loops=along.loops.tolist(),
        presence=[None if np.isnan(one) else float(one) for one in along.presence],
        log_prob=along.log_prob.tolist(),
        n_replies=along.n_replies.tolist(),
    )


def _unanswered(completions: Sequence[Completion]) -> float:
    """Share of the replies that end within the thought."""
    return sum(not one.answered for one in completions) / len(completions)


def _interval(estimate: RatioEstimate, confidence: float) -> dict[str, Any]:
    low, high = estimate.interval(confidence)
    return {"value": estimate.value, "low": low, "high": high}
