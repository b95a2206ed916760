"""Means over sequences with confidence bounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t


@dataclass(frozen=True)
class Interval:
    """A value with a two-sided confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class RatioEstimate:
    """A ratio of means over independent sequences: Σ sums / Σ counts.

    The tokens of one sequence are not independent of each other, so the sequence is the unit;
    the standard error is that of the ratio estimator (delta method), with n - 1 degrees of
    freedom.

    sums: array of shape (n_sequences,), the total over a sequence's scored tokens.
    counts: array of shape (n_sequences,), how many there were.
    """

    sums: np.ndarray
    counts: np.ndarray

    @property
    def value(self) -> float:
        """The ratio itself."""
        return float(self.sums.sum() / self.counts.sum())

    @property
    def standard_error(self) -> float:
        """Standard error of the ratio; infinite with fewer than two sequences."""
        n = len(self.sums)
        if n < 2:
            return float("inf")
        residuals = self.sums - self.value * self.counts
        return float(np.sqrt(residuals @ residuals * n / (n - 1)) / self.counts.sum())

    def interval(self, confidence: float) -> tuple[float, float]:
        """Two-sided confidence interval."""
        half = self._quantile(0.5 + confidence / 2) * self.standard_error
        return self.value - half, self.value + half

    def upper(self, confidence: float) -> float:
        """One-sided upper confidence bound: the larger of Student's and Johnson's.

        Student's bound is short when a few sequences rise much more than the rest, as they do
        in cross-entropy; Johnson's (1978, J. Am. Stat. Assoc. 73) corrects it for that skewness.
        """
        quantile = self._quantile(confidence)
        correction = self._skewness() * (2 * quantile**2 + 1) / (6 * float(np.sqrt(len(self.sums))))
        return self.value + float(quantile + max(correction, 0.0)) * self.standard_error

    def difference(self, other: RatioEstimate) -> RatioEstimate:
        """This minus `other`, sequence by sequence, for two measurements of the same sequences."""
        sums = self.sums / self.counts - other.sums / other.counts
        return RatioEstimate(sums, np.ones_like(sums))

    def _skewness(self) -> float:
        residuals = self.sums - self.value * self.counts
        spread = float(np.mean(residuals**2)) ** 1.5
        return float(np.mean(residuals**3)) / spread if spread > 0 else 0.0

    def _quantile(self, probability: float) -> float:
        return float(student_t.ppf(probability, df=max(len(self.sums) - 1, 1)))
