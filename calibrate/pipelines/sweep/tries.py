"""How often each cell was begun, counted where no node dies; apart, since it needs nothing else."""

from __future__ import annotations

from collections import Counter


class Tries:
    """Counts the tries of cells.

    >>> from calibrate.pipelines.sweep.tries import Tries
    >>> tries = Tries()
    >>> tries.begin("joy-smollm2"), tries.begin("joy-smollm2")
    (1, 2)
    """

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()

    def begin(self, cell: str) -> int:
        """Count a try, and return which it is."""
        self._begun[cell] += 1
        return self._begun[cell]
