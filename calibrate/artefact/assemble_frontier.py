"""Build the frontier from what was measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple

import numpy as np

from calibrate.artefact.advice import advice, error_of_change
from calibrate.artefact.config import SteeringConfig
from calibrate.artefact.evidence import Evidence
from calibrate.artefact.frontier import Frontier, MissedSection, PointSection, RivalSection
from calibrate.artefact.measured import guard_section
from calibrate.common.cost import Cost
from calibrate.common.estimate import Interval, RatioEstimate
from calibrate.common.numbers import in_points
from calibrate.common.settings import Settings
from calibrate.laws.limit import best_of_cost
from calibrate.laws.presence import fit_presence
from calibrate.search import frontier as search
from calibrate.search.effect import decide
from calibrate.search.frontier_end import End, Known, end_of
from calibrate.search.harm import forgets, is_silenced, reads_worse
from calibrate.search.long_run import LOOP_MARGIN
from calibrate.search.rivals import Rival

UNDECIDED = "undecided; pick draws more replies"  # why a point does not ship


def build_frontier(
    fingerprint: str,
    bench: search.Bench,
    measured: search.Frontier,
    rivals: Sequence[Rival],
    rivals_at: float | None,
    cost: Mapping[str, Cost],
    earlier: Frontier | None = None,
    shipped: PointSection | None = None,
) -> Frontier:
    """Return the frontier at a bench's site.

    fingerprint: of the calibration. cost: of each stage, by its name. earlier: a frontier of the
        same calibration, to which this one is added. shipped: the calibration's own strength.
    """
    settings, confidence = bench.settings, bench.settings.confidence
    tokens = float(measured_lengths(bench))
    first = bench.plain[0]
    found = Frontier(
        model=bench.loaded.name,
        concept=bench.reader.concept,
        goal=settings.goal,
        where=bench.site.where,
        fingerprint=fingerprint,
        confidence=confidence,
        temperature=settings.sampling.temperature,
        n_tokens=tokens,
        baseline=bench.baseline.estimate.with_interval(confidence),
        points=[_point_section(point, settings) for point in measured.points],
        shipped=shipped,
        missed=[MissedSection(budget=each, why=why) for each, why in measured.missed.items()],
        ended=None if measured.ended is None else measured.ended.says,
        ended_at=None if measured.ended is None else measured.ended.budget,
        law=(0.0, 1.0, 0.0, 1.0),
        rivals=[_rival_section(rival, confidence) for rival in rivals],
        rivals_at=rivals_at,
        advice="",
        prompt=first.prompt,
        unsteered=first.text,
        token_forwards={stage: spent.token_forwards for stage, spent in cost.items()},
    )
    joined = found if earlier is None else _joined(earlier, found, measured.ended)
    return _told(joined, len(bench.replies.prompts["verify"]), settings)


def with_others(
    frontier: Frontier, found: Frontier | None, n_prompts: int, settings: Settings
) -> Frontier:
    """A frontier with what another run has put beside its calibration meanwhile.

    Of a budget that both measured, this frontier's is kept. What both began with is counted once.
    n_prompts: of the verification. settings: of the calibration.
    """
    if found is None:
        return frontier
    own, silent = known_before(frontier, ())
    others, silent_then = known_before(found, [point.budget for point in frontier.points])
    ended = end_of([*others, *own], frontier.sign) or silent or silent_then
    spent = Counter(found.token_forwards) | Counter(frontier.token_forwards)
    both = _joined(found, frontier, ended).model_copy(
        update={
            "token_forwards": dict(spent),
            "ended": None if ended is None else ended.says,
            "ended_at": None if ended is None else ended.budget,
        }
    )
    return _told(both, n_prompts, settings)


def shipped_section(
    config: SteeringConfig,
    evidence: Evidence,
    cost: RatioEstimate,
    cost_back: RatioEstimate,
) -> PointSection:
    """The strength that a calibration ships, as its verification measured it.

    cost, cost_back: nats a token, which no verification measures.
    """
    measured, confidence = config.measured, config.settings.confidence
    presence, long_run, audit = measured.presence, measured.long_run, measured.audit
    return PointSection(
        budget=config.budget.limit,
        strength=config.intervention.strength,
        delta_ce=_plain(measured.delta_ce),
        upper=measured.delta_ce.upper,
        tested=evidence.tested,
        presence=_plain(presence),
        change=presence.change,
        audited=None if audit is None else audit.change,
        n_prompts=presence.n_prompts,
        empty=presence.empty,
        loops=None if long_run is None else long_run.loops,
        loop_excess=None if long_run is None else long_run.loop_excess,
        fluency_drop=measured.fluency.drop,
        cost=per_reply(cost, confidence),
        cost_back=per_reply(cost_back, confidence),
        guard=measured.guard,
        ships=True,
        why_not=None,
        example=evidence.completions[0].steered,
    )


def known_before(earlier: Frontier, budgets: Collection[float]) -> tuple[list[Known], End | None]:
    """What a frontier knows of other budgets than these, and which of them silenced the model."""
    points = [point for point in earlier.points if point.budget not in budgets]
    missed = [one for one in earlier.missed if one.budget not in budgets]
    silent = [End(one.budget, one.why) for one in missed if one.budget == earlier.ended_at]
    return [_known(point, earlier.confidence) for point in points], silent[0] if silent else None


def carried(
    frontier: Frontier, config: SteeringConfig, shipped: PointSection, n_prompts: int
) -> Frontier:
    """The frontier as that of another calibration of the same site, by the same judges.

    config, shipped: of that one. n_prompts: replied to at each strength.
    """
    fingerprint = config.provenance.fingerprint
    own = frontier.model_copy(update={"fingerprint": fingerprint, "shipped": shipped})
    return _told(own, n_prompts, config.settings)


def measured_lengths(bench: search.Bench) -> float:
    """Mean length of the plain replies, tokens."""
    replies = bench.replies.first_replies("verify")
    return sum(len(reply.ids) for reply in replies) / len(replies)


def _joined(earlier: Frontier, later: Frontier, ended: End | None) -> Frontier:
    """Two frontiers as one; of a budget that both measured, what the later one found.

    ended: where the later one found both to end.
    """
    points = {point.budget: point for point in (*earlier.points, *later.points)}
    missed = _still_missed(earlier, ended) | {one.budget: one for one in later.missed}
    rivals = later if later.rivals else earlier
    spent = Counter(earlier.token_forwards) + Counter(later.token_forwards)
    return later.model_copy(
        update={
            "points": [points[budget] for budget in sorted(points)],
            "missed": [missed[budget] for budget in sorted(missed.keys() - points.keys())],
            "rivals": rivals.rivals,
            "rivals_at": rivals.rivals_at,
            "token_forwards": dict(spent),
        }
    )


def _still_missed(earlier: Frontier, ended: End | None) -> dict[float, MissedSection]:
    """What was tried in vain, and what lies beyond the end as it is now; not what lay beyond it."""
    missed = {}
    for one in earlier.missed:
        if ended is not None and one.budget > ended.budget:
            missed[one.budget] = MissedSection(budget=one.budget, why=ended.forbids)
        elif earlier.ended_at is None or one.budget <= earlier.ended_at:
            missed[one.budget] = one
    return missed


def _told(frontier: Frontier, n_prompts: int, settings: Settings) -> Frontier:
    """With the law of presence through all points and the unsteered replies, and advice.

    n_prompts: replied to at each strength.
    """
    points = frontier.strengths
    presences = [frontier.baseline.value, *(point.presence.value for point in points)]
    fit = fit_presence(
        [0.0, *(point.strength for point in points)],
        presences,
        [float(n_prompts)] * len(presences),
        rising=frontier.sign > 0,
    )
    fitted = frontier.model_copy(update={"law": astuple(fit.law), "fall": fit.fall})
    return fitted.model_copy(update={"advice": advice(fitted, settings)})


def _known(point: PointSection, confidence: float) -> Known:
    excess = point.loop_excess
    return Known(
        point.budget,
        point.presence.value,
        point.change.value,
        error_of_change(point, confidence),
        point.empty or 0.0,
        None if point.loops is None or excess is None else (point.loops, excess.value),
    )


def _point_section(point: search.Point, settings: Settings) -> PointSection:
    confidence = settings.confidence
    why_not = refusal(point, settings)
    return PointSection(
        budget=point.budget,
        strength=point.strength,
        delta_ce=point.delta_ce.with_interval(confidence),
        upper=point.delta_ce.upper(confidence),
        tested=list(point.tested),
        presence=point.presence.estimate.with_interval(confidence),
        change=point.change.with_interval(confidence),
        audited=_interval(point.audited, confidence),
        n_prompts=len(point.change.sums),
        empty=point.presence.empty,
        loops=None if point.loops is None else point.loops[0].value,
        loop_excess=None if point.loops is None else point.loops[1].with_interval(confidence),
        fluency_drop=point.fluency_drop.with_interval(confidence),
        cost=per_reply(point.cost, confidence),
        cost_back=per_reply(point.cost_back, confidence),
        guard=guard_section(point.guarded, confidence),
        ships=why_not is None,
        why_not=why_not,
        example=point.presence.completions[0].text,
    )


def refusal(point: search.Point, settings: Settings) -> str | None:
    """Why a point may not be shipped, or not yet; None where it may."""
    decision = decide(point.change, settings)
    if decision == "refused":
        return f"no change of {settings.min_gain:g}"
    if decision == "undecided":
        return UNDECIDED
    if point.loops is not None and point.loops[1].value > LOOP_MARGIN:
        return f"long replies loop {in_points(point.loops[1].value)}"
    if is_silenced(point.presence):
        return f"{point.presence.n_empty} of {len(point.presence.completions)} replies are empty"
    if reads_worse(point.fluency_drop, settings):
        return f"fluency may drop by more than {settings.max_fluency_drop:g} nat"
    if forgets(point.guarded, settings):
        return f"the guard's accuracy may drop by more than {settings.max_guard_drop:.0%}"
    return None


def per_reply(cost: RatioEstimate, confidence: float) -> Interval:
    """A cost in nats a token as one in nats a reply: the same sums over replies."""
    return RatioEstimate(cost.sums, np.ones_like(cost.counts)).with_interval(confidence)


def _rival_section(rival: Rival, confidence: float) -> RivalSection:
    if rival.cost is None or rival.cost_back is None:
        bound = best_of_cost(int(rival.name.split()[-1]))
        cost, back = None, Interval(bound, bound, bound)
    else:
        cost, back = per_reply(rival.cost, confidence), per_reply(rival.cost_back, confidence)
    return RivalSection(
        name=rival.name,
        presence=rival.presence.with_interval(confidence),
        change=rival.change.with_interval(confidence),
        audited=_interval(rival.audited, confidence),
        n_prompts=len(rival.change.sums),
        delta_ce=_interval(rival.delta_ce, confidence),
        cost=cost,
        cost_back=back,
        example=rival.example,
    )


def _interval(estimate: RatioEstimate | None, confidence: float) -> Interval | None:
    return None if estimate is None else estimate.with_interval(confidence)


def _plain(measured: Interval) -> Interval:
    """The interval of a section alone."""
    return Interval(measured.value, measured.low, measured.high)
