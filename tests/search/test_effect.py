"""Changes of presence that are worth having: what ships, what is refused, what cannot be told."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import tiny
from refused import Refused, each

from calibrate.common.errors import Infeasible
from calibrate.common.estimate import RatioEstimate
from calibrate.common.record import TestedStrength as Rung
from calibrate.common.settings import Sampling, Settings
from calibrate.engine.generation import Request, sample_all
from calibrate.judging.presence import read
from calibrate.models.prompts import encode_prompt
from calibrate.search.effect import (
    LOOKS,
    POWER,
    bounds,
    decide,
    detectable,
    prompts_needed,
    require_effect,
)
from calibrate.search.refusals import MORE, Neither
from calibrate.search.verification import Replies, reply_until_decided
from probes import Reader
from probes.judges import FunctionJudge

CONFIDENCE = 0.95
PROMPTS = 64  # verified on, of the 160 that the package brings


def change_of(values):
    return RatioEstimate(np.asarray(values, float), np.ones(len(values)))


def yes_or_no(rng, rates):
    """A judge that gives 1 or 0."""
    return (rng.random(rates.shape) < rates).astype(float)


def probability(rng, rates):
    """A judge that gives probabilities, spread as those of the probe are: by about 0.25."""
    return rng.beta(1.5 * rates + 1e-6, 1.5 * (1 - rates))


def world(rng, true_change, judge):
    """The reply-by-reply change at (prompts, most replies): half of the prompts do all of it."""
    base = 0.6 * rng.beta(0.5, 2.0, size=PROMPTS)
    moved = 2 * true_change * (rng.permutation(PROMPTS) < PROMPTS / 2)
    shape = (PROMPTS, LOOKS[-1])
    steered, plain = (np.broadcast_to(rate[:, None], shape) for rate in (base + moved, base))
    return judge(rng, steered) - judge(rng, plain)


def outcome(replies, settings):
    """The decision of the first look that decides, or of the last."""
    for n in LOOKS:
        decision = decide(change_of(replies[:, :n].mean(axis=1)), settings)
        if decision != "undecided":
            return decision
    return decision


def outcomes(true_change, judge, worlds, **options):
    """Shares of decisions over many worlds."""
    rng = np.random.default_rng(round(1000 * true_change))
    settings = Settings(confidence=CONFIDENCE, **options)
    found = Counter(outcome(world(rng, true_change, judge), settings) for _ in range(worlds))
    return {decision: n / worlds for decision, n in found.items()}


def at_most(share, worlds):
    """A share, and three standard errors of what is seen of it."""
    return share + 3 * np.sqrt(share * (1 - share) / worlds)


@pytest.mark.parametrize("judge", [yes_or_no, probability])
def test_three_looks_ship_a_change_that_is_not_there_as_rarely_as_one_may(judge):
    """With no gain asked for, so that the interval alone decides."""
    found = outcomes(0.0, judge, 2000, min_gain=0.0)
    assert found.get("ships", 0.0) <= at_most((1 - CONFIDENCE) / 2, 2000)


@pytest.mark.parametrize("judge", [yes_or_no, probability])
def test_no_change_hardly_ever_ships(judge):
    assert outcomes(0.0, judge, 400).get("ships", 0.0) <= at_most((1 - CONFIDENCE) / 2, 400)


@pytest.mark.parametrize("judge", [yes_or_no, probability])
def test_a_change_worth_having_is_rarely_found_too_small(judge):
    for true_change in (0.05, 0.1):
        missed = outcomes(true_change, judge, 400).get("refused", 0.0)
        assert missed <= at_most((1 - CONFIDENCE) / 2, 400)


@pytest.mark.parametrize("judge", [yes_or_no, probability])
def test_a_large_change_nearly_always_ships(judge):
    assert outcomes(0.2, judge, 400)["ships"] >= 0.99


def test_more_replies_decide_what_the_first_do_not():
    rng = np.random.default_rng(0)
    settings = Settings()
    worlds = [world(rng, 0.1, yes_or_no) for _ in range(400)]
    first = [decide(change_of(one[:, : LOOKS[0]].mean(axis=1)), settings) for one in worlds]
    last = [outcome(one, settings) for one in worlds]
    assert first.count("ships") < 0.6 * 400
    assert last.count("ships") > 0.85 * 400


def test_a_detectable_change_is_seen_with_the_power_it_is_said_to_have():
    rng = np.random.default_rng(0)
    settings = Settings(min_gain=0.0)
    typical = change_of(rng.standard_normal(200_000)[: PROMPTS * 1000])
    spread = np.sqrt(PROMPTS) * np.median(
        [change_of(part).standard_error for part in typical.sums.reshape(-1, PROMPTS)]
    )
    there = detectable(change_of(spread * _unit(PROMPTS)), settings)
    seen = [
        bounds(change_of(there + spread * rng.standard_normal(PROMPTS)), settings)[0] > 0
        for _ in range(2000)
    ]
    assert np.mean(seen) == pytest.approx(POWER, abs=0.04)


def _unit(n):
    """Values of mean 0 and standard deviation 1."""
    values = np.linspace(-1, 1, n)
    return values / values.std(ddof=1)


def test_as_many_prompts_as_are_said_to_be_needed_can_tell_the_gain():
    settings = Settings()
    few = change_of(0.3 * _unit(24))
    assert detectable(few, settings) > 0.05
    needed = prompts_needed(few, 0.05, settings)
    assert detectable(change_of(0.3 * _unit(needed)), settings) == pytest.approx(0.05, rel=0.1)


def test_what_leads_away_from_the_goal_is_judged_by_its_sign():
    fall = change_of(-0.2 + 0.1 * _unit(64))
    assert decide(fall, Settings(goal="decrease")) == "ships"
    assert decide(fall, Settings()) == "refused"


def test_a_change_that_is_seen_and_too_small_does_not_ship():
    small = change_of(0.03 + 0.04 * _unit(64))
    assert bounds(small, Settings())[0] > 0
    assert decide(small, Settings()) == "refused"
    assert decide(small, Settings(min_gain=0.02)) == "ships"


def test_a_few_prompts_that_all_stay_as_they_are_do_not_show_that_nothing_changes():
    """Of ten prompts none changes: three of a hundred, or twenty, might (the rule of three)."""
    assert decide(change_of(np.zeros(10)), Settings()) == "undecided"
    assert decide(change_of(np.zeros(200)), Settings()) == "refused"


def refused(values, n_replies=LOOKS[-1], **options):
    return lambda _: require_effect(change_of(values), n_replies, Settings(**options))


REFUSED = [
    Refused(
        "steering that changes presence by less than is worth having",
        "no change worth having: within 0.1 nat presence is increased by at most 0.0423, below "
        "--min-gain 0.05 (it changes by +0.030, 95% interval +0.020 to +0.040)",
        refused(0.03 + 0.04 * _unit(64)),
        Infeasible,
    ),
    Refused(
        "a change that seems too small, seen well enough",
        "within 0.1 nat presence does not measurably increase by --min-gain 0.05: it changes by "
        "+0.046, 95% interval +0.034 to +0.059, where a change of 0.021 would be seen with a "
        "probability of 80%",
        refused(0.0465 + 0.05 * _unit(64)),
        Infeasible,
    ),
    Refused(
        "a change that so few replies cannot tell from none",
        "it cannot be told whether presence increases by --min-gain 0.05: it changes by +0.030, "
        "95% interval -0.055 to +0.115 in 8 replies to each of 26 prompts, where only a change of "
        "0.14 or more would be seen with a probability of 80%",
        refused(0.03 + 0.21 * _unit(26)),
        Infeasible,
    ),
]


@each(REFUSED)
def test_it_is_refused(row, tmp_path):
    row.check(tmp_path)


def advice(values, n_replies=LOOKS[-1], **options):
    with pytest.raises(Infeasible) as caught:
        refused(values, n_replies, **options)(None)
    return caught.value.advice


def test_what_cannot_be_told_names_what_would_tell_it():
    values = 0.03 + 0.21 * _unit(26)
    prompts, ask, smaller, *_ = advice(values)
    needed = prompts_needed(change_of(values), 0.05, Settings())
    assert f"of which {needed:,} are verified on" in prompts
    assert "--min-gain 0.15" in ask
    assert smaller == "accept a smaller change with a lower --min-gain"
    assert "up to 8 replies a prompt" in advice(values, n_replies=2)[0]


def test_where_long_replies_loop_within_the_budget_no_larger_one_is_advised():
    looped = Rung(2.5, 0.09, 0.1, True, loop_excess=0.12)
    small = change_of(0.03 + 0.04 * _unit(64))
    with pytest.raises(Neither, match=r"already loop at strength 2\.5.*: 12\.0% more") as caught:
        require_effect(small, LOOKS[-1], Settings(), looped)
    assert "no change worth having" in caught.value.reasons[0]
    assert MORE in advice(0.03 + 0.04 * _unit(64))
    assert MORE not in caught.value.advice


def test_any_change_at_all_may_be_asked_for():
    seen = 0.03 + 0.21 * _unit(26)
    assert "they would tell a change of 0.03" in advice(seen, min_gain=0.0)[0]
    assert not any("they would tell" in one for one in advice(seen - 0.04, min_gain=0.0))
    with pytest.raises(Infeasible, match="whether presence increases at all"):
        refused(seen, min_gain=0.0)(None)


def test_no_gain_is_advised_that_cannot_be_asked_for():
    few = [0.9, -0.9, 0.0]
    assert detectable(change_of(few), Settings()) > 1
    assert not any("ask only for what" in one for one in advice(few))


SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=6)


@pytest.fixture
def first_look(loaded):
    """Prompts, a reader that counts bright words, and two unsteered replies to each, twice."""
    prompts = [encode_prompt(loaded, text) for text in tiny.prompts(10)]
    reader = Reader(FunctionJudge(_bright), "bright", "counting")
    (drawn,) = sample_all(loaded, [Request(prompts, LOOKS[0])], SAMPLING, 0)
    return prompts, reader, Replies(read(reader, drawn), read(reader, drawn), LOOKS[0])


def _bright(texts, _):
    return [np.mean([word in tiny.BRIGHT for word in text.split()]) for text in texts]


def test_what_is_undecided_gets_twice_the_replies_as_if_asked_for_at_once(loaded, first_look):
    """The oracle samples all replies in one request."""
    prompts, reader, first = first_look
    asked = []
    final = reply_until_decided(
        loaded, reader, prompts, None, first, Settings(sampling=SAMPLING),
        lambda n: asked.append(n) or True,
    )  # fmt: skip
    assert final.n_replies == LOOKS[-1]
    assert asked == [2 * 2 * 10, 2 * 4 * 10]
    (drawn,) = sample_all(loaded, [Request(prompts, LOOKS[-1])], SAMPLING, 0)
    for part in (final.presence, final.baseline):
        assert sorted((one.prompt_index, one.ids) for one in part.completions) == sorted(
            (one.prompt_index, one.ids) for one in drawn
        )
        assert part.first_replies == list(drawn[:: LOOKS[-1]])
        assert part.estimate.value == pytest.approx(read(reader, drawn).estimate.value)


def test_no_more_replies_are_taken_than_may_be_or_than_decide(loaded, first_look):
    prompts, reader, first = first_look
    settings = Settings(sampling=SAMPLING)
    one_round = iter([True, False])
    some = reply_until_decided(
        loaded, reader, prompts, None, first, settings, lambda _: next(one_round)
    )
    assert some.n_replies == LOOKS[1]
    decided = Settings(sampling=SAMPLING, min_gain=0.9)  # nothing changes, so surely not by so much
    assert reply_until_decided(
        loaded, reader, prompts, None, first, decided, lambda _: pytest.fail("asked for more")
    ) is first  # fmt: skip
