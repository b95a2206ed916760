"""What a trial of the study measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from calibrate.common.cost import Meter
from calibrate.common.estimate import RatioEstimate


@dataclass(frozen=True, eq=False)
class Replied:
    """What a trial's replies to the prompts of one rung are like.

    scores: presence in each that is not empty, by the prompt's index. fluency_drop: how much less
    likely they are per token to the unsteered model than its own, nats; None where nobody asked, or
    there is nothing to compare. n_empty: how many are empty.
    """

    scores: Mapping[int, float]
    fluency_drop: RatioEstimate | None = None
    n_empty: int = 0


@dataclass(frozen=True)
class Rise:
    """ΔCE over the search corpus, nats per token, its standard error, and on how many sequences.

    The error is that of measuring only some sequences; 0 where all were.
    """

    value: float
    standard_error: float
    n_sequences: int


class Objective(Protocol):
    """What a trial measures at a site and strength."""

    @property
    def rungs(self) -> Sequence[slice]:
        """The search prompts, rung by rung."""
        ...

    @property
    def meter(self) -> Meter:
        """Counts what is spent."""
        ...

    def sample_ahead(self, batch: Sequence[tuple[str, float]]) -> None:
        """Be told the sites and strengths about to be tried; the first rung may be sampled now."""
        ...

    def delta_ce(self, site: str, strength: float) -> Rise:
        """ΔCE on the search corpus, measured on as much of it as it takes."""
        ...

    def replies(self, site: str, strength: float, rung: int) -> Replied:
        """What the replies to the search prompts of one rung are like."""
        ...
