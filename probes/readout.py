"""A calibrated linear read-out of some features: logistic regression, cross-validated by group.

Every label weighs the same, and within a label every kind of example does: a model's own
replies may outnumber the written texts without outvoting them. Probabilities are then
calibrated (Platt, 1999) on out-of-fold scores, and the calibration folded into the weights: on
replies, where there are any of either label, since replies are what will be judged, and bare
statements are harder to tell.
"""

from __future__ import annotations

from collections import Counter
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


@dataclass(frozen=True, eq=False)
class FittedReadout:
    """A read-out, and what it says of its own examples out of fold.

    raw: before calibration. scores: log-odds out of fold, before calibration; out_of_fold:
    probabilities, after it; loss: their log loss.
    """

    readout: Readout
    raw: Readout
    scores: np.ndarray
    out_of_fold: np.ndarray
    loss: float


def fit_readout(examples: Sequence[Example], features: np.ndarray) -> FittedReadout:
    """Fit a read-out with the penalty whose out-of-fold log loss is smallest.

    features: (n_examples, n_features).
    """
    data = _data(examples, features)
    scores = {penalty: _out_of_fold(data, penalty) for penalty in PENALTIES}
    losses = {penalty: _loss(data, expit(score)) for penalty, score in scores.items()}
    penalty = min(losses, key=lambda choice: losses[choice])
    return _calibrated(data, Readout(*_fit(data, penalty)), scores[penalty])


def averaged(examples: Sequence[Example], fitted: Sequence[FittedReadout]) -> FittedReadout:
    """The mean of several read-outs' log-odds, on their features side by side.

    Each has seen something else; what they get wrong in different ways cancels.
    """
    weights = np.concatenate([one.raw.weights for one in fitted]) / len(fitted)
    mean = Readout(weights, float(np.mean([one.raw.bias for one in fitted])))
    scores = np.mean([one.scores for one in fitted], axis=0)
    return _calibrated(_data(examples, np.empty((len(examples), 0))), mean, scores)


def _calibrated(data: _Data, raw: Readout, scores: np.ndarray) -> FittedReadout:
    """Calibrate a read-out on its out-of-fold scores."""
    slope, offset = _platt(scores, data)
    readout = Readout((slope * raw.weights).astype(np.float32), slope * raw.bias + offset)
    probabilities = expit(slope * scores + offset)
    return FittedReadout(readout, raw, scores, probabilities, _loss(data, probabilities))


def _loss(data: _Data, probabilities: np.ndarray) -> float:
    return float(log_loss(data.labels, probabilities, sample_weight=data.weights))


def example_weights(examples: Sequence[Example]) -> np.ndarray:
    """How much each example counts, mean 1: labels alike, and kinds alike within a label."""
    kinds = Counter((example.positive, example.kind) for example in examples)
    n_kinds = Counter(positive for positive, _ in kinds)
    weights = np.array([1 / (kinds[e.positive, e.kind] * n_kinds[e.positive]) for e in examples])
    normalised: np.ndarray = weights / weights.mean()
    return normalised


@dataclass(frozen=True, eq=False)
class _Data:
    features: np.ndarray  # (n_examples, n_features)
    labels: np.ndarray  # (n_examples,), 0 or 1
    weights: np.ndarray  # (n_examples,), mean 1
    groups: np.ndarray  # (n_examples,)
    bare: np.ndarray  # (n_examples,), whether it replies to nothing

    def take(self, rows: np.ndarray) -> _Data:
        parts = (self.features, self.labels, self.weights, self.groups, self.bare)
        return _Data(*(part[rows] for part in parts))


def _data(examples: Sequence[Example], features: np.ndarray) -> _Data:
    return _Data(
        features,
        np.array([int(example.positive) for example in examples]),
        example_weights(examples),
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
