"""Prediction-powered inference: many scores by a judge, corrected by a few grades of people.

People grade the replies to n prompts; the judge scores these and those to N other prompts. With Y
the grades, f the judge's scores of the same replies, and F its scores of the others,

    mean = mean(Y - λf) + λ mean(F)
    variance = var(Y - λf) / n + λ² var(F) / N

is unbiased for every λ, however wrong the judge is (Angelopoulos et al. 2023, Science 382,
arXiv:2301.09633); λ = cov(Y, f) / (var(f) + n/N var(F)), clipped to [0, 1], makes the variance
smallest (power tuning, PPI++, arXiv:2311.01453). A useless judge gets λ = 0, which leaves the mean
of the grades.

If all grades are equal, their variance is 0, and so would be the interval's width. So intervals
add a few pseudo-grades, half at each end of the scale, as by Agresti and Coull (1998, Am. Stat. 52)
for a share and Agresti and Min (2005, Biometrics 61) for a paired change, with Student's quantiles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm
from scipy.stats import t as student_t

from calibrate.common.estimate import Interval
from probes.quality import area_under_curve

ADDED_SHARE = np.array([-0.5, -0.5, 0.5, 0.5])  # pseudo-grades, relative to the middle of [0, 1]
ADDED_CHANGE = np.array([-0.5, 0.5]) * np.sqrt(2)  # pseudo-changes, relative to 0

NEAR = 1e-9  # distance from an AUC at which the search for its interval's ends starts


@dataclass(frozen=True, eq=False)
class Corrected:
    """A mean over prompts, from people's grades and a judge's scores together.

    residuals: array of shape (n_graded,), Y - λf. carried: array of shape (n_others,), λF.
    judged: λ times the mean of f over graded prompts. n_fitted: parameters fitted to the data.
    low, high: the ends of the scale. added: pseudo-residuals, relative to the middle of the scale.
    """

    residuals: np.ndarray
    carried: np.ndarray
    judged: float
    n_fitted: int
    low: float
    high: float
    added: np.ndarray

    @property
    def value(self) -> float:
        """The mean itself, clipped to its scale."""
        return float(np.clip(self.residuals.mean() + self._carried_mean, self.low, self.high))

    @property
    def standard_error(self) -> float:
        """Standard error of the mean, without pseudo-grades."""
        n = len(self.residuals)
        spread = float(((self.residuals - self.residuals.mean()) ** 2).sum())
        return float(np.sqrt(spread / (n - 1) / n + self._carried_variance))

    def interval(self, confidence: float) -> Interval:
        """Two-sided confidence interval, within the scale."""
        middle = (self.low + self.high) / 2 - self.judged
        residuals = np.concatenate([self.residuals, middle + self.added])
        n, freedom = len(residuals), len(self.residuals) - self.n_fitted
        spread = float(((residuals - residuals.mean()) ** 2).sum())
        error = np.sqrt(spread / (n - self.n_fitted) / n + self._carried_variance)
        half = float(student_t.ppf(0.5 + confidence / 2, freedom) * error)
        centre = float(residuals.mean()) + self._carried_mean
        low, high = np.clip([centre - half, centre + half], self.low, self.high)
        return Interval(self.value, min(float(low), self.value), max(float(high), self.value))

    def minus(self, other: Corrected) -> Corrected:
        """The paired difference of two means of shares over the same prompts."""
        return Corrected(
            self.residuals - other.residuals,
            self.carried - other.carried,
            self.judged - other.judged,
            self.n_fitted,
            low=-1.0,
            high=1.0,
            added=ADDED_CHANGE,
        )

    @property
    def _carried_mean(self) -> float:
        return float(self.carried.mean()) if len(self.carried) else 0.0

    @property
    def _carried_variance(self) -> float:
        n = len(self.carried)
        return float(self.carried.var(ddof=1) / n) if n > 1 else 0.0


def corrected_share(graded: np.ndarray, judged: np.ndarray, others: np.ndarray) -> Corrected:
    """Return the share of replies that people would say yes to.

    graded: array of shape (n_graded,), in [0, 1], n_graded at least 3. judged: the judge's
    scores of the same replies. others: its scores for other prompts, shape (n_others,).
    """
    power = _power(graded, judged, others)
    carried = power * others
    judged_mean = power * float(judged.mean())
    return Corrected(graded - power * judged, carried, judged_mean, 2, 0.0, 1.0, ADDED_SHARE)


def _power(graded: np.ndarray, judged: np.ndarray, others: np.ndarray) -> float:
    """The λ of the smallest variance; 0 if there are too few other scores, or they do not vary."""
    if len(others) < 2:
        return 0.0
    spread = judged.var(ddof=1) + len(judged) / len(others) * others.var(ddof=1)
    if spread <= 0:
        return 0.0
    shared = float(np.cov(graded, judged)[0, 1])
    return float(np.clip(shared / spread, 0.0, 1.0))


def auc(scores: np.ndarray, positive: np.ndarray, confidence: float) -> Interval | None:
    """Return how often a positive outscores a negative; None unless there are both.

    positive: bool array. The interval is Newcombe's (2006, Stat. Med. 25, method 5): the values
    whose own standard error (Hanley and McNeil 1982) allows the observed one. It has a width even
    where the two kinds are separated perfectly.
    """
    n_high, n_low = int(positive.sum()), int((~positive).sum())
    if not (n_high and n_low):
        return None
    observed = area_under_curve(scores, positive.astype(float), np.ones(len(scores)))
    quantile = float(norm.ppf(0.5 + confidence / 2))

    def beyond(value: float) -> float:
        return (observed - value) ** 2 - quantile**2 * _auc_variance(value, n_high, n_low)

    lowest = brentq(beyond, 0.0, observed - NEAR) if observed > NEAR else 0.0
    highest = brentq(beyond, observed + NEAR, 1.0) if observed < 1 - NEAR else 1.0
    return Interval(observed, float(lowest), float(highest))


def _auc_variance(value: float, n_high: int, n_low: int) -> float:
    """Variance of an AUC by Hanley and McNeil, with the mean of the two counts for both."""
    n = (n_high + n_low) / 2
    shape = (n - 1) * ((1 - value) / (2 - value) + value / (1 + value))
    return value * (1 - value) * (1 + shape) / (n_high * n_low)
