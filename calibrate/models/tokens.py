"""Texts and replies as token ids, and token ids as padded batches.

A *sequence* is a prompt followed by a text. Only the text is scored and averaged; the prompt
is context. A plain text has no prompt, and its first token is context for the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

PAD = 0  # the id under the attention mask's zeros; any valid id does, since nothing attends to it
WORTH_SHARING = 8  # tokens a common prefix must have to be run on its own


@dataclass(frozen=True)
class TokenSequence:
    """Token ids of one text after its prompt.

    ids: token ids, prompt first.
    start: index of the text's first scored token, at least 1 (position 0 predicts, but is
        never predicted).
    """

    ids: tuple[int, ...]
    start: int

    @property
    def n_scored(self) -> int:
        """How many tokens are predicted and scored."""
        return max(len(self.ids) - self.start, 0)


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences for one forward pass.

    rows: index of each row's sequence in the list the batch was cut from.
    ids, mask: int64 tensors of shape (batch, positions); mask is 0 on padding.
    sequences: the sequences themselves, in row order.
    prefix: token ids that every row begins with, left out of ids and mask since they run once
        for all rows (`calibrate.engine.prefix`).
    """

    rows: tuple[int, ...]
    ids: torch.Tensor
    mask: torch.Tensor
    sequences: tuple[TokenSequence, ...]
    prefix: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        sequences: Sequence[TokenSequence],
        device: torch.device | str = "cpu",
        prefix: tuple[int, ...] = (),
    ) -> Batch:
        """All sequences as one batch."""
        return _pad(tuple(range(len(sequences))), list(sequences), device, prefix)

    @property
    def n_tokens(self) -> int:
        """Positions pushed through the model, padding included."""
        return self.ids.numel()

    def attended(self) -> torch.Tensor:
        """The mask over the prefix too, int64 (batch, len(prefix) + positions)."""
        return torch.nn.functional.pad(self.mask, (len(self.prefix), 0), value=1)

    def take(self, places: Sequence[int]) -> Batch:
        """Only the rows at these places."""
        if len(places) == len(self.rows):
            return self
        rows, sequences = zip(*((self.rows[i], self.sequences[i]) for i in places), strict=True)
        return _pad(rows, list(sequences), self.ids.device, self.prefix)

    def predicting(self) -> torch.Tensor:
        """Bool tensor (batch, positions): the positions whose next token is scored."""
        position = self._positions()
        start = self._column([s.start for s in self.sequences])
        length = self._column([len(s.ids) for s in self.sequences])
        return (position >= start - 1) & (position < length - 1)

    def labels(self) -> torch.Tensor:
        """Token ids of shape (n_scored,), in the order of `predicting()`'s true positions."""
        following = torch.roll(self.ids, shifts=-1, dims=1)
        return following[self.predicting()]

    def sums(self, per_token: torch.Tensor) -> torch.Tensor:
        """Sum (…, n_scored) values, in the order of `labels()`, to (…, batch), one a sequence."""
        lengths = [sequence.n_scored for sequence in self.sequences]
        parts = torch.split(per_token, lengths, dim=-1)
        return torch.stack([part.sum(dim=-1) for part in parts], dim=-1)

    def generated(self) -> torch.Tensor:
        """Bool tensor (batch, positions): positions that were last when a token was sampled.

        They are the prompt's last token and all that follow: what `positions="last"` steers.
        """
        return self._positions() >= self._column([s.start - 1 for s in self.sequences])

    def text(self) -> torch.Tensor:
        """Bool tensor (batch, positions): the tokens of the text, without prompt and padding."""
        start = self._column([s.start for s in self.sequences])
        return (self._positions() >= start) & self.mask.bool()

    def _positions(self) -> torch.Tensor:
        """Where each position stands in its sequence, (positions,)."""
        return torch.arange(self.ids.shape[1], device=self.ids.device) + len(self.prefix)

    def _column(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, device=self.ids.device)[:, None]


def batches(
    sequences: Sequence[TokenSequence],
    max_tokens: int,
    device: torch.device | str = "cpu",
    prefix: tuple[int, ...] = (),
) -> Iterator[Batch]:
    """Cut sequences into batches of at most `max_tokens` positions, longest first.

    prefix: token ids that all sequences begin with, to be left out of the batches.

    Sorting by length keeps padding small; longest first meets the memory limit at once if at
    all. A sequence longer than `max_tokens` gets a batch of its own.
    """
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i].ids), reverse=True)
    first = 0
    while first < len(order):
        width = max(len(sequences[order[first]].ids) - len(prefix), 1)
        rows = tuple(order[first : first + max(1, max_tokens // width)])
        yield _pad(rows, [sequences[i] for i in rows], device, prefix)
        first += len(rows)


def common_prefix(all_ids: Sequence[tuple[int, ...]], most: int) -> tuple[int, ...]:
    """The common prefix of sequences of token ids, if worth a pass of its own; else empty.

    most: its maximal length.
    """
    length = min(begun_alike(all_ids), most)
    return all_ids[0][:length] if len(all_ids) > 1 and length >= WORTH_SHARING else ()


def begun_alike(all_ids: Sequence[tuple[int, ...]]) -> int:
    """How many token ids all sequences begin with alike."""
    first, last = min(all_ids), max(all_ids)
    pairs = enumerate(zip(first, last, strict=False))
    return next((index for index, (one, other) in pairs if one != other), len(first))


@dataclass(frozen=True)
class Prompt:
    """A prompt's text and the token ids after which the model's reply begins.

    opened: the mark that ends a thought which the prompt has begun (`models.thought`), if any.
    """

    text: str
    ids: tuple[int, ...]
    opened: str = ""

    def followed_by(self, ids: Sequence[int]) -> TokenSequence:
        """Return the sequence of this prompt and a reply's token ids."""
        return TokenSequence((*self.ids, *ids), start=len(self.ids))


def _pad(
    rows: tuple[int, ...],
    sequences: list[TokenSequence],
    device: torch.device | str,
    prefix: tuple[int, ...],
) -> Batch:
    shared = len(prefix)
    width = max(1, *(len(sequence.ids) - shared for sequence in sequences))
    ids = torch.full((len(rows), width), PAD, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        rest = sequence.ids[shared:]
        ids[row, : len(rest)] = torch.tensor(rest, dtype=torch.long)
        mask[row, : len(rest)] = 1
    return Batch(rows, ids.to(device), mask.to(device), tuple(sequences), prefix)
