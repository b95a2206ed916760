"""The strength that spends a budget, where the law that names it is wrong."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
from scipy.optimize import brentq

from calibrate.common.errors import CalibrateWarning
from calibrate.laws.formulas import CrossEntropyLaw
from calibrate.laws.spending import CLOSE, FURTHER_PASSES, MAX_PASSES, SPENT, spend_budget

BUDGET = 0.1
LAW = CrossEntropyLaw(slope=0.0, curvature=0.2, saturation=0.0, plateau=8.0)  # names α = 1.006


def spent(rise_at, law=LAW, slope_known=True, sign=1):
    """What is found, and every strength tried."""
    tried = []

    def counted(strength):
        tried.append(strength)
        return rise_at(sign * strength)

    return spend_budget(counted, law, slope_known, BUDGET, sign, "block 1"), tried


def dip(depth, width):
    """ΔCE that falls to -depth before it rises, as on text likelier than the model thinks."""
    return lambda a: depth * ((a / width) ** 2 - 2 * a / width)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("slope_known", [True, False])
@pytest.mark.parametrize(
    "rise_at",
    [
        dip(0.03, 0.6),  # no rise at the first strength
        dip(0.05, 2.0),  # nor at twice that
        dip(0.02, 0.2),  # far too much of one
        lambda a: 0.02 * a**6,  # steeper than any law, and too little
        lambda a: 3.0 * a**4,  # and too much
        lambda a: 0.5 * a,  # no curvature at all
        lambda a: 0.02 * a + 2 * max(a - 2, 0) ** 2,  # a bend
    ],
)
def test_the_strength_taken_costs_the_budget_whatever_the_law_says(rise_at, slope_known, sign):
    with warnings.catch_warnings():
        warnings.simplefilter("error", CalibrateWarning)
        found, tried = spent(rise_at, slope_known=slope_known, sign=sign)
    assert rise_at(sign * found.strength) == pytest.approx(BUDGET, rel=SPENT)
    assert len(tried) <= MAX_PASSES + FURTHER_PASSES


def test_a_strength_that_was_wrong_is_not_named_again():
    """Where no slope explains both passes, the law through the nearer names the other again."""
    law = replace(LAW, slope=-0.02)
    found, tried = spent(lambda a: 0.09 * a if a < 1.2 else 0.5 * a, law, slope_known=False)
    assert len(tried) == len({round(at, 6) for at in tried})
    assert found.strength == pytest.approx(1.1, abs=0.11)


def test_where_the_law_holds_a_strength_close_to_a_pass_is_taken_without_another():
    exact, tried = spent(lambda a: float(LAW.predict(a)))
    assert (exact.strength, tried) == (pytest.approx(LAW.invert(BUDGET)), [LAW.invert(BUDGET)])
    true = CrossEntropyLaw(0.0, 0.2, 0.3, 8.0)
    found, tried = spent(lambda a: float(true.predict(a)))
    assert found.strength == pytest.approx(true.invert(BUDGET), rel=1e-6)
    assert len(tried) == 2
    assert abs(found.strength / tried[-1] - 1) < CLOSE


def test_the_law_goes_through_the_passes_it_is_said_to_be_fitted_at():
    rise_at = dip(0.03, 0.6)
    found, _ = spent(rise_at, slope_known=False)
    assert len(found.fitted_at) == 2
    for at in found.fitted_at:
        assert found.law.predict(at) == pytest.approx(rise_at(at))
    truth = brentq(lambda a: rise_at(a) - BUDGET, 0.6, 9)
    assert found.strength == pytest.approx(truth, rel=0.01)


@pytest.mark.parametrize("rise_at", [lambda a: -0.01 * a, lambda a: 0.0 if a < 1.2 else 1.0])
def test_a_budget_that_no_pass_spends_is_warned_of(rise_at):
    rule = "a strength at block 1 should cost the budget of 0.1 nat, but of 6 tried the nearest"
    with pytest.warns(CalibrateWarning, match=rule):
        spent(rise_at)
