"""How far each shortcut is off the plain way, tried on a few tokens and with steering."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, get_args

import torch

from calibrate.engine.decoding import Loop, Row, by_generate
from calibrate.engine.forks import Fork, by_forks
from calibrate.engine.forward import final_hidden, forward
from calibrate.engine.memory import ResidualStore
from calibrate.engine.prefix import run_prefix
from calibrate.models.hooks import (
    KeptResidual,
    Positions,
    add_everywhere,
    add_where,
    captured,
    edited,
    edited_after,
    hidden_of,
    keeping,
    last_logits_only,
)
from calibrate.models.model import LoadedModel
from calibrate.models.parts import ordinary_ids
from calibrate.models.steering import Steering
from calibrate.models.tokens import WORTH_SHARING, Batch, Prompt, TokenSequence

BEGINNING = WORTH_SHARING  # tokens that all texts of a try begin with
REST = (1, 3)  # tokens after it, by text
STEPS = 2  # tokens of a try's replies, except one that ends at once and leaves the batch
LEAVING = -1  # the key of the row that ends at once
SHIFT_RATIO = 0.5  # norm of the steering in a try, in median residual norms


class Tries:
    """Runs each shortcut and the plain way on the same few tokens of one model.

    keeps_cache: whether `generate` reads one token a step, known once `alone` was asked for.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._n_stale = 0  # how many of the first blocks last ran on other tokens than the try's
        self.keeps_cache = True

    @cached_property
    def _texts(self) -> list[TokenSequence]:
        """Two texts of different lengths that begin alike."""
        ids = ordinary_ids(self._loaded, BEGINNING + sum(REST))
        start, first, second = ids[:BEGINNING], ids[BEGINNING : -REST[1]], ids[-REST[1] :]
        return [TokenSequence((*start, *rest), BEGINNING) for rest in (first, second)]

    @cached_property
    def plain(self) -> tuple[torch.Tensor, dict[int, KeptResidual]]:
        """What the unembedding reads for each text alone, and the second's residuals by block.

        Raises: NumericalError if these are not finite, which no shortcut is to blame for.
        """
        loaded, read = self._loaded, []
        for text in self._texts:
            with keeping(
                loaded.blocks, range(loaded.num_layers), ResidualStore().keep
            ) as residuals:
                read.append(final_hidden(loaded, Batch.of([text], loaded.device)))
        return torch.cat(read), residuals

    @property
    def middle(self) -> int:
        """The block that is steered in a try."""
        return (self._loaded.num_layers - 1) // 2

    @cached_property
    def _shift(self) -> torch.Tensor:
        """A shift of a size that matters at the middle block, (hidden,)."""
        _, residuals = self.plain
        norm = residuals[self.middle].hidden.float().norm(dim=-1).median()
        drawn = torch.randn(self._loaded.hidden_size, generator=torch.Generator().manual_seed(0))
        shift: torch.Tensor = (SHIFT_RATIO * drawn / drawn.norm()).to(norm) * norm
        return shift

    def suffix_gap(self, layer: int) -> float:
        """The gap after other tokens ran through the skipped blocks, which may keep state."""
        loaded, text = self._loaded, self._texts[-1]
        read, residuals = self.plain
        if layer >= self._n_stale:
            with last_logits_only(loaded.unembedding):
                forward(loaded, Batch.of([TokenSequence(text.ids[::-1], 1)], loaded.device))
        self._n_stale = layer + 1
        unchanged = {layer: add_everywhere(torch.zeros_like(self._shift))}
        with edited_after(loaded.blocks, unchanged, residuals[layer]) as share:
            again = final_hidden(loaded, Batch.of([text], loaded.device), share)
        return _gap(again, read[-text.n_scored :])

    def batch_gap(self) -> float:
        """The gap between two texts in one padded pass and each alone."""
        batch = Batch.of(self._texts, self._loaded.device)
        return _gap(final_hidden(self._loaded, batch), self.plain[0])

    def prefix_gap(self, suffix_works: bool) -> float:
        """The gap after a shared prefix, steered at a block up to which its unsteered state serves.

        suffix_works: whether a pass may go on from the middle block.
        """
        loaded, layer = self._loaded, self.middle
        edits = {layer: add_everywhere(self._shift)}
        with edited_after(loaded.blocks, edits, None):
            whole = final_hidden(loaded, Batch.of(self._texts, loaded.device))
        ids = self._texts[0].ids[: BEGINNING - 1]
        layers = [layer] if suffix_works else []
        prefix = run_prefix(loaded, ids, layers, ResidualStore())
        self._n_stale = 0
        cache = prefix.edited(loaded, edits)
        with edited_after(loaded.blocks, edits, None):
            return _gap(
                final_hidden(loaded, Batch.of(self._texts, loaded.device, ids), cache=cache), whole
            )

    def fork_gap(self) -> float:
        """The gap where ways of going on follow a beginning that ran once for all of them."""
        loaded, (one, other) = self._loaded, (text.ids for text in self._texts)
        forks = [Fork(one, (other[-2:], other[-3:])), Fork(other, (one[-1:], one[-3:]))]
        shared, whole = [], []
        for positions in get_args(Positions):
            states = by_forks(loaded, forks, Steering({self.middle: self._shift}, positions))
            for fork, found in zip(forks, states, strict=True):
                for way in fork.ways:
                    text = TokenSequence((*fork.beginning, *way), len(fork.beginning))
                    batch = Batch.of([text], loaded.device)
                    steered = batch.generated() | torch.tensor(positions == "all")
                    with edited(loaded.blocks[self.middle], add_where(self._shift, steered)):
                        whole.append(final_hidden(loaded, batch))
                    shared.append(found[way])
        return _gap(torch.cat(shared), torch.cat(whole))

    @cached_property
    def _rows(self) -> list[Row]:
        """Two prompts that begin alike, one steered at all positions and one at the last."""
        return [
            Row(Prompt("", text.ids), key, Steering({self.middle: self._shift}, positions))
            for key, (text, positions) in enumerate(
                zip(self._texts, get_args(Positions), strict=True)
            )
        ]

    @cached_property
    def alone(self) -> torch.Tensor | Exception:
        """Logits of each step of each reply, (steps, vocabulary), by `generate` row by row."""
        widths: list[int] = []

        def receive(layer: int, output: Any) -> None:
            if layer == 0:
                widths.append(hidden_of(output).shape[1])

        try:
            with captured(self._loaded.blocks, receive):
                logits = torch.cat([self._logits([row], by_generate) for row in self._rows])
        except Exception as error:  # kept, to be raised where replies are wanted
            return error
        self.keeps_cache = widths[-1] == 1
        return logits

    def reply_gap(self, way: Callable[..., list[list[int]]], *options: bool) -> float:
        """The gap between a way of generating and `generate` row by row."""
        alone = self.alone
        if isinstance(alone, Exception):
            raise alone
        leaving = Row(self._rows[0].prompt, LEAVING)
        return _gap(self._logits([leaving, *self._rows], way, *options), alone)

    def _logits(
        self, rows: Sequence[Row], way: Callable[..., list[list[int]]], *options: bool
    ) -> torch.Tensor:
        """Logits of each step of each reply as they go on with tokens set beforehand."""
        end, *ids = self._texts[1].ids
        replies = [ids[:STEPS], ids[STEPS : 2 * STEPS]]
        seen: dict[tuple[int, int], torch.Tensor] = {}

        def choose(scores: torch.Tensor, keys: torch.Tensor, step: int) -> torch.Tensor:
            for key, row in zip(keys.tolist(), scores, strict=True):
                seen[key, step] = row.float().cpu().clone()  # generate's are overwritten
            chosen = [end if key == LEAVING else replies[key][step] for key in keys.tolist()]
            return torch.tensor(chosen, device=scores.device)

        way(self._loaded, rows, Loop(choose, frozenset({end}), STEPS), *options)
        staying = [row.key for row in rows if row.key != LEAVING]
        return torch.stack([seen[key, step] for key in staying for step in range(STEPS)])


def _gap(values: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative error; infinite where anything is not finite."""
    off = float((values.float() - expected.float()).norm() / expected.float().norm())
    return off if off == off else float("inf")
