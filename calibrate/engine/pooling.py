"""Means of residuals over the tokens of a text, attention sinks left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch

from calibrate.engine.forward import forward, require_finite
from calibrate.engine.memory import over_batches
from calibrate.models.hooks import StopPass, captured, hidden_of
from calibrate.models.model import LoadedModel
from calibrate.models.tokens import Batch, TokenSequence

Pooling = Literal["mean", "last"]

# A residual this many times its text's median norm is an attention sink, not content.
# Content tokens of the models measured stay within a factor of 4; sinks start at about 20.
SINK_RATIO = 10.0


@dataclass(frozen=True, eq=False)
class Pooled:
    """One batch's residuals, a row per text.

    rows: index of each row's text.
    means: tensor (n_layers, batch, hidden), float32 on the CPU: token means, or last tokens.
    norms: per layer, the residual norms of the tokens that were kept.
    n_sinks: tensor (n_layers,), text tokens left out as attention sinks.
    """

    rows: tuple[int, ...]
    means: torch.Tensor
    norms: list[torch.Tensor]
    n_sinks: torch.Tensor


def pooled_residuals(
    loaded: LoadedModel,
    sequences: Sequence[TokenSequence],
    layers: Sequence[int],
    pooling: Pooling = "mean",
) -> Iterator[Pooled]:
    """Stream the token means after each of `layers` (ascending), attention sinks left out.

    Left out are position 0 (never part of a sequence's text) and positions whose residual norm
    exceeds `SINK_RATIO` times the text's median at that block: their size would drown the
    content. Decided per text, so the batch size changes nothing. Blocks after the last of
    `layers` are not run.

    Raises: NumericalError if a mean is not finite.
    """

    def pooled(batch: Batch) -> Pooled:
        return _pooled(loaded, batch, layers, pooling)

    return over_batches(pooled, sequences, loaded.scoring_tokens, loaded.device)


def _pooled(loaded: LoadedModel, batch: Batch, layers: Sequence[int], pooling: Pooling) -> Pooled:
    text = batch.text()
    means: list[torch.Tensor] = []
    norms: list[torch.Tensor] = []
    n_sinks: list[torch.Tensor] = []

    def receive(layer: int, output: Any) -> None:
        if layer not in layers:
            return
        hidden = hidden_of(output).float()
        norm, here = hidden.norm(dim=-1), text.to(hidden.device)
        keep = here & (norm <= SINK_RATIO * _row_medians(norm, here))
        weights = keep if pooling == "mean" else _last_true(keep)
        total = weights.sum(dim=1, keepdim=True).clamp(min=1)
        means.append((torch.einsum("bp,bph->bh", weights.float(), hidden) / total).cpu())
        norms.append(norm[keep].cpu())
        n_sinks.append((here & ~keep).sum().cpu())
        if layer == layers[-1]:
            raise StopPass

    with captured(loaded.blocks, receive), suppress(StopPass):
        forward(loaded, batch, share=(layers[-1] + 1) / loaded.num_layers)
    stacked = torch.stack(means)
    require_finite(stacked, loaded)
    return Pooled(batch.rows, stacked, norms, torch.stack(n_sinks))


def _row_medians(norm: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    return norm.masked_fill(~text, torch.nan).nanmedian(dim=1, keepdim=True).values


def _last_true(mask: torch.Tensor) -> torch.Tensor:
    position = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, position, -1).max(dim=1, keepdim=True).values
    return mask & (position == last)
