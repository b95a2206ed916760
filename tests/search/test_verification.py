"""The gate: what it ships keeps to the budget."""

from __future__ import annotations

import contextlib
from dataclasses import fields, replace

import numpy as np
import pytest

from calibrate.common.errors import Infeasible
from calibrate.common.estimate import RatioEstimate
from calibrate.common.settings import Settings
from calibrate.engine.generation import Completion
from calibrate.judging.presence import Presence, read
from calibrate.models.tokens import TokenSequence
from calibrate.search.budget import LADDER, verify_budget
from calibrate.search.effect import decide
from calibrate.search.harm import require_fluency, require_replies
from calibrate.search.verification import Verified
from probes import Reader
from probes.judges import FunctionJudge


def log_normal(spread):
    return lambda rng, n: rng.lognormal(-(spread**2) / 2, spread, n)


# Relative ΔCE of a sequence, of mean 1. Replies of real models are like log-normal(0.25).
SPREADS = {
    "as measured": log_normal(0.25),
    "twice as wide": log_normal(0.5),
    "heavy tails": log_normal(1.0),
    "exponential": lambda rng, n: rng.exponential(1.0, n),
    "signed, heavy tails": lambda rng, n: 1 + 0.3 * rng.standard_t(3, n),
}


def quadratic(strength_at_budget, spread="as measured", n=64, seed=0):
    """Per-sequence ΔCE around 0.1·(α/α_B)², the same sequences at every strength."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(8, 33, size=n)
    factors = counts * SPREADS[spread](rng, n)

    def measure(strength):
        return RatioEstimate(0.1 * (strength / strength_at_budget) ** 2 * factors, counts)

    return measure


def test_strengths_are_tested_from_small_to_large_until_the_first_failure():
    verified = verify_budget(quadratic(1.0), 1.3, budget=0.1, confidence=0.95)
    tested = [rung.strength for rung in verified.tested]
    assert tested == [share * 1.3 for share in LADDER[: len(tested)]]
    assert [rung.within for rung in verified.tested] == [True] * (len(tested) - 1) + [False]
    assert verified.strength == tested[-2]
    assert verified.delta_ce.upper(0.95) <= 0.1


def test_all_strengths_may_pass():
    verified = verify_budget(quadratic(1.0), 0.8, budget=0.1, confidence=0.95)
    assert verified.strength == 0.8
    assert len(verified.tested) == len(LADDER)


def test_a_strength_whose_smallest_share_breaks_the_budget_is_infeasible():
    with pytest.raises(Infeasible, match="the smallest tried"):
        verify_budget(quadratic(1.0), 3.0, budget=0.1, confidence=0.95)


@pytest.mark.parametrize("n", [8, 16, 64])
@pytest.mark.parametrize("spread", SPREADS)
def test_the_shipped_strength_breaks_the_budget_in_at_most_five_percent(spread, n):
    """2,000 calibrations whose search overshot: the strength chosen is the true α_B or more.

    A rung may lie anywhere above α_B, just above it too, where breaking the budget is likeliest.
    """
    rng = np.random.default_rng(n)
    broken = 0
    for seed in range(2000):
        measure = quadratic(1.0, spread, n, seed)
        with contextlib.suppress(Infeasible):  # shipping nothing breaks nothing
            verified = verify_budget(measure, rng.uniform(1.0, 1.3), budget=0.1, confidence=0.95)
            broken += verified.strength > 1.0
    assert broken / 2000 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)


def presence(scores):
    """Presence of one reply each to as many prompts."""
    completions = [
        Completion("", index, TokenSequence((0,), 1), "said") for index in range(len(scores))
    ]
    estimate = RatioEstimate(np.array(scores), np.ones(len(scores)))
    return Presence(tuple(completions), np.array(scores), estimate)


def replied(texts, scores, tokens=4):
    completions = tuple(
        Completion("", index, TokenSequence((0,) * (1 + tokens), 1), text)
        for index, text in enumerate(texts)
    )
    return replace(presence(scores), completions=completions)


def test_a_silenced_model_is_infeasible():
    require_replies(replied(["yes", "", "no"], [0.1, 0.0, 0.2]))
    with pytest.raises(Infeasible, match="2 of 3 steered replies are empty"):
        require_replies(replied(["yes", "", " "], [0.1, 0.0, 0.0]))


HALF = Reader(FunctionJudge(lambda texts, _: [0.5] * len(texts)), "joy", "half")


def test_fewer_empty_replies_are_no_more_of_the_concept():
    """To a judge who says one half of everything .469 became .5, since empty replies counted."""
    before = read(HALF, replied(["yes"] * 60 + [""] * 4, [0.0] * 64).completions)
    after = read(HALF, replied(["yes"] * 64, [0.0] * 64).completions)
    assert (before.estimate.value, after.estimate.value) == (0.5, 0.5)
    assert (before.n_empty, before.empty, after.empty) == (4, 1 / 16, 0.0)
    assert len(before.estimate.counts) == 60
    assert after.change_from(before).value == 0.0
    assert decide(after.change_from(before), Settings()) == "refused"


def test_a_change_is_paired_over_prompts_that_were_replied_to_in_both():
    """Two replies a prompt: those that are empty drop out, and their prompt where both are."""
    judge = Reader(FunctionJudge(lambda texts, _: [float(text) for text in texts]), "joy", "reads")

    def said(*texts):
        sequence = TokenSequence((0, 0), 1)
        return read(judge, [Completion("", k // 2, sequence, text) for k, text in enumerate(texts)])

    before = said("0.1", "0.3", "0.2", "", "", " ", "0.4", "0.4")
    after = said("0.5", "0.5", "0.6", "0.8", "0.9", "0.9", "", "")
    assert before.by_prompt == pytest.approx({0: 0.2, 1: 0.2, 3: 0.4})
    assert before.estimate.value == pytest.approx(1.4 / 5)
    assert after.change_from(before).sums == pytest.approx([0.3, 0.5])
    silent = said(*[""] * 8)
    assert (silent.estimate.value, silent.empty) == (0.0, 1.0)
    with pytest.raises(Infeasible, match="no prompt is replied to both with and without steering"):
        silent.change_from(before)


def test_what_length_explains_is_read_from_replies_that_are_not_empty():
    def measured(texts, scores, lengths):
        completions = tuple(
            Completion("", index, TokenSequence((0,) * (1 + length), 1), text)
            for index, (text, length) in enumerate(zip(texts, lengths, strict=True))
        )
        return replace(presence(scores), completions=completions)

    before = measured(["a"] * 3 + [""], [0.1, 0.2, 0.3, 0.0], [1, 2, 3, 1])
    after = measured(["a"] * 3 + [""], [0.4] * 3 + [0.0], [4, 4, 4, 1])
    some = dict.fromkeys(field.name for field in fields(Verified))
    verified = Verified(**{**some, "baseline": before, "presence": after})
    assert verified.explained_by_length == pytest.approx(0.1 * (4 - 2))


def test_a_drop_of_fluency_is_held_to_its_upper_bound():
    drop = RatioEstimate(np.random.default_rng(0).normal(0.2, 0.05, 40), np.ones(40))
    require_fluency(drop, Settings())
    require_fluency(drop, Settings(max_fluency_drop=0.25))
    with pytest.raises(Infeasible, match=r"--max-fluency-drop 0\.2"):
        require_fluency(drop, Settings(max_fluency_drop=0.2))
