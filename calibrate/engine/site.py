"""Steering vectors, and sites: where the residual stream is steered, and along what."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from calibrate.common.blocks import site_name
from calibrate.common.errors import InputError
from calibrate.models.hooks import Positions, add_everywhere, add_last, edited, recompiling
from calibrate.models.steering import Steering


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """A direction to add to the residual stream after one block.

    values: float32 CPU tensor of shape (hidden_size,).
    layer: 0-based block whose output is steered.
    residual_norm: median ‖h‖ over the text tokens v was made from, at that block.
    n_sinks: text tokens left out as attention sinks.
    noise: expected squared distance from what infinitely many texts would give; None if unknown.

    >>> vector = result.config.steering_vector
    >>> prompt = tokenizer("the house by the river", return_tensors="pt")
    >>> with vector.apply(loaded.blocks, strength=2.0):
    ...     logits = model(**prompt).logits
    """

    values: torch.Tensor
    layer: int
    residual_norm: float
    n_sinks: int = 0
    noise: float | None = None

    @property
    def norm(self) -> float:
        """‖v‖."""
        return float(self.values.norm())

    @property
    def signal(self) -> float | None:
        """Share of ‖v‖² that is not sampling noise, in [0, 1] (`calibrate.texts.noise`)."""
        return None if self.noise is None else max(0.0, 1 - self.noise / self.norm**2)

    @contextmanager
    def apply(
        self, blocks: nn.ModuleList, strength: float, positions: Positions = "all"
    ) -> Iterator[None]:
        """Add `strength · v` after this vector's block inside the `with`, as `Site.apply` does."""
        with Site((self,), positions).apply(blocks, strength):
            yield


@dataclass(frozen=True, eq=False)
class Site:
    """Where the residual stream is steered, and along what: by α·v after each vector's block.

    vectors: one a block, in the order of the blocks; one strength scales all of them.
    positions: "all", or the "last" of each pass.
    """

    vectors: tuple[SteeringVector, ...]
    positions: Positions = "all"

    @property
    def layers(self) -> tuple[int, ...]:
        """The steered blocks."""
        return tuple(vector.layer for vector in self.vectors)

    @property
    def first(self) -> int:
        """The first steered block: nothing up to its output depends on the strength."""
        return self.vectors[0].layer

    @property
    def where(self) -> str:
        """The steered blocks in words, such as "block 15" or "blocks 8-26"."""
        return site_name(self.layers, "all")

    @property
    def name(self) -> str:
        """Its name in a study, such as "block 15" or "block 15, last position"."""
        return site_name(self.layers, self.positions)

    @property
    def total(self) -> torch.Tensor:
        """Σv, (hidden_size,): the shift per unit strength after the last steered block."""
        return torch.stack([vector.values for vector in self.vectors]).sum(dim=0)

    @property
    def norm(self) -> float:
        """‖Σv‖."""
        return float(self.total.norm())

    @property
    def residual_norm(self) -> float:
        """Median ‖h‖ after the last steered block."""
        return self.vectors[-1].residual_norm

    @property
    def signal(self) -> float | None:
        """Share of the vectors' Σ‖v‖² that is not sampling noise; None if unknown."""
        squares = [vector.norm**2 for vector in self.vectors]
        signals = [vector.signal for vector in self.vectors if vector.signal is not None]
        if len(signals) < len(squares):
            return None
        return sum(s * square for s, square in zip(signals, squares, strict=True)) / sum(squares)

    def relative(self, strength: float) -> float:
        """α‖Σv‖ / median ‖h‖, which can be compared across sites and models."""
        return strength * self.norm / self.residual_norm

    def shifts(
        self, strength: float, device: torch.device | str = "cpu"
    ) -> dict[int, torch.Tensor]:
        """What is added after each block, (hidden_size,).

        Raises: InputError for a strength that is too large for a number to hold.
        """
        added = {vector.layer: strength * vector.values for vector in self.vectors}
        if not all(bool(shift.isfinite().all()) for shift in added.values()):
            raise InputError(f"α·v must be finite, got α = {strength:g}; give a smaller strength")
        return {layer: shift.to(device) for layer, shift in added.items()}

    def steering(self, strength: float) -> Steering:
        """What steers a generated reply by this strength."""
        return Steering(self.shifts(strength), self.positions)

    def random_like(self, seed: int) -> Site:
        """Return the same site with its vectors turned together into random directions.

        They keep their norms, and the angles between them, and with these the norm of their sum.
        """
        values = torch.stack([vector.values for vector in self.vectors]).double()
        noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(seed))
        turned = _coordinates(values) @ _basis(noise.double())
        vectors = (
            replace(vector, values=one.float(), noise=None)
            for vector, one in zip(self.vectors, turned, strict=True)
        )
        return replace(self, vectors=tuple(vectors))

    @contextmanager
    def apply(self, blocks: nn.ModuleList, strength: float) -> Iterator[None]:
        """Steer by `strength` inside the `with`.

        blocks: the model's decoder blocks. Nests with other steering, and leaves no hook
            behind. Positions "last" steers the last position of each pass, the prompt's last
            token and every generated one, so batches must be padded on the left. Code made
            by torch.compile is made again, on entering and after leaving.
        """
        edit = add_everywhere if self.positions == "all" else add_last
        with ExitStack() as stack, recompiling():
            for layer, shift in self.shifts(strength).items():
                stack.enter_context(edited(blocks[layer], edit(shift)))
            yield


def _basis(rows: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis of what some rows span, as rows; the first is the first row's."""
    q, r = torch.linalg.qr(rows.T)
    basis: torch.Tensor = (q * r.diagonal().sign()).T
    return basis


def _coordinates(rows: torch.Tensor) -> torch.Tensor:
    """The rows in their own basis, (n_rows, n_basis)."""
    return rows @ _basis(rows).T
