"""Read and steer the residual stream. The only file with hooks.

A block's output is the residual stream after it. *Capturing* reads it, *editing* replaces it,
and a *suffix-only* pass runs just the blocks after a given one on residuals kept from an
earlier pass, which is exact because steering block ℓ leaves everything before it alone.

Nothing here outlives its `with`: hooks and borrowed methods are put back in `finally`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import nn
from torch.autograd import forward_ad
from transformers import Cache
from transformers.pytorch_utils import Conv1D

from calibrate.errors import NumericalError
from calibrate.memory import Shelf, over_batches
from calibrate.tokens import Batch, TokenSequence

if TYPE_CHECKING:
    from calibrate.model import LoadedModel

Edit = Callable[[torch.Tensor], torch.Tensor]
Pooling = Literal["mean", "last"]
Positions = Literal["all", "last"]

# A residual this many times its text's median norm is an attention sink, not content.
# Content tokens of the models measured stay within a factor of 4; sinks start at about 20.
SINK_RATIO = 10.0

WRITES = 0.01  # how far, relatively, what a projection adds may be off after the block


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

    What the model then computes carries its derivative with respect to the strength.
    """

    def edit(hidden: torch.Tensor) -> torch.Tensor:
        everywhere = shift.to(hidden).expand_as(hidden)
        tangent = everywhere if mask is None else everywhere * mask[..., None].to(hidden)
        dual: torch.Tensor = forward_ad.make_dual(  # type: ignore[no-untyped-call]
            hidden, tangent.contiguous()
        )
        return dual

    return edit


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
def retraced() -> Iterator[None]:
    """Have compiled code made anew, since it takes no notice of hooks that come or go later."""
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


@dataclass(frozen=True, eq=False)
class Push:
    """A shift of the residual stream after one block, (hidden,), and the positions it is for."""

    shift: torch.Tensor
    layer: int
    positions: Positions = "all"


class RowPushes:
    """What steers each row of a batch that is being generated.

    kinds: the different pushes, None among them for rows that nothing steers.
    """

    def __init__(self, rows: Sequence[Push | None]) -> None:
        self.kinds: list[Push | None] = list(dict.fromkeys(rows))
        self._rows: list[Push | None] = list(rows)
        self._before_prompt = False
        self._shifts: dict[tuple[int, Positions], torch.Tensor | None] = {}

    @property
    def layers(self) -> set[int]:
        """Blocks after which some row is steered."""
        return {push.layer for push in self.kinds if push is not None}

    def select(self, rows: Sequence[int]) -> None:
        """Let the batch consist of these of its rows; one may come more than once."""
        self._rows = [self._rows[row] for row in rows]
        self._shifts.clear()

    @contextmanager
    def once_each(self) -> Iterator[None]:
        """Inside the `with`, a batch has one row a kind, and its last position is no prompt's."""
        rows, self._rows, self._before_prompt = self._rows, self.kinds, True
        self._shifts.clear()
        try:
            yield
        finally:
            self._rows, self._before_prompt = rows, False
            self._shifts.clear()

    def steer(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """The residual stream after a block, (rows, positions, hidden), every row pushed."""
        everywhere, last = (self._shift(layer, kind, hidden) for kind in get_args(Positions))
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
                push if push and (push.layer, push.positions) == place else None
                for push in self._rows
            ]
            still = torch.zeros(like.shape[-1])
            rows = [still if push is None else push.shift for push in chosen]
            self._shifts[place] = torch.stack(rows)[:, None].to(like) if any(chosen) else None
        return self._shifts[place]


@contextmanager
def pushed(blocks: nn.ModuleList, rows: Sequence[Push | None]) -> Iterator[RowPushes]:
    """Steer each row of the batches that run inside the `with` by its own push.

    Positions "last" are the last of each pass, so that batches must be padded on the left.
    """
    pushes = RowPushes(rows)
    with ExitStack() as stack:
        for layer in pushes.layers:
            edit = partial(pushes.steer, layer)
            stack.enter_context(edited(blocks[layer], edit))
        yield pushes


@contextmanager
def last_logits_only(
    loaded: LoadedModel, receive: Callable[[torch.Tensor], None] | None = None
) -> Iterator[None]:
    """Have logits made of each pass's last position only; those of all others dwarf the rest.

    receive: called with what the unembedding would have read, (batch, positions, hidden).
    """

    def shrink(_module: nn.Module, args: Any) -> Any:
        if receive is not None:
            receive(args[0])
        return (args[0][:, -1:], *args[1:])

    handle = loaded.unembedding.register_forward_pre_hook(shrink)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True, eq=False)
class KeptResidual:
    """The residual stream after one block, kept for suffix-only passes.

    hidden: tensor of shape (batch, positions, hidden), where the shelf keeps it.
    rest: what else the block returned, where it returns several things: what is told of each
        position is kept, since the next block may read it, and None stands for all else.
    several: whether the block returns several things, be it one.
    """

    hidden: torch.Tensor
    rest: tuple[torch.Tensor | None, ...] = ()
    several: bool = False

    @classmethod
    def of(cls, output: Any, shelf: Shelf) -> KeptResidual:
        """Keep a block's raw output."""
        hidden = shelf.keep(hidden_of(output))
        if not isinstance(output, tuple | list):
            return cls(hidden)
        told = [
            shelf.keep(each)
            if isinstance(each, torch.Tensor) and each.shape[:2] == hidden.shape[:2]
            else None
            for each in output[1:]
        ]
        return cls(hidden, tuple(told), True)

    def as_output(self, hidden: torch.Tensor) -> Any:
        """Return `hidden`, and the rest with it, in the form this model's blocks return it."""
        if not self.several:
            return hidden
        rest = (None if each is None else each.to(hidden.device) for each in self.rest)
        return (hidden, *rest)


@contextmanager
def keeping(
    loaded: LoadedModel, layers: Sequence[int], shelf: Shelf
) -> Iterator[dict[int, KeptResidual]]:
    """Keep the residuals after the blocks in `layers` that run inside the `with`, by block."""
    kept: dict[int, KeptResidual] = {}

    def receive(layer: int, output: Any) -> None:
        if layer in layers:
            kept[layer] = KeptResidual.of(output, shelf)

    with captured(loaded.blocks, receive):
        yield kept


@contextmanager
def suffix_only(blocks: nn.ModuleList, layer: int, kept: KeptResidual) -> Iterator[None]:
    """Let block `layer` return `kept` and the blocks before it hand their input through.

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
    loaded: LoadedModel, layer: int, edit: Edit, kept: KeptResidual | None
) -> Iterator[float]:
    """Run with `edit` after a block: only the blocks after it, where their input was kept.

    Yields: the share of the blocks that runs.
    """
    with ExitStack() as stack:
        if kept is not None:
            stack.enter_context(suffix_only(loaded.blocks, layer, kept))
        stack.enter_context(edited(loaded.blocks[layer], edit))
        yield 1.0 if kept is None else 1 - (layer + 1) / loaded.num_layers


def final_hidden(
    loaded: LoadedModel,
    batch: Batch,
    share: float = 1.0,
    gradients: bool = False,
    cache: Cache | None = None,
) -> torch.Tensor:
    """Run the model and return what its unembedding reads at the predicting positions.

    Logits are left out on purpose: they dwarf everything else. `LoadedModel.logits` turns any
    slice of the result into them. `share` is the part of the blocks that runs, for the meter;
    with `gradients` the result can be differentiated; `cache` holds the batch's prefix.

    Returns: tensor of shape (n_scored, hidden), after the final norm.
    Raises: NumericalError if a value is not finite.
    """
    seen: list[torch.Tensor] = []

    with last_logits_only(loaded, seen.append):
        forward(loaded, batch, share, gradients, cache)
    with torch.set_grad_enabled(gradients):
        hidden = seen[0][batch.predicting()]
    _require_finite(hidden, loaded)
    return hidden


def differentiable_hidden(
    loaded: LoadedModel, batch: Batch
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Run the model so that its final hidden states can be differentiated by every residual.

    Nothing before the first block's output is differentiated, and no parameter gets a gradient.

    Returns: what `final_hidden` returns, and the residual stream after every block, tensors of
        shape (batch, positions, hidden).
    """
    residuals: list[torch.Tensor] = []

    def begin(hidden: torch.Tensor) -> torch.Tensor:
        return hidden.detach().requires_grad_()

    def receive(_layer: int, output: Any) -> None:
        residuals.append(hidden_of(output))

    with edited(loaded.blocks[0], begin), captured(loaded.blocks, receive):
        hidden = final_hidden(loaded, batch, gradients=True)
    return hidden, residuals


def residual_writers(loaded: LoadedModel, layer: int) -> dict[str, float]:
    """Find the projections of a block whose output reaches the block's output, and nothing else.

    Proved on the model itself: what is added to such a projection's output shifts the residual
    stream by a constant factor of it, at every position.

    Returns: by path inside the block, in the order of its modules, that factor; 1 but for
        residual multipliers.
    """
    batch = Batch.of([TokenSequence(tuple(range(8)), 1)], loaded.device)
    block = loaded.blocks[layer]
    generator = torch.Generator().manual_seed(0)
    shift = torch.randn(loaded.hidden_size, generator=generator).to(loaded.device)
    before = _output_of(loaded, batch, layer)
    shift = shift * before.norm(dim=-1).median() / shift.norm()
    found = {}
    for path, module in block.named_modules():
        if _output_size(module) != loaded.hidden_size:
            continue
        with edited(module, add_everywhere(shift)):
            moved = _output_of(loaded, batch, layer) - before
        factor = float((moved @ shift).mean() / (shift @ shift))
        off = float((moved - factor * shift).abs().max() / shift.abs().max())
        if off < WRITES and abs(factor) > WRITES:
            found[path] = factor
    return found


def _output_of(loaded: LoadedModel, batch: Batch, layer: int) -> torch.Tensor:
    """The residual stream after a block, float32."""
    outputs: list[torch.Tensor] = []

    def receive(index: int, output: Any) -> None:
        if index == layer:
            outputs.append(hidden_of(output).float())
            raise _Enough

    with captured(loaded.blocks, receive), suppress(_Enough):
        forward(loaded, batch, share=(layer + 1) / loaded.num_layers)
    return outputs[0]


def _output_size(module: nn.Module) -> int | None:
    """How many features a projection puts out; None for other modules."""
    if isinstance(module, nn.Linear):
        return module.out_features
    return int(module.nf) if isinstance(module, Conv1D) else None


@dataclass(frozen=True, eq=False)
class Pooled:
    """One batch's residuals, a row per text.

    rows: index of each row's text.
    means: tensor (n_layers, batch, hidden), float32 on the CPU: token means, or last tokens.
    norms: per layer, the residual norms of the tokens that were kept.
    n_sinks: tensor (n_layers,), text tokens left out as attention sinks.
    """

    rows: tuple[int, ...]
    means: torch.Tensor
    norms: list[torch.Tensor]
    n_sinks: torch.Tensor


def pooled_residuals(
    loaded: LoadedModel,
    sequences: Sequence[TokenSequence],
    layers: Sequence[int],
    pooling: Pooling = "mean",
) -> Iterator[Pooled]:
    """Stream the token means after each of `layers` (ascending), attention sinks left out.

    Left out are position 0 (never part of a sequence's text) and positions whose residual norm
    exceeds `SINK_RATIO` times the text's median at that block: their size would drown the
    content. Decided per text, so the batch size changes nothing. Blocks after the last of
    `layers` are not run.

    Raises: NumericalError if a mean is not finite.
    """

    def pooled(batch: Batch) -> Pooled:
        return _pooled(loaded, batch, layers, pooling)

    return over_batches(pooled, sequences, loaded.scoring_tokens, loaded.device)


class _Enough(Exception):
    """Raised by a hook to end a pass whose rest nobody needs."""


def _pooled(loaded: LoadedModel, batch: Batch, layers: Sequence[int], pooling: Pooling) -> Pooled:
    text = batch.text()
    means: list[torch.Tensor] = []
    norms: list[torch.Tensor] = []
    n_sinks: list[torch.Tensor] = []

    def receive(layer: int, output: Any) -> None:
        if layer not in layers:
            return
        hidden = hidden_of(output).float()
        norm = hidden.norm(dim=-1)
        keep = text & (norm <= SINK_RATIO * _row_medians(norm, text))
        weights = keep if pooling == "mean" else _last_true(keep)
        total = weights.sum(dim=1, keepdim=True).clamp(min=1)
        means.append((torch.einsum("bp,bph->bh", weights.float(), hidden) / total).cpu())
        norms.append(norm[keep].cpu())
        n_sinks.append((text & ~keep).sum().cpu())
        if layer == layers[-1]:
            raise _Enough

    with captured(loaded.blocks, receive), suppress(_Enough):
        forward(loaded, batch, share=(layers[-1] + 1) / loaded.num_layers)
    stacked = torch.stack(means)
    _require_finite(stacked, loaded)
    return Pooled(batch.rows, stacked, norms, torch.stack(n_sinks))


def forward(
    loaded: LoadedModel,
    batch: Batch,
    share: float = 1.0,
    gradients: bool = False,
    cache: Cache | None = None,
) -> None:
    """Run one batch for its hooks' sake, and count its tokens; `share` and so on as above.

    cache: keys and values of what comes before the batch, or an empty one to fill.
    """
    loaded.meter.count(round(batch.n_tokens * share))
    options = {} if cache is None else {"past_key_values": cache}
    with torch.set_grad_enabled(gradients):
        loaded.model(
            input_ids=batch.ids,
            attention_mask=batch.attended(),
            use_cache=cache is not None,
            **options,
        )


def _require_finite(values: torch.Tensor, loaded: LoadedModel) -> None:
    if not torch.isfinite(values).all():
        raise NumericalError(
            f"activations must be finite, got NaN or infinity in {loaded.dtype}; "
            "use --dtype float32, or bfloat16 where the hardware has it"
        )


def _row_medians(norm: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    return norm.masked_fill(~text, torch.nan).nanmedian(dim=1, keepdim=True).values


def _last_true(mask: torch.Tensor) -> torch.Tensor:
    position = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, position, -1).max(dim=1, keepdim=True).values
    return mask & (position == last)


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
