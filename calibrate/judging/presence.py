"""Presence: the share of sampled replies that, to a reader, express a concept.

    presence(α) = mean over prompts and completions of P(a reader says yes, at least somewhat)

The probabilities are a judge's; docs/judges.md shows how far judges agree with readers. Judges that
tell somewhat from clearly also give the share of replies that clearly express the concept.

Judges read finished text, never the steered activations, so they cannot see the vector. Empty
replies are counted separately and left out of presence, so steering that only changes how often a
model says nothing does not change presence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calibrate.common.errors import Infeasible
from calibrate.common.estimate import RatioEstimate
from calibrate.common.settings import Sampling, Settings
from calibrate.engine.generation import Completion, Request, sample_all
from calibrate.models.model import LoadedModel
from calibrate.texts.replies import UnsteeredReplies
from probes import Reader

MAX_EMPTY = 0.5  # of the steered replies that may be empty


@dataclass(frozen=True, eq=False)
class Presence:
    """Replies, how strongly each expresses the concept, and their mean over prompts.

    scores: 0 for empty replies, which are not counted. estimate: over prompts with a reply that is
    not empty; 0 if there are none. clear_scores: probabilities of a clear yes, or None.
    """

    completions: tuple[Completion, ...]
    scores: np.ndarray  # (n_completions,), probabilities
    estimate: RatioEstimate  # the prompt is the unit
    clear_scores: np.ndarray | None = None

    @property
    def clear(self) -> float | None:
        """The share of non-empty replies that clearly express the concept, if known."""
        if self.clear_scores is None or not self.spoken.any():
            return None
        return float(self.clear_scores[self.spoken].mean())

    @property
    def spoken(self) -> np.ndarray:
        """Which replies are not empty, bool (n_completions,)."""
        return _spoken(self.completions)

    @property
    def n_empty(self) -> int:
        """How many replies are empty."""
        return int((~self.spoken).sum())

    @property
    def empty(self) -> float:
        """The share of replies that are empty."""
        return self.n_empty / max(len(self.completions), 1)

    @property
    def by_prompt(self) -> dict[int, float]:
        """The mean score of each prompt's replies, for prompts with any that is not empty."""
        by_prompt: dict[int, list[float]] = {}
        for reply, score, spoken in zip(self.completions, self.scores, self.spoken, strict=True):
            if spoken:
                by_prompt.setdefault(reply.prompt_index, []).append(float(score))
        return {prompt: float(np.mean(scores)) for prompt, scores in sorted(by_prompt.items())}

    @property
    def first_replies(self) -> list[Completion]:
        """The first reply to each prompt, in the prompts' order."""
        prompts = [reply.prompt_index for reply in self.completions]
        return [self.completions[row] for row in np.unique(prompts, return_index=True)[1]]

    def joined(self, more: Presence) -> Presence:
        """These replies together with more to the same prompts."""
        scores = np.concatenate([self.scores, more.scores])
        clear = None
        if self.clear_scores is not None and more.clear_scores is not None:
            clear = np.concatenate([self.clear_scores, more.clear_scores])
        return scored((*self.completions, *more.completions), scores, clear)

    def change_from(self, before: Presence) -> RatioEstimate:
        """The paired change, over prompts with a non-empty reply in both.

        Raises: Infeasible if there are none.
        """
        now, then = self.by_prompt, before.by_prompt
        change = np.array([now[prompt] - then[prompt] for prompt in now if prompt in then])
        if len(change) == 0:
            raise Infeasible(
                ["no prompt is replied to both with and without steering, so no change is seen"],
                ["allow less with --ce-budget", "give other --prompts"],
            )
        return RatioEstimate(change, np.ones(len(change)))


def measure_presence(
    loaded: LoadedModel,
    reader: Reader,
    requests: Sequence[Request],
    sampling: Sampling,
    seed: int,
) -> list[Presence]:
    """Sample all requests together, then have the replies read."""
    return [read(reader, replies) for replies in sample_all(loaded, requests, sampling, seed)]


def read(reader: Reader, completions: Sequence[Completion]) -> Presence:
    """Have a judge read finished completions."""
    scores = reader.read([completion.text for completion in completions])
    return scored(completions, scores, reader.clear(scores))


def scored(
    completions: Sequence[Completion], scores: np.ndarray, clear: np.ndarray | None = None
) -> Presence:
    """Presence in completions with these scores; scores and clear have shape (n_completions,)."""
    spoken = _spoken(completions)
    prompts = np.array([completion.prompt_index for completion in completions], dtype=int)
    sums = np.bincount(prompts, weights=scores)  # an empty reply adds nothing
    counts = np.bincount(prompts[spoken], minlength=len(sums))
    used = counts > 0 if spoken.any() else np.bincount(prompts) > 0
    estimate = RatioEstimate(sums[used], np.maximum(counts[used], 1))
    return Presence(tuple(completions), scores, estimate, clear)


def _spoken(completions: Sequence[Completion]) -> np.ndarray:
    return np.array([bool(completion.text.strip()) for completion in completions], dtype=bool)


def require_headroom(
    reader: Reader, replies: UnsteeredReplies, settings: Settings
) -> RatioEstimate:
    """Return unsteered presence on the search prompts.

    Raises: Infeasible if no value in its interval leaves room for a change of `min_gain`.
    """
    estimate = read(reader, replies.completions["search"]).estimate
    baseline, goal = estimate.value, settings.goal
    low, high = estimate.cautious_interval(settings.confidence)
    room = 1 - low if goal == "increase" else high
    if room <= settings.min_gain:
        between = f"{settings.confidence:.0%} interval {max(low, 0):.3f} to {min(high, 1):.3f}"
        raise Infeasible(
            [
                f"no headroom: the unsteered model's presence is {baseline:.3f} ({between}), and "
                f"to {goal} it by --min-gain {settings.min_gain:g} is impossible"
            ],
            [
                "steer the other way with --goal "
                + ("decrease" if goal == "increase" else "increase"),
                "give prompts that call for the concept less (or more) by themselves: --prompts",
            ],
        )
    return estimate
