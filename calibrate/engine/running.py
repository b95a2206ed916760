"""Replies that begin and end at different times: each step gives every one of them a token.

A batch is a set of replies with one cache, padded on the left. New replies run through their
prompts as a batch of their own, which then joins the running one, where that leaves every reply as
it is alone (`engine.capabilities`); otherwise they go on side by side. A model whose replies our
own loop cannot make is left to transformers' `generate`, one reply after the other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from calibrate.common.settings import Sampling
from calibrate.engine.decoding import Loop, Row, by_generate, next_logits, padded, select_rows
from calibrate.engine.sampling import draw
from calibrate.models.hooks import StopPass, last_logits_only
from calibrate.models.model import LoadedModel
from calibrate.models.steering import Steering, steered_rows
from calibrate.models.tokens import Prompt


@dataclass(eq=False)
class Ongoing:
    """A reply on its way.

    key: its noise key. most: tokens it may have. sampling: None for the likeliest token each time.
    steering: None for none. ids: its tokens so far, the end token included.
    """

    prompt: Prompt
    key: int
    most: int
    sampling: Sampling | None = None
    steering: Steering | None = None
    ids: list[int] = field(default_factory=list)

    def is_over(self, ends: frozenset[int]) -> bool:
        """Whether it has an end token, or as many tokens as it may have."""
        return len(self.ids) >= self.most or bool(self.ids and self.ids[-1] in ends)


Choose = Callable[[torch.Tensor, Sequence[Ongoing]], list[int]]


def choose_tokens(logits: torch.Tensor, replies: Sequence[Ongoing]) -> list[int]:
    """Draw the next token of each reply from logits (replies, vocabulary), each in its own way."""
    alike: dict[tuple[Sampling | None, int], list[int]] = defaultdict(list)
    for place, reply in enumerate(replies):
        alike[reply.sampling, len(reply.ids)].append(place)
    chosen = torch.empty(len(replies), dtype=torch.long)
    for (sampling, step), places in alike.items():
        if sampling is None:
            chosen[places] = logits[places].argmax(dim=-1).cpu()
        else:
            keys = torch.tensor([replies[place].key for place in places])
            chosen[places] = draw(logits[places], sampling, keys, step).cpu()
    return chosen.tolist()


class RunningReplies:
    """All replies that are under way.

    joins: whether batches may join. To be used without gradients.
    """

    def __init__(
        self, loaded: LoadedModel, ends: frozenset[int], joins: bool, choose: Choose = choose_tokens
    ) -> None:
        self._loaded, self._ends, self._joins, self._choose = loaded, ends, joins, choose
        self._batches: list[_Batch] = []

    def begin(self, replies: Sequence[Ongoing]) -> None:
        """Run some prompts, and give each reply its first token."""
        batch = _Batch(self._loaded, replies)
        self._append(replies, batch.run_prompts())
        if self._joins and self._batches:
            self._batches[0].join(batch)
        else:
            self._batches.append(batch)

    def step(self) -> list[Ongoing]:
        """Give every reply that is not over another token; return those that got one."""
        self.keep(lambda _: True)
        for batch in self._batches:
            self._append(batch.replies, batch.run_next())
        return [reply for batch in self._batches for reply in batch.replies]

    def keep(self, wanted: Callable[[Ongoing], bool]) -> None:
        """Let replies that are over, or no longer wanted, leave."""
        for batch in self._batches:
            batch.keep([not r.is_over(self._ends) and wanted(r) for r in batch.replies])
        self._batches = [batch for batch in self._batches if batch.replies]

    def _append(self, replies: Sequence[Ongoing], logits: torch.Tensor) -> None:
        for reply, token in zip(replies, self._choose(logits, replies), strict=True):
            reply.ids.append(token)


class _Batch:
    """Replies with one cache and one mask, (replies, positions), over what is in it."""

    def __init__(self, loaded: LoadedModel, replies: Sequence[Ongoing]) -> None:
        self.replies = list(replies)
        self._loaded = loaded
        self._cache: DynamicCache = loaded.empty_cache()
        self._ids, self._mask = padded([reply.prompt for reply in replies], 0, loaded.device)

    def run_prompts(self) -> torch.Tensor:
        return self._forward(self._ids)

    def run_next(self) -> torch.Tensor:
        last = torch.tensor([[reply.ids[-1]] for reply in self.replies], device=self._mask.device)
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], dim=1)
        return self._forward(last)

    def keep(self, wanted: Sequence[bool]) -> None:
        """Let the others leave, and with them the columns that only they had."""
        if all(wanted):
            return
        places = [place for place, one in enumerate(wanted) if one]
        self.replies = [self.replies[place] for place in places]
        if not places:
            return
        select_rows(self._cache, places)
        self._mask = self._mask[places]
        if _is_plain(self._cache):
            unused = int(self._mask.any(dim=0).int().argmax())
            self._mask = self._mask[:, unused:]
            for layer in self._cache.layers:
                layer.keys, layer.values = layer.keys[:, :, unused:], layer.values[:, :, unused:]

    def join(self, other: _Batch) -> None:
        """Take over the replies of another batch."""
        if not (_is_plain(self._cache) and _is_plain(other._cache)):
            raise TypeError("batches join where every layer's cache is a plain one")
        self.replies += other.replies
        width = max(self._mask.shape[1], other._mask.shape[1])
        self._mask = torch.cat([_widened(each, width, 1) for each in (self._mask, other._mask)])
        for mine, theirs in zip(self._cache.layers, other._cache.layers, strict=True):
            mine.keys = torch.cat([_widened(each.keys, width, 2) for each in (mine, theirs)])
            mine.values = torch.cat([_widened(each.values, width, 2) for each in (mine, theirs)])

    def _forward(self, ids: torch.Tensor) -> torch.Tensor:
        blocks, steerings = self._loaded.blocks, [reply.steering for reply in self.replies]
        with steered_rows(blocks, steerings), last_logits_only(self._loaded.unembedding):
            return next_logits(self._loaded, ids, self._mask, self._cache)


def _is_plain(cache: Cache) -> bool:
    """Whether every layer keeps the keys and values of all positions."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def _widened(tensor: torch.Tensor, width: int, dim: int) -> torch.Tensor:
    """The same with zeros before it along a dimension."""
    shape = list(tensor.shape)
    shape[dim] = width - shape[dim]
    return torch.cat([tensor.new_zeros(shape), tensor], dim=dim)


def reply_alone(
    loaded: LoadedModel, reply: Ongoing, ends: frozenset[int], receive: Callable[[], bool]
) -> None:
    """Make a whole reply by transformers' `generate`.

    receive: called after each token; whether to go on.
    """
    loaded.capabilities.check_replies([reply.steering])

    def choose(scores: torch.Tensor, _keys: torch.Tensor, _step: int) -> torch.Tensor:
        (token,) = choose_tokens(scores, [reply])
        reply.ids.append(token)
        if not receive():
            raise StopPass
        return torch.tensor([token], device=scores.device)

    try:
        by_generate(
            loaded,
            [Row(reply.prompt, reply.key, reply.steering)],
            Loop(choose, ends, reply.most),
        )
    except StopPass:
        return


def by_joining(loaded: LoadedModel, rows: Sequence[Row], loop: Loop) -> list[list[int]]:
    """Each row's new token ids where every row joins a step after the one before it."""

    def choose(logits: torch.Tensor, replies: Sequence[Ongoing]) -> list[int]:
        keys = torch.tensor([reply.key for reply in replies])
        return [
            int(loop.choose(logits[[place]], keys[[place]], len(reply.ids))[0])
            for place, reply in enumerate(replies)
        ]

    replies = [Ongoing(row.prompt, row.key, loop.most, None, row.steering) for row in rows]
    running = RunningReplies(loaded, loop.ends, True, choose)
    with torch.no_grad():
        for reply in replies:
            running.begin([reply])
            running.step()
        while running.step():
            pass
    return [reply.ids for reply in replies]
