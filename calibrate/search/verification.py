"""Verification on prompts and texts that nothing before it has seen.

Strengths on a fixed list are tested from small to large, and the last one whose one-sided upper
confidence bound of ΔCE keeps to the budget, before the first that does not, is taken. Since ΔCE
grows with |α|, testing in this order needs no correction for testing repeatedly: the error is
made at most once, at the first strength that truly breaks the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from calibrate.common.cost import Allowance
from calibrate.common.estimate import RatioEstimate
from calibrate.common.record import Reference
from calibrate.common.settings import Settings
from calibrate.engine.cross_entropy import SUFFIX_SHARE
from calibrate.engine.generation import Request
from calibrate.engine.site import Site
from calibrate.engine.unsteered import Corpus, UnsteeredRun, run_unsteered
from calibrate.judging.fluency import Fluency, measure_fluency
from calibrate.judging.guard import Guarded, measure_guard
from calibrate.judging.panel import Panel
from calibrate.judging.presence import Presence, measure_presence, read
from calibrate.judging.teaching import asked_prompts
from calibrate.models.model import LoadedModel
from calibrate.models.steering import Steering
from calibrate.models.tokens import Prompt
from calibrate.search.audit import Audit, audit
from calibrate.search.budget import LADDER, VerifiedBudget, largest_strength
from calibrate.search.effect import LOOKS, decide, detectable, require_effect
from calibrate.search.harm import require_fluency, require_guard, require_replies
from calibrate.search.long_run import LongRun
from calibrate.search.long_run import expected_tokens as long_run_tokens
from calibrate.search.reference import reference_of
from calibrate.texts.guard import Guard
from calibrate.texts.replies import UnsteeredReplies, require_answers
from probes import Reader

N_CONTROLS = 2  # replies under a random vector, and replies asked in words
CONTROL_PROMPTS = 32  # replied to once under a random vector, and once when asked in words


@dataclass(frozen=True)
class Controls:
    """Presence under a random vector of the same norm at the same strength, and when plainly asked.

    The latter is that of the unsteered model.
    """

    random_vector: RatioEstimate
    prompt_only: RatioEstimate


@dataclass(frozen=True, eq=False)
class Verified:
    """What was measured of the shipped strength, all of it on held-out data.

    change: of presence, prompt by prompt, after n_replies to each. detectable: the smallest change
        that would be seen with a probability of `effect.POWER`.
    controls: presence by other means, if it was measured.
    fluency_drop: how much less likely the steered replies are to the unsteered model.
    audit: what a second judge says, if there is one. long_run: replies as long as they are
        served, if there was room for them. guarded: how the guard's questions are answered.
    """

    corpus_kind: Literal["own_replies", "file"]
    budget: VerifiedBudget
    presence: Presence
    baseline: Presence
    change: RatioEstimate
    n_replies: int
    detectable: float
    controls: Controls | None
    fluency: Fluency
    fluency_baseline: Fluency
    fluency_drop: RatioEstimate
    audit: Audit | None
    long_run: LongRun | None
    guarded: Guarded | None
    reference: Reference

    @property
    def explained_by_length(self) -> float:
        """Change of presence that longer or shorter replies alone would make.

        From the slope of presence by length among unsteered replies; 0 where all are as long.
        Empty replies are left out.
        """
        lengths, longer = (
            np.array([completion.sequence.n_scored for completion in one.completions])[one.spoken]
            for one in (self.baseline, self.presence)
        )
        if np.ptp(lengths) == 0:
            return 0.0
        slope = float(np.polyfit(lengths, self.baseline.scores[self.baseline.spoken], 1)[0])
        return slope * float(longer.mean() - lengths.mean())


@dataclass(frozen=True, eq=False)
class Replies:
    """Steered and unsteered replies to the verify prompts, n_replies of each to every prompt."""

    presence: Presence
    baseline: Presence
    n_replies: int

    @property
    def change(self) -> RatioEstimate:
        """The change of presence, one value per prompt."""
        return self.presence.change_from(self.baseline)

    def joined(self, presence: Presence, baseline: Presence) -> Replies:
        """These and as many more of either."""
        return Replies(
            self.presence.joined(presence), self.baseline.joined(baseline), 2 * self.n_replies
        )


def reply_until_decided(
    loaded: LoadedModel,
    reader: Reader,
    prompts: Sequence[Prompt],
    steering: Steering,
    replies: Replies,
    settings: Settings,
    may_spend: Callable[[int], bool] = lambda _: True,
    most: int = LOOKS[-1],
) -> Replies:
    """Double the replies to every prompt until they decide, or no more may be taken.

    replies: those of the first look. may_spend: whether that many more replies may be taken. most:
        replies to a prompt.
    Raises: Infeasible if most of the steered ones are empty.
    """
    require_replies(replies.presence)
    while decide(replies.change, settings) == "undecided" and replies.n_replies < most:
        n = replies.n_replies
        if not may_spend(2 * n * len(prompts)):
            break
        requests = [Request(prompts, n, each, first=n) for each in (steering, None)]
        more = measure_presence(loaded, reader, requests, settings.sampling, settings.seed)
        replies = replies.joined(*more)
        require_replies(replies.presence)
    return replies


def verify(
    loaded: LoadedModel,
    panel: Panel,
    site: Site,
    strength: float,
    corpora: Mapping[str, Corpus],
    replies: UnsteeredReplies,
    settings: Settings,
    allowance: Allowance | None = None,
    guard: Guard | None = None,
) -> Verified:
    """Find the largest verified share of `strength`, and measure what it does.

    Of `corpora` and `replies` only the "verify" split is touched, which nothing before has seen.
    allowance: what may be spent on more replies where the
        first do not decide; None for as much as it takes. guard: questions, or None for none.
    Raises: Infeasible if no share keeps to the budget, long replies loop, presence does not change
        by enough or this cannot be told, replies are empty or less fluent than allowed, more is
        forgotten than allowed, or the auditor sees the opposite.
    """
    run = run_unsteered(loaded, corpora["verify"], [site.first])
    prompts = replies.prompts["verify"]
    budget, long_run = largest_strength(
        loaded, panel.reader, site, strength, run, prompts, settings
    )
    final, controls = _final_replies(
        loaded, panel.final, site, budget.strength, replies, settings, allowance
    )
    verified = measure_harm(loaded, site, run, budget, final, replies, settings, guard)
    auditor = panel.auditor
    return replace(
        verified,
        controls=controls,
        audit=audit(auditor, final.presence, final.baseline, settings) if auditor else None,
        long_run=long_run,
    )


def measure_harm(
    loaded: LoadedModel,
    site: Site,
    run: UnsteeredRun,
    budget: VerifiedBudget,
    final: Replies,
    replies: UnsteeredReplies,
    settings: Settings,
    guard: Guard | None,
) -> Verified:
    """Hold what was verified to what was asked: an effect, fluent replies, nothing forgotten.

    run: of the verification's corpus. Raises: Infeasible as `verify` does.
    """
    require_effect(final.change, final.n_replies, settings, budget.looped)
    fluency = measure_fluency(loaded, final.presence.first_replies)
    fluency_baseline = measure_fluency(
        loaded, replies.first_replies("verify"), run if run.corpus.self_sampled else None
    )
    drop = fluency.drop_from(fluency_baseline)
    require_fluency(drop, settings)
    guarded = None if guard is None else measure_guard(loaded, guard, site, budget.strength)
    require_guard(guarded, settings)
    return Verified(
        corpus_kind="own_replies" if run.corpus.self_sampled else "file",
        budget=budget,
        presence=final.presence,
        baseline=final.baseline,
        change=final.change,
        n_replies=final.n_replies,
        detectable=detectable(final.change, settings),
        controls=None,
        fluency=fluency,
        fluency_baseline=fluency_baseline,
        fluency_drop=drop,
        audit=None,
        long_run=None,
        guarded=guarded,
        reference=reference_of(loaded, site, budget.strength, replies),
    )


def _final_replies(
    loaded: LoadedModel,
    reader: Reader,
    site: Site,
    strength: float,
    replies: UnsteeredReplies,
    settings: Settings,
    allowance: Allowance | None,
) -> tuple[Replies, Controls]:
    """As many replies as it takes to decide, and presence in those of both controls."""
    prompts = replies.prompts["verify"]
    steering = site.steering(strength)
    controls = _control_requests(loaded, site, strength, prompts, reader.concept, settings)
    requests = [Request(prompts, LOOKS[0], steering), *controls]
    spent = loaded.meter.tokens
    measured = measure_presence(loaded, reader, requests, settings.sampling, settings.seed)
    n_read = sum(len(presence.completions) for presence in measured)
    per_reply = (loaded.meter.tokens - spent) / n_read
    steered, random_vector, asked = measured
    require_answers(steered.completions, settings)
    first_look = Replies(steered, read(reader, replies.completions["verify"]), LOOKS[0])
    final = reply_until_decided(
        loaded,
        reader,
        prompts,
        steering,
        first_look,
        settings,
        lambda n: _affords(allowance, round(n * per_reply)),
    )
    return final, Controls(random_vector.estimate, asked.estimate)


def expected_tokens(
    n_prompts: int, reply: float, corpus: float, settings: Settings, guarded: float = 0.0
) -> float:
    """Token-forwards of the verification, where the first look at replies decides.

    reply: tokens of the longest reply and its prompt. corpus: of the verification's corpus.
    guarded: of the guard's questions.
    """
    longest = settings.sampling.max_new_tokens
    read = longest + LOOKS[0] * longest  # unsteered and steered replies
    controls = N_CONTROLS * (reply + longest)
    replies = n_prompts * (LOOKS[0] * reply + read + reply + controls)
    tested = corpus * (1 + len(LADDER) * SUFFIX_SHARE)
    asked = 2 * guarded  # plain and steered
    return tested + replies + long_run_tokens(n_prompts, settings) + asked


def _affords(allowance: Allowance | None, tokens: int) -> bool:
    """Whether more replies may be taken; as much again is reserved for auditing them."""
    return allowance is None or allowance.left_for(tokens, reserve=tokens)


def _control_requests(
    loaded: LoadedModel,
    site: Site,
    strength: float,
    prompts: Sequence[Prompt],
    concept: str,
    settings: Settings,
) -> tuple[Request, Request]:
    """Replies under a random vector of the same norm, and to the prompts asked in plain words."""
    random_steering = site.random_like(settings.seed).steering(strength)
    chosen = prompts[:CONTROL_PROMPTS]
    asked = asked_prompts(loaded, chosen, concept, settings.goal == "increase")
    return Request(chosen, 1, random_steering), Request(asked)
