"""Lend a model to code that takes it apart, and get it back as it was, whatever happens.

PEFT replaces submodules, freezes parameters and leaves attributes; if it fails half-way, nothing of
its own takes them back. Noted is what every module, and every config, holds: a reference each, so
that it costs no memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import GenerationConfig, PreTrainedConfig


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Put modules, hooks, parameters, flags and configs back after the `with`.

    Weights that are changed in place stay changed.
    """
    holders = [_Holder(one) for one in _holders(model)]
    parameters = [_Parameter(one) for one in model.parameters()]
    try:
        yield
    finally:
        for holder in holders:
            holder.restore()
        for parameter in parameters:
            parameter.restore()


def _holders(model: nn.Module) -> Iterator[Any]:
    """Every module of a model, and every config of these, those inside others too."""
    seen: set[int] = set()
    waiting: list[Any] = list(model.modules())
    while waiting:
        one = waiting.pop()
        if id(one) not in seen:
            seen.add(id(one))
            yield one
            inside = vars(one).values()
            waiting += [it for it in inside if isinstance(it, (PreTrainedConfig, GenerationConfig))]


class _Holder:
    """What an object holds: its attributes, and the contents of those that are containers."""

    def __init__(self, one: Any) -> None:
        self._one, self._kind = one, type(one)
        self._attributes = dict(vars(one))
        self._contents: list[tuple[Any, Any]] = [
            (value, value.copy())
            for value in self._attributes.values()
            if isinstance(value, (dict, set, list))
        ]

    def restore(self) -> None:
        held = vars(self._one)
        if type(self._one) is not self._kind:
            self._one.__class__ = self._kind
        held.clear()
        held.update(self._attributes)
        for container, contents in self._contents:
            if isinstance(container, list):
                container[:] = contents
            else:
                container.clear()
                container.update(contents)


class _Parameter:
    """A parameter's values, by reference, its gradient and whether it has one."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self._parameter = parameter
        self._data, self._gradient = parameter.data, parameter.grad
        self._trained = parameter.requires_grad

    def restore(self) -> None:
        parameter = self._parameter
        if parameter.data_ptr() != self._data.data_ptr() or parameter.dtype != self._data.dtype:
            parameter.data = self._data
        if parameter.requires_grad != self._trained:
            parameter.requires_grad_(self._trained)
        if parameter.grad is not self._gradient:
            parameter.grad = self._gradient
