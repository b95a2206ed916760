"""What a calibration tells whoever watches it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from calibrate.evidence import Trial

Unit = Literal["tokens", "bytes", "steps"]


class Progress:
    """Receives events and ignores them; a front end overrides what it wants to show."""

    def forecast(self, tokens: Mapping[str, int], seconds: float) -> None:
        """The stages to come, the token-forwards expected of each, and the time they will take."""

    def began(self, stage: str, total: int | None = None, unit: Unit = "tokens") -> None:
        """A stage starts; `total` is the work expected, None where nobody can say."""

    def advanced(self, amount: int) -> None:
        """This much more of the current stage's work is done."""

    def ended(self, stage: str) -> None:
        """The stage is over."""

    def tried(self, trial: Trial) -> None:
        """The study finished or pruned a trial."""


SILENT = Progress()
