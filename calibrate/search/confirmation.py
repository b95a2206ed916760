"""An earlier answer, held against a model that has changed since, as in a training.

What changes from checkpoint to checkpoint is measured anew: the vectors, the law of ΔCE with α_B,
and on held-out prompts the bound of ΔCE, the change of presence, and loops in long replies, which a
training can bring about while all else holds (docs/finetune.md). What rarely changes is taken over:
the site, the share of α_B that shipped, the probe, as long as it still tells the concept's texts
apart. Nothing is searched, and neither controls nor a second judge are repeated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from calibrate.common.cost import Allowance
from calibrate.common.errors import Infeasible
from calibrate.common.estimate import Interval
from calibrate.common.settings import Settings
from calibrate.engine.cross_entropy import SUFFIX_SHARE
from calibrate.engine.generation import Request
from calibrate.engine.site import Site
from calibrate.engine.unsteered import Corpus, run_unsteered
from calibrate.judging.panel import MIN_AUC
from calibrate.judging.presence import measure_presence, read
from calibrate.models.model import LoadedModel
from calibrate.search.budget import largest_strength
from calibrate.search.effect import LOOKS
from calibrate.search.long_run import expected_tokens as long_run_tokens
from calibrate.search.verification import Replies, Verified, measure_harm, reply_until_decided
from calibrate.texts.concept import Texts, split_prompts
from calibrate.texts.guard import Guard
from calibrate.texts.replies import UnsteeredReplies, require_answers
from probes import Reader
from probes.quality import area_under_curve

SEARCH_SHARE = 0.5  # of the search prompts, whose replies the laws are fitted on
RUNGS = (0.9, 1.0)  # shares of the strength that are verified
FEWER_LOOKS = (1, 2, 4)  # replies per prompt; as many looks as a calibration takes
assert len(FEWER_LOOKS) == len(LOOKS)  # each look gets the same share of the error
TEXTS = 24  # of each label, by which a probe is tried on the changed model


@dataclass(frozen=True)
class Expected:
    """What the earlier calibration says.

    strength: what shipped. at_budget: α_B.
    """

    strength: float
    at_budget: float

    def confirmed_by(self, found: Interval) -> bool:
        """Whether α_B may be as it was."""
        return found.low <= self.at_budget <= found.high

    def now(self, found: Interval) -> float:
        """The strength to verify: as it was, or else the same share of the new α_B."""
        if self.confirmed_by(found):
            return self.strength
        return self.strength * found.value / self.at_budget


def fewer_prompts(prompts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The prompts that are answered, "search" and "verify"."""
    chosen = split_prompts(prompts)
    n = max(1, round(SEARCH_SHARE * len(chosen["search"])))
    return {"search": chosen["search"][:n], "verify": chosen["verify"]}


def expected_tokens(
    n_prompts: int, reply: float, corpus: float, settings: Settings, guarded: float = 0.0
) -> float:
    """Token-forwards of `confirm`, where the first look at replies decides.

    As for `verification.expected_tokens`.
    """
    read = 2 * settings.sampling.max_new_tokens  # unsteered and steered replies
    replies = n_prompts * (FEWER_LOOKS[0] * (reply + read) + reply)
    tested = corpus * (1 + len(RUNGS) * SUFFIX_SHARE)
    return tested + replies + long_run_tokens(n_prompts, settings) + 2 * guarded


def require_same_reading(reader: Reader, texts: Texts) -> None:
    """Refuse a judge that no longer tells the concept's held-out texts apart.

    Raises: Infeasible.
    """
    chosen = [*texts.positives[:TEXTS], *texts.negatives[:TEXTS]]
    yes = np.arange(len(chosen)) < len(texts.positives[:TEXTS])
    scores = reader.read([text.text for text in chosen])
    auc = area_under_curve(scores, yes.astype(float), np.ones(len(chosen)))
    if auc < MIN_AUC:
        raise Infeasible(
            [
                f"the earlier {reader.name} cannot tell {reader.concept!r} apart in this model: "
                f"its AUC is {auc:.2f}, and at least {MIN_AUC} is needed"
            ],
            ["calibrate without --start"],
        )


def confirm(
    loaded: LoadedModel,
    reader: Reader,
    site: Site,
    strength: float,
    corpora: Mapping[str, Corpus],
    replies: UnsteeredReplies,
    settings: Settings,
    guard: Guard | None = None,
    allowance: Allowance | None = None,
) -> Verified:
    """Verify a strength as a calibration does, without what needs no repeating.

    replies: one to each verify prompt. guard: questions, only where a drop is limited. allowance:
        what may be spent on more replies where the first do not decide.
    Raises: Infeasible if ΔCE may break the budget at RUNGS[0] of the strength, long replies loop,
        presence does not change by enough, or less is fluent or known than allowed.
    """
    prompts = replies.prompts["verify"]
    run = run_unsteered(loaded, corpora["verify"], [site.first])
    budget, long_run = largest_strength(
        loaded, reader, site, strength, run, prompts, settings, RUNGS
    )
    steering = site.steering(budget.strength)
    first = Request(prompts, FEWER_LOOKS[0], steering)
    (steered,) = measure_presence(loaded, reader, [first], settings.sampling, settings.seed)
    require_answers(steered.completions, settings)
    plain = read(reader, replies.completions["verify"])
    longest = max(len(prompt.ids) for prompt in prompts) + 2 * settings.sampling.max_new_tokens

    def may_spend(n: int) -> bool:
        return allowance is None or allowance.left_for(n * longest)

    final = reply_until_decided(
        loaded,
        reader,
        prompts,
        steering,
        Replies(steered, plain, FEWER_LOOKS[0]),
        settings,
        may_spend,
        most=FEWER_LOOKS[-1],
    )
    verified = measure_harm(loaded, site, run, budget, final, replies, settings, guard)
    return replace(verified, long_run=long_run)
