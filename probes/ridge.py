"""Ridge regression with far more features than texts, its penalty chosen by cross-validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import GroupKFold

PENALTIES = tuple(float(10**power) for power in np.arange(-2.0, 2.1, 0.5))  # times n_features
FOLDS = 8


@dataclass(frozen=True, eq=False)
class Ridge:
    """predicted = features · weights + bias, on raw features.

    out_of_fold: predictions for each text, by a fit without its group.
    """

    weights: np.ndarray  # (n_features,)
    bias: float
    out_of_fold: np.ndarray  # (n_texts,)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Predictions, (n_texts,), of features (n_texts, n_features)."""
        predicted: np.ndarray = features @ self.weights + self.bias
        return predicted


def fit_ridge(
    features: np.ndarray, targets: np.ndarray, groups: Sequence[str], weights: np.ndarray
) -> Ridge:
    """Fit targets (n_texts,) by standardised features (n_texts, n_features).

    groups: texts of one group share a fold. weights: how much each text counts.
    """
    mean = np.average(features, axis=0, weights=weights)
    scale = np.sqrt(np.average((features - mean) ** 2, axis=0, weights=weights)) + 1e-6
    standard = (features - mean) / scale
    gram = standard @ standard.T / standard.shape[1]
    predicted = _out_of_fold(gram, targets, groups, weights)
    errors = [np.average((values - targets) ** 2, weights=weights) for values in predicted]
    best = int(np.argmin(errors))
    dual, bias = _solve(gram, targets, weights, PENALTIES[best])
    raw = standard.T @ dual / standard.shape[1] / scale
    return Ridge(raw, float(bias - raw @ mean), predicted[best])


def _out_of_fold(
    gram: np.ndarray, targets: np.ndarray, groups: Sequence[str], weights: np.ndarray
) -> list[np.ndarray]:
    """Predictions out of fold, for each penalty; 0 if all texts are of one group."""
    predicted = [np.zeros(len(targets)) for _ in PENALTIES]
    folds = min(FOLDS, len(set(groups)))
    if folds < 2:
        return predicted
    for fit, test in GroupKFold(n_splits=folds).split(targets, groups=groups):
        for place, penalty in enumerate(PENALTIES):
            dual, bias = _solve(gram[np.ix_(fit, fit)], targets[fit], weights[fit], penalty)
            predicted[place][test] = gram[np.ix_(test, fit)] @ dual + bias
    return predicted


def _solve(
    gram: np.ndarray, targets: np.ndarray, weights: np.ndarray, penalty: float
) -> tuple[np.ndarray, float]:
    """Dual coefficients and intercept of the weighted ridge: (K + penalty/w) a + b = y, Σa = 0."""
    n = len(targets)
    system = np.zeros((n + 1, n + 1))
    system[:n, :n] = gram + np.diag(penalty / weights)
    system[:n, n] = system[n, :n] = 1.0
    solved = np.linalg.solve(system, np.append(targets, 0.0))
    return solved[:n], float(solved[n])
