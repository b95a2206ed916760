"""What a device has, and has room for, and on which one a part of a model computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn


def free_cached() -> None:
    """Give back what torch keeps of a GPU's memory for later."""
    torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def computes_on(part: nn.Module) -> torch.device:
    """The device on which a part of a model computes, such as its embedding.

    That is where its weights are, or, while they wait elsewhere, where accelerate brings them.
    """
    weight = next(part.parameters(), torch.empty(0))
    if not weight.is_meta:
        return weight.device
    brought = (getattr(hook, "execution_device", None) for hook in _hooks(part))
    return next((torch.device(each) for each in brought if each is not None), weight.device)


def _hooks(part: nn.Module) -> Iterator[Any]:
    """Accelerate's hooks of a part; one hook may hold several."""
    for module in part.modules():
        hook = getattr(module, "_hf_hook", None)
        yield from getattr(hook, "hooks", (hook,))


@contextmanager
def random_states_kept(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Give the random states of the CPU, and of all devices that a model is on, back as they were.

    device: where its embedding computes, which may hold no weight between passes.
    """
    devices = {device, *(weight.device for weight in model.parameters())}
    gpus = sorted((each for each in devices if each.type == "cuda"), key=str)
    with ExitStack() as stack:
        if device.type == "mps":
            stack.callback(torch.mps.set_rng_state, torch.mps.get_rng_state())
        stack.enter_context(torch.random.fork_rng(gpus))
        yield


def in_double(values: torch.Tensor) -> torch.Tensor:
    """The values in float64: where they are, or on the CPU if their device has none, as MPS.

    What is wanted on the CPU anyway is brought there first, and needs no device to have it.
    """
    try:
        return values.double()
    except TypeError:
        return values.cpu().double()
