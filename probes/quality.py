"""How well probabilities fit labels: AUC, Brier score and calibration error, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from calibrate.common.estimate import Interval

RESAMPLES = 200
CONFIDENCE = 0.95
BINS = 10


@dataclass(frozen=True)
class Quality:
    """How well a judge's probabilities fit the labels of some texts, with 95 % intervals.

    auc: area under the ROC curve. brier: mean squared error. calibration_error: expected
    calibration error over ten bins of probability. n: texts.

    >>> probes.load("joy/probe").learned.quality.auc.value > 0.5
    True
    """

    auc: Interval
    brier: Interval
    calibration_error: Interval
    n: int


@dataclass(frozen=True, eq=False)
class Resampling:
    """A bootstrap over groups of texts, for intervals.

    drawn: array of shape (n_draws, n_texts), how often each text's group was drawn.
    """

    drawn: np.ndarray

    def having(self, label: np.ndarray) -> Resampling:
        """Only the draws that have texts both with and without a label, bool (n_texts,)."""
        having, total = (self.drawn * label).sum(axis=1), self.drawn.sum(axis=1)
        return Resampling(self.drawn[(having > 0) & (having < total)])

    def interval(self, measure: Callable[[np.ndarray], float]) -> Interval:
        """A measure of the texts, a function of their weights, with a 95 % interval."""
        values = [measure(weights) for weights in self.drawn]
        low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        return Interval(measure(np.ones(self.drawn.shape[1])), float(low), float(high))


def resample(groups: Sequence[str]) -> Resampling:
    """Draw groups of texts with replacement, always the same draws for the same groups.

    groups: texts of one group are drawn together; if there is only one, texts are drawn singly.
    """
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) == 1:
        names, member = member, np.arange(len(groups))
    rng = np.random.default_rng(0)
    draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    return Resampling(draws[:, member].astype(float))


def quality(probabilities: np.ndarray, labels: Sequence[bool], groups: Sequence[str]) -> Quality:
    """Measure the quality of probabilities, with intervals from resampled groups.

    labels must hold both kinds. groups: as for `resample`.
    """
    truth = np.asarray(labels, dtype=float)
    resampling = resample(groups).having(truth)
    auc, brier, error = (
        resampling.interval(partial(measure, probabilities, truth))
        for measure in (area_under_curve, brier_score, calibration_error)
    )
    return Quality(auc, brier, error, len(truth))


def area_under_curve(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> float:
    """Return how often a text with the label outscores one without; ties count half."""
    _, rank = np.unique(scores, return_inverse=True)
    having, others = np.bincount(rank, weights * truth), np.bincount(rank, weights * (1 - truth))
    below = np.cumsum(others) - others / 2
    return float(having @ below / (having.sum() * others.sum()))


def brier_score(probabilities: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> float:
    """Return the mean squared difference between probability and label."""
    return float(np.average((probabilities - truth) ** 2, weights=weights))


def calibration_error(probabilities: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> float:
    """Return the weighted mean gap between probability and frequency, over bins of probability."""
    bucket = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    gap = np.bincount(bucket, weights * (probabilities - truth), minlength=BINS)
    return float(np.abs(gap).sum() / weights.sum())
