"""What a device has, and on which one a part of a model computes."""

from __future__ import annotations

import torch


def in_double(values: torch.Tensor) -> torch.Tensor:
    """The values in float64: where they are, or on the CPU if their device has none, as MPS.

    What is wanted on the CPU anyway is brought there first, and needs no device to have it.
    """
    try:
        return values.double()
    except TypeError:
        return values.cpu().double()
