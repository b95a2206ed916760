"""What an infeasible request would take, from the laws alone: no further search.

Presence at a site is σ-shaped in the strength (`laws.presence.PresenceLaw`), and ΔCE is a law of
the strength too, so a wished gain of presence has a strength, and that strength has a price.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from calibrate.search.trials import presence_law

FARTHEST = 4.0  # times α_B: beyond, the laws are not believed
STRENGTHS = 200  # at which the laws are asked


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
) -> Iterator[None]:
    """Put what the study found, and what the laws say it would take, before other advice."""
    try:
        yield
    except Infeasible as infeasible:
        found = _found(trials, baseline, settings)
        advice = [*found, *_priced(pilots, trials, baseline, settings), *infeasible.advice]
        raise Infeasible(infeasible.reasons, advice) from infeasible


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
    found = []
    for site, pilot in pilots.items():
        law = presence_law(site, trials, baseline, settings.goal)
        strengths = _strengths(pilot, law)
        gained = settings.sign * (np.asarray(law.law.predict(strengths)) - baseline.value)
        enough = strengths[gained >= gain]
        if _tried(site, trials) and len(enough):
            strength = float(enough[0])
            found.append(Price(site, strength, float(pilot.law.predict(strength))))
    return sorted(found, key=lambda price: price.budget)


def _found(trials: Sequence[Trial], baseline: RatioEstimate, settings: Settings) -> list[str]:
    within = [trial for trial in trials if trial.complete and trial.presence is not None]
    if not within:
        return []
    best = max(within, key=lambda trial: settings.sign * (trial.presence or 0.0))
    presence = best.presence or 0.0
    return [
        f"the best within the budget is a presence of {presence:.2f} "
        f"({presence - baseline.value:+.2f} from unsteered) at {best.site}, α = {best.strength:.3g}"
    ]


def _priced(
    pilots: Mapping[str, Pilot],
    trials: Sequence[Trial],
    baseline: RatioEstimate,
    settings: Settings,
) -> list[str]:
    gain = settings.min_gain or baseline.half_width(settings.confidence)
    priced = prices(pilots, trials, baseline, gain, settings)
    if priced:
        near = priced[0]
        return [
            f"by the laws {near.site} comes closest: a change by {gain:.2f} costs about "
            f"{near.budget:.2g} nat there, at α = {near.strength:.3g}; ask for --ce-budget "
            f"{1.1 * near.budget:.2g}"
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
    """The most presence that the law leaves possible at a site, with its uncertainty."""
    law = presence_law(site, trials, baseline, settings.goal)
    strengths = _strengths(pilot, law)
    gained = settings.sign * (np.asarray(law.law.predict(strengths)) - baseline.value)
    errors = np.array([law.standard_error(float(strength)) for strength in strengths])
    return float((gained + norm.ppf(0.5 + settings.confidence / 2) * errors).max())


def _strengths(pilot: Pilot, law: PresenceFit) -> np.ndarray:
    """Where the law is asked: up to where presence falls, or to where it is not believed."""
    end = FARTHEST * pilot.strength_at_budget.value if law.fall is None else law.fall
    return np.linspace(0, end, STRENGTHS + 1)[1:]


def _tried(site: str, trials: Sequence[Trial]) -> bool:
    return any(trial.site == site and trial.complete for trial in trials)
