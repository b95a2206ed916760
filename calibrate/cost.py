"""What a calibration spends: tokens pushed through the model, and seconds, by stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from calibrate.progress import SILENT, Progress


class Meter:
    """Counts token-forwards: one token through the model, padding included.

    A pass over the blocks after ℓ counts as the share of blocks it ran.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.listener: Callable[[int], None] | None = None

    def count(self, tokens: int) -> None:
        """Add the tokens of one forward pass."""
        self.tokens += tokens
        if self.listener is not None:
            self.listener(tokens)


@dataclass(frozen=True)
class Cost:
    """What one stage spent: token-forwards and wall-clock seconds."""

    token_forwards: int
    seconds: float


class Ledger:
    """Books what the meter counts, and the time it takes, under the name of each stage.

    forecast: token-forwards expected of each stage, shown as they are spent.
    """

    def __init__(
        self, meter: Meter, progress: Progress = SILENT, forecast: Mapping[str, int] | None = None
    ) -> None:
        self._meter = meter
        self._progress = progress
        self._forecast = dict(forecast or {})
        self.stages: dict[str, Cost] = {}
        progress.forecast(self._forecast)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Book everything inside the `with` under `name`."""
        tokens, started = self._meter.tokens, time.perf_counter()
        self._progress.began(name, self._forecast.get(name))
        self._meter.listener = self._progress.advanced
        try:
            yield
        finally:
            self._meter.listener = None
            self._progress.ended(name)
            self.stages[name] = Cost(self._meter.tokens - tokens, time.perf_counter() - started)
