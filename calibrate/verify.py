"""Verification on prompts and texts that nothing before it has seen.

Strengths on a fixed list are tested from small to large, and the last one whose one-sided upper
confidence bound of ΔCE keeps to the budget, before the first that does not, is taken. Since ΔCE
grows with |α|, testing in this order needs no correction for testing repeatedly: the error is
made at most once, at the first strength that truly breaks the budget.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch

from calibrate.completions import Completion
from calibrate.cross_entropy import Corpus, UnsteeredRun, delta_ce, mean_log_prob, run_unsteered
from calibrate.errors import Infeasible
from calibrate.estimate import RatioEstimate
from calibrate.presence import Presence, judged, measure_presence
from calibrate.replies import VERIFY_COMPLETIONS, UnsteeredReplies
from calibrate.residual import Positions
from calibrate.settings import Settings
from calibrate.tokens import encode_prompt
from calibrate.vector import SteeringVector
from probes import Judge

if TYPE_CHECKING:
    from calibrate.model import LoadedModel

REFERENCE_TOKENS = 20  # likeliest next tokens kept in the artefact's reference

# Shares of the strength the study chose. Near 1 the steps are fine, since that is where the
# answer nearly always lies; the first are a fall-back for text unlike the search corpus.
LADDER = (0.5, 0.8, 0.9, 0.95, 1.0)


@dataclass(frozen=True, eq=False)
class TestedStrength:
    """One rung: a strength, its ΔCE on held-out text, and the upper bound that was tested."""

    strength: float
    delta_ce: RatioEstimate
    upper: float
    within: bool


@dataclass(frozen=True, eq=False)
class VerifiedBudget:
    """The strength that keeps to the budget, and every strength that was tested."""

    strength: float
    delta_ce: RatioEstimate
    tested: tuple[TestedStrength, ...]


def verify_budget(
    measure_delta_ce: Callable[[float], RatioEstimate],
    strength: float,
    budget: float,
    confidence: float,
) -> VerifiedBudget:
    """Return the largest verified share of `strength`.

    measure_delta_ce: ΔCE of a strength on held-out text.
    Raises: Infeasible if not even the first strength keeps to the budget.
    """
    tested: list[TestedStrength] = []
    for share in LADDER:
        rise = measure_delta_ce(share * strength)
        upper = rise.upper(confidence)
        tested.append(TestedStrength(share * strength, rise, upper, upper <= budget))
        if not tested[-1].within:
            break
    passed = [rung for rung in tested if rung.within]
    if not passed:
        first = tested[0]
        raise Infeasible(
            [
                f"at strength {first.strength:.3g}, the smallest tried, held-out ΔCE may be as "
                f"high as {first.upper:.3g} nat ({confidence:.0%} bound), above the budget of "
                f"{budget:g}"
            ],
            ["allow more with --ce-budget", "give more prompts or a larger --corpus"],
        )
    return VerifiedBudget(passed[-1].strength, passed[-1].delta_ce, tuple(tested))


def require_effect(
    steered: Presence, baseline: Presence, goal: str, confidence: float
) -> RatioEstimate:
    """Return the paired change of presence, whose interval must lead towards the goal.

    The replies share prompts and noise, so their differences are taken prompt by prompt.
    Raises: Infeasible if the interval holds 0.
    """
    change = steered.estimate.difference(baseline.estimate)
    low, high = change.interval(confidence)
    if (low if goal == "increase" else -high) <= 0:
        raise Infeasible(
            [
                f"within the budget presence does not measurably {goal}: it changes by "
                f"{change.value:+.3f} ({confidence:.0%} interval {low:+.3f} to {high:+.3f})"
            ],
            ["allow more with --ce-budget", "try another --layer", "give more --prompts"],
        )
    return change


@dataclass(frozen=True)
class Fluency:
    """How replies read to the unsteered model, and how little they repeat themselves.

    log_prob: mean log-probability per token, nats. distinct_2: mean over replies of the share
    of their word pairs that are distinct, in [0, 1].
    """

    log_prob: float
    distinct_2: float


@dataclass(frozen=True)
class Reference:
    """One input, and the likeliest next tokens' log-probabilities with and without steering."""

    input_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    unsteered_log_probs: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Verified:
    """What was measured about the shipped strength, all of it on held-out data.

    random_vector: presence under a random vector of the same norm at the same strength.
    prompt_only: presence of the unsteered model asked in plain words.
    """

    corpus_kind: Literal["own_replies", "file"]
    budget: VerifiedBudget
    presence: Presence
    baseline: Presence
    change: RatioEstimate
    random_vector: RatioEstimate
    prompt_only: RatioEstimate
    fluency: Fluency
    fluency_baseline: Fluency
    reference: Reference


def verify(
    loaded: LoadedModel,
    judge: Judge,
    concept: str,
    vector: SteeringVector,
    strength: float,
    corpora: Mapping[str, Corpus],
    replies: UnsteeredReplies,
    settings: Settings,
) -> Verified:
    """Find the largest verified share of `strength`, and measure what it does.

    Of `corpora` and `replies` only the "verify" split is touched, which nothing before has seen.
    Raises: Infeasible if no share keeps to the budget, or presence does not move.
    """
    corpus = corpora["verify"]
    run = run_unsteered(loaded, corpus, [vector.layer])
    budget = verify_budget(
        lambda tried: delta_ce(loaded, run, vector.values, vector.layer, tried, settings.positions),
        strength,
        settings.ce_budget,
        settings.confidence,
    )
    baseline = judged(loaded, judge, replies.completions["verify"])
    presence = _steered_presence(
        loaded, judge, vector, budget.strength, replies, settings, VERIFY_COMPLETIONS
    )
    change = require_effect(presence, baseline, settings.goal, settings.confidence)
    random_vector = _steered_presence(
        loaded, judge, _random_like(vector, settings.seed), budget.strength, replies, settings, 1
    )
    return Verified(
        corpus_kind="own_replies" if corpus.self_sampled else "file",
        budget=budget,
        presence=presence,
        baseline=baseline,
        change=change,
        random_vector=random_vector.estimate,
        prompt_only=_asked_presence(loaded, judge, concept, replies, settings).estimate,
        fluency=_fluency(loaded, presence.completions[::VERIFY_COMPLETIONS]),
        fluency_baseline=_fluency(
            loaded, replies.first_replies("verify"), run if corpus.self_sampled else None
        ),
        reference=_reference(loaded, vector, budget.strength, settings.positions, replies),
    )


def _steered_presence(
    loaded: LoadedModel,
    judge: Judge,
    vector: SteeringVector,
    strength: float,
    replies: UnsteeredReplies,
    settings: Settings,
    per_prompt: int,
) -> Presence:
    return measure_presence(
        loaded,
        judge,
        replies.prompts["verify"],
        settings.sampling,
        settings.seed,
        per_prompt,
        steering=vector.apply(loaded.blocks, strength, settings.positions),
        share_prefix=settings.positions == "all",
    )


def _asked_presence(
    loaded: LoadedModel, judge: Judge, concept: str, replies: UnsteeredReplies, settings: Settings
) -> Presence:
    wanted = concept if settings.goal == "increase" else f"the opposite of {concept}"
    system = f"Whatever you are asked, let your answer clearly express this: {wanted}."
    prompts = [
        encode_prompt(loaded, prompt.text, system=system) for prompt in replies.prompts["verify"]
    ]
    return measure_presence(loaded, judge, prompts, settings.sampling, settings.seed)


def _random_like(vector: SteeringVector, seed: int) -> SteeringVector:
    """A random direction of the same norm at the same block."""
    noise = torch.randn(vector.values.shape, generator=torch.Generator().manual_seed(seed))
    return replace(vector, values=noise * (vector.norm / noise.norm()))


def _fluency(
    loaded: LoadedModel, completions: Sequence[Completion], run: UnsteeredRun | None = None
) -> Fluency:
    """Read finished replies; `run` is the unsteered pass over them if there was one."""
    spoken = [completion for completion in completions if completion.text]
    if run is None:
        sequences = tuple(completion.sequence for completion in spoken)
        run = run_unsteered(loaded, Corpus(sequences, self_sampled=False), [])
    distinct = [_distinct_pairs(completion.text) for completion in spoken]
    return Fluency(mean_log_prob(loaded, run), sum(distinct) / max(len(distinct), 1))


def _distinct_pairs(text: str) -> float:
    words = text.lower().split()
    pairs = list(itertools.pairwise(words))
    return len(set(pairs)) / len(pairs) if pairs else 1.0


def _reference(
    loaded: LoadedModel,
    vector: SteeringVector,
    strength: float,
    positions: Positions,
    replies: UnsteeredReplies,
) -> Reference:
    ids = replies.first_replies("verify")[0].sequence.ids
    unsteered = _next_log_probs(loaded, ids)
    with vector.apply(loaded.blocks, strength, positions):
        steered = _next_log_probs(loaded, ids)
    top = steered.topk(min(REFERENCE_TOKENS, len(steered))).indices
    return Reference(
        ids,
        tuple(top.tolist()),
        tuple(steered[top].tolist()),
        tuple(unsteered[top].tolist()),
    )


def _next_log_probs(loaded: LoadedModel, ids: Sequence[int]) -> torch.Tensor:
    tokens = torch.tensor([list(ids)], device=loaded.device)
    loaded.meter.count(tokens.numel())
    logits = loaded.model(input_ids=tokens, use_cache=False).logits[0, -1]
    return torch.log_softmax(logits.float(), dim=-1).cpu()
