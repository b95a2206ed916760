"""What a calibration spends: tokens pushed through the model, and seconds, by stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from calibrate.common.numbers import check_number, check_whole
from calibrate.common.progress import SILENT, Progress


class Meter:
    """Counts token-forwards: one token through the model, padding included.

    A pass over some of the blocks counts in proportion to them.
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


@dataclass(frozen=True)
class Limits:
    """What a calibration may spend in all; None for no limit.

    tokens: token-forwards. minutes: of wall-clock time.
    """

    tokens: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        """Raise InputError for a limit that allows nothing."""
        if self.tokens is not None:
            check_whole("--max-tokens must be above 0", self.tokens, lambda tokens: tokens > 0)
        if self.minutes is not None:
            rule = "--max-minutes must be above 0"
            check_number(rule, self.minutes, lambda minutes: minutes > 0)

    def less(self, tokens: int, seconds: float) -> Limits:
        """What is left after these, never less than something."""
        left = None if self.tokens is None else max(self.tokens - tokens, 1)
        minutes = None if self.minutes is None else max(self.minutes - seconds / 60, 1e-9)
        return Limits(left, minutes)

    def allow(self, tokens: int, seconds: float) -> bool:
        """Whether these totals are within the limits."""
        within = self.tokens is None or tokens <= self.tokens
        return within and (self.minutes is None or seconds <= 60 * self.minutes)


class Allowance:
    """What is left of a calibration's limits, counted from now.

    reserve: token-forwards set aside for the stages that always run. clock: seconds.
    """

    def __init__(
        self,
        meter: Meter,
        limits: Limits,
        reserve: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._meter, self._limits, self._reserve, self._clock = meter, limits, reserve, clock
        self._first, self._started = meter.tokens, clock()

    def left_for(self, tokens: int, reserve: int | None = None) -> bool:
        """Whether `tokens` more token-forwards leave the reserve untouched.

        reserve: what is still set aside; None for all of it.
        Minutes are estimated from the speed so far.
        """
        spent, seconds = self._meter.tokens - self._first, self._clock() - self._started
        ahead = tokens + (self._reserve if reserve is None else reserve)
        return self._limits.allow(spent + ahead, seconds * (1 + ahead / max(spent, 1)))


class Ledger:
    """Records the token-forwards and the time of each stage, by its name.

    forecast: token-forwards expected of each stage, shown as they are spent.
    """

    def __init__(
        self, meter: Meter, progress: Progress = SILENT, forecast: Mapping[str, int] | None = None
    ) -> None:
        self._meter = meter
        self._progress = progress
        self._forecast = dict(forecast or {})
        self.stages: dict[str, Cost] = {}

    def book(self, name: str, cost: Cost) -> None:
        """Record a stage's total, where other processes took part or it was interrupted."""
        self.stages[name] = cost

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
