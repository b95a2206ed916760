"""Presence: how strongly sampled replies express a concept, as a judge reads them.

    presence(α) = mean over prompts and completions of P(the completion expresses the concept)

Judges read finished text, never the activations that were shifted, so they cannot see the vector.
A reply that is empty says nothing either way: it is counted apart, and presence is over the rest.
Steering that only makes a model fall silent less, or more often, moves no presence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from calibrate.completions import Completion, Request, sample_all
from calibrate.errors import Infeasible
from calibrate.estimate import RatioEstimate
from calibrate.replies import UnsteeredReplies
from calibrate.settings import Sampling, Settings
from probes import Reader

if TYPE_CHECKING:
    from calibrate.model import LoadedModel

MOST_EMPTY = 0.5  # of the steered replies that may be empty
HEADROOM = 0.1  # presence must be able to move at least this far


@dataclass(frozen=True, eq=False)
class Presence:
    """Replies, how strongly each expresses the concept, and their mean over prompts.

    scores: of empty replies 0, which count for nothing. estimate: over prompts with a reply that is
    not empty; 0 where there are none.
    """

    completions: tuple[Completion, ...]
    scores: np.ndarray  # (n_completions,), probabilities
    estimate: RatioEstimate  # the prompt is the unit

    @property
    def spoken(self) -> np.ndarray:
        """Which replies are not empty, bool (n_completions,)."""
        return np.array([bool(one.text.strip()) for one in self.completions], dtype=bool)

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
        found: dict[int, list[float]] = {}
        for one, score, spoken in zip(self.completions, self.scores, self.spoken, strict=True):
            if spoken:
                found.setdefault(one.prompt_index, []).append(float(score))
        return {prompt: float(np.mean(scores)) for prompt, scores in sorted(found.items())}

    def change_from(self, before: Presence) -> RatioEstimate:
        """The paired change, over prompts that were replied to in both.

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
    """Sample what is requested, all together, then have it read by the unsteered model."""
    return [read(reader, replies) for replies in sample_all(loaded, requests, sampling, seed)]


def read(reader: Reader, completions: Sequence[Completion]) -> Presence:
    """Have finished completions read."""
    scores = reader.read([completion.text for completion in completions])
    spoken = np.array([bool(completion.text.strip()) for completion in completions], dtype=bool)
    prompts = np.array([completion.prompt_index for completion in completions], dtype=int)
    sums = np.bincount(prompts, weights=scores)  # an empty reply adds nothing
    counts = np.bincount(prompts[spoken], minlength=len(sums))
    said = counts > 0 if spoken.any() else np.bincount(prompts) > 0
    estimate = RatioEstimate(sums[said], np.maximum(counts[said], 1))
    return Presence(tuple(completions), scores, estimate)


def require_headroom(
    reader: Reader, replies: UnsteeredReplies, settings: Settings
) -> RatioEstimate:
    """Return unsteered presence on the search prompts.

    Raises: Infeasible if it leaves no room to move towards the goal.
    """
    estimate = read(reader, replies.completions["search"]).estimate
    baseline = estimate.value
    goal = settings.goal
    room = 1 - baseline if goal == "increase" else baseline
    if room < HEADROOM:
        raise Infeasible(
            [
                f"no headroom: the unsteered model's presence is {baseline:.2f}, and to {goal} it "
                f"by {HEADROOM} is impossible"
            ],
            [
                "steer the other way with --goal "
                + ("decrease" if goal == "increase" else "increase"),
                "give prompts that call for the concept less (or more) by themselves: --prompts",
            ],
        )
    return estimate
