"""Assign groups of items to splits: whole groups, by hash, in proportion.

Which split a group gets depends on the keys of all groups, never on their order or on a seed. A
group counts once, however large it is, and the proportions hold for each kind of item.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np


def deal(
    keys: Sequence[str], kinds: Sequence[bool], shares: Mapping[str, float]
) -> dict[str, list[int]]:
    """Return each split's items as indices into `keys`, in the order of their hashes.

    keys: items with the same key stay together. kinds: of each item; groups of either kind are
        assigned in proportion.
    """
    kinds_of: dict[str, set[bool]] = {}
    for key, kind in zip(keys, kinds, strict=True):
        kinds_of.setdefault(key, set()).add(kind)
    ranked = sorted(kinds_of, key=sha256)
    wanted = {
        (name, kind): share * sum(kind in held for held in kinds_of.values())
        for name, share in shares.items()
        for kind in (True, False)
    }
    split_of: dict[str, str] = {}
    for held in ({True, False}, {True}, {False}):  # mixed groups first: they are hardest to balance
        alike = [key for key in ranked if kinds_of[key] == held]
        weights = [max(sum(wanted[name, kind] for kind in held), 0.0) for name in shares]
        for name, part in zip(shares, _cut(alike, weights), strict=True):
            split_of.update(dict.fromkeys(part, name))
            for kind in held:
                wanted[name, kind] -= len(part)
    splits: dict[str, list[int]] = {name: [] for name in shares}
    for index in sorted(range(len(keys)), key=lambda index: sha256(keys[index])):
        splits[split_of[keys[index]]].append(index)
    return splits


def _cut(items: Sequence[str], weights: Sequence[float]) -> list[Sequence[str]]:
    """Cut a list into consecutive parts, one per weight and in proportion to it."""
    if not items:
        return [()] * len(weights)
    ends = [round(float(end)) for end in np.cumsum(weights) / sum(weights) * len(items)]
    return [items[first:last] for first, last in zip([0, *ends], ends, strict=False)]


def sha256(text: str) -> str:
    """Hash of a text, in hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()
