"""Presence: how strongly sampled replies express a concept, and the probe that measures it.

    presence(α) = mean over prompts and completions of P(the completion expresses the concept)

The probe reads finished text with the unsteered model, so it cannot see the vector. It is
fitted on written texts and on replies of the model itself: plain ones (negatives), and *primed*
ones, given after the model was shown written texts of either label. Without the primed replies
a probe learns to tell people from models instead of the concept.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from calibrate.completions import Completion, sample
from calibrate.concept import Text, Texts
from calibrate.errors import Infeasible
from calibrate.estimate import RatioEstimate
from calibrate.replies import UnsteeredReplies
from calibrate.settings import Sampling, Settings
from calibrate.tokens import Prompt, encode_prompt, encode_text
from probes import Example, Judge, Probe, degenerate_examples, fit_probe

if TYPE_CHECKING:
    from calibrate.model import LoadedModel

SHOTS = 2  # written texts shown before a primed reply
PRIMED_PROMPTS = 24  # prompts answered once for each label
OPENER = "Say something."  # stands before a written text that replies to nothing
LEAST_AUC = 0.7  # below this on held-out texts, a probe cannot tell the concept
MOST_P_VALUE = 0.01  # above this, it may have told the written texts apart by chance
HEADROOM = 0.1  # presence must be able to move at least this far


@dataclass(frozen=True, eq=False)
class Presence:
    """Replies, how strongly each expresses the concept, and their mean over prompts."""

    completions: tuple[Completion, ...]
    scores: np.ndarray  # (n_completions,), probabilities
    estimate: RatioEstimate  # the prompt is the unit


def measure_presence(
    loaded: LoadedModel,
    judge: Judge,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    seed: int,
    per_prompt: int = 1,
    steering: AbstractContextManager[None] | None = None,
    share_prefix: bool = True,
) -> Presence:
    """Sample replies under `steering`, then have the judge read them unsteered."""
    completions = sample(loaded, prompts, sampling, seed, per_prompt, steering, share_prefix)
    return judged(loaded, judge, completions)


def judged(loaded: LoadedModel, judge: Judge, completions: Sequence[Completion]) -> Presence:
    """Have finished completions read by a judge."""
    scores = judge.score([(c.prompt, c.text) for c in completions], loaded)
    prompts = np.array([completion.prompt_index for completion in completions])
    sums = np.bincount(prompts, weights=scores)
    return Presence(tuple(completions), scores, RatioEstimate(sums, np.bincount(prompts)))


def train_probe(
    loaded: LoadedModel,
    concept: str,
    splits: Mapping[str, Texts],
    replies: UnsteeredReplies,
    settings: Settings,
) -> Probe:
    """Fit the concept's probe.

    splits: the concept's texts; `probe` trains, `held_out` tests, `vector` is not touched.
    replies: their "probe" split gives the negatives that matter most.
    Raises: Infeasible if the probe cannot tell the held-out texts apart.
    """
    written = _written(splits["probe"])
    primed = _primed(loaded, splits["probe"], replies.prompts["probe"], settings)
    own = [
        Example(completion.text, False, "own", completion.prompt)
        for completion in replies.first_replies("probe")
    ]
    positives = [example for example in written if example.positive]
    broken = degenerate_examples([*positives, *own], loaded.tokenizer, settings.seed)
    examples = [*written, *primed, *own, *broken]
    probe = fit_probe(concept, examples, _written(splits["held_out"]), loaded)
    if probe.quality.auc_texts < LEAST_AUC or probe.quality.p_value > MOST_P_VALUE:
        raise Infeasible(
            [
                f"the probe cannot tell {concept!r} apart: its AUC on held-out texts is "
                f"{probe.quality.auc_texts:.2f} (p = {probe.quality.p_value:.2g}); at least "
                f"{LEAST_AUC} is needed, with p below {MOST_P_VALUE}"
            ],
            ["give more texts, or negatives that match the positives in everything else"],
        )
    return probe


def require_headroom(
    loaded: LoadedModel, judge: Judge, replies: UnsteeredReplies, settings: Settings
) -> RatioEstimate:
    """Return unsteered presence on the search prompts.

    Raises: Infeasible if it leaves no room to move towards the goal.
    """
    estimate = judged(loaded, judge, replies.completions["search"]).estimate
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


def _written(texts: Texts) -> list[Example]:
    return [
        Example(text.text, positive, "written", text.group or text.text)
        for positive, group in ((True, texts.positives), (False, texts.negatives))
        for text in group
    ]


def _primed(
    loaded: LoadedModel, texts: Texts, prompts: Sequence[Prompt], settings: Settings
) -> list[Example]:
    """Replies to the prompts after SHOTS written texts of one label, taken for that label."""
    rng = random.Random(settings.seed)
    examples = []
    for positive, shown in ((True, texts.positives), (False, texts.negatives)):
        turns = _as_turns(loaded, shown)
        if len(turns) < SHOTS:
            return []
        primed = [
            encode_prompt(loaded, prompt.text, history=rng.sample(turns, SHOTS))
            for prompt in prompts[:PRIMED_PROMPTS]
        ]
        for completion in sample(loaded, primed, settings.sampling, settings.seed):
            if completion.text:
                examples.append(Example(completion.text, positive, "primed", completion.prompt))
    return examples


def _as_turns(loaded: LoadedModel, texts: Sequence[Text]) -> list[tuple[str, str]]:
    """Replies as they are; where there are too few, every text after a neutral opener.

    Texts so long that SHOTS of them and a prompt would not fit the context are left out.
    """
    longest = loaded.context_length // (2 * SHOTS)
    texts = [text for text in texts if len(encode_text(loaded, text.text).ids) <= longest]
    replies = [(text.prompt, text.text) for text in texts if text.prompt]
    if len(replies) >= 2 * SHOTS:
        return replies
    return [(text.prompt or OPENER, text.text) for text in texts]
