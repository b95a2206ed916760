"""The laws of a concept's mass and of cross-entropy, as pure functions of measured numbers.

Source: arXiv:2602.02712. Strengths are in units of the steering vector; cross-entropy in nats per
token. a = a(α) is the effective dose (`calibrate.laws.dose`), α itself in the paper's model.

Concept (Theorem 3.6): the probability mass F of a concept's tokens obeys
F' = F(1 - F)·(μ_C - μ_¬C), with μ the mean log-odds of its tokens and of all others, so that
logit F(α) = r + ν(α). Here the difference keeps its value at α = 0, the gain ν:

    logit F(α) = r + ν·a

Cross-entropy: ΔCE = ½·c·α² + o(α²) near 0 (Theorem 3.8), ΔCE → P far out (Proposition 4.1). One
curve through both, with a slope for text that the model did not write:

    ΔCE(α) = q / (1 + q/P),  q = g·a + ½·c·a²

    g  slope; 0 on text the model sampled itself
    c  curvature, the mean over contexts of Var_p₀[M]
    P  plateau, the limit of ΔCE far out, known without steering; a negative q is not bent
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit

from calibrate.laws.dose import dose_of, saturation_of, strength_of

GOOD_RISE = 0.05  # largest relative error of ΔCE, of points no smaller than a tenth of the largest
GOOD_LOG_ODDS = 0.35  # largest error of the log-odds of a mass: a factor of √2 of the odds
GOOD_MOVE = 0.25  # largest error of the log-odds of a mass, as a share of how far they move
LEAST_ERROR = 0.01  # of log-odds: an error that always does, a hundredth of the odds

MAX_DOSE = 2.0  # times the strength: a law of mass that needs a larger dose is not believed
HIGHEST_SHARE = 0.99  # of the plateau: a rise beyond it does not tell the saturation


@dataclass(frozen=True)
class Goodness:
    """How a law did at points it was not fitted on.

    points: (strength, predicted, measured). error: the worst misfit, in the law's own measure.
    tolerance: the largest error that is accepted there.
    """

    points: tuple[tuple[float, float, float], ...]
    error: float
    tolerance: float
    good: bool

    @classmethod
    def of(
        cls, points: Sequence[tuple[float, float, float]], error: float, tolerance: float
    ) -> Goodness:
        """The verdict: good if the error is within the tolerance."""
        return cls(tuple(points), error, tolerance, error <= tolerance)


def judge_rise(
    strengths: Sequence[float], predicted: Sequence[float], measured: Sequence[float]
) -> Goodness:
    """Judge a law of ΔCE by its largest relative error.

    Rises below a tenth of the largest are compared with that tenth, since near 0 the relative
    error of a difference of cross-entropies means nothing.
    """
    sizes = np.abs(np.asarray(measured, dtype=float))
    scale = np.maximum(sizes, max(0.1 * sizes.max(), 1e-12))
    errors = np.abs(np.asarray(predicted) - np.asarray(measured)) / scale
    return Goodness.of(_points(strengths, predicted, measured), float(errors.max()), GOOD_RISE)


def judge_mass(
    strengths: Sequence[float],
    predicted: Sequence[float],
    measured: Sequence[float],
    unsteered: float,
) -> Goodness:
    """Judge a law of a probability mass by the error of its log-odds.

    unsteered: the mass at strength 0.
    GOOD_LOG_ODDS is the most that will do, and GOOD_MOVE of the farthest that the log-odds move at
    strengths of the same sign: within a budget they may move by less than GOOD_LOG_ODDS
    altogether, and a law that says nothing moves, or the other way, has to fail there too. Signs
    stand alone since a calibration relies on one. The error and tolerance returned are those of
    the point that does worst by its own tolerance.
    """
    at, found = np.asarray(strengths, dtype=float), clipped_logit(np.asarray(measured))
    errors = np.abs(clipped_logit(np.asarray(predicted)) - found)
    moves = np.abs(found - clipped_logit(np.asarray(unsteered)))
    farthest = np.array([moves[np.sign(at) == sign].max() for sign in np.sign(at)])
    tolerances = np.clip(GOOD_MOVE * farthest, LEAST_ERROR, GOOD_LOG_ODDS)
    worst = int(np.argmax(errors / tolerances))
    points = _points(strengths, predicted, measured)
    return Goodness.of(points, float(errors[worst]), float(tolerances[worst]))


@dataclass(frozen=True)
class CrossEntropyLaw:
    """ΔCE as a function of strength, for strengths of one sign.

    slope: g, nats per unit dose. curvature: c > 0, nats per squared unit.
    saturation: of the dose, per unit strength. plateau: P > 0, nats.
    """

    slope: float
    curvature: float
    saturation: float
    plateau: float

    def predict(self, strength: float | np.ndarray) -> float | np.ndarray:
        """ΔCE in nats per token at a strength, or at an array of them."""
        dose = dose_of(strength, self.saturation)
        rise = self.slope * dose + 0.5 * self.curvature * np.square(dose)
        predicted: float | np.ndarray = rise / (1 + np.maximum(rise, 0.0) / self.plateau)
        return predicted

    def invert(self, budget: float, sign: int = 1) -> float:
        """The strength of the given sign, nearest to 0, at which ΔCE reaches `budget`.

        Returns infinity (with the sign) if the plateau does not rise above the budget.
        """
        if self.plateau <= budget:
            return sign * float("inf")
        return strength_of(self._dose(budget, sign), self.saturation)

    def through(self, strength: float, rise: float) -> CrossEntropyLaw:
        """Return this law with the saturation with which it passes through a measured point.

        rise: ΔCE at the strength, nats. Where it is not positive no saturation explains it, and
            the law is returned as it is.
        """
        if rise <= 0:
            return self
        dose = self._dose(min(rise, HIGHEST_SHARE * self.plateau), int(np.sign(strength)))
        return replace(self, saturation=saturation_of(strength, dose))

    def through_both(
        self, near: tuple[float, float], other: tuple[float, float]
    ) -> CrossEntropyLaw:
        """Return this law with the slope and saturation with which it passes through two points.

        near, other: strength, and the ΔCE measured there, nats; of one sign. Where the near one
            is no rise, or no slope up to c·α explains both, the law has its own slope and passes
            through the near one.
        """

        def misfit(slope: float) -> float:
            law = replace(self, slope=slope).through(*near)
            return float(law.predict(other[0])) - other[1]

        steepest = self.curvature * abs(near[0])
        if near[1] <= 0 or misfit(-steepest) * misfit(steepest) >= 0:
            return self.through(*near)
        slope = float(brentq(misfit, -steepest, steepest))
        return replace(self, slope=slope).through(*near)

    def through_nearest(self, points: Sequence[tuple[float, float]]) -> CrossEntropyLaw:
        """Return this law through one point, or through two where its slope is to be fitted too."""
        return self.through(*points[0]) if len(points) == 1 else self.through_both(*points)

    def _dose(self, rise: float, sign: int) -> float:
        """The dose that costs `rise`, which is below the plateau.

        With q = rise / (1 - rise/P), its size A is the positive root of ½c·A² + sign·g·A - q = 0.
        """
        half, slope = 0.5 * self.curvature, sign * self.slope
        reach = rise / (1 - rise / self.plateau)
        return sign * float((np.sqrt(slope**2 + 4 * half * reach) - slope) / (2 * half))


@dataclass(frozen=True)
class MassLaw:
    """Probability mass of a concept's tokens: logit F(α) = r + ν·a(α).

    log_odds: r. gain: ν, per unit dose. saturation: of the dose, per unit strength.
    """

    log_odds: float
    gain: float
    saturation: float

    def predict(self, strength: float | np.ndarray) -> np.ndarray:
        """Mass in (0, 1) at a strength, or at an array of them."""
        mass: np.ndarray = expit(self.log_odds + self.change(strength))
        return mass

    def change(self, strength: float | np.ndarray) -> np.ndarray:
        """How much the strength adds to the log-odds."""
        change: np.ndarray = self.gain * dose_of(strength, self.saturation)
        return change

    def through(self, strength: float, mass: float) -> MassLaw:
        """Return this law with the saturation with which it passes through a measured point.

        If that takes a dose of the other sign, or of more than MAX_DOSE times the strength, the
        derivative at 0 does not explain the mass: the law is returned as it is.
        """
        change = float(clipped_logit(np.array(mass))) - self.log_odds
        if not 0 < change / (self.gain * strength or np.nan) <= MAX_DOSE:
            return self
        return replace(self, saturation=saturation_of(strength, change / self.gain))

    def invert(self, change: float) -> float:
        """The strength that adds `change` to the log-odds; infinite if none does."""
        if self.gain == 0:
            return float("inf")
        return strength_of(change / self.gain, self.saturation)

    @classmethod
    def from_mass(cls, mass: float, gain: float) -> MassLaw:
        """The law of a known unsteered mass, in (0, 1), before any saturation is known."""
        return cls(float(clipped_logit(np.array(mass))), gain, 0.0)


def _points(
    strengths: Sequence[float], predicted: Sequence[float], measured: Sequence[float]
) -> tuple[tuple[float, float, float], ...]:
    return tuple(
        (float(strength), float(prediction), float(measurement))
        for strength, prediction, measurement in zip(strengths, predicted, measured, strict=True)
    )


def clipped_logit(mass: np.ndarray) -> np.ndarray:
    """Log-odds of probabilities, those of 0 and 1 kept finite."""
    log_odds: np.ndarray = logit(np.clip(mass, 1e-9, 1 - 1e-9))
    return log_odds
