"""Deal groups of things out to splits: whole groups, by hash, in proportion.

Which split a group falls into depends on what is in it and in the other groups, never on their
order or on a seed. Single things and matched pairs are dealt by the rank of their hash. Larger
groups would upset the proportions if they were: they are dealt first, the largest first, each to
the split that is furthest below its share, and the single ones make up for what they upset.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np


def deal(
    keys: Sequence[str], kinds: Sequence[object], shares: Mapping[str, float]
) -> dict[str, list[int]]:
    """Return the places, in `keys`, of what each split gets, in the order of their hashes.

    keys: things with the same key stay together. kinds: of each thing; every kind is dealt in
        proportion, and reaches every split if it is in enough groups.
    """
    of_key: dict[str, Counter[object]] = {}
    for key, kind in zip(keys, kinds, strict=True):
        of_key.setdefault(key, Counter())[kind] += 1
    ranked = sorted(of_key, key=sha256)
    table = _Table(of_key, shares)
    many = [key for key in ranked if max(of_key[key].values()) > 1]
    for key in sorted(many, key=lambda one: -sum(of_key[one].values())):
        table.give([key], table.neediest(of_key[key]))
    few = [key for key in ranked if max(of_key[key].values()) == 1]
    sets = {frozenset(of_key[key]) for key in few}
    for kinds_there in sorted(sets, key=lambda one: (-len(one), sorted(map(str, one)))):
        alike = [key for key in few if frozenset(of_key[key]) == kinds_there]
        for name, part in zip(shares, table.cut(alike, kinds_there), strict=True):
            table.give(part, name)
    places = sorted(range(len(keys)), key=lambda place: sha256(keys[place]))
    return {name: [one for one in places if table.split[keys[one]] == name] for name in shares}


class _Table:
    """Who has what so far."""

    def __init__(self, of_key: Mapping[str, Counter[object]], shares: Mapping[str, float]) -> None:
        self.of_key, self.shares = of_key, shares
        self.total = sum(of_key.values(), Counter[object]())
        self.has = {name: Counter[object]() for name in shares}
        self.split: dict[str, str] = {}

    def give(self, keys: Iterable[str], name: str) -> None:
        for key in keys:
            self.split[key] = name
            self.has[name].update(self.of_key[key])

    def lacks(self, name: str, kinds: Iterable[object]) -> float:
        """By how much a split is below its share of some kinds."""
        return sum(self.shares[name] - self.has[name][kind] / self.total[kind] for kind in kinds)

    def neediest(self, kinds: Iterable[object]) -> str:
        return max(self.shares, key=lambda name: self.lacks(name, kinds))

    def cut(self, keys: Sequence[str], kinds: Iterable[object]) -> list[Sequence[str]]:
        """Cut ranked groups into one run a split, as long as what each split lacks."""
        wanted = np.array([max(self.lacks(name, kinds), 0.0) for name in self.shares])
        ends = [round(float(end)) for end in np.cumsum(wanted) / wanted.sum() * len(keys)]
        return [keys[first:last] for first, last in zip([0, *ends], ends, strict=False)]


def sha256(text: str) -> str:
    """Hash of a text, in hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()
