"""A device beside the CPU for machines that have none: its tensors meet only their own kind.

It computes on the CPU, and so gives the CPU's numbers. It refuses what a GPU refuses: tensors of
two devices in one operation, and arrays without `.cpu()`; and, where that is asked for, float64, as
an Apple GPU does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar
from unittest import mock

import torch
from torch._lazy import ts_backend
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("lazy", 0)  # torch has it everywhere, and nobody computes there
ops = torch.ops.aten
MIXING = {ops.copy_.default, ops.index.Tensor, ops.index_put_.default}  # a GPU takes CPU's here


class Elsewhere(torch.Tensor):
    """A tensor that is said to be on the device; `held` is where its numbers are."""

    held: torch.Tensor
    refused: ClassVar[set[torch.dtype]] = set()

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Elsewhere:
        if held.dtype in cls.refused:
            raise TypeError(f"{DEVICE} has no {held.dtype}")
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, device=DEVICE,
        )  # fmt: skip
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})

    def tolist(self) -> Any:
        with _disable_current_modes():
            return self.held.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError(f"a tensor on {DEVICE} is no array; copy it with .cpu() first")

    def __repr__(self) -> str:
        return f"Elsewhere({self.held})"


class _Computing(TorchDispatchMode):
    """Lets functions that make tensors make them there, where they are asked to."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operation gives, on the device that its tensors are on, or that it names.

    Raises: RuntimeError where tensors of both devices meet.
    """
    args, kwargs = tree_map(_taken_in, (args, kwargs))
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
    there = [each for each in tensors if isinstance(each, Elsewhere)]
    here = [each for each in tensors if not isinstance(each, Elsewhere) and each.dim()]
    if there and here and func not in MIXING:
        raise RuntimeError(f"all tensors must be on one device, got two in {func}")
    stays = bool(there)
    if kwargs.get("device") is not None:
        stays = torch.device(kwargs["device"]).type == DEVICE.type
        kwargs = {**kwargs, "device": torch.device("cpu")}
    held = tree_map(lambda one: one.held if isinstance(one, Elsewhere) else one, (args, kwargs))
    found = func(*held[0], **held[1])
    if func._schema.is_mutable and isinstance(found, torch.Tensor):
        return args[0]
    return tree_map(lambda one: _moved(one) if stays else one, found)


def _moved(value: Any) -> Any:
    return Elsewhere(value) if isinstance(value, torch.Tensor) else value


def _taken_in(value: Any) -> Any:
    """What torch made on the device before it asked anybody."""
    strange = isinstance(value, torch.Tensor) and value.device.type == DEVICE.type
    if not strange or isinstance(value, Elsewhere):
        return value
    with _disable_current_modes():
        return Elsewhere(value.cpu())


@cache
def _registered() -> None:
    """Torch's own backend of the device, which can be registered once."""
    ts_backend.init()


def _autocasts(device_type: str = "cuda") -> bool:
    """What torch says, which knows of no autocast there."""
    return device_type != DEVICE.type and _asked_of_torch(device_type)


_asked_of_torch = torch.is_autocast_enabled


@contextmanager
def second_device(double: bool = True) -> Iterator[torch.device]:
    """Inside the `with` there is a second device.

    double: whether it has float64.
    """
    _registered()
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with (
            _Computing(),
            mock.patch("torch.is_autocast_enabled", _autocasts),
            mock.patch.object(Elsewhere, "refused", set() if double else {torch.float64}),
        ):
            yield DEVICE
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
