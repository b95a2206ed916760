"""Keys and values of a batch, in buffers with room to grow."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer


class PreallocatedLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values in buffers with room to grow, since appending would copy all of them.

    room: positions to add after the pass that fills the buffers.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room
        self._buffers: list[torch.Tensor] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values of new positions, and return those of all positions."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held, new = self.get_seq_length(), (key_states, value_states)
        end = held + key_states.shape[-2]
        if not self._buffers or end > self._buffers[0].shape[-2]:
            kept = (self.keys, self.values)
            self._buffers = [_with_room(states, end + self._room) for states in new]
            if held:
                for buffer, states in zip(self._buffers, kept, strict=True):
                    buffer[..., :held, :] = states
        for buffer, states in zip(self._buffers, new, strict=True):
            buffer[..., held:end, :] = states
        self.keys, self.values = (buffer[..., :end, :] for buffer in self._buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows of the batch."""
        super().batch_select_indices(indices)
        self._buffers = []


def _with_room(states: torch.Tensor, positions: int) -> torch.Tensor:
    """Room for so many positions of the same rows, heads and widths."""
    return states.new_empty((*states.shape[:-2], positions, states.shape[-1]))
