"""How well a law predicts, as it is written down."""

from __future__ import annotations

from dataclasses import asdict

from calibrate.common.record import Section
from calibrate.laws.formulas import Goodness


class GoodnessSection(Section):
    """How a law did at points it was not fitted on.

    points: (strength, predicted, measured). error: the worst misfit, in the law's own measure,
    against the largest that will do.
    """

    points: list[tuple[float, float, float]]
    error: float
    tolerance: float
    good: bool

    @classmethod
    def of(cls, goodness: Goodness) -> GoodnessSection:
        """The section of a verdict."""
        return cls(**asdict(goodness), good=goodness.good)
