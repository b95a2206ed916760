"""Which budgets are tried where one is refused, and what is said where all of them are."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from test_study import pilot

from calibrate.common.errors import Infeasible
from calibrate.common.settings import Settings
from calibrate.search import affordable
from calibrate.search.affordable import Asked, asked_budgets, spendable_pilots, verify_affordable
from calibrate.search.refusals import LESS, MORE, Neither, TooLittle, TooMuch

LITTLE, MUCH = TooLittle(["too little"], [MORE]), TooMuch(["they loop"], [LESS, "another layer"])


def asked(*others):
    return asked_budgets(others, Settings(ce_budget=0.1))


def test_larger_ones_come_after_the_first_and_then_smaller_ones_the_nearest_first():
    assert asked(0.4, 0.05, 0.1, 0.2, 0.02).budgets == (0.1, 0.2, 0.4, 0.05, 0.02)


@pytest.mark.parametrize(
    ("refusal", "left"),
    [
        (LITTLE, [0.2, 0.4]),
        (MUCH, [0.05]),
        (Neither(["judges disagree"]), []),
        (Infeasible(["costs too much on other text"]), [0.2, 0.4, 0.05]),
    ],
)
def test_a_refusal_leaves_those_that_it_does_not_rule_out(refusal, left):
    assert asked(0.05, 0.2, 0.4).refused(0.1, refusal).left == left


def found(refusals, *others, affords=lambda _: True):
    """What a search tries, given what refuses each budget, and its result."""
    tried = []

    def verify_at(strength, settings):
        tried.append(settings.ce_budget)
        if settings.ce_budget in refusals:
            raise refusals[settings.ce_budget]
        return strength

    settings = Settings(ce_budget=0.1)
    try:
        result = verify_affordable(
            verify_at, None, None, pilot(3, 1.0), 0.9, settings, asked(*others), affords
        )
    except Infeasible as refusal:
        result = refusal
    return tried, result


@pytest.fixture(autouse=True)
def spending(monkeypatch):
    """The strength that spends a budget is √budget, up to a nat."""

    def strength_of(_loaded, _run, _site, law, budget, _sign):
        if budget > 1:
            raise TooMuch(["the law levels off"])
        return budget**0.5, law

    monkeypatch.setattr(affordable, "spending_strength", strength_of)


def test_the_next_larger_one_ships_after_too_little_and_smaller_ones_are_left_out():
    tried, bought = found({0.1: LITTLE}, 0.05, 0.4, 0.2)
    assert tried == [0.1, 0.2]
    assert bought.settings.ce_budget == 0.2
    assert bought.verified == pytest.approx(0.95 * 0.2**0.5)
    assert bought.pilot.strength_at_budget.value == pytest.approx(0.2**0.5)


def test_the_next_smaller_one_ships_after_harm():
    tried, bought = found({0.1: MUCH}, 0.02, 0.4, 0.05)
    assert tried == [0.1, 0.05]
    assert bought.settings.ce_budget == 0.05


def test_each_budget_says_why_it_was_refused_and_advice_that_another_rules_out_is_left_out():
    tried, refusal = found({0.1: LITTLE, 0.2: MUCH}, 0.05, 0.2, 0.4)
    assert tried == [0.1, 0.2]
    assert refusal.reasons == (
        "at 0.1 nat: too little",
        "at 0.2 nat: they loop",
        "not verified, since it would do no better: 0.05, 0.4 nat",
    )
    assert refusal.advice == ("another layer",)
    assert isinstance(refusal, Neither)
    assert isinstance(found({0.1: LITTLE, 0.2: LITTLE}, 0.2)[1], TooLittle)
    assert not isinstance(found({0.1: LITTLE, 0.2: LITTLE}, 0.2)[1], TooMuch)


def test_a_single_budgets_refusal_is_as_it_was():
    assert found({0.1: LITTLE})[1] is LITTLE


def test_a_budget_that_cannot_be_spent_is_refused_and_those_above_it_left_out():
    tried, refusal = found({0.1: LITTLE}, 2.0, 3.0)
    assert tried == [0.1]
    assert refusal.reasons[1:] == (
        "at 2 nat: the law levels off",
        "not verified, since it would do no better: 3 nat",
    )


def test_without_room_for_another_verification_that_is_the_advice():
    tried, refusal = found({0.1: MUCH}, 0.05, affords=lambda _: False)
    assert tried == [0.1]
    assert refusal.reasons == ("at 0.1 nat: they loop",)
    assert refusal.advice[0].startswith("verify 0.05 nat too, with a higher --max-tokens")


def test_pilots_run_at_the_next_smaller_budget_that_can_be_spent():
    def run_at(settings):
        if settings.ce_budget > 0.05:
            raise Infeasible([f"levels off below {settings.ce_budget:g}"])
        return {"block 3": SimpleNamespace(budget=settings.ce_budget)}

    pilots, left, settings = spendable_pilots(run_at, asked(0.4, 0.05, 0.02), Settings())
    assert pilots["block 3"].budget == settings.ce_budget == 0.05
    assert left.left == [0.05, 0.02]
    with pytest.raises(Infeasible, match=r"at 0\.08 nat: levels off below 0\.08; at 0\.1 nat"):
        spendable_pilots(run_at, asked(0.08), Settings())


def test_budgets_without_a_refusal_are_all_left():
    assert Asked((0.1, 0.2)).left == [0.1, 0.2]
