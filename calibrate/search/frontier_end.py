"""Where a frontier ends: from there on more strength only breaks the model.

    presence has fallen clearly below the best so far; most replies are empty;
    or half of the tokens that lie in no loop unsteered would lie in one

It is told from what a frontier keeps of its points, so that budgets added later end where they
would have ended together. Two changes of presence are compared as if they were independent. They
share prompts, noise and baseline, so that the error is rather too large, and a frontier rather too
long than too short.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot

from calibrate.judging.presence import MAX_EMPTY

FALL = 2.0  # standard errors below its best point at which presence has fallen
BROKEN = 0.5  # share of the tokens newly in loops from which nothing more is tried


@dataclass(frozen=True)
class Known:
    """What a frontier keeps of a point that may be its last.

    presence, change: of presence, and error: the standard error of the change. empty: share of the
    replies, in [0, 1]. loops: share of long replies' tokens in loops, and how much more than
    unsteered; None without long replies.
    """

    budget: float
    presence: float
    change: float
    error: float
    empty: float = 0.0
    loops: tuple[float, float] | None = None


@dataclass(frozen=True)
class End:
    """The budget after which nothing is tried, nats a token, and why."""

    budget: float
    why: str

    @property
    def says(self) -> str:
        """The same in words."""
        return f"at {self.budget:g} nat: {self.why}"

    @property
    def forbids(self) -> str:
        """Why a larger budget is not measured."""
        return f"more strength only breaks the model {self.says}"


def end_of(points: Sequence[Known], sign: int) -> End | None:
    """The end, if the point of the largest budget is one; None where more may be worth measuring.

    sign: +1 where presence is to increase, -1 where it is to decrease.
    """
    if not points:
        return None
    last = max(points, key=lambda point: point.budget)
    why = _broken(last) or _turned_back(points, last, sign)
    return None if why is None else End(last.budget, why)


def _broken(point: Known) -> str | None:
    if point.empty > MAX_EMPTY:
        return f"{point.empty:.0%} of the replies are empty"
    if point.loops is not None:
        steered, excess = point.loops
        if excess > BROKEN * (1 - (steered - excess)):  # base models loop by themselves
            return f"{steered:.0%} of the tokens of long replies lie in loops"
    return None


def _turned_back(points: Sequence[Known], last: Known, sign: int) -> str | None:
    best = max(points, key=lambda point: sign * point.change)
    fall = sign * (best.change - last.change)
    if best is last or fall <= FALL * hypot(best.error, last.error):
        return None
    return (
        f"presence has turned back, from {best.presence:.3f} at {best.budget:g} nat to "
        f"{last.presence:.3f}"
    )
