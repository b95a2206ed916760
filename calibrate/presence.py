"""Presence: how strongly sampled replies express a concept, as a judge reads them.

    presence(α) = mean over prompts and completions of P(the completion expresses the concept)

Judges read finished text, never the activations that were shifted, so they cannot see the vector.
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

HEADROOM = 0.1  # presence must be able to move at least this far


@dataclass(frozen=True, eq=False)
class Presence:
    """Replies, how strongly each expresses the concept, and their mean over prompts."""

    completions: tuple[Completion, ...]
    scores: np.ndarray  # (n_completions,), probabilities
    estimate: RatioEstimate  # the prompt is the unit


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
    prompts = np.array([completion.prompt_index for completion in completions])
    sums = np.bincount(prompts, weights=scores)
    return Presence(tuple(completions), scores, RatioEstimate(sums, np.bincount(prompts)))


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
