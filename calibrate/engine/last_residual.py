"""The residual stream after the last block, and the tokens that the model reads from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from calibrate.engine.cross_entropy import steered_hidden
from calibrate.engine.forward import final_hidden
from calibrate.engine.site import Site
from calibrate.engine.unsteered import UnsteeredRun
from calibrate.models.hooks import captured, edited, hidden_of
from calibrate.models.model import LoadedModel
from calibrate.models.tokens import PAD, Batch, TokenSequence


def last_residuals(
    loaded: LoadedModel, run: UnsteeredRun, site: Site, strength: float, rows: Sequence[int]
) -> np.ndarray:
    """The residual stream after the last block that predicts some tokens, steered.

    rows: indices of scored tokens, counted batch by batch.
    Returns: float64 array (n_rows, hidden).
    """
    last, outputs = loaded.num_layers - 1, []

    def receive(layer: int, output: Any) -> None:
        if layer == last:
            outputs.append(hidden_of(output))

    picked, n_before = [], 0
    for unsteered in run.batches:
        with captured(loaded.blocks, receive):
            n_scored = len(steered_hidden(loaded, unsteered, site, strength))
        mine = [row - n_before for row in rows if 0 <= row - n_before < n_scored]
        picked.append(outputs[-1][unsteered.batch.predicting()][mine].double().cpu().numpy())
        n_before += n_scored
    shift = site.shifts(strength, loaded.device).get(last)  # added after the output was seen
    added = 0.0 if shift is None else shift.double().cpu().numpy()
    residuals: np.ndarray = np.concatenate(picked) + added
    return residuals


def read_out(loaded: LoadedModel, residuals: torch.Tensor) -> torch.Tensor:
    """Logits that the model reads from residuals after its last block, (n_rows, vocabulary).

    Made by the model itself from a last block that puts these out, so that its norm and a
    soft-cap are included. residuals: (n_rows, hidden).
    """
    rows = residuals[:, None, :].to(loaded.device)
    tokens = Batch.of([TokenSequence((PAD, PAD), 1)] * len(rows), loaded.device)
    with edited(loaded.blocks[-1], lambda hidden: rows.to(hidden).expand_as(hidden).clone()):
        return loaded.logits(final_hidden(loaded, tokens))
