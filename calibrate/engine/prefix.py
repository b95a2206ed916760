"""Run the common prefix of a corpus, such as a chat template, once instead of row by row.

Later tokens do not change a prefix's keys and values, so those of one row serve all rows.
Steering changes them after the steered block: a steered pass runs the prefix again, as one row.
This holds for models whose state is a cache of keys and values alone, which is tried on each
(`calibrate.engine.capabilities`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache

from calibrate.engine.forward import forward
from calibrate.engine.memory import ResidualStore
from calibrate.models.hooks import Edit, KeptResidual, edited_after, keeping, last_logits_only
from calibrate.models.model import LoadedModel
from calibrate.models.tokens import Batch, TokenSequence, common_prefix


class LentCache(Cache):  # type: ignore[misc]
    """Keys and values of one row that serve every row of a batch, and never change."""

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the row's keys and values followed by these, without storing these."""
        layer = copy.copy(self.layers[layer_idx])
        layer.batch_repeat_interleave(len(key_states))
        extended: tuple[torch.Tensor, torch.Tensor] = layer.update(
            key_states, value_states, *args, **kwargs
        )
        return extended


@dataclass(frozen=True, eq=False)
class Prefix:
    """A prefix that has run, unsteered, as one row.

    ids: its token ids. cache: its keys and values. residuals: after the requested blocks.
    """

    ids: tuple[int, ...]
    cache: LentCache
    residuals: dict[int, KeptResidual]

    def edited(self, loaded: LoadedModel, edits: Mapping[int, Edit]) -> LentCache:
        """Its keys and values with edits after some blocks; those up to the first do not change."""
        filled, first = loaded.empty_cache(), min(edits)
        kept = self.residuals.get(first)
        with (
            edited_after(loaded.blocks, edits, kept) as share,
            last_logits_only(loaded.unembedding),
        ):
            forward(loaded, _one_row(self.ids, loaded), share, cache=filled)
        before = 0 if kept is None else first + 1
        return LentCache([*self.cache.layers[:before], *filled.layers[before:]])


def shared_prefix(
    loaded: LoadedModel,
    sequences: Sequence[TokenSequence],
    layers: Sequence[int],
    store: ResidualStore,
) -> Prefix | None:
    """Run the sequences' common prefix, and keep its residuals after the blocks in `layers`.

    Returns: None where it is too short, or the model cannot share it.
    """
    if not sequences:
        return None
    before_any_scored = min(sequence.start for sequence in sequences) - 1
    ids = common_prefix([sequence.ids for sequence in sequences], before_any_scored)
    if not ids or not loaded.capabilities.prefix_sharing.works:
        return None
    return run_prefix(loaded, ids, layers, store)


def run_prefix(
    loaded: LoadedModel, ids: tuple[int, ...], layers: Sequence[int], store: ResidualStore
) -> Prefix:
    """Run a prefix as one row, and keep its residuals after the blocks in `layers`."""
    cache = loaded.empty_cache()
    with (
        keeping(loaded.blocks, layers, store.keep) as residuals,
        last_logits_only(loaded.unembedding),
    ):
        forward(loaded, _one_row(ids, loaded), cache=cache)
    return Prefix(ids, LentCache(cache.layers), residuals)


def _one_row(ids: tuple[int, ...], loaded: LoadedModel) -> Batch:
    return Batch.of([TokenSequence(ids, len(ids))], loaded.device)
