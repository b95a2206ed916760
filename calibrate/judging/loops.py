"""Loops: stretches of a text in which one group of tokens is said again at once.

Counted in tokens, not words, so that they are seen in any script, with spaces or without.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

LEAST = 8  # tokens of a stretch that counts as a loop along a long reply; "very, very" is none


def longest_loop(ids: Sequence[int]) -> float:
    """Share of the tokens that lie in the longest stretch that repeats one group at once."""
    longest = max((last - first for first, last in _stretches(ids)), default=0)
    return longest / max(len(ids), 1)


def looped(ids: Sequence[int]) -> np.ndarray:
    """Whether each token lies in a loop of at least LEAST tokens, bool array (n_tokens,)."""
    found = np.zeros(len(ids), dtype=bool)
    for first, last in _stretches(ids):
        if last - first >= LEAST:
            found[first:last] = True
    return found


def _stretches(ids: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Every longest stretch [first, last) that says one group of tokens at least twice in a row."""
    values = np.asarray(ids)
    for period in range(1, len(values) // 2 + 1):
        same = np.concatenate([[False], values[period:] == values[:-period], [False]])
        (changes,) = np.nonzero(np.diff(same.astype(np.int8)))
        for start, end in changes.reshape(-1, 2).tolist():
            if end - start >= period:
                yield start, end + period
