"""Numbers of blocks: as they are asked for, and as a site is named by them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

from calibrate.common.errors import InputError
from calibrate.common.numbers import check_whole

MAX_BLOCKS = 100_000  # more than any model has
MAX_DIGITS = 5  # of a block's number: a longer range is not even written out


def check_blocks(rule: str, value: Any) -> int | tuple[int, ...]:
    """Return a block's number, or several in order, each once, else raise InputError.

    value: a number, or several, such as "8-26", "8,12,20", [8, 12, 20] or an array of them.
    """
    if isinstance(value, str):
        value = _numbers_in(value)
    elif hasattr(value, "tolist"):  # of NumPy or torch
        value = value.tolist()
    if isinstance(value, Mapping | bytes):
        raise InputError(f"{rule}, got {value!r:.40}")
    if isinstance(value, Iterable):
        numbers = sorted({check_whole(rule, each, _is_block) for each in value})
        if not numbers:
            raise InputError(f"{rule}, got none")
        return tuple(numbers) if len(numbers) > 1 else numbers[0]
    return check_whole(rule, value, _is_block)


def check_sites(asked: Any) -> list[tuple[int, ...]]:
    """Return several blocks and bands, each once, in the order given, else raise InputError.

    asked: one or more of what `check_blocks` takes, or "auto", for which () stands; none if None.
    """
    rule = "layers must be blocks, bands or auto, such as [15, '8-26', 'auto']"
    if hasattr(asked, "tolist"):
        asked = asked.tolist()
    if asked is None:
        return []
    if isinstance(asked, str | bytes | Mapping | Real) or not isinstance(asked, Iterable):
        asked = [asked]
    sites: list[tuple[int, ...]] = []
    for one in asked:
        blocks = () if isinstance(one, str) and one == "auto" else check_blocks(rule, one)
        sites.append((blocks,) if isinstance(blocks, int) else blocks)
    return list(dict.fromkeys(sites))


def _numbers_in(typed: str) -> Sequence[Any]:
    """The numbers in "15", "8-26" or "8,12-14"; else the text itself, for the error."""
    numbers: list[Any] = []
    for part in typed.split(","):
        first, dash, last = (each.strip() for each in part.partition("-"))
        last = last if dash else first
        if not all(end.isdecimal() and len(end) <= MAX_DIGITS for end in (first, last)):
            return [typed]
        numbers += range(int(first), int(last) + 1) or [typed]
    return numbers


def _is_block(number: int) -> bool:
    return 0 <= number < MAX_BLOCKS


def site_name(layers: Sequence[int], positions: str) -> str:
    """The name in a study of the steered blocks, and the positions steered there."""
    first, last = layers[0], layers[-1]
    if len(layers) == 1:
        where = f"block {first}"
    elif list(layers) == list(range(first, last + 1)):
        where = f"blocks {first}-{last}"
    else:
        where = f"blocks {', '.join(map(str, layers))}"
    return where if positions == "all" else f"{where}, last position"
