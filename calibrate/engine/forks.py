"""Score several ways of going on from one beginning, which runs once: a question and its answers.

Beginnings run as one batch, padded on the left as prompts are; their keys and values then serve all
ways. The last token of a way runs nowhere, since nothing is predicted from it. For models where
that would score otherwise (`engine.capabilities`), every way runs whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from calibrate.common.errors import InputError
from calibrate.engine.cross_entropy import states_by_sequence
from calibrate.engine.decoding import fits_window, next_logits, padded, select_rows, shared_by
from calibrate.engine.forward import require_finite
from calibrate.engine.generation import ROWS_PER_BATCH_TOKEN
from calibrate.engine.memory import in_parts_that_fit
from calibrate.engine.site import Site
from calibrate.engine.unsteered import logit_slices
from calibrate.models.hooks import Edit, add_everywhere, add_last, edited_after, last_logits_only
from calibrate.models.model import LoadedModel
from calibrate.models.steering import Steering
from calibrate.models.tokens import Batch, Prompt, TokenSequence

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Fork:
    """Token ids of a beginning, and of the ways it goes on.

    Raises: InputError for a way without tokens, of which nothing can be scored.
    """

    beginning: Ids
    ways: tuple[Ids, ...]

    def __post_init__(self) -> None:
        if not all(self.ways):
            raise InputError(
                "each answer to a question must be at least one token to the model, and one of "
                f"{len(self.ways)} is none; give other answers"
            )

    @property
    def longer(self) -> list[Ids]:
        """Its ways of more than one token, each once; the beginning alone predicts the others."""
        return [way for way in dict.fromkeys(self.ways) if len(way) > 1]

    @property
    def n_tokens(self) -> int:
        """Token-forwards of scoring all ways."""
        return len(self.beginning) + sum(len(way) - 1 for way in self.longer)

    @property
    def longest_way(self) -> int:
        """Tokens of its longest way."""
        return max(map(len, self.ways))


@dataclass(frozen=True)
class WayScore:
    """How likely a way is after its beginning.

    log_prob: of its tokens together, nats. likeliest: whether each is the likeliest at its place.
    """

    log_prob: float
    likeliest: bool

    @classmethod
    def of(cls, log_probs: torch.Tensor, likeliest: torch.Tensor) -> WayScore:
        """Put together what was read for each token, (n_tokens,)."""
        return cls(float(log_probs.sum()), bool(likeliest.all()))


def score_ways(
    loaded: LoadedModel, forks: Sequence[Fork], steered: tuple[Site, float] | None = None
) -> list[dict[Ids, WayScore]]:
    """Score all ways, steered at a site by a strength, or unsteered.

    The first tokens of a fork's ways are read off one row of logits.
    Returns: for every fork the scores by way.
    """
    found: dict[Fork, dict[Ids, WayScore]] = {}
    for part, states in fork_states(loaded, forks, steered):
        found |= zip(part, _scored(loaded, states), strict=True)
    return [found[fork] for fork in forks]


def _scored(
    loaded: LoadedModel, states: Sequence[dict[Ids, torch.Tensor]]
) -> list[dict[Ids, WayScore]]:
    """The scores of some forks' ways, from the states that predict them."""
    rows: list[torch.Tensor] = []  # of hidden states, each (n, hidden)
    places: list[int] = []  # of the rows that the tokens are predicted from
    n_rows = 0
    for found in states:
        first, n_rows = n_rows, n_rows + 1
        rows.append(next(iter(found.values()))[:1])
        for way, its in found.items():
            places += [first, *range(n_rows, n_rows + len(way) - 1)]
            rows.append(its[1:])
            n_rows += len(way) - 1
    labels = [token for found in states for way in found for token in way]
    lengths = [len(way) for found in states for way in found]
    log_probs, likeliest = (
        torch.split(values, lengths)
        for values in _read_off(loaded, torch.cat(rows), places, labels)
    )
    scores = map(WayScore.of, log_probs, likeliest)
    return [{way: next(scores) for way in found} for found in states]


def _read_off(
    loaded: LoadedModel, hidden: torch.Tensor, places: Sequence[int], labels: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each label after the row at its place, float64, and if it is likeliest."""
    at, token = torch.tensor(places), torch.tensor(labels)
    log_probs, likeliest = torch.empty(len(at)).double(), torch.empty(len(at), dtype=torch.bool)
    for part in logit_slices(loaded, hidden):
        predicted = loaded.logits(hidden[part]).log_softmax(dim=-1)
        here = (at >= part.start) & (at < part.stop)
        row, label = at[here] - part.start, token[here]
        log_probs[here] = predicted[row, label].cpu().double()
        likeliest[here] = predicted.argmax(dim=-1).cpu()[row] == label
    return log_probs, likeliest


def fork_states(
    loaded: LoadedModel, forks: Sequence[Fork], steered: tuple[Site, float] | None = None
) -> Iterator[tuple[Sequence[Fork], list[dict[Ids, torch.Tensor]]]]:
    """Final hidden states that predict the tokens of each way, batch by batch.

    steered: site and strength; None for the unsteered model.
    Yields: some of the forks, each once, and for every one, by way, a tensor of shape
        (n_tokens, hidden).
    """
    widest = max(len(fork.beginning) for fork in forks) + max(fork.longest_way for fork in forks)
    shares = fits_window(loaded, widest) and loaded.capabilities.forking.works
    steering = None if steered is None else steered[0].steering(steered[1])
    for group in _batched(forks, loaded.scoring_tokens):
        if shares:
            yield from in_parts_that_fit(lambda part: by_forks(loaded, part, steering), group)
        else:
            yield group, _whole(loaded, group, steered)


def by_forks(
    loaded: LoadedModel, forks: Sequence[Fork], steering: Steering | None
) -> list[dict[Ids, torch.Tensor]]:
    """`fork_states` in one batch, with every beginning run once."""
    prompts = [Prompt("", fork.beginning) for fork in forks]
    shared = shared_by(prompts)
    ids, mask = padded(prompts, len(shared), loaded.device)
    edits, cache = _Edits.of(steering), loaded.empty_cache()
    if shared:
        _run(loaded, ids[:1, : len(shared)], mask[:1, : len(shared)], cache, edits.before)
        select_rows(cache, [0] * len(forks))
    ends = _run(loaded, ids[:, len(shared) :], mask, cache, edits.beginning)[:, -1:]
    found = [dict.fromkeys(fork.ways, ends[row]) for row, fork in enumerate(forks)]
    places = [(row, way) for row, fork in enumerate(forks) for way in fork.longer]
    if places:
        rows = [row for row, _ in places]
        select_rows(cache, rows)
        more = Batch.of([TokenSequence(way[:-1], 1) for _, way in places], loaded.device)
        attended = torch.cat([mask[rows], more.mask], dim=1)
        states = _run(loaded, more.ids, attended, cache, edits.ways)
        for (row, way), following in zip(places, states, strict=True):
            found[row][way] = torch.cat([ends[row], following[: len(way) - 1]])
    return found


@dataclass(frozen=True, eq=False)
class _Edits:
    """What steers the passes: over what all beginnings share, their rest, and the ways."""

    before: Mapping[int, Edit]
    beginning: Mapping[int, Edit]
    ways: Mapping[int, Edit]

    @classmethod
    def of(cls, steering: Steering | None) -> _Edits:
        shifts = {} if steering is None else steering.shifts
        everywhere = {layer: add_everywhere(shift) for layer, shift in shifts.items()}
        if steering is None or steering.positions == "all":
            return cls(everywhere, everywhere, everywhere)
        return cls({}, {layer: add_last(shift) for layer, shift in shifts.items()}, everywhere)


def _run(
    loaded: LoadedModel,
    ids: torch.Tensor,
    mask: torch.Tensor,
    cache: DynamicCache,
    edits: Mapping[int, Edit],
) -> torch.Tensor:
    """What the unembedding reads at some new positions, (rows, positions, hidden).

    mask: over what is in the cache too, (rows, positions).
    Returns: it where logits are made.
    """
    seen: list[torch.Tensor] = []
    with (
        torch.no_grad(),
        edited_after(loaded.blocks, edits, None) if edits else nullcontext(),
        last_logits_only(loaded.unembedding, seen.append),
    ):
        next_logits(loaded, ids, mask, cache)
    hidden = seen[0].to(loaded.logits_device)
    require_finite(hidden[mask[:, -ids.shape[1] :].bool().to(hidden.device)], loaded)
    return hidden


def _whole(
    loaded: LoadedModel, forks: Sequence[Fork], steered: tuple[Site, float] | None
) -> list[dict[Ids, torch.Tensor]]:
    """`fork_states` with every way run whole, but those of one token, if there is a longer one."""
    run = [fork.longer or fork.ways[:1] for fork in forks]
    sequences = [
        TokenSequence((*fork.beginning, *way), len(fork.beginning))
        for fork, ways in zip(forks, run, strict=True)
        for way in ways
    ]
    (states,) = states_by_sequence(loaded, sequences, [steered])
    left, found = iter(states), []
    for fork, ways in zip(forks, run, strict=True):
        known = {way: next(left) for way in ways}
        end = known[ways[0]][:1]
        found.append({way: known.get(way, end) for way in fork.ways})
    return found


def _batched(forks: Sequence[Fork], most: int) -> Iterator[list[Fork]]:
    """Cut distinct forks into batches, longest beginnings first, of at most `most` tokens a pass.

    What a batch's cache holds is bounded as it is for replies. A fork that has more gets a batch of
    its own.
    """
    group: list[Fork] = []
    for fork in sorted(dict.fromkeys(forks), key=lambda fork: -len(fork.beginning)):
        more = [*group, fork]
        if group and (_widest(more) > most or _cached(more) > ROWS_PER_BATCH_TOKEN * most):
            yield group
            group = []
        group.append(fork)
    if group:
        yield group


def _widest(group: Sequence[Fork]) -> int:
    """Positions of the larger of a batch's two passes."""
    longer = [way for fork in group for way in fork.longer]
    beginnings = len(group) * max(len(fork.beginning) for fork in group)
    return max(beginnings, len(longer) * max(map(len, longer), default=0))


def _cached(group: Sequence[Fork]) -> int:
    """Positions in the cache of a batch, where each way has its beginning's to itself."""
    longer = [way for fork in group for way in fork.longer]
    beginning = max(len(fork.beginning) for fork in group)
    return len(longer) * (beginning + max(map(len, longer), default=0))
