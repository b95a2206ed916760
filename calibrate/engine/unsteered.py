"""One unsteered pass over a corpus, keeping what every strength is compared with."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from calibrate.common.estimate import RatioEstimate
from calibrate.engine.forward import final_hidden
from calibrate.engine.memory import ResidualStore, over_batches
from calibrate.engine.prefix import Prefix, shared_prefix
from calibrate.models.hooks import KeptResidual, keeping
from calibrate.models.model import LoadedModel
from calibrate.models.tokens import Batch, TokenSequence

SLICE_ROWS = 128  # of logits made at a time by a CPU, which is about its fastest
SLICE_ELEMENTS = 1 << 24  # of logits made at a time by other devices: 64 MiB in float32


@dataclass(frozen=True)
class Corpus:
    """Sequences to measure cross-entropy on.

    self_sampled: whether the model wrote the scored tokens itself, so that the KL stands for
        ΔCE; otherwise the labels are scored.
    """

    sequences: tuple[TokenSequence, ...]
    self_sampled: bool

    @property
    def n_scored(self) -> int:
        """Scored tokens over all sequences."""
        return sum(sequence.n_scored for sequence in self.sequences)


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a comparison needs of the unsteered logits, where these are linear in the hidden state.

    normaliser: (n_scored,), their log-sum-exp. direction: (n_scored, hidden); a hidden state's
    product with it is, up to a constant, the logit expected there by the unsteered prediction,
    or, on text the model did not write, the label's logit.
    """

    normaliser: torch.Tensor
    direction: torch.Tensor


@dataclass(frozen=True, eq=False)
class UnsteeredBatch:
    """One batch of the unsteered pass: final hidden states, and residuals by block.

    prefix: the rows' common prefix, run once; None where they run whole.
    prediction: None where the logits have to be made again for every comparison.
    """

    batch: Batch
    hidden: torch.Tensor
    residuals: dict[int, KeptResidual]
    prefix: Prefix | None = None
    prediction: Prediction | None = None

    def labels(self) -> torch.Tensor:
        """The scored tokens' ids, (n_scored,), where the hidden states are."""
        return self.batch.labels().to(self.hidden.device)


@dataclass(frozen=True, eq=False)
class UnsteeredRun:
    """One unsteered pass over a corpus.

    parts: the same pass in parts, each a run of its own sequences, for measuring on some first.
    """

    corpus: Corpus
    batches: tuple[UnsteeredBatch, ...]
    parts: tuple[UnsteeredRun, ...] = ()

    @property
    def first(self) -> UnsteeredRun:
        """The first part, or all of it where there are none."""
        return self.parts[0] if self.parts else self


def run_unsteered(
    loaded: LoadedModel,
    corpus: Corpus,
    layers: Sequence[int],
    part_sizes: Sequence[int] = (),
    lend_prefix: bool = True,
) -> UnsteeredRun:
    """Run a corpus unsteered, keeping the residuals after the blocks in `layers`.

    None are kept where suffix passes do not work; strengths there run all blocks.

    part_sizes: how many sequences each part has, together all of them; one part if empty.
    lend_prefix: whether the sequences' common prefix may run once for all of them.
    """
    ends = list(itertools.accumulate(part_sizes or [len(corpus.sequences)]))
    groups = [
        replace(corpus, sequences=corpus.sequences[first:last])
        for first, last in itertools.pairwise([0, *ends])
    ]
    store, most, compared = ResidualStore(), loaded.scoring_tokens, bool(layers)
    can = loaded.capabilities
    layers = [each for each in sorted(layers, reverse=True) if can.suffix_after(each).works]
    prefix = shared_prefix(loaded, corpus.sequences, layers, store) if lend_prefix else None
    left_out = prefix.ids if prefix else ()

    def unsteered(batch: Batch) -> UnsteeredBatch:
        return _unsteered(loaded, batch, layers, store, prefix)

    passes = [
        list(over_batches(unsteered, group.sequences, most, loaded.device, left_out))
        for group in groups
    ]
    if compared:
        passes = [
            [replace(run, prediction=_prediction(loaded, run, corpus.self_sampled)) for run in part]
            for part in passes
        ]
    return joined(
        [UnsteeredRun(group, tuple(part)) for group, part in zip(groups, passes, strict=True)]
    )


def joined(runs: Sequence[UnsteeredRun]) -> UnsteeredRun:
    """Several unsteered runs as batch, in parts."""
    sequences: list[TokenSequence] = []
    batches: list[UnsteeredBatch] = []
    for run in runs:
        for batch in run.batches:
            rows = tuple(row + len(sequences) for row in batch.batch.rows)
            batches.append(replace(batch, batch=replace(batch.batch, rows=rows)))
        sequences += run.corpus.sequences
    corpus = Corpus(tuple(sequences), runs[0].corpus.self_sampled)
    return UnsteeredRun(corpus, tuple(batches), tuple(runs))


def log_probs(loaded: LoadedModel, run: UnsteeredRun) -> RatioEstimate:
    """Log-probability of the scored tokens under the unsteered model, nats, over sequences."""
    per_token = token_log_probs(loaded, run)
    return RatioEstimate(
        np.array([values.sum() for values in per_token]),
        np.array([len(values) for values in per_token], dtype=float),
    )


def token_log_probs(loaded: LoadedModel, run: UnsteeredRun) -> list[np.ndarray]:
    """Log-probability of every scored token under the unsteered model, nats.

    Returns: for every sequence an array of shape (n_scored,).
    """
    by_sequence = [np.empty(0)] * len(run.corpus.sequences)
    for unsteered in run.batches:
        labels = unsteered.labels()
        chosen = torch.empty(len(labels), dtype=torch.float64)
        for part in logit_slices(loaded, unsteered.hidden):
            predicted = torch.log_softmax(loaded.logits(unsteered.hidden[part]), dim=-1)
            chosen[part] = predicted.gather(1, labels[part, None])[:, 0].cpu().double()
        lengths = [sequence.n_scored for sequence in unsteered.batch.sequences]
        for row, values in zip(unsteered.batch.rows, torch.split(chosen, lengths), strict=True):
            by_sequence[row] = values.numpy()
    return by_sequence


def logit_slices(loaded: LoadedModel, hidden: torch.Tensor) -> Iterator[slice]:
    """Cut rows of hidden states into slices whose logits are quickly made, and small."""
    on_cpu = hidden.device.type == "cpu"
    step = SLICE_ROWS if on_cpu else max(1, SLICE_ELEMENTS // loaded.vocabulary_size)
    for first in range(0, len(hidden), step):
        yield slice(first, first + step)


def _unsteered(
    loaded: LoadedModel,
    batch: Batch,
    layers: Sequence[int],
    store: ResidualStore,
    prefix: Prefix | None,
) -> UnsteeredBatch:
    with keeping(loaded.blocks, layers, store.keep) as residuals:
        hidden = final_hidden(loaded, batch, cache=prefix and prefix.cache)
    return UnsteeredBatch(batch, hidden, residuals, prefix)


def _prediction(
    loaded: LoadedModel, unsteered: UnsteeredBatch, self_sampled: bool
) -> Prediction | None:
    """What the comparison with every strength needs of the unsteered logits."""
    readout, hidden, labels = loaded.readout, unsteered.hidden, unsteered.labels()
    if readout is None:
        return None
    normaliser = torch.empty(len(hidden), device=hidden.device)
    direction = torch.empty(hidden.shape, device=hidden.device)
    for part in logit_slices(loaded, hidden):
        logits = loaded.logits(hidden[part])
        normaliser[part] = logits.logsumexp(dim=-1)
        direction[part] = (
            logits.softmax(dim=-1) @ readout if self_sampled else readout[labels[part]]
        )
    return Prediction(normaliser, loaded.logit_scale * direction)
