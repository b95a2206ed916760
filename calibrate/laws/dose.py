"""The effective dose: how much of a strength still acts on the predictions.

In the model of arXiv:2602.02712 a(α) = α. In a transformer the norm layers after the steered block
divide by the size of the residual stream, which grows with the strength:

    a(α) = α / √(1 + (s·|α|)^3/2)        where s ≥ 0
    a(α) = α · √(1 + (|s|·|α|)^3/2)      where s < 0

s is the saturation, per unit strength; s < 0 where the effect grows faster than the strength, since
the log-odds themselves grow with it. A norm layer alone would divide by
√(1 + 2ρκ|α| + (κα)²), with ρ the cosine of vector and residual and κ the ratio of their sizes;
the exponent 3/2 lies between its two terms. docs/reproduction.md compares it with others.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq

EXPONENT = 1.5


def dose_of(strength: float | np.ndarray, saturation: float) -> np.ndarray:
    """The effective dose a(α) of a strength or an array of them; of the same sign."""
    strength = np.asarray(strength, dtype=float)
    factor = np.sqrt(1 + (abs(saturation) * np.abs(strength)) ** EXPONENT)
    dose: np.ndarray = strength / factor if saturation >= 0 else strength * factor
    return dose


def strength_of(dose: float, saturation: float) -> float:
    """The strength whose effective dose is `dose`; the inverse of `dose_of`."""
    size = abs(dose)
    if size == 0 or saturation == 0 or not np.isfinite(size):
        return dose
    # Where (s·α)^3/2 ≤ 1, α ≤ √2·a; where it is larger, α ≤ 4·a⁴·s³.
    farthest = max(2 * size, 5 * size**4 * saturation**3) if saturation > 0 else size
    strength = brentq(
        lambda alpha: float(dose_of(alpha, saturation)) - size, 0.0, farthest, xtol=1e-15 * size
    )
    return float(np.copysign(strength, dose))


def saturation_of(strength: float, dose: float) -> float:
    """The saturation with which `dose` is the effective dose of `strength`, both of one sign."""
    squared = (dose / strength) ** 2
    term = 1 / squared - 1 if squared <= 1 else squared - 1
    return float(np.copysign(term ** (1 / EXPONENT), 1 - squared) / abs(strength))
