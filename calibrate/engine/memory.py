"""When memory is short: halve batches that do not fit, and keep residuals elsewhere."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TypeVar

import torch

from calibrate.common.errors import ModelError, ran_out_of_memory
from calibrate.models.devices import free_cached
from calibrate.models.tokens import Batch, TokenSequence, batches

Row = TypeVar("Row")
Result = TypeVar("Result")

MAX_BYTES = 2 << 30  # of residuals kept where the model computes, for one unsteered run


def in_parts_that_fit(
    work: Callable[[Sequence[Row]], Result], rows: Sequence[Row]
) -> list[tuple[Sequence[Row], Result]]:
    """Do some work on rows at once, or on halves of them until it fits in memory.

    Returns: the parts, in order, each with its result.
    Raises: ModelError if not even one row fits.
    """
    try:
        return [(rows, work(rows))]
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        if len(rows) == 1:
            raise ModelError(
                "one sequence must fit in memory beside the model, and it does not; give shorter "
                "texts, or load the model with --dtype bfloat16 or on another --device"
            ) from error
    free_cached()
    half = len(rows) // 2
    return [*in_parts_that_fit(work, rows[:half]), *in_parts_that_fit(work, rows[half:])]


def over_batches(
    work: Callable[[Batch], Result],
    sequences: Sequence[TokenSequence],
    max_tokens: int,
    device: torch.device,
    prefix: tuple[int, ...] = (),
) -> Iterator[Result]:
    """Do some work on sequences batch by batch (`tokens.batches`), in halves where one won't fit.

    prefix: token ids that all sequences begin with, left out of the batches.
    Raises: ModelError if not even one sequence fits.
    """
    for batch in batches(sequences, max_tokens, device, prefix):

        def on_rows(places: Sequence[int], batch: Batch = batch) -> Result:
            return work(batch.take(places))

        for _, result in in_parts_that_fit(on_rows, range(len(batch.rows))):
            yield result


class ResidualStore:
    """Keeps residuals: where they were made up to a limit, elsewhere beyond it.

    Elsewhere is the machine's own memory for those of a GPU, and a file for those of a CPU, which
    is read page by page and goes with its last tensor.

    most: bytes kept where they were made.
    """

    def __init__(self, most: int = MAX_BYTES) -> None:
        self._left = most

    def keep(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return a tensor of the same values that may be kept for long."""
        self._left -= hidden.nbytes
        if self._left >= 0:
            return hidden
        return hidden.cpu() if hidden.device.type != "cpu" else _in_file(hidden)


def _in_file(values: torch.Tensor) -> torch.Tensor:
    """A copy whose memory is a file; the file has no name where the system allows that."""
    handle, path = tempfile.mkstemp(prefix="steering-calibrate-")
    os.close(handle)
    try:
        mapped = torch.from_file(path, shared=True, size=values.numel(), dtype=values.dtype)
    finally:
        with suppress(PermissionError):  # Windows keeps a mapped file until it is closed
            os.unlink(path)
    return mapped.view(values.shape).copy_(values)
