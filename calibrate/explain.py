"""What an infeasible request would take, from the laws alone: no further search.

Presence at a site is σ-shaped in the strength (`calibrate.laws.PresenceLaw`), and ΔCE is a law of
the strength too, so a wished gain of presence has a strength, and that strength has a price.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from calibrate.errors import Infeasible
from calibrate.estimate import RatioEstimate
from calibrate.evidence import Trial
from calibrate.pilot import Pilot
from calibrate.settings import Settings
from calibrate.study import presence_law

FARTHEST = 4.0  # times α_B: beyond, the laws are not believed
STRENGTHS = 200  # at which the laws are asked


@dataclass(frozen=True)
class Price:
    """What a gain of presence costs at a site: its strength, and ΔCE in nats per token."""

    site: str
    strength: float
    budget: float


@contextmanager
def explaining(
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
        end = FARTHEST * pilot.strength_at_budget.value if law.fall is None else law.fall
        strengths = np.linspace(0, end, STRENGTHS + 1)[1:]
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
    if not priced:
        return [f"no site comes near a change of presence by {gain:.2f}, by the laws"]
    near = priced[0]
    return [
        f"by the laws {near.site} comes closest: a change by {gain:.2f} costs about "
        f"{near.budget:.2g} nat there, at α = {near.strength:.3g}; ask for --ce-budget "
        f"{1.1 * near.budget:.2g}"
    ]


def _tried(site: str, trials: Sequence[Trial]) -> bool:
    return any(trial.site == site and trial.complete for trial in trials)
