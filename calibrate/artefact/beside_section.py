"""The section of the config about a second concept that is steered with it."""

from __future__ import annotations

from typing import Literal

from calibrate.common.estimate import Interval
from calibrate.common.record import Section


class BesideSection(Section):
    """A concept that an earlier calibration steers, and that shares this one's vectors and budget.

    goal: of the earlier calibration. fingerprint: its own. weight: its vectors' strength per unit
    of this config's, contained in the vectors. judge: who read it. presence: of it in the steered
    replies; change: from the unsteered ones, paired.
    """

    name: str
    goal: Literal["increase", "decrease"]
    fingerprint: str
    weight: float
    judge: str
    presence: Interval
    baseline: float
    change: Interval

    @property
    def says(self) -> str:
        """What became of it, in words."""
        return (
            f"presence of {self.name} {self.presence.value:.3f} against {self.baseline:.3f} "
            f"unsteered, a change of {self.change.value:+.3f} ({self.change.low:+.3f} to "
            f"{self.change.high:+.3f}), by {self.judge}; its vectors are steered at "
            f"{self.weight:.4g} times this strength"
        )
