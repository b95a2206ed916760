"""Which projections of a block write to the residual stream, found by trying."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from calibrate.engine.forward import forward
from calibrate.models.hooks import StopPass, add_everywhere, captured, edited, hidden_of
from calibrate.models.model import LoadedModel
from calibrate.models.tokens import Batch, TokenSequence

WRITES = 0.01  # largest relative error of a projection's constant factor, and smallest factor


def residual_writers(loaded: LoadedModel, layer: int) -> dict[str, float]:
    """Find the projections of a block whose output reaches the block's output, and nothing else.

    Proved on the model itself: what is added to such a projection's output shifts the residual
    stream by a constant factor of it, at every position.

    Returns: by path inside the block, in the order of its modules, that factor; 1 but for
        residual multipliers.
    """
    batch = Batch.of([TokenSequence(tuple(range(8)), 1)], loaded.device)
    block = loaded.blocks[layer]
    generator = torch.Generator().manual_seed(0)
    shift = torch.randn(loaded.hidden_size, generator=generator).to(loaded.device)
    before = _output_of(loaded, batch, layer)
    shift = shift * before.norm(dim=-1).median() / shift.norm()
    factors = {}
    for path, module in block.named_modules():
        if _output_size(module) != loaded.hidden_size:
            continue
        with edited(module, add_everywhere(shift)):
            moved = _output_of(loaded, batch, layer) - before
        factor = float((moved @ shift).mean() / (shift @ shift))
        off = float((moved - factor * shift).abs().max() / shift.abs().max())
        if off < WRITES and abs(factor) > WRITES:
            factors[path] = factor
    return factors


def _output_of(loaded: LoadedModel, batch: Batch, layer: int) -> torch.Tensor:
    """The residual stream after a block, float32."""
    outputs: list[torch.Tensor] = []

    def receive(index: int, output: Any) -> None:
        if index == layer:
            outputs.append(hidden_of(output).float())
            raise StopPass

    with captured(loaded.blocks, receive), suppress(StopPass):
        forward(loaded, batch, share=(layer + 1) / loaded.num_layers)
    return outputs[0]


def _output_size(module: nn.Module) -> int | None:
    """How many features a projection puts out; None for other modules."""
    if isinstance(module, nn.Linear):
        return module.out_features
    return int(module.nf) if isinstance(module, Conv1D) else None
