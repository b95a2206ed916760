"""Fit a probe on graded texts: a student of readers, of a teacher, or of both.

    1. log-odds of a yes  ~  ridge regression on token-mean residuals of several blocks
    2. readers' yes       ~  logistic regression on 1, out of fold: the scale (Platt, 1999)

Step 1 uses a text's grade by readers, or else by the teacher: on texts that both graded, readers
taught better (docs/judges.md). Step 2 finds the score from which a reader says yes; if readers
graded too few texts, the score stays the log-odds of a yes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calibrate.models.model import LoadedModel, preserving_model_state
from probes.features import text_features
from probes.graded import GradedText
from probes.ridge import fit_ridge
from probes.scale import Scale, fit_platt, log_odds

DEPTHS = (0.15, 0.3, 0.45, 0.6, 0.7, 0.85)  # blocks read, as shares of the depth
CERTAIN = 0.02  # a teacher's probabilities are clipped this far from 0 and 1
READERS_SAY = (0.06, 0.8, 0.97)  # a teacher's probability for a grade of 0, 1 and 2


@dataclass(frozen=True, eq=False)
class Student:
    """A linear read-out fitted to graded texts.

    weights: (n_layers, hidden_size), and bias: of the score. yes, clearly: scales of the score, for
    a grade of 1 or more, and for 2; the latter None where too few have it.
    scores: of the texts it was fitted on, out of fold, (n_texts,).
    """

    weights: np.ndarray
    bias: float
    yes: Scale
    clearly: Scale | None
    scores: np.ndarray

    @property
    def clearly_of_yes(self) -> Scale | None:
        """Scale from the log-odds of a yes to those of a clear yes."""
        if self.clearly is None:
            return None
        slope = self.clearly.slope / self.yes.slope
        return Scale(slope, self.clearly.offset - slope * self.yes.offset)


def probe_layers(num_layers: int) -> tuple[int, ...]:
    """The 0-based blocks that are read, ascending."""
    return tuple(sorted({round(depth * (num_layers - 1)) for depth in DEPTHS}))


def read_features(model: LoadedModel, texts: Sequence[GradedText]) -> np.ndarray:
    """Features of graded texts, float32 (n_layers, n_texts, hidden_size)."""
    with preserving_model_state(model):
        return text_features(model, [text.text for text in texts], probe_layers(model.num_layers))


def fit_student(texts: Sequence[GradedText], features: np.ndarray) -> Student:
    """Fit on texts that a teacher or readers graded.

    features: (n_layers, n_texts, hidden_size).
    """
    flat = np.concatenate(list(features), axis=1)
    groups = [text.group for text in texts]
    ridge = fit_ridge(flat, targets(texts), groups, np.ones(len(texts)))
    read = [row for row, text in enumerate(texts) if text.grade is not None]
    grades = np.array([texts[row].grade for row in read])
    scores = ridge.out_of_fold[read]
    yes, clearly = (fit_platt(scores, grades >= least) for least in (1, 2))
    weights = ridge.weights.reshape(len(features), -1).astype(np.float32)
    return Student(weights, ridge.bias, yes or Scale(), clearly, ridge.out_of_fold)


def targets(texts: Sequence[GradedText]) -> np.ndarray:
    """The log-odds a student learns, (n_texts,): from readers' grades, or else the teacher's."""
    return log_odds([_probability(text) for text in texts], CERTAIN)


def _probability(text: GradedText) -> float:
    if text.grade is None:
        return text.taught or 0.0
    return float(np.interp(text.grade, (0, 1, 2), READERS_SAY))
