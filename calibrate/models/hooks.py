"""Read and steer the residual stream. The only file with hooks.

A block's output is the residual stream after it. *Capturing* reads it, *editing* replaces it,
and a *suffix-only* pass runs just the blocks after a given one on residuals kept from an
earlier pass, which is exact because steering block ℓ leaves everything before it alone.

Nothing here outlives its `with`: hooks and borrowed methods are put back in `finally`.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.autograd import forward_ad

Edit = Callable[[torch.Tensor], torch.Tensor]
Keep = Callable[[torch.Tensor], torch.Tensor]

Positions = Literal["all", "last"]

# Whose hooks belong to a model: those that record its outputs, move weights, or came with it.
ITS_MAKERS = ("torch", "transformers", "transformers_modules", "accelerate", "peft")


def hidden_of(output: Any) -> torch.Tensor:
    """Return the residual stream in a block's output: a tensor, or the first of several things."""
    hidden: torch.Tensor = output[0] if isinstance(output, tuple | list) else output
    return hidden


def add_everywhere(shift: torch.Tensor) -> Edit:
    """Add `shift`, broadcastable to (batch, positions, hidden), at every position."""
    return lambda hidden: hidden + shift.to(hidden)


def add_last(shift: torch.Tensor) -> Edit:
    """Add `shift` at the last position of each pass: as a model generates, left-padded."""

    def edit(hidden: torch.Tensor) -> torch.Tensor:
        moved = hidden.clone()
        moved[:, -1:] += shift.to(hidden)
        return moved

    return edit


def add_where(shift: torch.Tensor, mask: torch.Tensor) -> Edit:
    """Add `shift` at the positions where `mask`, (batch, positions), is true."""
    return lambda hidden: hidden + shift.to(hidden) * mask[..., None].to(hidden)


def with_tangent(shift: torch.Tensor, mask: torch.Tensor | None = None) -> Edit:
    """Make the residual stream a dual number that moves along `shift`, where `mask` is true.

    What the model then computes carries its derivative with respect to the strength. Where it is
    a dual number already, since an earlier block is steered too, its movements add up.
    """

    def edit(hidden: torch.Tensor) -> torch.Tensor:
        hidden, moved = forward_ad.unpack_dual(hidden)  # type: ignore[no-untyped-call]
        everywhere = shift.to(hidden).expand_as(hidden)
        tangent = everywhere if mask is None else everywhere * mask[..., None].to(hidden)
        if moved is not None:
            tangent = tangent + moved
        with warnings.catch_warnings():  # the first dual number of a process calls torch.jit.script
            warnings.filterwarnings("ignore", "`torch.jit.script", FutureWarning)
            warnings.filterwarnings("ignore", "`torch.jit.script", DeprecationWarning)
            dual: torch.Tensor = forward_ad.make_dual(  # type: ignore[no-untyped-call]
                hidden, tangent.contiguous()
            )
        return dual

    return edit


def is_steered(model: nn.Module) -> bool:
    """Whether a `with` of this package that has not ended changes what a model does."""
    return any(whose.startswith(__name__) for _, whose in _hooks(model))


def hooks_of_others(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Hooks that neither this package put into a model nor the libraries that make models.

    Yields: the path of the module, and the name of the function.
    """
    for path, whose in _hooks(model):
        if not whose.startswith(__name__) and whose.partition(".")[0] not in ITS_MAKERS:
            yield path, whose


def _hooks(model: nn.Module) -> Iterator[tuple[str, str]]:
    for path, module in model.named_modules():
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            kind = hook if hasattr(hook, "__qualname__") else type(hook)
            yield path, f"{kind.__module__}.{kind.__qualname__}"


@contextmanager
def captured(blocks: nn.ModuleList, receive: Callable[[int, Any], None]) -> Iterator[None]:
    """Call `receive(layer, output)` with the raw output of every block that runs."""
    with ExitStack() as stack:
        for layer, block in enumerate(blocks):
            handle = block.register_forward_hook(
                lambda _module, _args, output, layer=layer: receive(layer, output)
            )
            stack.callback(handle.remove)
        yield


@contextmanager
def recompiling() -> Iterator[None]:
    """Have code compiled anew, since compiled code ignores hooks added or removed later."""
    _forget_compiled()
    try:
        yield
    finally:
        _forget_compiled()


def _forget_compiled() -> None:
    if "torch._dynamo" in sys.modules:  # without it nothing can have been compiled
        torch.compiler.reset()


@contextmanager
def edited(block: nn.Module, edit: Edit) -> Iterator[None]:
    """Replace the residual stream after `block` with `edit` of it."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        hidden = edit(hidden_of(output))
        return (hidden, *output[1:]) if isinstance(output, tuple | list) else hidden

    handle = block.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def entering(blocks: nn.ModuleList, shifts: Mapping[int, torch.Tensor]) -> Iterator[None]:
    """Add shifts, (hidden,), to what enters blocks, at every position."""

    def adding(shift: torch.Tensor) -> Callable[..., Any]:
        def hook(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            if args:
                return (args[0] + shift.to(args[0]), *args[1:]), kwargs
            hidden = kwargs["hidden_states"]
            return args, {**kwargs, "hidden_states": hidden + shift.to(hidden)}

        return hook

    with ExitStack() as stack:
        for layer, shift in shifts.items():
            handle = blocks[layer].register_forward_pre_hook(adding(shift), with_kwargs=True)
            stack.callback(handle.remove)
        yield


@contextmanager
def last_logits_only(
    unembedding: nn.Module, receive: Callable[[torch.Tensor], None] | None = None
) -> Iterator[None]:
    """Compute logits at each pass's last position only; all of them would dwarf every other tensor.

    receive: called with what the unembedding would have read, (batch, positions, hidden); then only
        the first row's are computed, since who asks for that makes logits of it.
    """

    def shrink(_module: nn.Module, args: Any) -> Any:
        if receive is None:
            return (args[0][:, -1:], *args[1:])
        receive(args[0])
        return (args[0][:1, -1:], *args[1:])

    handle = unembedding.register_forward_pre_hook(shrink)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True, eq=False)
class KeptResidual:
    """The residual stream after one block, kept for suffix-only passes.

    hidden: tensor of shape (batch, positions, hidden).
    rest: further elements of a block's output that is a tuple or list: tensors with a value per
        position are kept, since the next block may read them; None stands for all others.
    several: whether the output is a tuple or list.
    """

    hidden: torch.Tensor
    rest: tuple[torch.Tensor | None, ...] = ()
    several: bool = False

    @classmethod
    def of(cls, output: Any, keep: Keep) -> KeptResidual:
        """Keep a block's raw output."""
        hidden = keep(hidden_of(output))
        if not isinstance(output, tuple | list):
            return cls(hidden)
        rest = [
            keep(each)
            if isinstance(each, torch.Tensor) and each.shape[:2] == hidden.shape[:2]
            else None
            for each in output[1:]
        ]
        return cls(hidden, tuple(rest), True)

    def as_output(self, hidden: torch.Tensor) -> Any:
        """Return `hidden`, and the rest with it, in the form this model's blocks return it."""
        if not self.several:
            return hidden
        rest = (None if each is None else each.to(hidden.device) for each in self.rest)
        return (hidden, *rest)


@contextmanager
def keeping(
    blocks: nn.ModuleList, layers: Sequence[int], keep: Keep
) -> Iterator[dict[int, KeptResidual]]:
    """Keep the residuals after the blocks in `layers` that run inside the `with`, by block.

    keep: returns a tensor that holds the same values for long, perhaps elsewhere.
    """
    kept: dict[int, KeptResidual] = {}

    def receive(layer: int, output: Any) -> None:
        if layer in layers:
            kept[layer] = KeptResidual.of(output, keep)

    with captured(blocks, receive):
        yield kept


@contextmanager
def suffix_only(blocks: nn.ModuleList, layer: int, kept: KeptResidual) -> Iterator[None]:
    """Let block `layer` return `kept`, and the blocks before it their input.

    The model's own forward still makes masks, positions and rotary angles, so this holds for
    any architecture whose blocks share nothing but the residual stream.
    """

    def hand_through(hidden_states: torch.Tensor, *_args: Any, **_kwargs: Any) -> Any:
        return kept.as_output(hidden_states)

    def give_kept(hidden_states: torch.Tensor, *_args: Any, **_kwargs: Any) -> Any:
        return kept.as_output(kept.hidden.to(hidden_states.device))

    with ExitStack() as stack:
        for block in blocks[:layer]:
            stack.enter_context(_forward_replaced(block, hand_through))
        stack.enter_context(_forward_replaced(blocks[layer], give_kept))
        yield


@contextmanager
def edited_after(
    blocks: nn.ModuleList, edits: Mapping[int, Edit], kept: KeptResidual | None
) -> Iterator[float]:
    """Run with an edit after each of some blocks.

    kept: the residual after the first of them, unsteered; only the blocks after it run then.
    Yields: the share of the blocks that runs.
    """
    first = min(edits)
    with ExitStack() as stack:
        if kept is not None:
            stack.enter_context(suffix_only(blocks, first, kept))
        for layer, edit in edits.items():
            stack.enter_context(edited(blocks[layer], edit))
        yield 1.0 if kept is None else 1 - (first + 1) / len(blocks)


class StopPass(Exception):
    """Raised by a hook to end a pass whose rest nobody needs."""


@contextmanager
def _forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Shadow `module.forward`, keeping an instance attribute (accelerate's) if there is one."""
    had = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if had is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = had
