"""Intervals hold as often as they say."""

from __future__ import annotations

import numpy as np
import pytest

from calibrate.common.estimate import RatioEstimate


def test_the_value_is_the_ratio_of_totals():
    estimate = RatioEstimate(np.array([1.0, 4.0]), np.array([2, 8]))
    assert estimate.value == 0.5
    assert estimate.standard_error == pytest.approx(0.0)


def test_one_sequence_gives_no_bound():
    assert RatioEstimate(np.array([1.0]), np.array([3])).upper(0.95) == float("inf")


@pytest.mark.parametrize("n", [8, 16, 64])
@pytest.mark.parametrize("spread", [0.25, 0.5])
def test_the_upper_bound_covers_the_truth_of_few_and_skewed_sequences(n, spread):
    """Per-sequence means are log-normal, lengths vary; 0.25 is what real replies show."""
    rng = np.random.default_rng(n)
    truth, replications = np.exp(spread**2 / 2), 2000
    covered = 0
    for _ in range(replications):
        counts = rng.integers(8, 33, size=n)
        covered += truth <= RatioEstimate(counts * rng.lognormal(0, spread, n), counts).upper(0.95)
    assert covered / replications >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / replications)


def test_two_sided_intervals_cover_the_truth():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        counts = rng.integers(8, 33, size=64)
        estimate = RatioEstimate(counts * rng.lognormal(0, 0.3, size=64), counts)
        low, high = estimate.interval(0.95)
        covered += low <= np.exp(0.3**2 / 2) <= high
    assert covered / 2000 >= 0.935


def test_values_of_either_sign_are_not_taken_for_log_normal():
    """On text the model did not write ΔCE may fall: then Student's bound stands, or Johnson's."""
    values = np.random.default_rng(0).normal(0.05, 0.2, size=40)
    values = np.concatenate([values, 0.1 - values])  # symmetric, so that nothing is skewed
    estimate = RatioEstimate(values, np.ones(80))
    assert estimate.upper(0.95) == pytest.approx(estimate.interval(0.9)[1])


def test_a_paired_difference_drops_what_the_pairs_share():
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 5, size=40)
    ones = np.ones(40)
    before = RatioEstimate(shared, ones)
    after = RatioEstimate(shared + 1 + rng.normal(0, 0.1, size=40), ones)
    change = after.difference(before)
    assert change.value == pytest.approx(1, abs=0.1)
    assert change.standard_error < 0.05 < before.standard_error
