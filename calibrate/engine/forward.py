"""Passes through a model, and what its unembedding reads at the end of them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache

from calibrate.common.errors import NumericalError
from calibrate.models.hooks import captured, edited, hidden_of, last_logits_only
from calibrate.models.model import LoadedModel
from calibrate.models.tokens import Batch


def final_hidden(
    loaded: LoadedModel,
    batch: Batch,
    share: float = 1.0,
    gradients: bool = False,
    cache: Cache | None = None,
) -> torch.Tensor:
    """Run the model and return what its unembedding reads at the predicting positions.

    Logits are left out on purpose: they dwarf everything else. `LoadedModel.logits` turns any
    slice of the result into them. `share` is the part of the blocks that runs, for the meter;
    with `gradients` the result can be differentiated; `cache` holds the batch's prefix.

    Returns: tensor of shape (n_scored, hidden), after the final norm, where logits are made.
    Raises: NumericalError if a value is not finite.
    """
    seen: list[torch.Tensor] = []

    with last_logits_only(loaded.unembedding, seen.append):
        forward(loaded, batch, share, gradients, cache)
    with torch.set_grad_enabled(gradients):
        hidden = seen[0][batch.predicting().to(seen[0].device)].to(loaded.logits_device)
    require_finite(hidden, loaded)
    return hidden


def differentiable_hidden(
    loaded: LoadedModel, batch: Batch
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Run the model so that its final hidden states can be differentiated by every residual.

    Nothing before the first block's output is differentiated, and no parameter gets a gradient.

    Returns: what `final_hidden` returns, and the residual stream after every block, tensors of
        shape (batch, positions, hidden).
    """
    residuals: list[torch.Tensor] = []

    def begin(hidden: torch.Tensor) -> torch.Tensor:
        return hidden.detach().requires_grad_()

    def receive(_layer: int, output: Any) -> None:
        residuals.append(hidden_of(output))

    with edited(loaded.blocks[0], begin), captured(loaded.blocks, receive):
        hidden = final_hidden(loaded, batch, gradients=True)
    return hidden, residuals


def forward(
    loaded: LoadedModel,
    batch: Batch,
    share: float = 1.0,
    gradients: bool = False,
    cache: Cache | None = None,
) -> None:
    """Run one batch for its hooks, and count its tokens; parameters as for `final_hidden`.

    cache: keys and values of what comes before the batch, or an empty one to fill.
    """
    loaded.meter.count(round(batch.n_tokens * share))
    options = {"use_cache": False} if cache is None else loaded.using(cache)
    with torch.set_grad_enabled(gradients):
        loaded.model(input_ids=batch.ids, attention_mask=batch.attended(), **options)


def require_finite(values: torch.Tensor, loaded: LoadedModel) -> None:
    """Raise NumericalError if a value is NaN or infinite."""
    if not torch.isfinite(values).all():
        raise NumericalError(
            f"activations must be finite, got NaN or infinity in {loaded.dtype}; "
            "use --dtype float32, or bfloat16 where the hardware has it"
        )
