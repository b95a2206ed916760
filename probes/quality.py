"""How well probabilities fit labels: AUC, Brier score and calibration error, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score

from calibrate.estimate import Interval

RESAMPLES = 200
CONFIDENCE = 0.95
BINS = 10


@dataclass(frozen=True)
class Quality:
    """How well a judge's probabilities fit the labels of some texts, with 95 % intervals.

    auc: area under the ROC curve. brier: mean squared error. calibration_error: expected
    calibration error over ten bins of probability. n: texts.
    """

    auc: Interval
    brier: Interval
    calibration_error: Interval
    n: int


def quality(
    probabilities: np.ndarray,
    labels: Sequence[bool],
    groups: Sequence[str],
    weights: np.ndarray | None = None,
) -> Quality:
    """Measure the quality of probabilities, with intervals from resampled groups.

    labels must hold both kinds. groups: texts of one group are resampled together. weights: how
    much each text counts; alike if None.
    """
    truth = np.asarray(labels, dtype=float)
    weights = np.ones(len(truth)) if weights is None else weights
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    rng = np.random.default_rng(0)
    draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    resampled = [weights * draw[member] for draw in draws]
    both = [one for one in resampled if 0 < (one * truth).sum() < one.sum()]

    def measured(measure: Callable[[np.ndarray, np.ndarray, np.ndarray], float]) -> Interval:
        values = [measure(probabilities, truth, one) for one in both]
        low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        return Interval(measure(probabilities, truth, weights), float(low), float(high))

    return Quality(measured(_auc), measured(_brier), measured(_calibration_error), len(truth))


def _auc(probabilities: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> float:
    return float(roc_auc_score(truth, probabilities, sample_weight=weights))


def _brier(probabilities: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> float:
    return float(np.average((probabilities - truth) ** 2, weights=weights))


def _calibration_error(probabilities: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> float:
    """Weighted mean gap between probability and frequency, over bins of probability."""
    bucket = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    gap = np.bincount(bucket, weights * (probabilities - truth), minlength=BINS)
    return float(np.abs(gap).sum() / weights.sum())
