"""An infeasible request is explained from the laws."""

from __future__ import annotations

import numpy as np
import pytest
from test_study import ALPHAS, BASELINE, UNSTEERED, Synthetic, by_site, study

from calibrate.errors import Infeasible
from calibrate.explain import explaining, prices
from calibrate.settings import Settings

PILOTS = by_site(ALPHAS)


@pytest.fixture(scope="module")
def trials():
    return study(Synthetic(ALPHAS, best_layer=5)).trials


def test_the_price_of_a_gain_is_read_off_both_laws(trials):
    """ΔCE is 0.1·share²; the law of presence interpolates between trials at block 5."""
    found = prices(PILOTS, trials, BASELINE, 0.3, Settings())
    near = found[0]
    assert near.site == "block 5"
    share = near.strength / ALPHAS[5]
    assert near.budget == pytest.approx(0.1 * share**2, rel=0.01)
    assert 0.5 * np.tanh(share) == pytest.approx(0.3, abs=0.06)
    dearer = prices(PILOTS, trials, BASELINE, 0.45, Settings())[0]
    assert dearer.budget > near.budget


def test_a_gain_beyond_all_presence_has_no_price(trials):
    assert prices(PILOTS, trials, BASELINE, 1 - UNSTEERED + 0.01, Settings()) == []


def test_the_best_within_the_budget_and_the_price_come_before_other_advice(trials):
    settings = Settings(min_gain=0.45)
    with pytest.raises(Infeasible) as caught:  # noqa: SIM117 - what is raised is under test
        with explaining(PILOTS, trials, BASELINE, settings):
            raise Infeasible(["too little"], ["give up"])
    best, price, last = caught.value.advice
    assert caught.value.reasons == ("too little",)
    assert best.startswith("the best within the budget is a presence of 0.58 (+0.38 from unsteered")
    assert "at block 5" in best
    assert "block 5 comes closest: a change by 0.45 costs about" in price
    assert "--ce-budget" in price
    assert last == "give up"


def test_without_a_trial_no_site_is_said_to_come_near():
    with pytest.raises(Infeasible) as caught:  # noqa: SIM117 - what is raised is under test
        with explaining(PILOTS, (), BASELINE, Settings()):
            raise Infeasible(["too little"], [])
    assert caught.value.advice[0].startswith("no site comes near")
