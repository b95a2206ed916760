"""Generate token by token, many rows at once, each steered in its own way or not at all.

Rows share one batch whatever steers them: a vector is added to its own rows only. The prompts'
common prefix runs once per steering, and a prompt once for all replies to it, with keys and values
repeated for the rows; rows that have ended leave the batch. Models that reply otherwise in such a
loop (`engine.capabilities`) are left to transformers' own `generate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList

from calibrate.common.cost import Meter
from calibrate.common.settings import Sampling
from calibrate.engine.forward import require_finite
from calibrate.engine.sampling import draw
from calibrate.models.architecture import attention_window, base_of
from calibrate.models.hooks import last_logits_only
from calibrate.models.model import LoadedModel
from calibrate.models.steering import BatchSteering, Steering, steered_rows
from calibrate.models.tokens import PAD, Prompt, common_prefix

COMPACT_FRACTION = 1 / 8  # of the rows that must have ended before they leave, which costs time


@dataclass(frozen=True, eq=False)
class Row:
    """One reply to be generated: after a prompt, with its own noise, steered or not."""

    prompt: Prompt
    key: int
    steering: Steering | None = None


Choose = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Loop:
    """How replies are continued.

    choose: one token a row, int64 (rows,), from logits (rows, vocabulary), the rows' keys (rows,)
        and the number of the step. ends: tokens that end a reply. most: tokens it may have.
    """

    choose: Choose
    ends: frozenset[int]
    most: int


def decode(loaded: LoadedModel, rows: Sequence[Row], sampling: Sampling) -> list[list[int]]:
    """Return each row's new token ids, up to and including its end token.

    Raises: NumericalError where a row has no finite logits to draw from.
    """

    def choose(scores: torch.Tensor, keys: torch.Tensor, step: int) -> torch.Tensor:
        require_finite(scores.amax(dim=-1), loaded)  # NaN if any is; single tokens may be ruled out
        return loaded.ranks.told_tokens(draw(scores, sampling, keys, step))

    loop, can = Loop(choose, end_ids(loaded), sampling.max_new_tokens), loaded.capabilities
    if can.fast_decoding.works:
        return by_own_loop(loaded, rows, loop, can.decoding_prefix.works)
    can.check_replies([row.steering for row in rows])
    if can.batched_generation.works:
        return by_generate(loaded, rows, loop)
    return [ids for row in rows for ids in by_generate(loaded, [row], loop)]


def by_own_loop(
    loaded: LoadedModel, rows: Sequence[Row], loop: Loop, share: bool = True
) -> list[list[int]]:
    """Each row's new token ids by the loop of this module.

    share: whether the prompts' common prefix may run once for all.
    """
    starts = list(dict.fromkeys((row.prompt, row.steering) for row in rows))
    places = {start: place for place, start in enumerate(starts)}
    which = [places[row.prompt, row.steering] for row in rows]
    keys = torch.tensor([row.key for row in rows], dtype=torch.long)
    with torch.no_grad(), steered_rows(loaded.blocks, [each for _, each in starts]) as steering:
        batch = _Decoding(loaded, starts, steering, loop, share)
        with last_logits_only(loaded.unembedding):
            return batch.run(which, keys)


def next_logits(
    loaded: LoadedModel, ids: torch.Tensor, mask: torch.Tensor, cache: DynamicCache
) -> torch.Tensor:
    """Logits after the last of some new positions, (rows, vocabulary).

    mask: over what is in the cache too, (rows, positions).
    """
    loaded.meter.count(ids.numel())
    options = loaded.using(cache)
    if "position_ids" in loaded.forward_parameters:
        positions = mask.cumsum(dim=1) - 1
        options["position_ids"] = positions[:, -ids.shape[1] :].clamp(min=0)
    logits: torch.Tensor = loaded.model(input_ids=ids, attention_mask=mask, **options).logits
    return logits[:, -1]


def select_rows(cache: DynamicCache, rows: Sequence[int]) -> None:
    """Let a cache consist of these of its rows; one may come more than once.

    Each layer's keys and values are where its block computes.
    """
    index = torch.tensor(rows)
    by_device = {index.device: index}
    for layer in cache.layers:
        keys = getattr(layer, "keys", None)
        device = index.device if keys is None else keys.device
        if device not in by_device:
            by_device[device] = index.to(device)
        layer.batch_select_indices(by_device[device])


def end_ids(loaded: LoadedModel) -> frozenset[int]:
    """Tokens that end a reply."""
    configured = loaded.model.generation_config.eos_token_id
    ends = set(configured if isinstance(configured, list) else [configured])
    return frozenset(int(end) for end in ends | {loaded.tokenizer.eos_token_id} if end is not None)


class _Decoding:
    """One batch on its way: its cache, its mask, and which rows are still in it.

    starts: the distinct pairs of a prompt and the steering of its reply.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        starts: Sequence[tuple[Prompt, Steering | None]],
        steering: BatchSteering,
        loop: Loop,
        share: bool,
    ) -> None:
        self._loaded, self._steering, self._loop = loaded, steering, loop
        prompts = [prompt for prompt, _ in starts]
        longest = max(len(prompt.ids) for prompt in prompts) + loop.most
        sharing = share and fits_window(loaded, longest)
        self._prefix = shared_by(prompts) if sharing else ()
        self._ids, self._mask = padded(prompts, len(self._prefix), loaded.device)
        self._cache = self._prefilled([each for _, each in starts])

    def run(self, which: Sequence[int], keys: torch.Tensor) -> list[list[int]]:
        """Draw tokens until every row has ended or is as long as it may be.

        which: the start of each row. keys: its noise key, int64 tensor (rows,).
        """
        self._keys, self._places = keys, list(range(len(which)))
        self._replies: list[list[int]] = [[] for _ in which]
        scores = self._forward(self._ids[:, len(self._prefix) :])[which]
        self._select(which)
        for step in range(self._loop.most):
            chosen = self._loop.choose(scores, self._keys, step).cpu()
            for place, token in zip(self._places, chosen.tolist(), strict=True):
                if not self._ended(place):
                    self._replies[place].append(token)
            going = [row for row, place in enumerate(self._places) if not self._ended(place)]
            if not going or step + 1 == self._loop.most:
                break
            if len(going) <= (1 - COMPACT_FRACTION) * len(self._places):
                self._keep(going)
                chosen = chosen[going]
            self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], dim=1)
            scores = self._forward(chosen[:, None].to(self._mask.device))
        return self._replies

    def _ended(self, place: int) -> bool:
        reply = self._replies[place]
        return bool(reply) and reply[-1] in self._loop.ends

    def _keep(self, rows: list[int]) -> None:
        """Let all other rows leave the batch."""
        self._select(rows)
        self._keys = self._keys[rows]
        self._places = [self._places[row] for row in rows]

    def _select(self, rows: Sequence[int]) -> None:
        """Let the batch consist of these of its rows."""
        select_rows(self._cache, rows)
        self._mask = self._mask[list(rows)]
        self._steering.select(rows)

    def _forward(self, ids: torch.Tensor) -> torch.Tensor:
        return next_logits(self._loaded, ids, self._mask, self._cache)

    def _prefilled(self, steerings: Sequence[Steering | None]) -> DynamicCache:
        """Keys and values of the shared prefix, run once per steering, repeated for its rows."""
        cache = self._loaded.empty_cache()
        if not self._prefix:
            return cache
        kinds = self._steering.kinds
        with self._steering.once_each():
            ids = torch.tensor([self._prefix] * len(kinds), device=self._loaded.device)
            self._loaded.meter.count(ids.numel())
            self._loaded.model(input_ids=ids, **self._loaded.using(cache))
        select_rows(cache, [kinds.index(each) for each in steerings])
        return cache


def shared_by(prompts: Sequence[Prompt]) -> tuple[int, ...]:
    """The prompts' common prefix, without the last token of any, which its reply follows."""
    all_ids = [prompt.ids for prompt in prompts]
    return common_prefix(all_ids, min(map(len, all_ids)) - 1)


def fits_window(loaded: LoadedModel, longest: int) -> bool:
    """Whether so many tokens fit the model's narrowest attention window.

    Beyond it, padding behind a shared prefix would count.
    """
    window = attention_window(loaded.model.config.get_text_config())
    return window is None or longest <= window


def padded(
    prompts: Sequence[Prompt], shared: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of shape (rows, positions), padded between the shared prefix and the rest."""
    width = max(len(prompt.ids) for prompt in prompts)
    ids = torch.full((len(prompts), width), PAD, dtype=torch.long)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        rest = width - len(prompt.ids) + shared
        ids[row, :shared] = torch.tensor(prompt.ids[:shared])
        ids[row, rest:] = torch.tensor(prompt.ids[shared:])
        mask[row, :shared] = 1
        mask[row, rest:] = 1
    return ids.to(device), mask.to(device)


class _Chosen(LogitsProcessor):  # type: ignore[misc]
    """Leave only the chosen token possible, so that greedy decoding takes it."""

    def __init__(self, loop: Loop, keys: torch.Tensor, meter: Meter) -> None:
        self._loop, self._keys, self._meter = loop, keys, meter
        self._step = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self._step:  # the first token comes out of the prompt's own pass
            self._meter.count(len(scores))
        chosen = self._loop.choose(scores, self._keys, self._step)
        self._step += 1
        return scores.fill_(-torch.inf).scatter_(1, chosen[:, None], 0.0)  # a copy of generate's


def by_generate(loaded: LoadedModel, rows: Sequence[Row], loop: Loop) -> list[list[int]]:
    """Each row's new token ids by transformers' own loop, all rows whole and to the end."""
    ids, mask = padded([row.prompt for row in rows], 0, loaded.device)
    keys = torch.tensor([row.key for row in rows], dtype=torch.long)
    loaded.meter.count(ids.numel())
    with (
        torch.no_grad(),
        steered_rows(loaded.blocks, [row.steering for row in rows]),
        default_generation_config(loaded.model),
    ):
        out = loaded.model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=loop.most,
                eos_token_id=sorted(loop.ends) or None,
                pad_token_id=min(loop.ends, default=PAD),
            ),
            logits_processor=LogitsProcessorList([_Chosen(loop, keys, loaded.meter)]),
        )
    return [_until_end(row, loop.ends) for row in out[:, ids.shape[1] :].tolist()]


@contextmanager
def default_generation_config(model: Any) -> Iterator[None]:
    """Set aside what a model's own generation config would do to its logits, a penalty say."""
    base: Any = base_of(model)
    own = base.generation_config
    base.generation_config = GenerationConfig()
    try:
        yield
    finally:
        base.generation_config = own


def _until_end(ids: list[int], ends: frozenset[int]) -> list[int]:
    for position, token in enumerate(ids):
        if token in ends:
            return ids[: position + 1]
    return ids
