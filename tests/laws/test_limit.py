"""The limit by data processing, on worlds small enough to write out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from calibrate.laws.limit import best_of_cost, coin_divergence, farthest_presence


def kl(p, q):
    return float(np.sum(p * np.log(p / q)))


def test_no_steering_of_eight_replies_moves_a_graded_judge_for_less_than_the_limit():
    rng = np.random.default_rng(0)
    nearest = math.inf
    for _ in range(2000):
        plain = rng.dirichlet(np.ones(8))
        steered = rng.dirichlet(np.ones(8))
        judge = rng.uniform(size=8)
        before, after = plain @ judge, steered @ judge
        assert kl(plain, steered) >= coin_divergence(before, after)
        assert kl(steered, plain) >= coin_divergence(after, before)
        nearest = min(nearest, kl(plain, steered) / coin_divergence(before, after))
    assert nearest > 1


def test_a_yes_or_no_judge_can_be_moved_at_exactly_the_limit():
    plain, judge = np.array([0.1, 0.2, 0.3, 0.4]), np.array([1.0, 0.0, 1.0, 0.0])
    after = 0.7  # by giving every yes, and every no, the same factor
    before = plain @ judge
    steered = plain * np.where(judge == 1, after / before, (1 - after) / (1 - before))
    assert kl(plain, steered) == pytest.approx(coin_divergence(before, after), rel=1e-12)
    assert kl(steered, plain) == pytest.approx(coin_divergence(after, before), rel=1e-12)
    graded = 0.2 + 0.6 * judge  # a judge in doubt sees less for the same cost
    seen = coin_divergence(plain @ graded, steered @ graded)
    assert seen < 0.5 * coin_divergence(before, after)


def test_the_two_directions_are_different_limits():
    plain, steered = np.array([0.5, 0.5]), np.array([0.99, 0.01])
    judge = np.array([1.0, 0.0])
    assert kl(steered, plain) < coin_divergence(plain @ judge, steered @ judge)


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize(("sign", "cost"), [(1, 0.01), (1, 0.3), (-1, 0.01), (-1, 0.3)])
def test_the_farthest_presence_costs_what_it_may(sign, cost, back):
    after = farthest_presence(0.4, cost, sign, back)
    assert (after - 0.4) * sign > 0
    pair = (after, 0.4) if back else (0.4, after)
    assert coin_divergence(*pair) == pytest.approx(cost, rel=1e-6)


def test_presence_has_an_end_and_no_cost_moves_nothing():
    assert farthest_presence(0.4, 0.0) == 0.4
    assert farthest_presence(0.4, 1e6) == pytest.approx(1.0)
    assert farthest_presence(0.4, 1e6, -1, back=True) == pytest.approx(0.0)
    assert coin_divergence(0.5, 0.0) == math.inf
    assert best_of_cost(1) == 0


@pytest.mark.parametrize("n", [2, 3, 4])
def test_best_of_n_costs_at_most_its_bound_and_nearly_that_among_many_replies(n):
    for size, least in ((3, 0.0), (40, 0.9)):
        plain = np.random.default_rng(size).dirichlet(np.ones(size))  # liked more and more
        best = np.diff(np.concatenate([[0.0], np.cumsum(plain)]) ** n)
        assert least * best_of_cost(n) <= kl(best, plain) <= best_of_cost(n) + 1e-12


def test_the_distribution_of_the_best_is_that_of_drawing_and_choosing():
    plain, n = np.array([0.5, 0.3, 0.2]), 2
    drawn = np.zeros(3)
    for pair in itertools.product(range(3), repeat=n):
        drawn[max(pair)] += np.prod(plain[list(pair)])
    best = np.diff(np.concatenate([[0.0], np.cumsum(plain)]) ** n)
    assert drawn == pytest.approx(best)
