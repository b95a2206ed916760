"""Means over sequences with confidence bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.stats import chi2
from scipy.stats import t as student_t

SPREAD_CONFIDENCE = 0.95  # that the spread of values is no larger than assumed
MAX_SPREAD = 2.0  # standard deviation of the logarithm of log-normal values
STEP = 0.05  # spreads are rounded up to multiples of it
DRAWS = 1 << 20  # random numbers for a quantile of the log-normal t statistic


@dataclass(frozen=True)
class Interval:
    """A measured value with its two-sided confidence interval."""

    value: float
    low: float
    high: float

    def scaled_to(self, value: float) -> Interval:
        """The interval of as many percent around another value."""
        low, high = sorted((self.low * value / self.value, self.high * value / self.value))
        return Interval(value, low, high)


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

    @classmethod
    def joined(cls, parts: Sequence[RatioEstimate]) -> RatioEstimate:
        """The estimate over the sequences of several."""
        return cls(
            np.concatenate([part.sums for part in parts]),
            np.concatenate([part.counts for part in parts]),
        )

    def interval(self, confidence: float) -> tuple[float, float]:
        """Two-sided confidence interval."""
        half = self.half_width(confidence)
        return self.value - half, self.value + half

    def with_interval(self, confidence: float) -> Interval:
        """The ratio with its two-sided confidence interval."""
        return Interval(self.value, *self.interval(confidence))

    def half_width(self, confidence: float) -> float:
        """Half the width of the two-sided confidence interval."""
        return self._quantile(0.5 + confidence / 2) * self.standard_error

    def cautious_interval(self, confidence: float) -> tuple[float, float]:
        """Two-sided confidence interval of a mean of shares, valid even if all are equal."""
        half = self._quantile(0.5 + confidence / 2) * self._cautious_error
        return self.value - half, self.value + half

    def detectable(self, confidence: float, power: float) -> float:
        """The smallest true mean whose cautious interval excludes 0 with probability `power`."""
        quantiles = self._quantile(0.5 + confidence / 2) + self._quantile(power)
        return quantiles * self._cautious_error

    @property
    def _cautious_error(self) -> float:
        """The standard error; where all shares are equal, as if one in n differed by 1.

        A small sample without spread does not show that there is none (the rule of three).
        """
        return self.standard_error or 1 / len(self.sums)

    def upper(self, confidence: float) -> float:
        """One-sided upper confidence bound: the largest of Student's and two for skewed values.

        Student's bound is too low when a few sequences rise much more than the rest, as they do
        in cross-entropy. Johnson's (1978, J. Am. Stat. Assoc. 73) corrects it for the observed
        skewness. Few sequences show little of it, so values that are all positive, as KL is, are
        taken for log-normal, with a spread exceeded with probability 1 - SPREAD_CONFIDENCE.
        """
        quantile = self._quantile(confidence)
        johnson = self._skewness() * (2 * quantile**2 + 1) / (6 * float(np.sqrt(len(self.sums))))
        widest = max(quantile, quantile + johnson, self._skewed_quantile(confidence))
        return self.value + widest * self.standard_error

    def difference(self, other: RatioEstimate) -> RatioEstimate:
        """This minus `other`, sequence by sequence, for two measurements of the same sequences."""
        sums = self.sums / self.counts - other.sums / other.counts
        return RatioEstimate(sums, np.ones_like(sums))

    def _skewness(self) -> float:
        residuals = self.sums - self.value * self.counts
        spread = float(np.mean(residuals**2)) ** 1.5
        return float(np.mean(residuals**3)) / spread if spread > 0 else 0.0

    def _skewed_quantile(self, confidence: float) -> float:
        """Standard errors between a mean of log-normal values and its bound; 0 for others."""
        n = len(self.sums)
        if n < 2 or (self.sums < 0).any() or self.value <= 0:
            return 0.0
        spread = self.standard_error * np.sqrt(n) / self.value
        spread *= np.sqrt((n - 1) / chi2.ppf(1 - SPREAD_CONFIDENCE, n - 1))
        sigma = min(float(np.sqrt(np.log1p(spread**2))), MAX_SPREAD)
        return log_normal_quantile(n, float(np.ceil(sigma / STEP) * STEP), confidence)

    def _quantile(self, probability: float) -> float:
        return student_quantile(probability, max(len(self.sums) - 1, 1))


@lru_cache(maxsize=1024)
def student_quantile(probability: float, df: int) -> float:
    """Quantile of Student's t."""
    return float(student_t.ppf(probability, df=df))


@lru_cache(maxsize=256)
def log_normal_quantile(n: int, sigma: float, confidence: float) -> float:
    """How many standard errors above a sample mean the true mean may be, at a confidence.

    For n log-normal values whose logarithms have standard deviation `sigma`, by simulation.
    """
    draws = np.random.default_rng(0).standard_normal((max(DRAWS // n, 1000), n))
    values = np.exp(sigma * draws - sigma**2 / 2)  # mean 1
    errors = np.maximum(values.std(axis=1, ddof=1) / np.sqrt(n), 1e-300)
    return float(-np.quantile((values.mean(axis=1) - 1) / errors, 1 - confidence))
