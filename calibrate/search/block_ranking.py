"""Rank blocks by a few backward passes, before any of them is steered.

The derivative by the strength α of a sum of log-probabilities is the gradient by a block's residual
stream times that block's steering vector v: one backward pass gives it for every block.

    α_B(ℓ)   √(2B/c), c the mean over contexts of Var_p₀[M]. The variance of a token's log-odds M is
             that of its score ∂log p₀(z)/∂α over tokens z drawn from p₀, and scores of different
             positions are uncorrelated, so that the squared sum over a sequence estimates it
             (arXiv:2602.02712, Theorem 3.8; the sum is Fisher's information).
    gain(ℓ)  α_B(ℓ) · (d/dα log-likelihood of the concept's replies - the same of its opposites):
             nats per token by which spending the budget favours the concept's replies.

Whole replies are scored, since the log-odds of the concept's tokens favour late blocks: raising
the word "happy" is not yet writing a happier reply. But presence hardly follows the gain on the
concepts measured, and on one it goes the other way (rank correlations in docs/study.md), so the
best of the middle and of the last third of the depth are carried into the study.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from calibrate.common.blocks import site_name
from calibrate.common.errors import CalibrateWarning, ConceptError, NumericalError
from calibrate.common.record import BlockRank
from calibrate.common.settings import Settings
from calibrate.engine.forward import differentiable_hidden
from calibrate.engine.site import SteeringVector
from calibrate.engine.unsteered import Corpus, logit_slices
from calibrate.models.hooks import Positions
from calibrate.models.model import LoadedModel
from calibrate.models.tokens import TokenSequence, batches
from calibrate.texts.concept import Text, Texts
from calibrate.texts.extraction import encode

DRAWS = 2  # labels drawn from p₀ for every context
MAX_TEXTS = 24  # of each label that are differentiated
MAX_TOKENS = 48  # of each, from its beginning
MAX_SEQUENCES = 16  # of the corpus, for the curvature
MAX_BLOCKS = 2  # blocks carried into the study, at most
BACKWARD = 2  # what a backward pass costs, in forward passes
GRADIENT_TOKENS = 4  # a pass that is differentiated holds this many times more per token

Labels = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def rank_blocks(
    loaded: LoadedModel,
    corpus: Corpus,
    texts: Texts,
    vectors: Sequence[SteeringVector],
    settings: Settings,
) -> tuple[BlockRank, ...]:
    """Rank every block whose vector changes predictions, best first.

    corpus: the curvature is estimated on its first sequences. texts: of the concept, not those
    that made the vectors; those with a prompt are preferred.
    Raises: NumericalError if derivatives are finite at no block; ConceptError if the vector of none
        changes predictions.
    Warns with CalibrateWarning of blocks where they are not finite, which are left out.
    """
    stacked = torch.stack([vector.values for vector in vectors]).to(loaded.device)
    curvature = _curvature(loaded, corpus.sequences[:MAX_SEQUENCES], stacked, settings)
    liked, disliked = (
        _likelihood_slope(loaded, [_beginning(loaded, text) for text in group], stacked, settings)
        for group in _replies(texts)
    )
    slopes = liked - disliked
    _require_finite(np.isfinite(curvature) & np.isfinite(slopes), loaded)
    reach = np.sqrt(2 * settings.ce_budget / np.maximum(curvature, 1e-12))
    ranked = [
        BlockRank(layer, settings.sign * float(reach[layer]), float(reach[layer] * slope))
        for layer, slope in enumerate(slopes)
        if np.isfinite(slope) and 0 < curvature[layer] < np.inf
    ]
    if not ranked:
        raise ConceptError(
            "the vector of at least one block must change what the model predicts, got none that "
            "does; give texts that differ in the concept, or name a --layer"
        )
    return tuple(sorted(ranked, key=lambda rank: -rank.gain))


def _require_finite(finite: np.ndarray, loaded: LoadedModel) -> None:
    """Warn of the blocks whose derivatives are not finite, and refuse where those of none are.

    finite: bool array (n_layers,).
    """
    missing = np.flatnonzero(~finite).tolist()
    if not missing:
        return
    where = site_name(missing, "all")
    said = f"derivatives must be finite to rank blocks, got NaN or infinity in {loaded.dtype}"
    if len(missing) == len(finite):
        raise NumericalError(f"{said} at all of them; use --dtype float32, or name a --layer")
    warnings.warn(
        f"{said} at {where}, not searched; use --dtype float32, or name a --layer",
        CalibrateWarning,
        stacklevel=3,
    )


def carried_blocks(ranks: Sequence[BlockRank], num_layers: int) -> tuple[int, ...]:
    """The best block of the middle and of the last third of the depth, best first.

    The gain hardly says which depth is best (docs/study.md), and is often largest in the last
    blocks alone, so that blocks of both are tried. The first third is left out: at block 9 of 30
    the probe read more joy, readers did not, and long replies went in loops (docs/concepts.md).
    """
    best: dict[int, int] = {}
    for rank in ranks:
        third = 3 * rank.layer // num_layers
        if third > 0:
            best.setdefault(third, rank.layer)
    return tuple(best.values()) or tuple(rank.layer for rank in ranks[:1])


def _replies(texts: Texts) -> tuple[list[Text], list[Text]]:
    """MAX_TEXTS of each label: replies to a prompt, where both labels have some."""
    groups = (texts.positives, texts.negatives)
    replies = [[text for text in group if text.prompt is not None] for group in groups]
    chosen = replies if all(replies) else [list(group) for group in groups]
    return chosen[0][:MAX_TEXTS], chosen[1][:MAX_TEXTS]


def _beginning(loaded: LoadedModel, text: Text) -> TokenSequence:
    whole = encode(loaded, text)
    return replace(whole, ids=whole.ids[: whole.start + MAX_TOKENS])


def _curvature(
    loaded: LoadedModel,
    sequences: Sequence[TokenSequence],
    vectors: torch.Tensor,
    settings: Settings,
) -> np.ndarray:
    """Mean variance of the log-odds at every block, (n_layers,)."""
    generator = torch.Generator().manual_seed(settings.seed)

    def drawn(log_probs: torch.Tensor, _labels: torch.Tensor) -> torch.Tensor:
        uniform = torch.rand(log_probs.shape, generator=generator).to(log_probs.device)
        return (log_probs - torch.log(-torch.log(uniform))).argmax(dim=-1)

    positions = settings.position_choices[0]
    scores = _slopes(loaded, sequences, vectors, [drawn] * DRAWS, positions)
    total = sum(sequence.n_scored for sequence in sequences)
    curvature: np.ndarray = np.square(scores).sum(axis=2).mean(axis=0) / total
    return curvature


def _likelihood_slope(
    loaded: LoadedModel,
    sequences: Sequence[TokenSequence],
    vectors: torch.Tensor,
    settings: Settings,
) -> np.ndarray:
    """d/dα of the texts' own log-likelihood per token at every block, (n_layers,)."""

    def own(_log_probs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return labels

    slopes = _slopes(loaded, sequences, vectors, [own], settings.position_choices[0])[0]
    per_token: np.ndarray = slopes.sum(axis=1) / sum(sequence.n_scored for sequence in sequences)
    return per_token


def _slopes(
    loaded: LoadedModel,
    sequences: Sequence[TokenSequence],
    vectors: torch.Tensor,
    choices: Sequence[Labels],
    positions: Positions,
) -> np.ndarray:
    """d/dα of a sequence's log-probability of chosen labels, (n_choices, n_layers, n_sequences).

    choices: functions from log-probabilities (n_tokens, vocabulary) and the sequence's own labels
        to the labels whose log-probability is differentiated, (n_tokens,).
    """
    slopes = np.zeros((len(choices), len(vectors), len(sequences)))
    room = max(loaded.scoring_tokens // GRADIENT_TOKENS, 1)
    for batch in batches(sequences, room, loaded.device):
        hidden, residuals = differentiable_hidden(loaded, batch)
        steered = batch.mask.bool() if positions == "all" else batch.generated()
        for index, choose in enumerate(choices):
            gradient = _gradient(loaded, hidden, batch.labels(), choose)
            loaded.meter.count(BACKWARD * batch.n_tokens)
            by_block = torch.autograd.grad(
                hidden, residuals, gradient, retain_graph=index + 1 < len(choices)
            )
            for layer, (by_residual, vector) in enumerate(zip(by_block, vectors, strict=True)):
                by_position = by_residual.float() @ vector.to(by_residual.device)
                by_token = by_position * steered.to(by_position.device)
                slopes[index, layer, list(batch.rows)] = by_token.sum(dim=1).cpu().double().numpy()
    return slopes


def _gradient(
    loaded: LoadedModel, hidden: torch.Tensor, labels: torch.Tensor, choose: Labels
) -> torch.Tensor:
    """Gradient of the chosen labels' log-probabilities by the final hidden states, in slices."""
    gradient, labels = torch.empty_like(hidden), labels.to(hidden.device)
    for part in logit_slices(loaded, hidden):
        with torch.enable_grad():
            leaf = hidden[part].detach().requires_grad_()
            log_probs = torch.log_softmax(loaded.logits(leaf), dim=-1)
            chosen = choose(log_probs.detach(), labels[part])
            score = log_probs.gather(1, chosen[:, None]).sum()
        (gradient[part],) = torch.autograd.grad(score, leaf)
    return gradient.detach()


def expected_tokens(
    n_sequences: int,
    sequence: float,
    prompt: float,
    n_texts: int,
    text_tokens: int,
    settings: Settings,
) -> float:
    """Token-forwards of the ranking; none where no block is searched.

    sequence, prompt: tokens of one of them. text_tokens: of all n_texts texts together.
    """
    if settings.layer != "search":
        return 0
    sequences = min(MAX_SEQUENCES, n_sequences) * sequence
    text = min(text_tokens / n_texts, prompt + MAX_TOKENS)
    texts = min(text_tokens, 2 * MAX_TEXTS * text)
    return sequences * (1 + DRAWS * BACKWARD) + texts * (1 + BACKWARD)
