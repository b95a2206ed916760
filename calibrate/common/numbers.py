"""Numbers in their range, or an InputError that says the rule; and differences in words."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

from calibrate.common.errors import InputError


def check_whole(rule: str, value: Any, fits: Callable[[int], bool]) -> int:
    """Return a whole number that fits, else raise InputError."""
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not (is_whole and fits(int(value))):
        raise InputError(f"{rule}, got {_shown(value)}")
    return int(value)


def check_number(rule: str, value: Any, fits: Callable[[float], bool]) -> float:
    """Return a finite number that fits, else raise InputError."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and fits(float(value))):
        raise InputError(f"{rule}, got {_shown(value)}")
    return float(value)


def check_resamples(value: Any) -> int:
    """Return how often texts are resampled, else raise InputError: one shows no spread."""
    return check_whole(
        "resamples must be 0, or 2 or more, which show a spread", value, lambda n: n == 0 or n > 1
    )


def in_points(difference: float) -> str:
    """A difference of two shares, in percentage points.

    >>> in_points(0.0523)
    '+5.2 points'
    """
    return f"{100 * difference:+.1f} points"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
