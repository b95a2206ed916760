"""The law of next-token probabilities: each rises, peaks and falls, a bump.

Steering tilts next-token probabilities by the tokens' log-odds M (arXiv:2602.02712, Theorem 3.3):

    p_α(z|c) ∝ p₀(z|c) · exp(a(α)·M_c(z)),   dp_α(z|c)/da = p_α(z|c) · (M_c(z) - E_{p_α}[M_c])

E_{p_α}[M] grows with the strength, so that a token rises while M(z) is above it, peaks where they
are equal, and then falls; only the tokens of extreme M are monotone. a(α) is the effective dose
(`laws.dose`); in the paper's model a(α) = α. Pure functions of numbers measured elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import brentq
from scipy.signal import find_peaks
from scipy.special import logsumexp, softmax
from scipy.stats import spearmanr

from calibrate.laws.dose import dose_of, saturation_of
from calibrate.laws.formulas import CrossEntropyLaw, Goodness

GOOD_SHAPE = 0.1  # largest share of tokens that bump more than once
GOOD_PEAKS = 0.1  # largest 1 - rank correlation of the peaks
MIN_PEAKS = 8  # in a context, for its rank correlation to count
PROMINENCE = 0.05  # of a curve's range: a second rise smaller than this is no bump
MASS_STRENGTHS = 41  # grid on which the largest mass is looked for


@dataclass(frozen=True, eq=False)
class TokenLaw:
    """Next-token probabilities of some contexts under steering.

    log_p, log_odds: arrays (n_contexts, n_tokens), log p₀(z|c) and M_c(z).
    saturation: of the effective dose; 0 is the paper's model.
    """

    log_p: np.ndarray
    log_odds: np.ndarray
    saturation: float = 0.0

    def predict(self, strength: float) -> np.ndarray:
        """p_α(z|c), array (n_contexts, n_tokens)."""
        tilted = self.log_p + dose_of(strength, self.saturation) * self.log_odds
        probabilities: np.ndarray = softmax(tilted, axis=1)
        return probabilities

    def mass(self, tokens: Sequence[int], strength: float) -> float:
        """Probability of the given tokens together, averaged over the contexts, in [0, 1]."""
        return float(self.predict(strength)[:, list(tokens)].sum(axis=1).mean())

    def mass_peak(self, tokens: Sequence[int], reach: float) -> float:
        """The strength at which the mass of the given tokens is largest, up to `reach`.

        reach: the farthest strength looked at, of either sign; returned if mass still rises.
        """
        strengths = np.linspace(0, reach, MASS_STRENGTHS)
        masses = [self.mass(tokens, strength) for strength in strengths]
        return float(strengths[int(np.argmax(masses))])

    def rise(self, dose: float) -> float:
        """Mean KL(p₀ ‖ p_a) of a dose, nats per token."""
        p = np.exp(self.log_p)
        partition = logsumexp(self.log_p + dose * self.log_odds, axis=1)
        return float((partition - dose * (p * self.log_odds).sum(axis=1)).mean())

    @property
    def curvature(self) -> float:
        """Mean Var_p₀[M] of these contexts."""
        p = np.exp(self.log_p)
        mean = (p * self.log_odds).sum(axis=1, keepdims=True)
        return float((p * (self.log_odds - mean) ** 2).sum(axis=1).mean())

    def fitted_to(self, law: CrossEntropyLaw, strength: float) -> TokenLaw:
        """Return this law with the saturation at which it costs what the law of ΔCE predicts.

        strength: where they are made to agree, after each is divided by its own curvature, since
            these contexts are few.
        """
        size = abs(strength)
        quadratic = 0.5 * law.curvature * size**2
        flat = replace(law, slope=0.0)
        aim = float(flat.predict(size)) / quadratic * 0.5 * self.curvature * size**2
        largest = 4 * strength
        if self.rise(largest) <= aim:
            return self
        dose = brentq(lambda a: self.rise(a) - aim, 1e-3 * strength, largest)
        return replace(self, saturation=saturation_of(strength, dose))


@dataclass(frozen=True, eq=False)
class ProbabilityCurves:
    """Tokens' probabilities at ascending strengths, (n_contexts, n_tokens, n_strengths)."""

    strengths: np.ndarray
    probabilities: np.ndarray

    def up_to(self, reach: float) -> ProbabilityCurves:
        """The curves at strengths of at most that size."""
        near = np.abs(self.strengths) <= reach
        return ProbabilityCurves(self.strengths[near], self.probabilities[:, :, near])

    def peaks(self) -> np.ndarray:
        """Where each token is likeliest, (n_contexts, n_tokens)."""
        peaks: np.ndarray = self.strengths[self.probabilities.argmax(axis=2)]
        return peaks

    def at(self, strengths: np.ndarray) -> ProbabilityCurves:
        """The curves at some of their strengths."""
        rows = np.searchsorted(self.strengths, strengths)
        return ProbabilityCurves(strengths, self.probabilities[:, :, rows])


def judge_shapes(curves: np.ndarray) -> Goodness:
    """Judge the law of tokens by the share of curves that bump more than once.

    curves: (n_curves, n_strengths), at ascending strengths. Points are (number of bumps, share of
    the curves predicted to have as many, share that has).
    """
    n_bumps, counts = np.unique([bumps(curve) for curve in curves], return_counts=True)
    shares = counts / len(curves)
    points = tuple(
        (float(n), float(n == 1), float(share)) for n, share in zip(n_bumps, shares, strict=True)
    )
    return Goodness.of(points, float(shares[n_bumps > 1].sum()), GOOD_SHAPE)


def judge_peaks(measured: np.ndarray, predicted: np.ndarray, reach: float) -> Goodness | None:
    """Judge predicted peaks by their rank correlation with those measured up to `reach`.

    measured, predicted: strengths, (n_contexts, n_tokens), both looked for at the same ones: ties
    on one side alone cost rank correlation. What is likeliest at `reach` or beyond has no peak
    there. Points are (context, rank correlation, peaks compared), of the contexts with
    MIN_PEAKS or more, that vary both as measured and as predicted; the error is 1 less the median
    correlation. None if there is no such context: monotone tokens, which Theorem 3.3 allows, have
    no peaks.
    """
    points = []
    for index, (peaks, expected) in enumerate(zip(measured, predicted, strict=True)):
        inside = np.abs(peaks) < reach
        vary = all(len(set(row[inside])) > 1 for row in (peaks, expected))
        if inside.sum() >= MIN_PEAKS and vary:
            correlation = float(spearmanr(peaks[inside], expected[inside]).statistic)
            points.append((float(index), correlation, float(inside.sum())))
    if not points:
        return None
    return Goodness.of(points, 1 - float(np.median([point[1] for point in points])), GOOD_PEAKS)


def bumps(curve: np.ndarray) -> int:
    """Count the local maxima of a curve, its ends included, that stand out from it.

    A monotone curve has one, at an end; by the law of tokens no curve has more.
    """
    low, high = float(curve.min()), float(curve.max())
    if high <= low:
        return 1
    padded = np.concatenate([[low], curve, [low]])
    return len(find_peaks(padded, prominence=PROMINENCE * (high - low))[0])
