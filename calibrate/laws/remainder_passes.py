"""The passes from which the law of the bounded remainder is read."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from calibrate.engine.last_residual import last_residuals, read_out
from calibrate.engine.site import Site
from calibrate.engine.unsteered import UnsteeredRun
from calibrate.laws.log_odds import EPSILON_SHARE
from calibrate.laws.remainder import ReadOut, RemainderLaw
from calibrate.models.devices import in_double
from calibrate.models.model import LoadedModel


def measure_remainder(
    loaded: LoadedModel, run: UnsteeredRun, site: Site, unit: float, rows: Sequence[int]
) -> RemainderLaw:
    """Measure what the blocks make of a vector, in some contexts, in five passes.

    unit: the strength of the outer passes, of either sign. rows: indices of scored tokens, counted
    batch by batch. In half precision, three passes.
    """
    size, vector = abs(unit), site.total.cpu().double().numpy()

    def remainder(strength: float) -> np.ndarray:
        return last_residuals(loaded, run, site, strength, rows) - strength * vector

    slope = None
    if loaded.dtype == torch.float32:
        epsilon = EPSILON_SHARE * site.residual_norm / site.norm
        slope = (remainder(epsilon) - remainder(-epsilon)) / (2 * epsilon)
    return RemainderLaw(size, vector, remainder(0.0), slope, remainder(size), remainder(-size))


def reader_of(loaded: LoadedModel) -> ReadOut:
    """From residuals (n, hidden) to ln p (n, vocabulary), as the model reads them."""
    return partial(_log_probs, loaded)


def _log_probs(loaded: LoadedModel, residuals: np.ndarray) -> np.ndarray:
    logits = read_out(loaded, torch.from_numpy(residuals).to(loaded.dtype))
    log_p: np.ndarray = in_double(logits).log_softmax(dim=-1).cpu().numpy()
    return log_p
