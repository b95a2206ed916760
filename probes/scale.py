"""A scale: from a score to the probability that a reader says yes (Platt, 1999)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

MIN_TEXTS = 30  # graded texts needed to fit a scale
MIN_OF_EACH = 5  # of them with a yes, and without


@dataclass(frozen=True)
class Scale:
    """log-odds of a yes = slope · score + offset; by default the score is the log-odds.

    >>> float(Scale(slope=2.0, offset=1.0)(-0.5))
    0.5
    """

    slope: float = 1.0
    offset: float = 0.0

    def __call__(self, scores: np.ndarray | float) -> np.ndarray:
        """Probabilities of scores, of the same shape."""
        probabilities: np.ndarray = expit(self.slope * np.asarray(scores) + self.offset)
        return probabilities

    def inverse(self, log_odds: np.ndarray) -> np.ndarray:
        """Scores of log-odds, of the same shape."""
        return (log_odds - self.offset) / self.slope


AS_FITTED = Scale()


def log_odds(probabilities: Any, certain: float) -> np.ndarray:
    """Log-odds of probabilities, of the same shape, clipped `certain` away from 0 and 1."""
    clipped: np.ndarray = logit(np.clip(probabilities, certain, 1 - certain))
    return clipped


def fit_platt(scores: np.ndarray, yes: np.ndarray) -> Scale | None:
    """Fit by logistic regression, or return None if texts are too few.

    scores: (n_texts,), log-odds. yes: bool (n_texts,).
    """
    if len(yes) < MIN_TEXTS or min(yes.sum(), (~yes).sum()) < MIN_OF_EACH:
        return None
    fitted = LogisticRegression(C=1.0).fit(scores[:, None], yes)
    return Scale(float(fitted.coef_[0, 0]), float(fitted.intercept_[0]))
