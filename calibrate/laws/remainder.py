"""The law of the bounded remainder: next-token distributions at strengths that were never run.

What the unembedding reads is the norm of the last residual, and steering puts two things there: the
vector itself, and what the blocks make of it, the remainder g:

    r(α) = αv + g(α),   p_α = softmax(norm(r(α))·W_Uᵀ)

Every block reads a normalised residual stream, in which αv soon drowns all else, so that g stays
bounded. Component by component it is interpolated by bounded functions, with s the strength of the
passes it is read from, and 2s that of the one which gives the scale κ:

    g(α) = g(0) + u·B + u²·C + u³·D,   u = t / √(1 + (t/κ)²),  t = α/s

    B = s·g'(0)    C, D: so that g(±s) are what was measured

Where g'(0) drowns in rounding, in half precision, B is (g(s) - g(-s)) / 2u(1) and D is 0.

Far out αv is all that is left, so that p_α → softmax(norm(±v)·W_Uᵀ), the limit of Proposition 4.1
of arXiv:2602.02712, by itself. Near 0 this is the tilt of its Theorem 3.3; unlike a tilt, it lets
the direction in which logits move turn with α. Pure functions of numbers measured elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import brentq

LEAST_SCALE, MOST_SCALE = 1.2, 12.0  # between which κ is sought
FITTED_AT = 2.0  # times s: where the cost gives κ
ROWS = 64  # contexts whose distributions are held at a time: 134 MB each for 262k tokens

ReadOut = Callable[[np.ndarray], np.ndarray]  # from residuals (n, hidden) to ln p (n, n_tokens)


@dataclass(frozen=True, eq=False)
class RemainderLaw:
    """Last residuals of some contexts under steering, from passes at -s, -0, 0, +0 and s.

    unit: s > 0. vector: (hidden,), v, the sum of what is steered with. at_zero, above, below:
    arrays (n_contexts, hidden), the remainders at 0, s and -s; slope: g'(0), per unit strength, or
    None. scale: κ, in units of s.
    """

    unit: float
    vector: np.ndarray
    at_zero: np.ndarray
    slope: np.ndarray | None
    above: np.ndarray
    below: np.ndarray
    scale: float = 3.0

    def taken(self, contexts: slice | np.ndarray) -> RemainderLaw:
        """The law of some of its contexts."""
        return replace(
            self,
            at_zero=self.at_zero[contexts],
            slope=None if self.slope is None else self.slope[contexts],
            above=self.above[contexts],
            below=self.below[contexts],
        )

    def residual(self, strength: float) -> np.ndarray:
        """r(α), array (n_contexts, hidden)."""
        residual: np.ndarray = strength * self.vector + self.remainder(strength)
        return residual

    def remainder(self, strength: float) -> np.ndarray:
        """g(α), array (n_contexts, hidden); its size has a bound that no strength passes."""
        u, one = self._bounded(strength / self.unit), self._bounded(1.0)
        odd, even = (self.above - self.below) / 2, (self.above + self.below) / 2
        first = odd / one if self.slope is None else self.unit * self.slope
        second, third = (even - self.at_zero) / one**2, (odd - one * first) / one**3
        remainder: np.ndarray = self.at_zero + u * first + u**2 * second + u**3 * third
        return remainder

    def log_probabilities(self, strength: float, read_out: ReadOut) -> np.ndarray:
        """Ln p_α(z|c), array (n_contexts, n_tokens)."""
        return read_out(self.residual(strength))

    def rise(self, strength: float, read_out: ReadOut) -> float:
        """Mean KL(p₀ ‖ p_α) over the contexts, nats per token."""
        return self.divergence_from(self.residual(strength), read_out)

    def divergence_from(self, residuals: np.ndarray, read_out: ReadOut) -> float:
        """Mean KL(p₀ ‖ p) over the contexts, nats per token, p as read from other residuals.

        residuals: of the same contexts, array (n_contexts, hidden).
        """
        before = self.residual(0.0)
        found = [
            divergences(read_out(before[rows]), read_out(residuals[rows]))
            for rows in row_slices(len(before))
        ]
        return float(np.concatenate(found).mean())

    def fitted_to(self, rise: float, read_out: ReadOut) -> RemainderLaw:
        """Return this law with the scale at which FITTED_AT·s costs what was measured there.

        rise: mean KL(p₀ ‖ p_α) of these contexts at that strength, nats per token. Where no scale
            gives it, the nearer end of the range is taken.
        """

        def excess(scale: float) -> float:
            return replace(self, scale=scale).rise(FITTED_AT * self.unit, read_out) - rise

        ends = {scale: excess(scale) for scale in (LEAST_SCALE, MOST_SCALE)}
        if np.prod([*ends.values()]) >= 0:
            return replace(self, scale=min(ends, key=lambda scale: abs(ends[scale])))
        return replace(self, scale=float(brentq(excess, LEAST_SCALE, MOST_SCALE, xtol=0.05)))

    def _bounded(self, t: float) -> float:
        return float(t / np.sqrt(1 + (t / self.scale) ** 2))


def divergences(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """KL of distributions, nats, (n_contexts,); both arrays of ln p, (n_contexts, n_tokens)."""
    found: np.ndarray = (np.exp(before) * (before - after)).sum(axis=1)
    return found


def row_slices(n: int) -> Iterator[slice]:
    """Cut n contexts into slices of ROWS, whose distributions fit in memory."""
    for first in range(0, n, ROWS):
        yield slice(first, first + ROWS)
