"""The laws are what their formulas say, and undo each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.special import expit

from calibrate.laws.formulas import CrossEntropyLaw, MassLaw, judge_mass, judge_rise
from calibrate.laws.presence import (
    PresenceFit,
    PresenceLaw,
    errors_along,
    fit_both_ways,
    fit_presence,
    judge_presence,
)
from calibrate.laws.tokens import GOOD_PEAKS, MIN_PEAKS, judge_peaks, judge_shapes

curvatures = st.floats(1e-3, 10)
plateaus = st.floats(2, 30)
budgets = st.floats(0.01, 0.5)


@st.composite
def laws(draw):
    return CrossEntropyLaw(
        slope=draw(st.floats(-0.05, 0.05)),
        curvature=draw(curvatures),
        saturation=draw(st.floats(-4, 4)),
        plateau=draw(plateaus),
    )


@given(laws(), budgets, st.sampled_from([1, -1]))
def test_invert_undoes_predict(law, budget, sign):
    strength = law.invert(budget, sign)
    assert np.sign(strength) == sign
    assert law.predict(strength) == pytest.approx(budget, rel=1e-6)


@given(laws(), budgets, st.sampled_from([1, -1]))
def test_invert_finds_the_first_crossing(law, budget, sign):
    strength = law.invert(budget, sign)
    below = law.predict(np.linspace(0, strength, 100)[:-1])
    assert (below < budget * (1 + 1e-9)).all()


@given(laws())
def test_the_law_starts_at_zero_with_its_slope_and_curvature(law):
    step = 1e-5
    plus, zero, minus = (law.predict(a) for a in (step, 0.0, -step))
    assert zero == 0
    assert (plus - minus) / (2 * step) == pytest.approx(law.slope, abs=1e-5)
    flat = replace(law, slope=0.0)  # a slope and a plateau bend the law at 0 as well
    plus, minus = (flat.predict(a) for a in (step, -step))
    assert (plus + minus) / step**2 == pytest.approx(law.curvature, rel=1e-3)


@given(curvatures, plateaus)
def test_the_law_without_slope_and_saturation_is_quadratic_near_zero(curvature, plateau):
    law = CrossEntropyLaw(0.0, curvature, 0.0, plateau)
    strength = 1e-3
    assert law.predict(strength) == pytest.approx(0.5 * curvature * strength**2, rel=1e-4)


@given(laws())
def test_the_law_tends_to_its_plateau(law):
    assert law.predict(1e40) == pytest.approx(law.plateau, rel=1e-3)
    assert law.predict(-1e40) == pytest.approx(law.plateau, rel=1e-3)


def test_a_plateau_below_the_budget_cannot_be_inverted():
    assert CrossEntropyLaw(0.0, 1.0, 0.0, 0.05).invert(0.1) == float("inf")
    assert CrossEntropyLaw(0.0, 1.0, 0.0, 0.05).invert(0.1, -1) == -float("inf")


@given(laws(), st.floats(0.2, 3), st.sampled_from([1, -1]))
def test_the_saturation_is_recovered_from_a_point_of_the_law(law, strength, sign):
    rise = float(law.predict(sign * strength))
    assume(1e-3 < rise < 0.9 * law.plateau)
    found = replace(law, saturation=0.0).through(sign * strength, rise)
    assert found.predict(sign * strength) == pytest.approx(rise, rel=1e-6)
    assert found.saturation == pytest.approx(law.saturation, abs=1e-4)


@given(laws(), st.floats(0.1, 3))
def test_a_point_that_no_saturation_explains_does_no_harm(law, strength):
    assert law.through(strength, -0.1) == law
    past = law.through(strength, 2 * law.plateau)
    assert np.isfinite(past.predict(strength))


@given(laws(), st.floats(0.01, 5))
def test_the_law_is_continuous_where_the_saturation_changes_sign(law, strength):
    above, below = (replace(law, saturation=b).predict(strength) for b in (1e-9, -1e-9))
    assert above == pytest.approx(below, rel=1e-6)


@given(st.floats(0.001, 0.9), st.floats(-3, 3), st.floats(-2, 2))
def test_the_law_of_mass_is_a_sigmoid_through_the_unsteered_mass(mass, gain, strength):
    law = MassLaw.from_mass(mass, gain)
    assert law.predict(0.0) == pytest.approx(mass)
    odds = law.predict(strength) / (1 - law.predict(strength))
    assert odds == pytest.approx(mass / (1 - mass) * np.exp(gain * strength), rel=1e-6)


@given(st.floats(-6, 0), st.floats(0.1, 3), st.floats(-2, 2), st.floats(0.1, 1.5))
def test_the_law_of_mass_goes_through_a_measured_point(log_odds, gain, saturation, strength):
    true = MassLaw(log_odds, gain, saturation)
    assume(true.change(strength) <= 1.9 * gain * strength)
    found = MassLaw(log_odds, gain, 0.0).through(strength, float(true.predict(strength)))
    assert found.predict(strength) == pytest.approx(true.predict(strength), rel=1e-6)
    assert found.change(found.invert(0.7)) == pytest.approx(0.7)


def test_a_mass_that_moved_the_other_way_leaves_its_law_alone():
    law = MassLaw(-3.0, 1.0, 0.0)
    assert law.through(1.0, float(law.predict(-0.5))) == law
    assert law.through(1.0, float(law.predict(3.0))) == law
    assert MassLaw(-3.0, 0.0, 0.0).through(1.0, 0.2) == MassLaw(-3.0, 0.0, 0.0)
    assert MassLaw(-3.0, 0.0, 0.0).invert(0.7) == float("inf")


def presences(law, strengths, n, seed=0):
    """Judgements that scatter around the law as those of n coin tosses do."""
    rng = np.random.default_rng(seed)
    return rng.binomial(n, np.asarray(law.predict(np.asarray(strengths)))) / n


def test_presence_is_fitted_with_errors_that_cover_the_truth():
    """Over many draws, 95 % intervals of r and ν hold the truth about that often."""
    truth, strengths, n = PresenceLaw(-1.2, 1.5), [0.0, 0.4, 0.8, 1.2], 60
    covered = np.zeros(2)
    for seed in range(300):
        fit = fit_presence(strengths, presences(truth, strengths, n, seed), [n] * 4)
        errors = np.array([fit.log_odds_error, fit.gain_error])
        misses = np.abs([fit.law.log_odds - truth.log_odds, fit.law.gain - truth.gain])
        covered += misses <= 1.96 * errors
    assert (covered / 300 > 0.92).all()
    assert (covered / 300 < 0.98).all()


def test_the_error_of_predicted_presence_is_that_of_its_scatter():
    truth, strengths, n = PresenceLaw(-1.0, 1.0), [0.0, 0.5, 1.0], 80
    fits = [
        fit_presence(strengths, presences(truth, strengths, n, seed), [n] * 3)
        for seed in range(300)
    ]
    predicted = [fit.law.predict(0.7) for fit in fits]
    assert np.mean([fit.standard_error(0.7) for fit in fits]) == pytest.approx(
        np.std(predicted), rel=0.15
    )


def test_far_beyond_what_was_fitted_presence_is_hardly_known():
    fit = fit_presence([0.0, 0.5, 1.0], [0.3, 0.35, 0.42], [80] * 3)
    (near_low, near_high), (low, high) = (fit.interval(at, 1.96) for at in (0.5, 30.0))
    error = 1.96 * fit.standard_error(0.5)
    assert near_high - near_low == pytest.approx(2 * error, rel=0.05)
    assert float(fit.law.predict(30.0)) > 0.99
    assert low < 0.5 < high <= 1
    asymptotes = np.diag([0.0, 0.0, 0.01, 0.02]) ** 2
    known = PresenceFit(PresenceLaw(0.0, 1.0, 0.1, 0.7), asymptotes, None)
    assert np.diff(known.interval(30.0, 1.0)) == pytest.approx(2 * 0.02)


def test_asymptotes_are_fitted_where_there_are_points_enough():
    truth = PresenceLaw(-3.0, 2.0, floor=0.1, ceiling=0.8)
    strengths = np.linspace(0, 4, 12)
    fit = fit_presence(strengths, truth.predict(strengths), [500] * 12)
    assert fit.law.floor == pytest.approx(0.1, abs=0.03)
    assert fit.law.ceiling == pytest.approx(0.8, abs=0.03)
    few = fit_presence(strengths[:5], truth.predict(strengths[:5]), [500] * 5)
    assert (few.law.floor, few.law.ceiling) == (0.0, 1.0)


def test_the_law_of_presence_is_undone_between_its_asymptotes_and_nowhere_else():
    for gain in (2.0, -2.0):
        law = PresenceLaw(-1.0, gain, floor=0.1, ceiling=0.7)
        assert law.invert(float(law.predict(1.3))) == pytest.approx(1.3)
        assert law.invert(0.1) == law.invert(0.8) == float("inf")
    assert PresenceLaw(0.0, 0.0).invert(0.5) == float("inf")


def test_one_sigmoid_is_fitted_to_both_signs_between_the_falls_on_either_side():
    """Far out on the right presence falls, far out on the left it rises: neither is the law's."""
    truth = PresenceLaw(-0.5, 0.8, floor=0.05, ceiling=0.85)
    strengths = np.linspace(-10, 10, 41)
    measured = np.asarray(truth.predict(strengths)).copy()
    measured[strengths > 7] = 0.1
    measured[strengths < -8] = 0.6
    law, falls = fit_both_ways(strengths, measured, [400] * 41)
    assert law.predict(strengths[8:34]) == pytest.approx(truth.predict(strengths[8:34]), abs=0.01)
    assert falls == {1: 7.5, -1: -8.5}
    whole, none = fit_both_ways(strengths, truth.predict(strengths), [400] * 41)
    assert none == {1: None, -1: None}
    assert (whole.floor, whole.ceiling) == pytest.approx((0.05, 0.85), abs=0.01)


def test_asymptotes_may_lie_on_one_side_of_a_half():
    truth, strengths = PresenceLaw(0.0, 6.0, floor=0.25, ceiling=0.41), np.linspace(-4, 4, 41)
    law, falls = fit_both_ways(strengths, truth.predict(strengths), [500] * 41)
    assert falls == {1: None, -1: None}
    assert (law.floor, law.ceiling) == pytest.approx((0.25, 0.41), abs=0.005)
    assert law.predict(strengths) == pytest.approx(truth.predict(strengths), abs=0.01)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_fit_does_not_depend_on_the_unit_of_strengths(scale):
    truth, strengths = PresenceLaw(-1.0, 2.0, floor=0.1, ceiling=0.7), np.linspace(-3, 3, 21)
    law, _ = fit_both_ways(scale * strengths, truth.predict(strengths), [300] * 21)
    assert law.predict(scale * strengths) == pytest.approx(truth.predict(strengths), abs=0.005)
    assert law.gain * scale == pytest.approx(2.0, rel=0.05)


def test_noise_alone_seldom_looks_like_a_fall():
    strengths = np.linspace(-3, 3, 41)
    truth = PresenceLaw(0.0, 2.0, floor=0.05, ceiling=0.8).predict(strengths)
    rng = np.random.default_rng(1)
    fallen = [
        any(fit_both_ways(strengths, rng.binomial(32, truth) / 32, [32] * 41)[1].values())
        for _ in range(40)
    ]
    assert np.mean(fallen) < 0.2


@pytest.mark.parametrize("sign", [1, -1])
def test_degenerate_presence_is_noticed_and_left_out(sign):
    """Word salad scores low: past the fall the sigmoid says nothing about the points."""
    truth, strengths = PresenceLaw(-1.0, 1.5 * sign), sign * np.array([0.0, 0.5, 1.0, 1.5, 3.0])
    measured = np.asarray(truth.predict(strengths)).copy()
    measured[-1] = 0.1
    fit = fit_presence(strengths, measured, [100] * 5)
    assert fit.fall == strengths[-1]
    assert fit.law.gain == pytest.approx(truth.gain, rel=0.02)
    assert fit_presence(strengths[:-1], measured[:-1], [100] * 4).fall is None


@pytest.mark.parametrize("rising", [True, False])
def test_where_presence_turns_back_at_once_no_gain_is_made_up(rising):
    """Nothing is known then but presence at 0."""
    level = [0.5, 0.2, 0.1] if rising else [0.5, 0.8, 0.9]
    fit = fit_presence([0.0, 1.0, 2.0], level, [100.0] * 3, rising=rising)
    assert fit.fall == 1.0
    assert np.asarray(fit.law.predict(np.linspace(-4, 4, 9))) == pytest.approx(0.5)
    assert fit.standard_error(2.0) == pytest.approx(0.05)


def test_a_law_of_cross_entropy_is_judged_by_its_worst_relative_error():
    assert judge_rise([1.0, 2.0], [0.1, 0.4], [0.103, 0.4]).good
    verdict = judge_rise([1.0, 2.0], [0.1, 0.4], [0.12, 0.4])
    assert not verdict.good
    assert verdict.error == pytest.approx(1 / 6)
    assert judge_rise([0.01, 1.0], [0.0001, 0.1], [-0.0002, 0.1]).good  # noise near 0


def test_a_cubic_rise_breaks_the_law_of_cross_entropy():
    """Fitted where the budget is spent, a cubic is missed at other strengths."""

    def cubic(a):
        return 0.1 * np.abs(a) ** 3

    law = CrossEntropyLaw(0.0, 0.02, 0.0, 20.0)
    law = law.through(1.0, cubic(1.0))
    tested = np.array([0.6, 0.8, 1.3])
    assert not judge_rise(tested, law.predict(tested), cubic(tested)).good


@pytest.mark.parametrize("slope", [-0.02, 0.0, 0.03])
@pytest.mark.parametrize("sign", [1, -1])
def test_two_points_tell_the_slope(slope, sign):
    law = CrossEntropyLaw(slope, 0.05, 0.2, 6.0)
    near, other = ((sign * a, float(law.predict(sign * a))) for a in (2.5, 2.0))
    found = replace(law, slope=0.01, saturation=0.0).through_both(near, other)
    assert found.slope == pytest.approx(slope, abs=1e-6)
    assert found.saturation == pytest.approx(0.2, rel=1e-4)


def test_two_points_that_no_slope_explains_leave_the_slope_alone():
    law = CrossEntropyLaw(0.01, 0.05, 0.0, 6.0)
    assert law.through_both((2.0, 0.1), (1.0, 5.0)) == law.through(2.0, 0.1)
    assert law.through_both((2.0, 0.1), (1.0, -0.1)) == law.through(2.0, 0.1)


def test_errors_along_a_law_are_those_of_what_it_was_fitted_to():
    """By fits to drawn presences, whose errors are alike in part, as on the same prompts."""
    truth, strengths = PresenceLaw(-1.0, 1.2), np.array([0.0, 0.5, 1.0, 1.5, 2.0])
    covariance = 0.02**2 * (0.7 + 0.3 * np.eye(5))
    draws = np.random.default_rng(3).multivariate_normal(
        truth.predict(strengths), covariance, size=400
    )
    at = np.array([0.0, 0.8, 2.0])
    fitted = [fit_presence(strengths, drawn, [100.0] * 5).law.predict(at) for drawn in draws]
    scatter = np.std(fitted, axis=0)
    assert errors_along(truth, strengths, covariance, at) == pytest.approx(scatter, rel=0.15)
    alone = errors_along(truth, strengths, np.diag(np.diag(covariance)), at)
    assert alone[1] < 0.7 * scatter[1]


def test_a_floor_at_its_bound_is_taken_for_known():
    law, strengths = PresenceLaw(-1.0, 1.2, 0.0, 0.8), np.linspace(0, 3, 7)
    errors = errors_along(law, strengths, 0.02**2 * np.eye(7), np.array([-50.0, 50.0]))
    assert errors[0] == pytest.approx(0.0, abs=1e-6)
    assert errors[1] > 0.01


def test_a_non_monotone_presence_breaks_the_law_of_presence():
    strengths = [0.0, 0.5, 1.0, 1.5]
    fit = fit_presence(strengths, [0.2, 0.4, 0.25, 0.42], [200] * 4)
    error = float(np.hypot(fit.standard_error(1.0), 0.03))
    assert not judge_presence(1.0, fit.law.predict(1.0), 0.05, error).good
    assert judge_presence(1.0, fit.law.predict(1.0), fit.law.predict(1.0) + 0.03, error).good


def test_two_bumps_break_the_law_of_tokens():
    grid = np.linspace(-3, 3, 61)
    once = np.exp(-((grid - np.linspace(-1, 1, 12)[:, None]) ** 2))
    twice = np.exp(-((grid - 2) ** 2) * 4) + np.exp(-((grid + 2) ** 2) * 4)
    assert judge_shapes(once).good
    broken = judge_shapes(np.vstack([once[:4], twice]))
    assert not broken.good
    assert broken.points == ((1.0, 1.0, 0.8), (2.0, 0.0, 0.2))


def test_a_mass_is_judged_by_its_log_odds():
    assert judge_mass([1.0], [0.010], [0.013], 0.001).good
    assert not judge_mass([1.0], [0.010], [0.020], 0.001).good
    assert not judge_mass([1.0], [0.990], [0.980], 0.5).good


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("moved", [0.05, 0.2, 1.2])
def test_a_mass_that_is_said_not_to_move_or_the_other_way_fails(moved, sign):
    """However little moves in all, and however much moves at strengths of the other sign."""
    strengths = np.array([-1.0, -0.5, 0.5, 1.0])
    moves = np.where(np.sign(strengths) == sign, moved, 3.0) * strengths
    truth = expit(-2 + moves)

    def judged(said):
        return judge_mass(strengths, expit(-2 + said), truth, expit(-2.0))

    there = np.sign(strengths) == sign
    assert judged(moves).good
    assert judged(np.where(there, 0.9 * moves, moves)).good
    for wrong in (0.0, -1.0):
        verdict = judged(np.where(there, wrong * moves, moves))
        assert not verdict.good
        assert verdict.error == pytest.approx((1 - wrong) * moved)
        assert verdict.tolerance == pytest.approx(min(0.25 * moved, 0.35))


def test_a_mass_that_hardly_moves_may_be_said_not_to():
    assert judge_mass([1.0], [0.5], [0.501], 0.5).good


def test_peaks_are_judged_by_their_order_in_contexts_that_have_some():
    strengths = np.linspace(-0.9, 0.9, MIN_PEAKS)
    edge = np.ones(MIN_PEAKS)
    measured = np.stack([strengths, edge, strengths])
    predicted = np.stack([2 * strengths, edge, strengths[::-1]])
    verdict = judge_peaks(measured[:2], predicted[:2], 1.0)
    assert verdict.points == ((0.0, pytest.approx(1.0), float(MIN_PEAKS)),)
    assert verdict.good
    assert verdict.error == pytest.approx(0.0)
    assert judge_peaks(measured, predicted, 1.0).error > GOOD_PEAKS


def test_without_peaks_to_order_there_is_no_verdict():
    """Monotone tokens, which Theorem 3.3 allows, or a prediction that is the same for all."""
    strengths = np.linspace(-0.9, 0.9, MIN_PEAKS)[None]
    monotone, alike = np.ones_like(strengths), np.zeros_like(strengths)
    assert judge_peaks(monotone, strengths, 1.0) is None
    assert judge_peaks(strengths, alike, 1.0) is None
    assert judge_peaks(strengths[:, 1:], strengths[:, 1:], 1.0) is None
