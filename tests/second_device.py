"""Devices beside the CPU for machines that have none: their tensors meet only their own kind.

They compute on the CPU, and so give the CPU's numbers. They refuse what a GPU refuses: tensors of
two devices in one operation, and arrays without `.cpu()`; and, where that is asked for, float64, as
an Apple GPU does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar
from unittest import mock

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn
from torch._lazy import ts_backend
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("lazy", 0)  # torch has it everywhere, and nobody computes there
OTHER = torch.device("lazy", 1)
ops = torch.ops.aten
MIXING = {ops.copy_.default, ops.index.Tensor, ops.index_put_.default}  # a GPU takes CPU's here


class Elsewhere(torch.Tensor):
    """A tensor that is said to be on such a device; `held` is where its numbers are."""

    held: torch.Tensor
    refused: ClassVar[set[torch.dtype]] = set()

    @staticmethod
    def __new__(cls, held: torch.Tensor, device: torch.device = DEVICE) -> Elsewhere:
        if held.dtype in cls.refused:
            raise TypeError(f"{device} has no {held.dtype}")
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, device=device,
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
        raise TypeError(f"a tensor on {self.device} is no array; copy it with .cpu() first")

    def __repr__(self) -> str:
        return f"Elsewhere({self.held})"


class _Computing(TorchDispatchMode):
    """Lets functions that make tensors make them there, where they are asked to."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operation gives, on the device that its tensors are on, or that it names.

    Raises: RuntimeError where tensors of two devices meet.
    """
    args, kwargs = tree_map(_taken_in, (args, kwargs))
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
    there = [each for each in tensors if isinstance(each, Elsewhere)]
    here = [each for each in tensors if not isinstance(each, Elsewhere) and each.dim()]
    devices = {each.device for each in there}
    copies = func is ops.copy_.default
    if (there and here and func not in MIXING) or (len(devices) > 1 and not copies):
        raise RuntimeError(f"all tensors must be on one device, got two in {func}")
    device = next(iter(devices), None)
    if kwargs.get("device") is not None:
        wanted = torch.device(kwargs["device"])
        device = wanted if wanted.type == DEVICE.type else None
        kwargs = {**kwargs, "device": torch.device("cpu")}
    held = tree_map(lambda one: one.held if isinstance(one, Elsewhere) else one, (args, kwargs))
    found = func(*held[0], **held[1])
    if func._schema.is_mutable and isinstance(found, torch.Tensor):
        return args[0]
    return found if device is None else tree_map(lambda one: _moved(one, device), found)


def _moved(value: Any, device: torch.device) -> Any:
    return Elsewhere(value, device) if isinstance(value, torch.Tensor) else value


def _taken_in(value: Any) -> Any:
    """What torch made on the device before it asked anybody."""
    strange = isinstance(value, torch.Tensor) and value.device.type == DEVICE.type
    if not strange or isinstance(value, Elsewhere):
        return value
    with _disable_current_modes():
        return Elsewhere(value.cpu(), value.device)


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


class _Bringing(AlignDevicesHook):
    """Accelerate's way of bringing inputs to where a part computes; its weights are there."""

    def init_hook(self, module: nn.Module) -> nn.Module:
        return module


def spread(model: nn.Module, places: Mapping[str, torch.device]) -> nn.Module:
    """Deal a model's parts, by their paths, to devices, as accelerate does."""
    for path, device in places.items():
        part = model.get_submodule(path).to(device)
        add_hook_to_module(part, _Bringing(device, skip_keys="past_key_values"))
    whole = _Bringing(DEVICE, io_same_device=True, skip_keys="past_key_values")
    return add_hook_to_module(model, whole)
