"""What an infeasible request would need, by the laws alone: nothing more is measured.

Presence at a site is a sigmoid of the strength (`laws.presence.PresenceLaw`), so a wished gain of
presence needs some strength, and the law of ΔCE tells what that strength costs. That is said only
where presence is too small and nothing else is wrong: where replies loop, break or forget, or the
judges contradict each other, no larger budget helps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from calibrate.common.errors import Infeasible
from calibrate.common.estimate import RatioEstimate
from calibrate.common.settings import Settings
from calibrate.common.trial import Trial
from calibrate.laws.pilot import Pilot
from calibrate.laws.presence import PresenceFit
from calibrate.search.refusals import TooLittle, TooMuch
from calibrate.search.trials import best_trial, presence_law

FARTHEST = 4.0  # times α_B: beyond, the laws are not believed
STRENGTHS = 200  # at which the laws are evaluated
MORE_IS_WORSE = "a larger --ce-budget does not help: more strength does more of this"


@dataclass(frozen=True)
class Price:
    """What a gain of presence costs at a site: its strength, and ΔCE in nats per token."""

    site: str
    strength: float
    budget: float


@contextmanager
def add_advice(
    pilots: Mapping[str, Pilot],
    trials: Sequence[Trial],
    baseline: RatioEstimate,
    settings: Settings,
    others: Iterable[float] = (),
) -> Iterator[None]:
    """Put the study's best trial, and whether and which larger budget helps, before other advice.

    others: budgets that were asked for beside that of the settings.
    """
    try:
        yield
    except Infeasible as infeasible:
        first = _best_found(trials, baseline, settings)
        if isinstance(infeasible, TooMuch):
            first.append(MORE_IS_WORSE)
        elif isinstance(infeasible, TooLittle):
            above = max((settings.ce_budget, *others))
            first += _price_asked(pilots, trials, baseline, settings, above)
        raise Infeasible(infeasible.reasons, [*first, *infeasible.advice]) from infeasible


def prices(
    pilots: Mapping[str, Pilot],
    trials: Sequence[Trial],
    baseline: RatioEstimate,
    gain: float,
    settings: Settings,
) -> list[Price]:
    """What a gain of presence costs at each site where the laws say it can be had, cheapest first.

    gain: towards the goal, in (0, 1).
    """
    priced = []
    for site, pilot in pilots.items():
        fit = presence_law(site, trials, baseline, settings.goal)
        strengths, gains = _predicted_gains(pilot, fit, baseline, settings)
        enough = strengths[gains >= gain]
        if _tried(site, trials) and len(enough):
            strength = float(enough[0])
            priced.append(Price(site, strength, float(pilot.law.predict(strength))))
    return sorted(priced, key=lambda price: price.budget)


def _best_found(trials: Sequence[Trial], baseline: RatioEstimate, settings: Settings) -> list[str]:
    best = best_trial(trials, settings)
    if best is None:
        return []
    presence = best.presence or 0.0
    return [
        f"the best within {settings.ce_budget:g} nat is a presence of {presence:.2f} "
        f"({presence - baseline.value:+.2f} from unsteered) at {best.site}, α = {best.strength:.3g}"
    ]


def _price_asked(
    pilots: Mapping[str, Pilot],
    trials: Sequence[Trial],
    baseline: RatioEstimate,
    settings: Settings,
    above: float,
) -> list[str]:
    """The budget that the wished gain needs by the laws; nothing where it was already tried.

    above: the largest budget that was asked for.
    """
    gain = settings.min_gain or baseline.half_width(settings.confidence)
    priced = prices(pilots, trials, baseline, gain, settings)
    if priced:
        cheapest = priced[0]
        wanted = f"{1.1 * cheapest.budget:.2g}"
        if float(wanted) <= above:
            return []
        return [
            f"by the laws {cheapest.site} comes closest: a change by {gain:.2f} costs about "
            f"{cheapest.budget:.2g} nat there, at α = {cheapest.strength:.3g}; ask for --ce-budget "
            f"{wanted}, of whose loops in long replies the laws say nothing"
        ]
    possible = [
        _most_gained(site, pilot, trials, baseline, settings)
        for site, pilot in pilots.items()
        if _tried(site, trials)
    ]
    if possible and max(possible) < gain:
        return [f"no site is predicted to change presence by {gain:.2f}, even beyond the budget"]
    return []


def _most_gained(
    site: str,
    pilot: Pilot,
    trials: Sequence[Trial],
    baseline: RatioEstimate,
    settings: Settings,
) -> float:
    """The largest gain at a site by the law's upper confidence bound."""
    fit = presence_law(site, trials, baseline, settings.goal)
    strengths, gains = _predicted_gains(pilot, fit, baseline, settings)
    errors = np.array([fit.standard_error(float(strength)) for strength in strengths])
    return float((gains + norm.ppf(0.5 + settings.confidence / 2) * errors).max())


def _predicted_gains(
    pilot: Pilot, fit: PresenceFit, baseline: RatioEstimate, settings: Settings
) -> tuple[np.ndarray, np.ndarray]:
    """Strengths up to where presence falls, or the law is not believed, and the gain at each."""
    end = FARTHEST * pilot.strength_at_budget.value if fit.fall is None else fit.fall
    strengths = np.linspace(0, end, STRENGTHS + 1)[1:]
    return strengths, settings.sign * (np.asarray(fit.law.predict(strengths)) - baseline.value)


def _tried(site: str, trials: Sequence[Trial]) -> bool:
    return any(trial.site == site and trial.complete for trial in trials)
