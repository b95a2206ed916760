"""An infeasible request is explained from the laws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_study import ALPHAS, BASELINE, UNSTEERED, Synthetic, by_site, study

from calibrate.common.errors import Infeasible
from calibrate.common.estimate import RatioEstimate
from calibrate.common.settings import Settings
from calibrate.search.explain import add_advice, prices
from calibrate.search.refusals import Neither, TooLittle, TooMuch

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
        with add_advice(PILOTS, trials, BASELINE, settings):
            raise TooLittle(["too little"], ["give up"])
    best, price, last = caught.value.advice
    assert caught.value.reasons == ("too little",)
    assert best.startswith("the best within 0.1 nat is a presence of 0.58 (+0.38 from unsteered")
    assert "at block 5" in best
    assert "block 5 comes closest: a change by 0.45 costs about" in price
    assert "--ce-budget" in price
    assert last == "give up"


def advice(trials, baseline, kind=TooLittle, others=(), **options):
    with pytest.raises(Infeasible) as caught:  # noqa: SIM117 - what is raised is under test
        with add_advice(PILOTS, trials, baseline, Settings(**options), others):
            raise kind(["too little"], [])
    return caught.value.advice


@pytest.mark.parametrize("kind", [TooMuch, Neither])
def test_where_more_strength_does_harm_no_larger_budget_is_asked_for(trials, kind):
    best, more = advice(trials, BASELINE, kind, min_gain=0.45)
    assert best.startswith("the best within 0.1 nat")
    assert more == "a larger --ce-budget does not help: more strength does more of this"


def test_a_budget_that_was_asked_for_already_is_not_advised(trials):
    """Nor is one where it is not presence that is too small."""
    assert any("ask for --ce-budget 0." in one for one in advice(trials, BASELINE, min_gain=0.45))
    assert len(advice(trials, BASELINE, others=[0.05, 1.0], min_gain=0.45)) == 1
    assert len(advice(trials, BASELINE, min_gain=0.2)) == 1
    assert len(advice(trials, BASELINE, Infeasible, min_gain=0.45)) == 1


def test_without_a_trial_nothing_is_predicted():
    assert advice((), BASELINE) == ()


def flat(n_prompts):
    """Trials at every site that bring nothing, on so many prompts, and presence before."""
    found = study(Synthetic(ALPHAS, best_layer=5)).trials
    still = [replace(trial, presence=UNSTEERED, n_prompts=n_prompts) for trial in found]
    spread = np.sqrt(UNSTEERED * (1 - UNSTEERED)) * np.resize([1.0, -1.0], n_prompts)
    return still, RatioEstimate(UNSTEERED + spread, np.ones(n_prompts))


def test_a_change_is_predicted_to_be_out_of_reach_only_where_it_would_have_been_seen():
    """The same trials without any change, on two dozen prompts and on very many."""
    says = "no site is predicted to change presence by 0.05, even beyond the budget"
    assert says not in advice(*flat(24))
    assert says in advice(*flat(1_000_000))
