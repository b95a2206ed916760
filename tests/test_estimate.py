"""Intervals hold as often as they say."""

from __future__ import annotations

import numpy as np
import pytest

from calibrate.estimate import RatioEstimate


def test_the_value_is_the_ratio_of_totals():
    estimate = RatioEstimate(np.array([1.0, 4.0]), np.array([2, 8]))
    assert estimate.value == 0.5
    assert estimate.standard_error == pytest.approx(0.0)


def test_one_sequence_gives_no_bound():
    assert RatioEstimate(np.array([1.0]), np.array([3])).upper(0.95) == float("inf")


@pytest.mark.parametrize(("spread", "least"), [(0.3, 0.935), (1.0, 0.88)])
def test_bounds_cover_the_truth(spread, least):
    """Per-sequence means are log-normal, lengths vary: 2,000 replications of 64 sequences.

    0.3 is the spread measured on real replies; there the bounds hold within simulation error.
    At 1.0, ten times heavier tailed than any measured, they are short by a known amount.
    """
    rng = np.random.default_rng(0)
    truth = np.exp(spread**2 / 2)
    one_sided = two_sided = 0
    for _ in range(2000):
        counts = rng.integers(8, 33, size=64)
        sums = counts * rng.lognormal(0, spread, size=64)
        estimate = RatioEstimate(sums, counts)
        one_sided += truth <= estimate.upper(0.95)
        low, high = estimate.interval(0.95)
        two_sided += low <= truth <= high
    assert one_sided / 2000 >= least
    assert two_sided / 2000 >= least


def test_a_paired_difference_drops_what_the_pairs_share():
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 5, size=40)
    ones = np.ones(40)
    before = RatioEstimate(shared, ones)
    after = RatioEstimate(shared + 1 + rng.normal(0, 0.1, size=40), ones)
    change = after.difference(before)
    assert change.value == pytest.approx(1, abs=0.1)
    assert change.standard_error < 0.05 < before.standard_error
