"""What a model can do beside plain passes, tried on the model itself and never looked up.

Each shortcut is tried once, when it is first wanted, on a few tokens and with steering, against the
plain way that it stands for; whatever goes wrong in a try counts as "no". Then the plain way is
taken, and a warning says so once.

    suffix passes       run only the blocks after the steered one    or: all blocks
    prefix sharing      run what all texts begin with once           or: every text whole
    batching            score several texts in one padded pass       or: text by text
    fast decoding       the loop of `calibrate.decoding`             or: transformers' generate
    decoding prefix     run what all prompts begin with once         or: every prompt whole
    batched generation  several prompts in one `generate`            or: prompt by prompt

The last is tried only where fast decoding fails. What replies should be is what `generate` says to
each prompt alone, since that is what is served.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, get_args

import torch

from calibrate.cost import Meter
from calibrate.decoding import Loop, Row, by_generate, by_own_loop
from calibrate.errors import CalibrateWarning, ModelError
from calibrate.memory import Shelf
from calibrate.model import borrowed
from calibrate.parts import ordinary_ids
from calibrate.prefix import run_prefix
from calibrate.residual import (
    KeptResidual,
    Positions,
    Push,
    add_everywhere,
    captured,
    edited_after,
    final_hidden,
    forward,
    hidden_of,
    keeping,
    last_logits_only,
)
from calibrate.tokens import WORTH_SHARING, Batch, Prompt, TokenSequence

if TYPE_CHECKING:
    from calibrate.model import LoadedModel

# How far, relatively, what a shortcut says may be off.
ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-4}
HALF_ROUNDING = 0.05
FEWER_BLOCKS = 0.1  # of that for suffix passes, which do the very same sums

BEGINNING = WORTH_SHARING  # tokens that all texts of a try begin with
REST = (1, 3)  # tokens after it, by text
STEPS = 2  # tokens of the replies of a try, but for one that ends at once and leaves
LEAVING = -1  # the key of that one
PUSH = 0.5  # size of the push in a try, in median residual norms

WAYS = {  # each shortcut, and what is done without it
    "suffix passes": "every strength runs all blocks",
    "prefix sharing": "every text runs whole",
    "batching": "texts run one by one",
    "fast decoding": "replies are left to transformers' generate",
    "decoding prefix": "every prompt runs whole",
    "batched generation": "prompts are replied to one by one",
}


@dataclass(frozen=True)
class Capability:
    """Whether a shortcut says what the plain way says.

    works: whether it is taken. reason: why not. fallback: what is done instead.
    """

    works: bool
    reason: str | None = None
    fallback: str | None = None


@dataclass(frozen=True)
class CapabilityReport:
    """Everything that was tried on a model.

    logit_scale, softcap: its logits are those of its unembedding times `logit_scale`, soft-capped.
    batched_generation: None where it was not tried, since fast decoding works.
    token_forwards: what trying took, beside what the meter counts.
    """

    logit_scale: float
    softcap: float | None
    suffix_passes: Capability
    prefix_sharing: Capability
    batching: Capability
    fast_decoding: Capability
    decoding_prefix: Capability
    batched_generation: Capability | None
    token_forwards: int


class Capabilities:
    """The capabilities of one model, each tried when it is first asked for."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = replace(loaded, meter=Meter())
        self._after: dict[int, Capability] = {}
        self._warned: set[str] = set()
        self._untouched = 0  # blocks from the first on that last ran on other tokens than the try's
        self._keeps_cache = True  # until `generate` was seen to read a whole reply again

    def suffix_after(self, layer: int) -> Capability:
        """Whether the blocks after `layer` can run alone, on residuals that were kept."""
        if layer not in self._after:
            self._after[layer] = self._tried(
                "suffix passes", lambda: self._suffix_gap(layer), FEWER_BLOCKS
            )
        return self._after[layer]

    @property
    def suffix_passes(self) -> Capability:
        """Whether suffix passes work after the blocks that were wanted, or else after three."""
        last = self._loaded.num_layers - 1
        for layer in () if self._after else (max(last - 1, 0), last // 2, 0):
            self.suffix_after(layer)
        failed = [layer for layer, found in sorted(self._after.items()) if not found.works]
        if not failed:
            return Capability(True)
        where = f"after block {failed[0]}: {self._after[failed[0]].reason}"
        return replace(self._after[failed[0]], reason=where)

    @cached_property
    def prefix_sharing(self) -> Capability:
        """Whether texts say the same after a beginning that has run before, once for all."""
        return self._tried("prefix sharing", self._prefix_gap)

    @cached_property
    def batching(self) -> Capability:
        """Whether texts say the same beside others in one right-padded pass as alone."""
        return self._tried("batching", self._batch_gap)

    @cached_property
    def fast_decoding(self) -> Capability:
        """Whether our own loop says what transformers' `generate` says to each prompt alone."""
        return self._tried("fast decoding", lambda: self._reply_gap(by_own_loop, False))

    @cached_property
    def decoding_prefix(self) -> Capability:
        """The same where what all prompts begin with runs once for them."""
        if not self.fast_decoding.works:
            return Capability(False, "fast decoding does not work", WAYS["decoding prefix"])
        return self._tried("decoding prefix", lambda: self._reply_gap(by_own_loop, True))

    @cached_property
    def batched_generation(self) -> Capability:
        """Whether `generate` says to several prompts at once what it says to each alone."""
        return self._tried("batched generation", lambda: self._reply_gap(by_generate))

    def check_replies(self, rows: Sequence[Row]) -> None:
        """Raise ModelError where `generate` cannot make these replies as they are to be steered."""
        if isinstance(self._alone, Exception):
            raise ModelError(
                f"{self._loaded.name} must be able to reply, and transformers' generate fails for "
                f"it: {_said(self._alone)}"
            ) from self._alone
        if not self._keeps_cache and any(row.push and row.push.positions == "last" for row in rows):
            raise ModelError(
                "positions must be all for a model that reads its whole reply again for every "
                f"token, as {self._loaded.name} does, got last: the last position moves on, and "
                "what was steered no longer is; use --positions all"
            )

    def report(self) -> CapabilityReport:
        """Try what has not been tried, and say it all."""
        fast = self.fast_decoding
        return CapabilityReport(
            logit_scale=self._loaded.logit_scale,
            softcap=self._loaded.softcap,
            suffix_passes=self.suffix_passes,
            prefix_sharing=self.prefix_sharing,
            batching=self.batching,
            fast_decoding=fast,
            decoding_prefix=self.decoding_prefix,
            batched_generation=None if fast.works else self.batched_generation,
            token_forwards=self._loaded.meter.tokens,
        )

    def _tried(self, name: str, gap: Callable[[], float], strict: float = 1.0) -> Capability:
        """Try a shortcut once; warn where it is not taken."""
        with borrowed(self._loaded):
            _ = self._plain  # what fails here is no matter of a shortcut
        try:
            with borrowed(self._loaded):
                off = gap()
            allowed = strict * ROUNDING.get(self._loaded.dtype, HALF_ROUNDING)
            reason = None if off <= allowed else f"what it says is off by {off:.2g} of its size"
        except Exception as error:  # whatever goes wrong in a try is a "no"
            reason = _said(error)
        if reason is None:
            return Capability(True)
        self._warn(name, reason)
        return Capability(False, reason, WAYS[name])

    def _warn(self, name: str, reason: str) -> None:
        if name not in self._warned:
            self._warned.add(name)
            warnings.warn(
                f"{self._loaded.name} goes without {name}, so {WAYS[name]} ({reason})",
                CalibrateWarning,
                stacklevel=2,
            )

    @cached_property
    def _texts(self) -> list[TokenSequence]:
        """Two texts of different lengths that begin alike."""
        ids = ordinary_ids(self._loaded, BEGINNING + sum(REST))
        start, first, second = ids[:BEGINNING], ids[BEGINNING : -REST[1]], ids[-REST[1] :]
        return [TokenSequence((*start, *rest), BEGINNING) for rest in (first, second)]

    @cached_property
    def _plain(self) -> tuple[torch.Tensor, dict[int, KeptResidual]]:
        """What the unembedding reads for each text alone, and the second's residuals by block.

        Raises: NumericalError if these are not finite, which is no matter of a shortcut.
        """
        loaded, read = self._loaded, []
        for text in self._texts:
            with keeping(loaded, range(loaded.num_layers), Shelf()) as residuals:
                read.append(final_hidden(loaded, Batch.of([text], loaded.device)))
        return torch.cat(read), residuals

    @property
    def _middle(self) -> int:
        return (self._loaded.num_layers - 1) // 2

    @cached_property
    def _shift(self) -> torch.Tensor:
        """A push of a size that matters at the middle block, (hidden,)."""
        _, residuals = self._plain
        norm = residuals[self._middle].hidden.float().norm(dim=-1).median()
        drawn = torch.randn(self._loaded.hidden_size, generator=torch.Generator().manual_seed(0))
        shift: torch.Tensor = (PUSH * drawn / drawn.norm()).to(norm) * norm
        return shift

    def _suffix_gap(self, layer: int) -> float:
        """After other tokens went through the blocks left out, lest these left behind the right."""
        loaded, text = self._loaded, self._texts[-1]
        read, residuals = self._plain
        if layer >= self._untouched:
            with last_logits_only(loaded):
                forward(loaded, Batch.of([TokenSequence(text.ids[::-1], 1)], loaded.device))
        self._untouched = layer + 1
        still = add_everywhere(torch.zeros_like(self._shift))
        with edited_after(loaded, layer, still, residuals[layer]) as share:
            again = final_hidden(loaded, Batch.of([text], loaded.device), share)
        return _gap(again, read[-text.n_scored :])

    def _batch_gap(self) -> float:
        batch = Batch.of(self._texts, self._loaded.device)
        return _gap(final_hidden(self._loaded, batch), self._plain[0])

    def _prefix_gap(self) -> float:
        """With steering at a block, up to which the unsteered prefix serves, and no further."""
        loaded, layer = self._loaded, self._middle
        push = add_everywhere(self._shift)
        with edited_after(loaded, layer, push, None):
            whole = final_hidden(loaded, Batch.of(self._texts, loaded.device))
        ids = self._texts[0].ids[: BEGINNING - 1]
        kept = [layer] if self.suffix_after(layer).works else []
        prefix = run_prefix(loaded, ids, kept, Shelf())
        self._untouched = 0
        cache = prefix.edited(loaded, layer, push)
        with edited_after(loaded, layer, push, None):
            return _gap(
                final_hidden(loaded, Batch.of(self._texts, loaded.device, ids), cache=cache), whole
            )

    @cached_property
    def _rows(self) -> list[Row]:
        """Two prompts that begin alike, one steered at all positions and one at the last."""
        return [
            Row(Prompt("", text.ids), key, Push(self._shift, self._middle, positions))
            for key, (text, positions) in enumerate(
                zip(self._texts, get_args(Positions), strict=True)
            )
        ]

    @cached_property
    def _alone(self) -> torch.Tensor | Exception:
        """Logits of each step of each reply, (steps, vocabulary), by `generate` row by row."""
        widths: list[int] = []

        def receive(layer: int, output: Any) -> None:
            if layer == 0:
                widths.append(hidden_of(output).shape[1])

        try:
            with captured(self._loaded.blocks, receive):
                found = torch.cat([self._logits([row], by_generate) for row in self._rows])
        except Exception as error:  # kept, to be told where replies are wanted
            return error
        self._keeps_cache = widths[-1] == 1
        return found

    def _reply_gap(self, way: Callable[..., list[list[int]]], *options: bool) -> float:
        alone = self._alone
        if isinstance(alone, Exception):
            raise alone
        leaving = Row(self._rows[0].prompt, LEAVING)
        return _gap(self._logits([leaving, *self._rows], way, *options), alone)

    def _logits(
        self, rows: Sequence[Row], way: Callable[..., list[list[int]]], *options: bool
    ) -> torch.Tensor:
        """Logits of each step of each reply as they go on with tokens set beforehand."""
        end, *ids = self._texts[1].ids
        said = [ids[:STEPS], ids[STEPS : 2 * STEPS]]
        seen: dict[tuple[int, int], torch.Tensor] = {}

        def choose(scores: torch.Tensor, keys: torch.Tensor, step: int) -> torch.Tensor:
            for key, row in zip(keys.tolist(), scores, strict=True):
                seen[key, step] = row.float().cpu().clone()  # generate's are overwritten
            chosen = [end if key == LEAVING else said[key][step] for key in keys.tolist()]
            return torch.tensor(chosen, device=scores.device)

        way(self._loaded, rows, Loop(choose, frozenset({end}), STEPS), *options)
        staying = [row.key for row in rows if row.key != LEAVING]
        return torch.stack([seen[key, step] for key in staying for step in range(STEPS)])


def _gap(found: torch.Tensor, expected: torch.Tensor) -> float:
    """How far one is off the other, relatively; infinite where anything is not finite."""
    off = float((found.float() - expected.float()).norm() / expected.float().norm())
    return off if off == off else float("inf")


def _said(error: Exception) -> str:
    """The first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
