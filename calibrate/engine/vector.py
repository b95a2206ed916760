"""A steering vector, at one block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from calibrate.models.hooks import Positions, add_everywhere, add_last, edited, recompiling
from calibrate.models.steering import Steering


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """A direction to add to the residual stream after one block.

    values: float32 CPU tensor of shape (hidden_size,).
    layer: 0-based block whose output is steered.
    residual_norm: median ‖h‖ over the text tokens v was made from, at that block.
    n_sinks: text tokens left out as attention sinks.

    >>> vector = result.config.steering_vector
    >>> prompt = tokenizer("the house by the river", return_tensors="pt")
    >>> with vector.apply(loaded.blocks, strength=2.0):
    ...     logits = model(**prompt).logits
    """

    values: torch.Tensor
    layer: int
    residual_norm: float
    n_sinks: int = 0

    @property
    def norm(self) -> float:
        """‖v‖."""
        return float(self.values.norm())

    def relative(self, strength: float) -> float:
        """α‖v‖ / median ‖h‖, which can be compared across blocks and models."""
        return strength * self.norm / self.residual_norm

    def random_like(self, seed: int) -> SteeringVector:
        """Return a vector of the same norm at the same block, in a random direction."""
        noise = torch.randn(self.values.shape, generator=torch.Generator().manual_seed(seed))
        return replace(self, values=noise * (self.norm / noise.norm()))

    def push(self, strength: float, positions: Positions = "all") -> Steering:
        """The steering of generated replies by `strength · v` after this vector's block."""
        return Steering(strength * self.values, self.layer, positions)

    @contextmanager
    def apply(
        self, blocks: nn.ModuleList, strength: float, positions: Positions = "all"
    ) -> Iterator[None]:
        """Add `strength · v` after this vector's block inside the `with`.

        blocks: the model's decoder blocks. Nests with other steering, and leaves no hook
            behind. Positions "last" steers the last position of each pass, the prompt's last
            token and every generated one, so batches must be padded on the left. Code made
            by torch.compile is made again, on entering and after leaving.
        """
        shift = strength * self.values
        edit = add_everywhere(shift) if positions == "all" else add_last(shift)
        with edited(blocks[self.layer], edit), recompiling():
            yield
