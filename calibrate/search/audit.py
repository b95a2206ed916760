"""The second opinion: another judge reads the final replies.

A change that only one judge sees may be of something that this judge mistakes for the concept.
The second's opinion depends on its interval of the paired change towards the goal:

    (refused)       the interval lies below 0: the judges contradict each other
    confirms        the interval lies above 0
    sees no change  the interval holds 0 and ends below SEEN times the first judge's change
    cannot tell     the interval holds 0 and reaches further: too few replies for this judge

Judges use their scales differently, so the last two compare changes in units of each judge's own
standard deviation within steered and unsteered replies (Cohen's d). Only a contradiction is
refused. A second judge that sees no change is a warning, since it may be the one that misses the
concept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import spearmanr

from calibrate.common.estimate import RatioEstimate
from calibrate.common.settings import Settings
from calibrate.judging.presence import Presence, read
from calibrate.search.refusals import Neither
from probes import Reader

SEEN = 0.5  # share of the first judge's change that the second must leave possible

Opinion = Literal["confirms", "sees no change", "cannot tell"]


@dataclass(frozen=True, eq=False)
class Audit:
    """The same final replies, read by a second judge.

    change: of presence, prompt by prompt. agreement: Spearman's rank correlation of the two
    judges over all replies that are not empty, steered and unsteered; 0 where one of them scores
    all alike. opinion: whether the change confirms the first judge's.
    """

    judge: str
    presence: RatioEstimate
    baseline: RatioEstimate
    change: RatioEstimate
    agreement: float
    opinion: Opinion


def audit(auditor: Reader, steered: Presence, unsteered: Presence, settings: Settings) -> Audit:
    """Have a second judge read the final replies.

    steered, unsteered: as the first judge reads them.
    Raises: Neither if the second sees presence move the other way.
    """
    presence, baseline = (read(auditor, judged.completions) for judged in (steered, unsteered))
    change, first_change = presence.change_from(baseline), steered.change_from(unsteered)
    low, high = change.interval(settings.confidence)
    if (high if settings.goal == "increase" else -low) < 0:
        raise Neither(
            [
                f"the judges disagree: presence changes by {first_change.value:+.3f}, but to "
                f"{auditor.name} by {change.value:+.3f} ({settings.confidence:.0%} interval "
                f"{low:+.3f} to {high:+.3f})"
            ],
            ["read some of the replies in evidence.json", "try a third with --audit"],
        )
    return Audit(
        auditor.name,
        presence.estimate,
        baseline.estimate,
        change,
        _agreement((steered, unsteered), (presence, baseline)),
        _opinion(
            settings.sign * first_change.value / _spread(steered, unsteered),
            sorted(settings.sign * end / _spread(presence, baseline) for end in (low, high)),
        ),
    )


def _opinion(first: float, interval: list[float]) -> Opinion:
    """first: the first judge's change, interval: the second's; towards the goal, as Cohen's d."""
    low, high = interval
    if low > 0:
        return "confirms"
    return "sees no change" if high < SEEN * first else "cannot tell"


def _spread(steered: Presence, unsteered: Presence) -> float:
    """Standard deviation between replies of one kind; tiny where all are scored alike."""
    parts = [presence.scores[presence.spoken] for presence in (steered, unsteered)]
    squares = sum(float(((part - part.mean()) ** 2).sum()) for part in parts)
    return max(float(np.sqrt(squares / sum(map(len, parts)))), 1e-9)


def _agreement(first: tuple[Presence, Presence], second: tuple[Presence, Presence]) -> float:
    scores = [
        np.concatenate([presence.scores[presence.spoken] for presence in judge])
        for judge in (first, second)
    ]
    return float(spearmanr(*scores).statistic) if min(map(np.ptp, scores)) > 0 else 0.0
