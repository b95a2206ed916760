"""How far steering moves a model's predictions on a corpus, in nats per token.

    ΔCE(α) = mean over scored tokens of CE(steered) - CE(unsteered)

On replies the model sampled itself the label is a draw from its own prediction p₀, so the
exact KL(p₀ ‖ p_α) over the vocabulary stands for ΔCE: the same expectation without the label
noise (arXiv:2602.02712, Theorem 3.8 and its proof). On other texts the labels are used.

One unsteered pass keeps what every strength is compared with: the final hidden states (their
logits are recomputed in slices, never stored), what the comparison needs of those logits, and the
residuals after the blocks asked for, so that each strength runs only the blocks after its own.
What all sequences begin with runs once for all of them (`calibrate.prefix`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from calibrate.estimate import RatioEstimate
from calibrate.memory import Shelf, over_batches
from calibrate.prefix import Prefix, shared_prefix
from calibrate.residual import (
    Edit,
    KeptResidual,
    Positions,
    add_everywhere,
    add_where,
    edited_after,
    final_hidden,
    keeping,
    with_tangent,
)
from calibrate.tokens import Batch, TokenSequence

if TYPE_CHECKING:
    from calibrate.model import LoadedModel

SLICE_ROWS = 128  # of logits made at a time by a CPU, which is fastest with about so many
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

    prefix: what the batch's rows begin with, run once; None where they run whole.
    prediction: None where the logits have to be made again for every comparison.
    """

    batch: Batch
    hidden: torch.Tensor
    residuals: dict[int, KeptResidual]
    prefix: Prefix | None = None
    prediction: Prediction | None = None


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

    Not kept are those from which the model cannot go on; strengths there run all blocks.

    part_sizes: how many sequences each part has, together all of them; one part if empty.
    lend_prefix: whether what all sequences begin with may run once for all of them.
    """
    ends = list(itertools.accumulate(part_sizes or [len(corpus.sequences)]))
    groups = [
        replace(corpus, sequences=corpus.sequences[first:last])
        for first, last in itertools.pairwise([0, *ends])
    ]
    shelf, most, compared = Shelf(), loaded.scoring_tokens, bool(layers)
    can = loaded.capabilities
    layers = [one for one in sorted(layers, reverse=True) if can.suffix_after(one).works]
    prefix = shared_prefix(loaded, corpus.sequences, layers, shelf) if lend_prefix else None
    left_out = prefix.ids if prefix else ()

    def unsteered(batch: Batch) -> UnsteeredBatch:
        return _unsteered(loaded, batch, layers, shelf, prefix)

    passes = [
        list(over_batches(unsteered, group.sequences, most, loaded.device, left_out))
        for group in groups
    ]
    if compared:
        passes = [
            [replace(one, prediction=_prediction(loaded, one, corpus.self_sampled)) for one in part]
            for part in passes
        ]
    return joined(
        [UnsteeredRun(group, tuple(part)) for group, part in zip(groups, passes, strict=True)]
    )


def joined(runs: Sequence[UnsteeredRun]) -> UnsteeredRun:
    """Several unsteered runs as one, in parts."""
    sequences: list[TokenSequence] = []
    batches_: list[UnsteeredBatch] = []
    for run in runs:
        for one in run.batches:
            rows = tuple(row + len(sequences) for row in one.batch.rows)
            batches_.append(replace(one, batch=replace(one.batch, rows=rows)))
        sequences += run.corpus.sequences
    corpus = Corpus(tuple(sequences), runs[0].corpus.self_sampled)
    return UnsteeredRun(corpus, tuple(batches_), tuple(runs))


@dataclass(frozen=True, eq=False)
class Steered:
    """What one strength did to the predictions on a corpus.

    rise: ΔCE over sequences, nats per token. mass: probability of the concept's tokens over
    sequences, in [0, 1]. watched: next-token probabilities of the contexts asked for, float32
    array (n_watched, vocabulary).
    """

    rise: RatioEstimate
    mass: RatioEstimate
    watched: np.ndarray


def measure_steered(
    loaded: LoadedModel,
    run: UnsteeredRun,
    vector: torch.Tensor,
    layer: int,
    strength: float,
    positions: Positions = "all",
    concept_tokens: Sequence[int] = (),
    watched: Sequence[int] = (),
) -> Steered:
    """Measure what adding `strength · vector` to the residual stream after a block does.

    watched: indices of scored tokens, counted batch by batch, whose contexts are watched.
    """
    tokens = torch.tensor(list(concept_tokens), dtype=torch.long, device=loaded.device)
    sums = np.zeros((2, len(run.corpus.sequences)))
    counts = np.array([sequence.n_scored for sequence in run.corpus.sequences], dtype=float)
    seen = 0
    distributions: list[np.ndarray] = []
    for one in run.batches:
        steered = steered_hidden(loaded, one, strength * vector, layer, positions)
        per_token = _compared(loaded, one, steered, run.corpus.self_sampled, tokens)
        sums[:, list(one.batch.rows)] = one.batch.sums(per_token)
        rows = [row - seen for row in watched if 0 <= row - seen < len(steered)]
        distributions.append(loaded.logits(steered[rows]).softmax(dim=-1).cpu().numpy())
        seen += len(steered)
    return Steered(
        RatioEstimate(sums[0], counts),
        RatioEstimate(sums[1], counts),
        np.concatenate(distributions),
    )


def delta_ce(
    loaded: LoadedModel,
    run: UnsteeredRun,
    vector: torch.Tensor,
    layer: int,
    strength: float,
    positions: Positions = "all",
) -> RatioEstimate:
    """Measure ΔCE of adding `strength · vector` to the residual stream after block `layer`.

    Returns: the estimate over sequences, nats per token.
    """
    return measure_steered(loaded, run, vector, layer, strength, positions).rise


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
    found = [np.empty(0)] * len(run.corpus.sequences)
    for one in run.batches:
        labels = one.batch.labels()
        chosen = torch.empty(len(labels), dtype=torch.float64)
        for part in logit_slices(loaded, one.hidden):
            predicted = torch.log_softmax(loaded.logits(one.hidden[part]), dim=-1)
            chosen[part] = predicted.gather(1, labels[part, None])[:, 0].double().cpu()
        lengths = [sequence.n_scored for sequence in one.batch.sequences]
        for row, values in zip(one.batch.rows, torch.split(chosen, lengths), strict=True):
            found[row] = values.numpy()
    return found


def steered_hidden(
    loaded: LoadedModel,
    unsteered: UnsteeredBatch,
    shift: torch.Tensor,
    layer: int,
    positions: Positions = "all",
) -> torch.Tensor:
    """Return the final hidden states, (n_scored, hidden), with `shift` added after a block.

    With positions "last", a reply is steered from its prompt's last token on, as it would be
    while being generated.
    """
    shift = shift.to(loaded.device)
    mask = unsteered.batch.generated()
    edit = add_everywhere(shift) if positions == "all" else add_where(shift, mask)
    return _run_from(loaded, unsteered, layer, edit, positions)


def tangent_hidden(
    loaded: LoadedModel,
    unsteered: UnsteeredBatch,
    vector: torch.Tensor,
    layer: int,
    positions: Positions = "all",
) -> torch.Tensor:
    """Return the unsteered final hidden states, with their derivative by strength as tangent.

    To be called within `torch.autograd.forward_ad.dual_level`.
    """
    mask = None if positions == "all" else unsteered.batch.generated()
    edit = with_tangent(vector.to(loaded.device), mask)
    return _run_from(loaded, unsteered, layer, edit, positions)


def logit_slices(loaded: LoadedModel, hidden: torch.Tensor) -> Iterator[slice]:
    """Cut rows of hidden states so that a slice of their logits is quickly made, and is small."""
    on_cpu = hidden.device.type == "cpu"
    step = SLICE_ROWS if on_cpu else max(1, SLICE_ELEMENTS // loaded.vocabulary_size)
    for first in range(0, len(hidden), step):
        yield slice(first, first + step)


def _unsteered(
    loaded: LoadedModel,
    batch: Batch,
    layers: Sequence[int],
    shelf: Shelf,
    prefix: Prefix | None,
) -> UnsteeredBatch:
    with keeping(loaded, layers, shelf) as residuals:
        hidden = final_hidden(loaded, batch, cache=prefix and prefix.cache)
    return UnsteeredBatch(batch, hidden, residuals, prefix)


def _run_from(
    loaded: LoadedModel, unsteered: UnsteeredBatch, layer: int, edit: Edit, positions: Positions
) -> torch.Tensor:
    """Run with `edit` after a block; the prefix too, unless only later positions are steered."""
    cache = unsteered.prefix and unsteered.prefix.cache
    if unsteered.prefix and positions == "all":
        cache = unsteered.prefix.edited(loaded, layer, edit)
    with edited_after(loaded, layer, edit, unsteered.residuals.get(layer)) as share:
        return final_hidden(loaded, unsteered.batch, share, cache=cache)


def _prediction(
    loaded: LoadedModel, unsteered: UnsteeredBatch, self_sampled: bool
) -> Prediction | None:
    """What the comparison with every strength needs of the unsteered logits."""
    readout, hidden, labels = loaded.readout, unsteered.hidden, unsteered.batch.labels()
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


def _compared(
    loaded: LoadedModel,
    unsteered: UnsteeredBatch,
    steered: torch.Tensor,
    self_sampled: bool,
    tokens: torch.Tensor,
) -> torch.Tensor:
    """Rise of cross-entropy and mass of `tokens` at each scored token, float64 (2, n_scored)."""
    found = torch.empty(2, len(steered), dtype=torch.float64)
    for part in logit_slices(loaded, steered):
        after = loaded.logits(steered[part])
        normaliser = after.logsumexp(dim=-1)
        lost = _lost(loaded, unsteered, steered, after, part, self_sampled)
        found[0, part] = (lost + normaliser).double().cpu()
        found[1, part] = (after[:, tokens] - normaliser[:, None]).exp().sum(dim=-1).double().cpu()
    return found


def _lost(
    loaded: LoadedModel,
    unsteered: UnsteeredBatch,
    steered: torch.Tensor,
    after: torch.Tensor,
    part: slice,
    self_sampled: bool,
) -> torch.Tensor:
    """How far steering lowers the expected logit, less the unsteered normaliser, (n_part,)."""
    hidden, prediction = unsteered.hidden[part], unsteered.prediction
    if prediction is not None:
        gap = (prediction.direction[part] * (hidden - steered[part])).sum(dim=-1)
        return gap - prediction.normaliser[part]
    before = loaded.logits(hidden)
    if self_sampled:
        gap = (before.softmax(dim=-1) * (before - after)).sum(dim=-1)
    else:
        gap = (before - after).gather(1, unsteered.batch.labels()[part, None])[:, 0]
    return gap - before.logsumexp(dim=-1)
