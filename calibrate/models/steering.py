"""What steers a row of a batch: shifts of the residual stream after some blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import get_args

import torch
from torch import nn

from calibrate.common.errors import InputError
from calibrate.models.hooks import Positions, edited, is_steered


@dataclass(frozen=True, eq=False)
class Steering:
    """Shifts of the residual stream, (hidden,), by block, and the positions they are for."""

    shifts: Mapping[int, torch.Tensor]
    positions: Positions = "all"


def require_unsteered(model: nn.Module) -> None:
    """Raise InputError where a `with` around the call steers a model."""
    if is_steered(model):
        raise InputError(
            "a model must be as it is while it is calibrated, and it is being steered: leave the "
            "`with` that steers it; for two concepts at once, give the earlier calibration as "
            "beside=…, or export it with --format folded and calibrate that checkpoint"
        )


class BatchSteering:
    """What steers each row of a batch that is being generated.

    kinds: the distinct steerings of its rows, None among them for unsteered rows.
    """

    def __init__(self, rows: Sequence[Steering | None]) -> None:
        self.kinds: list[Steering | None] = list(dict.fromkeys(rows))
        self._rows: list[Steering | None] = list(rows)
        self._before_prompt = False
        self._shifts: dict[tuple[int, Positions], torch.Tensor | None] = {}

    @property
    def layers(self) -> set[int]:
        """Blocks after which some row is steered."""
        return {layer for kind in self.kinds if kind is not None for layer in kind.shifts}

    def select(self, rows: Sequence[int]) -> None:
        """Let the batch consist of these of its rows; one may come more than once."""
        self._rows = [self._rows[row] for row in rows]
        self._shifts.clear()

    @contextmanager
    def once_each(self) -> Iterator[None]:
        """Inside the `with`, the batch has one row per kind, and no row is at its prompt's end."""
        rows, self._rows, self._before_prompt = self._rows, self.kinds, True
        self._shifts.clear()
        try:
            yield
        finally:
            self._rows, self._before_prompt = rows, False
            self._shifts.clear()

    def steer(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """The residual stream after a block, (rows, positions, hidden), with every row steered."""
        everywhere, last = (self._shift(layer, where, hidden) for where in get_args(Positions))
        if everywhere is not None:
            hidden = hidden + everywhere
        if last is not None and not self._before_prompt:
            hidden = torch.cat([hidden[:, :-1], hidden[:, -1:] + last], dim=1)
        return hidden

    def _shift(self, layer: int, positions: Positions, like: torch.Tensor) -> torch.Tensor | None:
        """What is added to each row at these positions, (rows, 1, hidden); None for nothing."""
        place = layer, positions
        if place not in self._shifts:
            chosen = [
                row.shifts.get(layer) if row and row.positions == positions else None
                for row in self._rows
            ]
            shifts = [shift for shift in chosen if shift is not None]
            if shifts:
                nothing = torch.zeros_like(shifts[0])
                rows = [nothing if shift is None else shift for shift in chosen]
                self._shifts[place] = torch.stack(rows)[:, None].to(like)
            else:
                self._shifts[place] = None
        return self._shifts[place]


@contextmanager
def steered_rows(blocks: nn.ModuleList, rows: Sequence[Steering | None]) -> Iterator[BatchSteering]:
    """Steer each row of the batches that run inside the `with` in its own way.

    Positions "last" are the last of each pass, so that batches must be padded on the left.
    """
    steering = BatchSteering(rows)
    with ExitStack() as stack:
        for layer in steering.layers:
            edit = partial(steering.steer, layer)
            stack.enter_context(edited(blocks[layer], edit))
        yield steering
