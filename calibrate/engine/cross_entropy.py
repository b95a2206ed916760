"""How far steering moves a model's predictions on a corpus, in nats per token.

    ΔCE(α) = mean over scored tokens of CE(steered) - CE(unsteered)

On replies the model sampled itself the label is a draw from its own prediction p₀, so the
exact KL(p₀ ‖ p_α) over the vocabulary stands for ΔCE: the same expectation without the label
noise (arXiv:2602.02712, Theorem 3.8 and its proof). On other texts the labels are used.

One unsteered pass keeps what every strength is compared with: the final hidden states (their
logits are recomputed in slices, never stored), what the comparison needs of those logits, and the
residuals after the requested blocks, so that each strength runs only the blocks after its own.
The sequences' common prefix runs once for all of them (`calibrate.engine.prefix`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from calibrate.common.estimate import RatioEstimate
from calibrate.engine.forward import final_hidden
from calibrate.engine.memory import ResidualStore, over_batches
from calibrate.engine.prefix import shared_prefix
from calibrate.engine.site import Site
from calibrate.engine.unsteered import (
    Corpus,
    UnsteeredBatch,
    UnsteeredRun,
    logit_slices,
    run_unsteered,
)
from calibrate.models.hooks import (
    Edit,
    Positions,
    add_everywhere,
    add_where,
    edited_after,
    with_tangent,
)
from calibrate.models.model import LoadedModel
from calibrate.models.tokens import TokenSequence

SUFFIX_SHARE = 0.55  # average share of the blocks that come after a steered one


@dataclass(frozen=True, eq=False)
class Steered:
    """What one strength did to the predictions on a corpus.

    rise: ΔCE over sequences, nats per token. mass: probability of the concept's tokens over
    sequences, in [0, 1]. watched: next-token probabilities of the requested contexts, float32
    array (n_watched, vocabulary).
    """

    rise: RatioEstimate
    mass: RatioEstimate
    watched: np.ndarray


def measure_steered(
    loaded: LoadedModel,
    run: UnsteeredRun,
    site: Site,
    strength: float,
    concept_tokens: Sequence[int] = (),
    watched: Sequence[int] = (),
) -> Steered:
    """Measure what steering at a site does.

    watched: indices of scored tokens, counted batch by batch, whose contexts are watched.
    """
    tokens = torch.tensor(list(concept_tokens), dtype=torch.long).to(loaded.logits_device)
    sums = np.zeros((2, len(run.corpus.sequences)))
    counts = np.array([sequence.n_scored for sequence in run.corpus.sequences], dtype=float)
    n_before = 0
    distributions: list[np.ndarray] = []
    for unsteered in run.batches:
        steered = steered_hidden(loaded, unsteered, site, strength)
        per_token = _compared(loaded, unsteered, steered, run.corpus.self_sampled, tokens)
        sums[:, list(unsteered.batch.rows)] = unsteered.batch.sums(per_token)
        rows = [row - n_before for row in watched if 0 <= row - n_before < len(steered)]
        distributions.append(loaded.logits(steered[rows]).softmax(dim=-1).cpu().numpy())
        n_before += len(steered)
    return Steered(
        RatioEstimate(sums[0], counts),
        RatioEstimate(sums[1], counts),
        np.concatenate(distributions),
    )


def delta_ce(loaded: LoadedModel, run: UnsteeredRun, site: Site, strength: float) -> RatioEstimate:
    """Measure ΔCE of steering at a site.

    Returns: the estimate over sequences, nats per token.
    """
    return measure_steered(loaded, run, site, strength).rise


def steered_hidden(
    loaded: LoadedModel,
    unsteered: UnsteeredBatch,
    site: Site,
    strength: float,
) -> torch.Tensor:
    """Return the final hidden states, (n_scored, hidden), steered at a site.

    With positions "last", a reply is steered from its prompt's last token on, as it would be
    while being generated.
    """
    mask, everywhere = unsteered.batch.generated(), site.positions == "all"
    edits = {
        layer: add_everywhere(shift) if everywhere else add_where(shift, mask)
        for layer, shift in site.shifts(strength, loaded.device).items()
    }
    return _run_from(loaded, unsteered, edits, site.positions)


def states_by_sequence(
    loaded: LoadedModel,
    sequences: Sequence[TokenSequence],
    steered: Sequence[tuple[Site, float] | None],
    run: UnsteeredRun | None = None,
) -> list[list[torch.Tensor]]:
    """Final hidden states that predict each sequence's scored tokens.

    One unsteered pass serves all; a single steered one goes without.
    steered: sites and strengths; None for the unsteered model. run: the unsteered pass over these
        sequences, if one was made.
    Returns: for each of those, and each sequence, a tensor of shape (n_scored, hidden).
    """
    if run is not None:
        batches = iter(run.batches)
    elif len(steered) == 1 and steered[0] is not None:
        batches = _without_pass(loaded, sequences)
    else:
        layers = sorted({each[0].first for each in steered if each is not None})
        corpus = Corpus(tuple(sequences), self_sampled=False)
        batches = iter(run_unsteered(loaded, corpus, layers).batches)
    states = [[torch.empty(0)] * len(sequences) for _ in steered]
    for unsteered in batches:
        lengths = [sequence.n_scored for sequence in unsteered.batch.sequences]
        for found, each in zip(states, steered, strict=True):
            hidden = unsteered.hidden
            if each is not None:
                hidden = steered_hidden(loaded, unsteered, *each)
            for row, rows in zip(unsteered.batch.rows, torch.split(hidden, lengths), strict=True):
                found[row] = rows
    return states


def _without_pass(
    loaded: LoadedModel, sequences: Sequence[TokenSequence]
) -> Iterator[UnsteeredBatch]:
    """The batches of an unsteered pass that was not made, but for the sequences' common prefix."""
    prefix = shared_prefix(loaded, sequences, [], ResidualStore())
    return over_batches(
        lambda batch: UnsteeredBatch(batch, torch.empty(0), {}, prefix),
        sequences,
        loaded.scoring_tokens,
        loaded.device,
        prefix.ids if prefix else (),
    )


def tangent_hidden(
    loaded: LoadedModel,
    unsteered: UnsteeredBatch,
    site: Site,
) -> torch.Tensor:
    """Return the unsteered final hidden states, with their derivative by strength as tangent.

    To be called within `torch.autograd.forward_ad.dual_level`.
    """
    mask = None if site.positions == "all" else unsteered.batch.generated()
    edits = {
        layer: with_tangent(shift, mask) for layer, shift in site.shifts(1.0, loaded.device).items()
    }
    return _run_from(loaded, unsteered, edits, site.positions)


def _run_from(
    loaded: LoadedModel,
    unsteered: UnsteeredBatch,
    edits: Mapping[int, Edit],
    positions: Positions,
) -> torch.Tensor:
    """Run with edits after blocks; the prefix too, unless only later positions are steered."""
    cache = unsteered.prefix and unsteered.prefix.cache
    if unsteered.prefix and positions == "all":
        cache = unsteered.prefix.edited(loaded, edits)
    with edited_after(loaded.blocks, edits, unsteered.residuals.get(min(edits))) as share:
        return final_hidden(loaded, unsteered.batch, share, cache=cache)


def _compared(
    loaded: LoadedModel,
    unsteered: UnsteeredBatch,
    steered: torch.Tensor,
    self_sampled: bool,
    tokens: torch.Tensor,
) -> torch.Tensor:
    """Rise of cross-entropy and mass of `tokens` at each scored token, float64 (2, n_scored)."""
    values = torch.empty(2, len(steered), dtype=torch.float64)
    for part in logit_slices(loaded, steered):
        after = loaded.logits(steered[part])
        normaliser = after.logsumexp(dim=-1)
        lost = _lost(loaded, unsteered, steered, after, part, self_sampled)
        values[0, part] = (lost + normaliser).cpu().double()
        values[1, part] = (after[:, tokens] - normaliser[:, None]).exp().sum(dim=-1).cpu().double()
    return values


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
        gap = (before - after).gather(1, unsteered.labels()[part, None])[:, 0]
    return gap - before.logsumexp(dim=-1)
