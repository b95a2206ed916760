"""Deal groups of things out to splits: whole groups, by hash, in proportion.

Which split a group falls into depends on what is in it and in the other groups, never on their
order or on a seed. A group counts once however many things are in it, so that every split has
groups in proportion, of every kind.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np


def deal(
    keys: Sequence[str], kinds: Sequence[bool], shares: Mapping[str, float]
) -> dict[str, list[int]]:
    """Return the places, in `keys`, of what each split gets, in the order of their hashes.

    keys: things with the same key stay together. kinds: of each thing; groups of every kind are
        dealt in proportion.
    """
    of_key: dict[str, set[bool]] = {}
    for key, kind in zip(keys, kinds, strict=True):
        of_key.setdefault(key, set()).add(kind)
    ranked = sorted(of_key, key=sha256)
    wanted = {
        (name, kind): share * sum(kind in there for there in of_key.values())
        for name, share in shares.items()
        for kind in (True, False)
    }
    split: dict[str, str] = {}
    for there in ({True, False}, {True}, {False}):  # those of both kinds first: they bind more
        alike = [key for key in ranked if of_key[key] == there]
        weights = [max(sum(wanted[name, kind] for kind in there), 0.0) for name in shares]
        for name, part in zip(shares, _cut(alike, weights), strict=True):
            split.update(dict.fromkeys(part, name))
            for kind in there:
                wanted[name, kind] -= len(part)
    places = sorted(range(len(keys)), key=lambda place: sha256(keys[place]))
    found: dict[str, list[int]] = {name: [] for name in shares}
    for place in places:
        found[split[keys[place]]].append(place)
    return found


def _cut(items: Sequence[str], weights: Sequence[float]) -> list[Sequence[str]]:
    """Cut a list into one run a weight, in proportion."""
    if not items:
        return [()] * len(weights)
    ends = [round(float(end)) for end in np.cumsum(weights) / sum(weights) * len(items)]
    return [items[first:last] for first, last in zip([0, *ends], ends, strict=False)]


def sha256(text: str) -> str:
    """Hash of a text, in hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()
