"""What else is drawn against strength: presence that a judge reads, and answers to questions."""

from __future__ import annotations

from calibrate.common.record import Section
from calibrate.laws.formulas import Goodness


class PresenceCurve(Section):
    """Presence in replies at strengths of both signs, in ascending order.

    n_replies: at each strength. presence, error: the share that expresses the concept, and its
    standard error over prompts. fluency_drop: nats per token that replies are less likely to the
    plain model. law: the fitted sigmoid between floor and ceiling. fall: by sign, the strength
    from which presence turns back, which the law does not cover; None where it does not.
    degenerate: by sign, the end of the strengths, where text has degenerated; None where it had
    not. goodness: of the law, up to the falls; None where it has as many parameters as there are
    points, which it then meets whatever they are. Where fewer than two prompts are replied to,
    presence, error and fluency_drop are None.
    """

    judge: str
    n_replies: int
    strengths: list[float]
    presence: list[float | None]
    error: list[float | None]
    fluency_drop: list[float | None]
    law: list[float]
    floor: float
    ceiling: float
    fall: dict[str, float | None]
    degenerate: dict[str, float | None]
    goodness: Goodness | None

    @property
    def heard(self) -> list[float]:
        """Presence where it is known."""
        return [presence for presence in self.presence if presence is not None]


class AccuracyCurve(Section):
    """Share of the guard's questions answered rightly, at strengths in ascending order.

    drop_bound: by how much it may have dropped from strength 0, the one-sided bound, paired by
    question. chance: what guessing would get.
    """

    guard: str
    n_questions: int
    chance: float
    strengths: list[float]
    accuracy: list[float]
    error: list[float]
    drop_bound: list[float]
