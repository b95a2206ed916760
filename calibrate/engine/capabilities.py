"""Which shortcuts a model's passes may take, tried on the model itself and never looked up.

Each shortcut is tried once, when it is first needed, on a few tokens and with steering, against the
plain way that it replaces. Any error in a try counts as a failure; then the plain way is taken, and
a warning says so once.

    suffix passes       run only the blocks after the steered one    or: all blocks
    prefix sharing      run the texts' common prefix once            or: every text whole
    batching            score several texts in one padded pass       or: text by text
    fast decoding       the loop of `engine.decoding`                or: transformers' generate
    decoding prefix     run the prompts' common prefix once          or: every prompt whole
    batched generation  several prompts in one `generate`            or: prompt by prompt
    joining             replies join a batch under way               or: batches side by side
    forking             run a question once for all its answers      or: with each answer

Batched generation is tried only where fast decoding fails, joining only for a server, and forking
only for questions with answers to choose from. The reference for replies is `generate` on each
prompt alone, since that is what is served.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property

import torch

from calibrate.common.cost import Meter
from calibrate.common.errors import CalibrateWarning, ModelError
from calibrate.common.record import Capability, CapabilityReport
from calibrate.engine.decoding import by_generate, by_own_loop
from calibrate.engine.running import by_joining
from calibrate.engine.tries import Tries
from calibrate.models.model import LoadedModel, preserving_model_state
from calibrate.models.steering import Steering
from calibrate.models.unreadable import first_line

# Largest relative error of a shortcut.
ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-4}
HALF_ROUNDING = 0.05
SUFFIX_FACTOR = 0.1  # on that for suffix passes, which repeat the same arithmetic

FALLBACKS = {  # each shortcut, and what is done without it
    "suffix passes": "every strength runs all blocks",
    "prefix sharing": "every text runs whole",
    "batching": "texts run one by one",
    "fast decoding": "replies are left to transformers' generate",
    "decoding prefix": "every prompt runs whole",
    "batched generation": "prompts are replied to one by one",
    "joining": "replies that begin later run as batches of their own",
    "forking": "every answer runs with its question",
}


class TriedCapabilities:
    """The capabilities of one model, each tried when it is first asked for."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = replace(loaded, meter=Meter())
        self._after: dict[int, Capability] = {}
        self._warned: set[str] = set()
        self._tries = Tries(self._loaded)

    def suffix_after(self, layer: int) -> Capability:
        """Whether the blocks after `layer` may run alone, on residuals that were kept."""
        if layer not in self._after:
            self._after[layer] = self._tried(
                "suffix passes", lambda: self._tries.suffix_gap(layer), SUFFIX_FACTOR
            )
        return self._after[layer]

    @property
    def suffix_passes(self) -> Capability:
        """Whether suffix passes work after the blocks that were wanted, or else after three."""
        last = self._loaded.num_layers - 1
        for layer in () if self._after else (max(last - 1, 0), last // 2, 0):
            self.suffix_after(layer)
        failed = [layer for layer, suffix in sorted(self._after.items()) if not suffix.works]
        if not failed:
            return Capability(True, None, None)
        where = f"after block {failed[0]}: {self._after[failed[0]].reason}"
        return replace(self._after[failed[0]], reason=where)

    @cached_property
    def prefix_sharing(self) -> Capability:
        """Whether texts score the same after a common prefix that ran once for all."""
        return self._tried("prefix sharing", self._prefix_gap)

    @cached_property
    def batching(self) -> Capability:
        """Whether texts score the same in one right-padded pass as alone."""
        return self._tried("batching", self._tries.batch_gap)

    @cached_property
    def fast_decoding(self) -> Capability:
        """Whether our own loop matches transformers' `generate` on each prompt alone."""
        return self._tried("fast decoding", lambda: self._tries.reply_gap(by_own_loop, False))

    @cached_property
    def decoding_prefix(self) -> Capability:
        """The same where the prompts' common prefix runs once for all."""
        if not self.fast_decoding.works:
            return Capability(False, "fast decoding does not work", FALLBACKS["decoding prefix"])
        return self._tried("decoding prefix", lambda: self._tries.reply_gap(by_own_loop, True))

    @cached_property
    def batched_generation(self) -> Capability:
        """Whether `generate` on several prompts at once matches each alone."""
        return self._tried("batched generation", lambda: self._tries.reply_gap(by_generate))

    @cached_property
    def joining(self) -> Capability:
        """Whether replies may join a batch that is under way."""
        if not self.fast_decoding.works:
            return Capability(False, "fast decoding does not work", FALLBACKS["joining"])
        return self._tried("joining", lambda: self._tries.reply_gap(by_joining))

    @cached_property
    def forking(self) -> Capability:
        """Whether ways of going on score the same after a beginning that ran once for all."""
        if not self.prefix_sharing.works:
            return Capability(False, "prefix sharing does not work", FALLBACKS["forking"])
        return self._tried("forking", self._tries.fork_gap)

    def check_replies(self, steerings: Sequence[Steering | None]) -> None:
        """Raise ModelError if `generate` cannot make replies steered like this."""
        alone = self._tries.alone
        if isinstance(alone, Exception):
            raise ModelError(
                f"{self._loaded.name} must be able to reply, and transformers' generate fails for "
                f"it: {first_line(alone)}"
            ) from alone
        if not self._tries.keeps_cache and any(
            each and each.positions == "last" for each in steerings
        ):
            raise ModelError(
                "positions must be all for a model that reads its whole reply again for every "
                f"token, as {self._loaded.name} does, got last: the last position moves on, and "
                "what was steered no longer is; use --positions all"
            )

    def report(self) -> CapabilityReport:
        """Try what has not been tried, and report everything."""
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
        with preserving_model_state(self._loaded):
            _ = self._tries.plain  # an error here is not the shortcut's
        try:
            with preserving_model_state(self._loaded):
                off = gap()
            allowed = strict * ROUNDING.get(self._loaded.dtype, HALF_ROUNDING)
            reason = None if off <= allowed else f"what it says is off by {off:.2g} of its size"
        except Exception as error:  # any error in a try means that the shortcut fails
            reason = first_line(error)
        if reason is None:
            return Capability(True, None, None)
        self._warn(name, reason)
        return Capability(False, reason, FALLBACKS[name])

    def _warn(self, name: str, reason: str) -> None:
        if name not in self._warned:
            self._warned.add(name)
            warnings.warn(
                f"{self._loaded.name} goes without {name}, so {FALLBACKS[name]} ({reason})",
                CalibrateWarning,
                stacklevel=2,
            )

    def _prefix_gap(self) -> float:
        return self._tries.prefix_gap(self.suffix_after(self._tries.middle).works)
