"""Loops: stretches of a text in which one group of tokens repeats immediately.

Counted in tokens, not words, so that it works in any script, with spaces or without.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

MIN_LOOP = 8  # tokens of a stretch that counts as a loop in a long reply, unlike "very, very"


def longest_loop(ids: Sequence[int]) -> float:
    """Share of the tokens that lie in the longest loop."""
    longest = max((last - first for first, last in _stretches(ids)), default=0)
    return longest / max(len(ids), 1)


def looped(ids: Sequence[int]) -> np.ndarray:
    """Whether each token lies in a loop of at least MIN_LOOP tokens, bool array (n_tokens,)."""
    in_loop = np.zeros(len(ids), dtype=bool)
    for first, last in _stretches(ids):
        if last - first >= MIN_LOOP:
            in_loop[first:last] = True
    return in_loop


def _stretches(ids: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Every maximal stretch [first, last) of one group of tokens at least twice in a row."""
    values = np.asarray(ids)
    for period in range(1, len(values) // 2 + 1):
        same = np.concatenate([[False], values[period:] == values[:-period], [False]])
        (changes,) = np.nonzero(np.diff(same.astype(np.int8)))
        for start, end in changes.reshape(-1, 2).tolist():
            if end - start >= period:
                yield start, end + period
