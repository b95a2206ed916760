"""The events of a running calibration, for a front end to show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

from calibrate.common.trial import Trial

Unit = Literal["tokens", "bytes", "steps"]


class Progress:
    """Receives events and ignores them; a front end overrides what it wants to show."""

    def forecast(self, tokens: Mapping[str, int], seconds: float) -> None:
        """The stages to come, the token-forwards expected of each, and the time they will take."""

    def to_ask(self, questions: int) -> None:
        """About how many questions will be put to judges that are asked."""

    def began(self, stage: str, total: int | None = None, unit: Unit = "tokens") -> None:
        """A stage starts; `total` is the work expected, None if unknown."""

    def advanced(self, amount: int) -> None:
        """This much more of the current stage's work is done."""

    def asked(self, done: int, total: int) -> None:
        """`done` of the `total` questions now put to a judge are answered."""

    def ended(self, stage: str) -> None:
        """The stage is over."""

    def tried(self, trial: Trial) -> None:
        """The study finished or pruned a trial."""


SILENT = Progress()


@contextmanager
def stage(progress: Progress, name: str, size: int | None = None) -> Iterator[None]:
    """Begin and end a stage of `size` bytes."""
    progress.began(name, size, "bytes")
    try:
        yield
    finally:
        progress.ended(name)
