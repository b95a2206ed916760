"""A calibrated linear read-out of some features: logistic regression, cross-validated by group.

Both labels have equal weight. Probabilities are then calibrated (Platt, 1999) on out-of-fold
scores, and the calibration is folded into the weights. If there are replies of both labels, it uses
only them, since replies are what will be judged, and texts without a prompt are harder to tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GroupKFold

from probes.examples import Example

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)  # inverse regularisation strengths tried
FOLDS = 5


@dataclass(frozen=True, eq=False)
class Readout:
    """Probability = sigmoid(weights · features + bias)."""

    weights: np.ndarray
    bias: float

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Probabilities, (n_texts,), of features (n_texts, n_features)."""
        probabilities: np.ndarray = expit(features @ self.weights + self.bias)
        return probabilities


def fit_readout(examples: Sequence[Example], features: np.ndarray) -> Readout:
    """Fit a read-out with the penalty whose out-of-fold log loss is smallest.

    features: (n_examples, n_features).
    """
    data = _data(examples, features)
    scores = {penalty: _out_of_fold(data, penalty) for penalty in PENALTIES}
    penalty = min(PENALTIES, key=lambda choice: _loss(data, scores[choice]))
    weights, bias = _fit(data, penalty)
    slope, offset = _platt(scores[penalty], data)
    return Readout((slope * weights).astype(np.float32), slope * bias + offset)


def _loss(data: _Data, scores: np.ndarray) -> float:
    return float(log_loss(data.labels, expit(scores), sample_weight=data.weights))


@dataclass(frozen=True, eq=False)
class _Data:
    features: np.ndarray  # (n_examples, n_features)
    labels: np.ndarray  # (n_examples,), 0 or 1
    weights: np.ndarray  # (n_examples,), mean 1
    groups: np.ndarray  # (n_examples,)
    bare: np.ndarray  # (n_examples,), whether it has no prompt

    def take(self, rows: np.ndarray) -> _Data:
        parts = (self.features, self.labels, self.weights, self.groups, self.bare)
        return _Data(*(part[rows] for part in parts))


def _data(examples: Sequence[Example], features: np.ndarray) -> _Data:
    labels = np.array([int(example.positive) for example in examples])
    of_label = np.bincount(labels, minlength=2)
    return _Data(
        features,
        labels,
        len(labels) / 2 / of_label[labels],
        np.array([example.group for example in examples]),
        np.array([example.bare for example in examples]),
    )


def _fit(data: _Data, penalty: float) -> tuple[np.ndarray, float]:
    """Standardise, fit, and express the result on the raw features."""
    mean = np.average(data.features, axis=0, weights=data.weights)
    variance = np.average((data.features - mean) ** 2, axis=0, weights=data.weights)
    scale = np.sqrt(variance) + 1e-6
    regression = LogisticRegression(C=penalty, max_iter=2000)
    regression.fit((data.features - mean) / scale, data.labels, sample_weight=data.weights)
    weights = regression.coef_[0] / scale
    return weights, float(regression.intercept_[0] - weights @ mean)


def _folds(data: _Data) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Splits into rows to fit and rows to test, groups kept whole, with both labels to fit."""
    folds = min(FOLDS, len(set(data.groups)))
    if folds < 2:
        return
    for fit_rows, test_rows in GroupKFold(n_splits=folds).split(
        data.features, data.labels, data.groups
    ):
        if len(set(data.labels[fit_rows])) == 2:
            yield fit_rows, test_rows


def _out_of_fold(data: _Data, penalty: float) -> np.ndarray:
    """Log-odds of every example, from a read-out that has not seen its group.

    They are 0, undecided, where the other groups hold one label only.
    """
    scores = np.zeros(len(data.labels))
    for fit_rows, test_rows in _folds(data):
        weights, bias = _fit(data.take(fit_rows), penalty)
        scores[test_rows] = data.features[test_rows] @ weights + bias
    return scores


def _platt(scores: np.ndarray, data: _Data) -> tuple[float, float]:
    """Slope and offset that turn out-of-fold scores into calibrated log-odds.

    Labels are smoothed as Platt does, to (N₊ + 1)/(N₊ + 2) and 1/(N₋ + 2): scores that separate
    few examples perfectly are no reason for certainty, and the slope stays finite.
    """
    replies = np.flatnonzero(~data.bare)
    if len(set(data.labels[replies])) == 2:
        scores, data = scores[replies], data.take(replies)
    counts = np.bincount(data.labels, minlength=2)
    weights = data.weights / np.bincount(data.labels, data.weights)[data.labels]  # labels alike
    likely = np.where(data.labels == 1, (counts[1] + 1) / (counts[1] + 2), 1 / (counts[0] + 2))
    regression = LogisticRegression(C=1e6).fit(
        np.concatenate([scores, scores])[:, None],
        np.repeat([1, 0], len(scores)),
        sample_weight=len(scores) * np.concatenate([weights * likely, weights * (1 - likely)]),
    )
    return float(regression.coef_[0, 0]), float(regression.intercept_[0])
