"""The second opinion: another judge reads the final replies.

If only one judge sees a change, it may be of something that this judge mistakes for the concept.
What the second says depends on its interval of the paired change towards the goal:

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

from calibrate.common.errors import Infeasible
from calibrate.common.estimate import RatioEstimate
from calibrate.common.settings import Settings
from calibrate.judging.presence import Presence, read
from probes import Reader

SEEN = 0.5  # share of the first judge's change that the second must leave possible

Opinion = Literal["confirms", "sees no change", "cannot tell"]


@dataclass(frozen=True, eq=False)
class Audit:
    """The same final replies, read by a second judge.

    change: of presence, prompt by prompt. agreement: Spearman's rank correlation of the two
    judges over all replies that are not empty, steered and unsteered; 0 where one of them says the
    same of all. opinion: what the change says of the first judge's.
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
    Raises: Infeasible if the second sees presence move the other way.
    """
    again, before = (read(auditor, one.completions) for one in (steered, unsteered))
    found, change = again.change_from(before), steered.change_from(unsteered)
    low, high = found.interval(settings.confidence)
    if (high if settings.goal == "increase" else -low) < 0:
        raise Infeasible(
            [
                f"the judges disagree: presence changes by {change.value:+.3f}, but to "
                f"{auditor.name} by {found.value:+.3f} ({settings.confidence:.0%} interval "
                f"{low:+.3f} to {high:+.3f})"
            ],
            ["read some of the replies in evidence.json", "try a third with --audit"],
        )
    return Audit(
        auditor.name,
        again.estimate,
        before.estimate,
        found,
        _agreement((steered, unsteered), (again, before)),
        _opinion(
            settings.sign * change.value / _spread(steered, unsteered),
            sorted(settings.sign * end / _spread(again, before) for end in (low, high)),
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
    parts = [one.scores[one.spoken] for one in (steered, unsteered)]
    squares = sum(float(((part - part.mean()) ** 2).sum()) for part in parts)
    return max(float(np.sqrt(squares / sum(map(len, parts)))), 1e-9)


def _agreement(first: tuple[Presence, Presence], second: tuple[Presence, Presence]) -> float:
    ours = np.concatenate([one.scores[one.spoken] for one in first])
    theirs = np.concatenate([one.scores[one.spoken] for one in second])
    told_apart = min(np.ptp(ours), np.ptp(theirs)) > 0
    return float(spearmanr(ours, theirs).statistic) if told_apart else 0.0
