"""The residual stream after the last block, and the tokens that the model reads from it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from calibrate.engine.cross_entropy import steered_hidden
from calibrate.engine.forward import final_hidden
from calibrate.engine.site import Site
from calibrate.engine.unsteered import UnsteeredRun
from calibrate.models.hooks import captured, edited, hidden_of, keeping, suffix_only
from calibrate.models.model import LoadedModel
from calibrate.models.tokens import PAD, Batch, TokenSequence


def last_residuals(
    loaded: LoadedModel, run: UnsteeredRun, site: Site, strength: float, rows: Sequence[int]
) -> np.ndarray:
    """The residual stream after the last block that predicts some tokens, steered.

    rows: indices of scored tokens, counted batch by batch.
    Returns: float64 array (n_rows, hidden).
    """
    last, seen = loaded.num_layers - 1, dict[int, torch.Tensor]()

    def receive(layer: int, output: Any) -> None:
        if layer == last:
            seen[layer] = hidden_of(output)

    picked, n_before = [], 0
    for unsteered in run.batches:
        with captured(loaded.blocks, receive):
            n_scored = len(steered_hidden(loaded, unsteered, site, strength))
        mine = [row - n_before for row in rows if 0 <= row - n_before < n_scored]
        predicting = unsteered.batch.predicting().to(seen[last].device)
        picked.append(seen.pop(last)[predicting][mine].cpu().double().numpy())
        n_before += n_scored
    shift = site.shifts(strength).get(last)  # added after the output was seen
    added = 0.0 if shift is None else shift.double().numpy()
    residuals: np.ndarray = np.concatenate(picked) + added
    return residuals


def read_out(loaded: LoadedModel, residuals: torch.Tensor) -> torch.Tensor:
    """Logits that the model reads from residuals after its last block, (n_rows, vocabulary).

    Made by the model itself from a last block that puts these out, so that its norm and a
    soft-cap are included; the blocks before it run only where suffix passes do not work.
    residuals: (n_rows, hidden).
    """
    rows, last = residuals[:, None, :].to(loaded.device), loaded.num_layers - 1
    pairs = [TokenSequence((PAD, PAD), 1)]
    form = None
    if loaded.capabilities.suffix_after(last).works:
        with keeping(loaded.blocks, [last], lambda tensor: tensor) as kept:
            final_hidden(loaded, Batch.of(pairs, loaded.device))
        form = kept[last]
    tokens = Batch.of(pairs * len(rows), loaded.device)
    with ExitStack() as stack:
        if form is not None and all(each is None for each in form.rest):
            hidden = rows.to(form.hidden).expand(-1, form.hidden.shape[1], -1)
            stack.enter_context(suffix_only(loaded.blocks, last, replace(form, hidden=hidden)))
        else:
            put_out = edited(loaded.blocks[last], lambda hidden: rows.to(hidden).expand_as(hidden))
            stack.enter_context(put_out)
        return loaded.logits(final_hidden(loaded, tokens, share=0.0 if form else 1.0))
