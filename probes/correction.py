"""Correct a probe's scale by people's grades: a Platt map, shrunk towards no correction.

    log-odds of people saying yes = slope · (log-odds of the probe) + offset,    slope > 0

The ranking of replies stays the same (Platt 1999). log slope and offset have normal priors around
0, so that few grades cannot move them far. Neither, the offset alone, or both are fitted, whichever
predicts the grades of left-out prompts best.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import minimize

from probes.scale import AS_FITTED, Scale, log_odds

SLOPE_SPREAD = 0.5  # prior standard deviation of log slope
OFFSET_SPREAD = 2.0  # and of offset
CERTAIN = 1e-6  # probabilities are clipped this far from 0 and 1

Method = Literal["unchanged", "offset", "slope and offset"]
METHODS: tuple[Method, ...] = ("unchanged", "offset", "slope and offset")


@dataclass(frozen=True)
class FittedScale:
    """A scale, how it was chosen, and how well left-out grades are predicted.

    log_loss: nats per grade, of left-out prompts. log_loss_before: with nothing corrected.
    """

    scale: Scale
    method: Method
    log_loss: float
    log_loss_before: float


def fit_correction(scores: np.ndarray, graded: np.ndarray) -> FittedScale:
    """Fit a scale to grades.

    scores: the probe's probabilities, shape (n_prompts, n_replies). graded: the share of people
    who say yes of the same replies. A prompt's replies are left out together.
    """
    fitted = log_odds(scores, CERTAIN)
    losses = {method: _left_out_loss(method, fitted, graded) for method in METHODS}
    best = min(METHODS, key=lambda method: round(losses[method], 4))  # of equals the simplest
    scale = _fit(best, fitted.ravel(), graded.ravel())
    return FittedScale(scale, best, losses[best], losses["unchanged"])


def _left_out_loss(method: Method, fitted: np.ndarray, graded: np.ndarray) -> float:
    others = ~np.eye(len(graded), dtype=bool)
    losses = [
        _loss(_fit(method, fitted[rest].ravel(), graded[rest].ravel()), fitted[row], graded[row])
        for row, rest in enumerate(others)
    ]
    return float(np.mean(losses))


def _fit(method: Method, fitted: np.ndarray, graded: np.ndarray) -> Scale:
    """The scale of the highest posterior probability."""
    if method == "unchanged":
        return AS_FITTED

    def scale_of(free: np.ndarray) -> Scale:
        slope = 1.0 if method == "offset" else float(np.exp(free[1]))
        return Scale(slope, float(free[0]))

    def penalised(free: np.ndarray) -> float:
        spread = np.array([OFFSET_SPREAD, SLOPE_SPREAD])[: len(free)]
        shrunken = float((0.5 * (free / spread) ** 2).sum())
        return len(graded) * _loss(scale_of(free), fitted, graded) + shrunken

    return scale_of(minimize(penalised, np.zeros(1 if method == "offset" else 2)).x)


def _loss(scale: Scale, fitted: np.ndarray, graded: np.ndarray) -> float:
    """Mean log loss, nats: log(1 + e^z) - graded · z."""
    corrected = scale.slope * fitted + scale.offset
    return float(np.mean(np.logaddexp(0, corrected) - graded * corrected))
