"""The laws of steering strength, as pure functions of numbers measured elsewhere.

Source: Taimeskhanov, Vaiter, Garreau, "Towards Understanding Steering Strength",
arXiv:2602.02712. Strengths are in units of the steering vector; cross-entropy in nats per token.

Cross-entropy (Theorem 3.8 near 0, Proposition 4.1 far out):

    ΔCE(α) = (g·α + ½·c·α²) / (1 + b·|α| + ½·c·α² / P)

    g  slope; 0 on text the model sampled itself
    c  curvature, the mean over contexts of Var_p₀[M], M the tokens' log-odds
    b  saturation: the norm layers after the steered block shrink the effective dose
    P  plateau, the limit of ΔCE far out, known from the unembedding alone

Concept (Theorem 3.6): logit F(α) = r + ν·α, F the probability mass of the concept's tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit, logit

GOOD_FIT = 0.05  # largest relative residual at a point the law was not fitted on


@dataclass(frozen=True)
class Goodness:
    """How a law did at a point it was not fitted on.

    strength: where it was tested; predicted, measured: what it said and what was found.
    """

    strength: float
    predicted: float
    measured: float

    @property
    def relative_error(self) -> float:
        """|predicted - measured| / |measured|."""
        return abs(self.predicted - self.measured) / max(abs(self.measured), 1e-12)

    @property
    def good(self) -> bool:
        """Whether the law may be relied on near this strength."""
        return self.relative_error <= GOOD_FIT


@dataclass(frozen=True)
class CrossEntropyLaw:
    """ΔCE as a function of strength, for strengths of one sign.

    slope: g, nats per unit strength. curvature: c > 0, nats per squared unit.
    saturation: b, per unit strength. plateau: P > 0, nats.
    """

    slope: float
    curvature: float
    saturation: float
    plateau: float

    def predict(self, strength: float | np.ndarray) -> float | np.ndarray:
        """ΔCE in nats per token at a strength, or at an array of them."""
        quadratic = 0.5 * self.curvature * np.square(strength)
        rise = self.slope * np.asarray(strength) + quadratic
        saturated = 1 + self.saturation * np.abs(strength) + quadratic / self.plateau
        predicted: float | np.ndarray = rise / saturated
        return predicted

    def invert(self, budget: float, sign: int = 1) -> float:
        """The strength of the given sign, nearest to 0, at which ΔCE reaches `budget`.

        Solves ½c(1 - B/P)·a² + (s·g - B·b)·a - B = 0 for a = |α|, s the sign.
        Returns infinity (with the sign) if the plateau does not rise above the budget.
        """
        if self.plateau <= budget:
            return sign * float("inf")
        square = 0.5 * self.curvature * (1 - budget / self.plateau)
        linear = sign * self.slope - budget * self.saturation
        root = np.sqrt(linear**2 + 4 * square * budget)
        return float(sign * (root - linear) / (2 * square))

    def fitted_to(self, strengths: np.ndarray, rises: np.ndarray) -> CrossEntropyLaw:
        """Return this law with the saturation that fits measured points best.

        Multiplying out the denominator makes the law linear in b; points are weighted by
        1/ΔCE, so that relative errors count. A slightly negative b is let through (where ΔCE
        first rises faster than its quadratic), as long as the denominator keeps its sign.
        """
        a = np.abs(strengths)
        quadratic = 0.5 * self.curvature * a**2
        missing = (self.slope * strengths + quadratic) / rises - 1 - quadratic / self.plateau
        least = -0.9 * float(np.sqrt(2 * self.curvature / self.plateau))
        return replace(self, saturation=max(least, float((missing @ a) / (a @ a))))


@dataclass(frozen=True)
class ConceptLaw:
    """Probability mass of the concept's tokens: logit F(α) = r + ν·α.

    log_odds: r, the logit of the unsteered mass. gain: ν, per unit strength.
    """

    log_odds: float
    gain: float

    def predict(self, strength: float | np.ndarray) -> float | np.ndarray:
        """Mass of the concept's tokens, in (0, 1)."""
        mass: float | np.ndarray = expit(self.log_odds + self.gain * np.asarray(strength))
        return mass

    def strength_for(self, factor: float) -> float:
        """The strength that multiplies the odds of the concept's tokens by `factor`."""
        return float(np.log(factor) / self.gain) if self.gain else float("inf")

    @classmethod
    def from_mass(cls, mass: float, gain: float) -> ConceptLaw:
        """The law with a known unsteered mass, in (0, 1)."""
        return cls(float(logit(np.clip(mass, 1e-9, 1 - 1e-9))), gain)
