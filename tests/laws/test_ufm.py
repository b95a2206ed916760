"""The laws against the paper's own model, in which they are theorems."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import ufm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit

from calibrate.laws.dose import dose_of
from calibrate.laws.formulas import CrossEntropyLaw, MassLaw
from calibrate.laws.tokens import TokenLaw, bumps

STRENGTHS = np.linspace(-6, 6, 241)
PEAKS = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "token_peaks.py"))
peaks_of, mean_log_odds = PEAKS["peaks"], PEAKS["mean_log_odds"]


@st.composite
def models(draw, spread=True):
    """Datasets of Definition 2.1, with or without jitter, and the log-odds of concept 0."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    model = ufm.dataset(
        n_concepts=draw(st.integers(2, 5)),
        tokens_each=draw(st.integers(2, 6)),
        contexts_each=draw(st.integers(1, 4)),
        within=draw(st.floats(0.55, 0.95)),
        rng=rng,
        spread=draw(st.floats(0.05, 0.6)) if spread else 0.0,
    )
    return model, model.log_odds(target=0)


def curves(model, odds):
    """p_α(z|c), (n_strengths, n_contexts, n_tokens)."""
    return np.stack([model.steered(odds, strength) for strength in STRENGTHS])


@given(models())
def test_every_token_bumps_at_most_once(pair):
    """Theorem 3.3: rises, peaks, falls."""
    model, odds = pair
    for token in curves(model, odds)[:, 0].T:
        assert bumps(token) == 1


@settings(max_examples=25)
@given(models())
def test_a_token_peaks_where_the_mean_log_odds_equal_its_own(pair):
    """The peak condition, with our law's peaks against the oracle's exact curve."""
    model, odds = pair
    law = TokenLaw(model.log_p, np.tile(odds, (len(model.log_p), 1)))
    peaks = peaks_of(law, reach=6.0)
    for context, row in enumerate(peaks):
        for token in np.flatnonzero(np.isfinite(row)):
            p = model.steered(odds, row[token])[context]
            assert p @ odds == pytest.approx(odds[token], abs=2e-2 * np.ptp(odds))
            nearby = [model.steered(odds, row[token] + d)[context, token] for d in (-0.5, 0.5)]
            assert p[token] >= max(nearby) - 1e-9


@given(models())
def test_off_target_tokens_peak_before_target_tokens(pair):
    """Tokens peak in the order of their log-odds, and target tokens have the largest."""
    model, odds = pair
    law = TokenLaw(model.log_p, np.tile(odds, (len(model.log_p), 1)))
    for row in peaks_of(law, reach=6.0):
        order = np.argsort(odds)
        assert (np.diff(np.nan_to_num(row[order], posinf=99, neginf=-99)) >= -1e-9).all()


@given(models())
def test_the_extreme_tokens_are_monotone(pair):
    model, odds = pair
    all_curves = curves(model, odds)
    assert (np.diff(all_curves[:, :, odds.argmax()], axis=0) >= -1e-15).all()
    assert (np.diff(all_curves[:, :, odds.argmin()], axis=0) <= 1e-15).all()


@given(models())
def test_the_derivative_of_a_probability_is_its_log_odds_above_the_mean(pair):
    model, odds = pair
    step, at = 1e-5, 0.7
    change = (model.steered(odds, at + step) - model.steered(odds, at - step)) / (2 * step)
    p = model.steered(odds, at)
    mean = (p * odds).sum(axis=1, keepdims=True)
    assert change == pytest.approx(p * (odds - mean), abs=1e-8)


@given(models())
def test_the_mean_log_odds_rise_by_their_variance(pair):
    model, odds = pair
    law = TokenLaw(model.log_p, np.tile(odds, (len(model.log_p), 1)))
    step, at = 1e-5, -0.4
    change = (mean_log_odds(law, at + step) - mean_log_odds(law, at - step)) / (2 * step)
    p = model.steered(odds, at)
    mean = (p * odds).sum(axis=1, keepdims=True)
    assert change == pytest.approx((p * (odds - mean) ** 2).sum(axis=1), rel=1e-5)
    assert (change >= 0).all()


@given(models())
def test_far_out_only_the_extreme_tokens_are_left(pair):
    """Proposition B.1: the limit is p₀ restricted to the largest (or smallest) log-odds."""
    model, odds = pair
    for strength, extreme in ((400.0, odds.max()), (-400.0, odds.min())):
        gap = np.sort(np.abs(odds - extreme))[1]
        left = np.exp(model.log_p) * (odds == extreme)
        limit = left / left.sum(axis=1, keepdims=True)
        far = strength / max(gap, 1e-3)
        assert model.steered(odds, far) == pytest.approx(limit, abs=1e-6)


@given(models(spread=False))
def test_without_jitter_log_odds_have_one_value_per_kind_of_token(pair):
    """In the dataset itself all tokens of a concept share their log-odds: no target bumps."""
    model, odds = pair
    targets = odds[model.token_concept == 0]
    others = odds[model.token_concept != 0]
    assert np.ptp(targets) < 1e-9
    assert np.ptp(others) < 1e-9
    assert targets[0] > 0 > others[0]


@given(models(), st.integers(0, 4))
def test_the_mass_of_a_concept_obeys_its_differential_equation(pair, concept):
    """Theorem 3.6: F' = F(1 - F)(μ_C - μ_¬C)."""
    model, odds = pair
    inside = model.token_concept == concept % (model.token_concept.max() + 1)
    step, at = 1e-5, 0.3
    p = model.steered(odds, at)
    mass = p[:, inside].sum(axis=1)
    mean_in = (p[:, inside] @ odds[inside]) / mass
    mean_out = (p[:, ~inside] @ odds[~inside]) / (1 - mass)
    up, down = (model.steered(odds, at + d)[:, inside].sum(axis=1) for d in (step, -step))
    assert (up - down) / (2 * step) == pytest.approx(
        mass * (1 - mass) * (mean_in - mean_out), abs=1e-7
    )


@given(models(spread=False), st.floats(-3, 3))
def test_with_one_log_odds_per_kind_the_concept_law_is_exact(pair, strength):
    """Then ν(α) = (μ_C - μ_¬C)·α, and σ(x) = (1 + tanh(x/2)) / 2."""
    model, odds = pair
    gain = odds[model.token_concept == 0][0] - odds[model.token_concept != 0][0]
    for context, mass in enumerate(model.mass(odds, 0.0, concept=0)):
        law = MassLaw.from_mass(mass, gain)
        exact = model.mass(odds, strength, concept=0)[context]
        assert law.predict(strength) == pytest.approx(exact, rel=1e-6)
        x = logit(mass) + gain * strength
        assert exact == pytest.approx((1 + np.tanh(x / 2)) / 2, rel=1e-6)
        assert exact == pytest.approx(expit(x), rel=1e-6)


@given(models())
def test_the_target_concept_only_gains_when_its_log_odds_are_the_largest(pair):
    model, odds = pair
    largest = np.argsort(odds)[-2:]
    masses = curves(model, odds)[:, :, largest].sum(axis=2)
    assert (np.diff(masses, axis=0) >= -1e-12).all()
    smallest = np.argsort(odds)[:2]
    masses = curves(model, odds)[:, :, smallest].sum(axis=2)
    assert (np.diff(masses, axis=0) <= 1e-12).all()


@given(models())
def test_an_in_between_concept_vanishes_at_both_ends(pair):
    model, odds = pair
    between = np.argsort(odds)[1:-1]
    spread = np.sort(odds)
    far = 60 / min(spread[1] - spread[0], spread[-1] - spread[-2])
    for strength in (far, -far):
        assert model.steered(odds, strength)[:, between].sum(axis=1).max() < 1e-6


@given(models())
def test_cross_entropy_starts_flat_with_the_variance_of_the_log_odds(pair):
    """Theorem 3.8: no linear term, curvature E Var[M]."""
    model, odds = pair
    law = TokenLaw(model.log_p, np.tile(odds, (len(model.log_p), 1)))
    step = 1e-3
    up, down = (model.delta_ce(odds, d) for d in (step, -step))
    assert (up - down) / (2 * step) == pytest.approx(0.0, abs=1e-5 * np.ptp(odds) ** 3 + 1e-9)
    assert (up + down) / step**2 == pytest.approx(law.curvature, rel=1e-3)


@given(models(), st.floats(-2, 2))
def test_the_token_law_is_the_oracle_when_nothing_saturates(pair, strength):
    model, odds = pair
    law = TokenLaw(model.log_p, np.tile(odds, (len(model.log_p), 1)))
    assert law.predict(strength) == pytest.approx(model.steered(odds, strength), abs=1e-12)
    assert law.rise(strength) == pytest.approx(model.delta_ce(odds, strength), abs=1e-10)
    targets = np.flatnonzero(model.token_concept == 0)
    assert law.mass(targets, strength) == pytest.approx(model.mass(odds, strength, 0).mean())


@given(models(), st.floats(0.01, 0.5), st.sampled_from([1, -1]))
def test_the_saturation_of_the_dose_is_recovered_from_what_it_costs(pair, saturation, sign):
    """Curves of a model whose dose saturates, described by a law of ΔCE, give back s."""
    model, odds = pair
    plain = TokenLaw(model.log_p, np.tile(odds, (len(model.log_p), 1)))
    strength = sign * 1.5
    spent = plain.rise(float(dose_of(strength, saturation)))
    cost = CrossEntropyLaw(0.0, plain.curvature, 0.0, 1e9).through(strength, spent)
    assert plain.fitted_to(cost, strength).saturation == pytest.approx(saturation, rel=1e-4)


def test_two_bumps_are_two():
    grid = np.linspace(-3, 3, 61)
    assert bumps(np.exp(-((grid - 1) ** 2) * 4) + np.exp(-((grid + 1) ** 2) * 4)) == 2
    assert bumps(np.exp(-(grid**2))) == bumps(grid) == bumps(-grid) == bumps(0 * grid) == 1
