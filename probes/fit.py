"""Fit a probe: logistic regression whose block and penalty are cross-validated by group.

Every label weighs the same, and within a label every kind of example does: the model's own
replies may outnumber the written texts without outvoting them. Probabilities are then
calibrated (Platt, 1999) on out-of-fold scores, and the calibration folded into the weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import expit
from scipy.stats import mannwhitneyu
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import GroupKFold

from calibrate.model import borrowed
from probes.examples import Example, Kind
from probes.features import text_features
from probes.probe import Probe, ProbeQuality

if TYPE_CHECKING:
    from calibrate.model import LoadedModel

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)  # inverse regularisation strengths tried
DEPTHS = (0.3, 0.45, 0.6, 0.75)  # blocks tried, as shares of the depth
FOLDS = 5
DIFFERS = 0.05  # p-value below which primed replies count as different


@dataclass(frozen=True, eq=False)
class _Data:
    features: np.ndarray  # (n_examples, hidden)
    labels: np.ndarray  # (n_examples,), 0 or 1
    weights: np.ndarray  # (n_examples,), mean 1
    groups: np.ndarray  # (n_examples,)

    def take(self, rows: np.ndarray) -> _Data:
        return _Data(self.features[rows], self.labels[rows], self.weights[rows], self.groups[rows])


@dataclass(frozen=True, eq=False)
class _Linear:
    weights: np.ndarray
    bias: float

    def __call__(self, features: np.ndarray) -> np.ndarray:
        scores: np.ndarray = features @ self.weights + self.bias
        return scores


def fit_probe(
    concept: str,
    examples: Sequence[Example],
    held_out: Sequence[Example],
    model: LoadedModel,
) -> Probe:
    """Fit a probe on `examples` and test it on the written texts `held_out`.

    Primed replies are used only where a probe of the written texts alone tells them apart.
    """
    layers = sorted({round(depth * (model.num_layers - 1)) for depth in DEPTHS})
    texts = [example.text for example in [*examples, *held_out]]
    with borrowed(model):
        features = text_features(model, texts, layers)
    fitting, testing = features[:, : len(examples)], features[:, len(examples) :]
    used = _measurably_different(examples, fitting[len(layers) // 2])
    examples = [examples[int(row)] for row in used]
    fitting = fitting[:, used]
    best, penalty = _chosen(examples, fitting)
    data = _data(examples, fitting[best])
    out_of_fold = _out_of_fold(data, penalty)
    slope, offset = _platt(out_of_fold, data)
    linear = _fit(data, penalty)
    probabilities = expit(slope * out_of_fold + offset)
    return Probe(
        concept=concept,
        layer=layers[best],
        weights=(slope * linear.weights).astype(np.float32),
        bias=float(slope * linear.bias + offset),
        threshold=_threshold(probabilities, data),
        model_id=model.name,
        tokenizer_sha256=model.identity.tokenizer_sha256,
        quality=ProbeQuality(
            auc_texts=_auc(held_out, linear(testing[best])),
            p_value=_p_value(
                [*examples, *held_out], np.concatenate([out_of_fold, linear(testing[best])])
            ),
            auc_replies=_auc_replies(examples, probabilities),
            brier=float(np.average((probabilities - data.labels) ** 2, weights=data.weights)),
            calibration_error=_calibration_error(probabilities, data),
            n_examples=dict(Counter(f"{e.kind} {'+' if e.positive else '-'}" for e in examples)),
        ),
    )


def _measurably_different(examples: Sequence[Example], features: np.ndarray) -> np.ndarray:
    """Rows to fit on: all of them, or without the primed ones if priming changed nothing."""
    primed = np.array([example.kind == "primed" for example in examples])
    rows = np.arange(len(examples))
    if not primed.any():
        return rows
    written = [row for row, example in enumerate(examples) if example.kind == "written"]
    linear = _fit(_data([examples[row] for row in written], features[written]), PENALTIES[1])
    p_value = _p_value(examples, linear(features), kind="primed")
    return rows if p_value < DIFFERS else rows[~primed]


def _data(examples: Sequence[Example], features: np.ndarray) -> _Data:
    kinds = Counter((example.positive, example.kind) for example in examples)
    n_kinds = Counter(positive for positive, _ in kinds)
    weights = np.array([1 / (kinds[e.positive, e.kind] * n_kinds[e.positive]) for e in examples])
    return _Data(
        features,
        np.array([int(example.positive) for example in examples]),
        weights / weights.mean(),
        np.array([example.group for example in examples]),
    )


def _fit(data: _Data, penalty: float) -> _Linear:
    """Standardise, fit, and express the result on the raw features."""
    mean = np.average(data.features, axis=0, weights=data.weights)
    variance = np.average((data.features - mean) ** 2, axis=0, weights=data.weights)
    scale = np.sqrt(variance) + 1e-6
    regression = LogisticRegression(C=penalty, max_iter=2000)
    regression.fit((data.features - mean) / scale, data.labels, sample_weight=data.weights)
    weights = regression.coef_[0] / scale
    return _Linear(weights, float(regression.intercept_[0] - weights @ mean))


def _folds(data: _Data) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    folds = min(FOLDS, len(set(data.groups)))
    yield from GroupKFold(n_splits=folds).split(data.features, data.labels, data.groups)


def _out_of_fold(data: _Data, penalty: float) -> np.ndarray:
    scores = np.zeros(len(data.labels))
    for fit_rows, test_rows in _folds(data):
        scores[test_rows] = _fit(data.take(fit_rows), penalty)(data.features[test_rows])
    return scores


def _chosen(examples: Sequence[Example], features: np.ndarray) -> tuple[int, float]:
    """The (layer index, penalty) with the smallest out-of-fold log loss."""
    losses = {}
    for index, layer_features in enumerate(features):
        data = _data(examples, layer_features)
        for penalty in PENALTIES:
            scores = expit(_out_of_fold(data, penalty))
            losses[index, penalty] = log_loss(data.labels, scores, sample_weight=data.weights)
    return min(losses, key=lambda choice: losses[choice])


def _platt(scores: np.ndarray, data: _Data) -> tuple[float, float]:
    """Slope and offset that turn out-of-fold scores into calibrated log-odds."""
    regression = LogisticRegression(C=1e6).fit(
        scores[:, None], data.labels, sample_weight=data.weights
    )
    return float(regression.coef_[0, 0]), float(regression.intercept_[0])


def _threshold(probabilities: np.ndarray, data: _Data) -> float:
    """The probability that separates the labels best (Youden's index), out of fold."""
    order = np.argsort(-probabilities)
    gain = np.cumsum(np.where(data.labels == 1, data.weights, -data.weights)[order])
    best = int(np.argmax(gain))
    below = probabilities[order[best + 1]] if best + 1 < len(order) else 0.0
    return float((probabilities[order[best]] + below) / 2)


def _auc(examples: Sequence[Example], scores: np.ndarray) -> float:
    return float(roc_auc_score([example.positive for example in examples], scores))


def _p_value(examples: Sequence[Example], scores: np.ndarray, kind: Kind = "written") -> float:
    """Of the positives of one kind scoring above its negatives by chance."""
    chosen = np.array([example.kind == kind for example in examples])
    positive = np.array([example.positive for example in examples])
    up, down = scores[chosen & positive], scores[chosen & ~positive]
    return float(mannwhitneyu(up, down, alternative="greater").pvalue)


def _auc_replies(examples: Sequence[Example], probabilities: np.ndarray) -> float | None:
    """Primed positives against the model's primed negatives and plain replies."""
    rows = [row for row, example in enumerate(examples) if example.kind in ("primed", "own")]
    chosen = [examples[row] for row in rows]
    if not any(example.positive for example in chosen):
        return None
    return _auc(chosen, probabilities[rows])


def _calibration_error(probabilities: np.ndarray, data: _Data, bins: int = 10) -> float:
    """Expected calibration error: weighted mean gap between probability and frequency."""
    bucket = np.minimum((probabilities * bins).astype(int), bins - 1)
    gap = np.bincount(bucket, data.weights * (probabilities - data.labels), minlength=bins)
    return float(np.abs(gap).sum() / data.weights.sum())
