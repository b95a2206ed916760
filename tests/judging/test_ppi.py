"""Prediction-powered inference, against its authors' package and worlds whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import mannwhitneyu, norm

from calibrate.judging.ppi import ADDED_SHARE, Corrected, auc, corrected_share

GRADED = np.array([1, 0, 1, 1, 0, 0, 1, 0, 1, 0.0])
JUDGED = np.array([0.9, 0.2, 0.7, 0.6, 0.4, 0.1, 0.8, 0.5, 0.4, 0.3])
OTHERS = np.array([0.8, 0.1, 0.3, 0.9, 0.6, 0.2, 0.7, 0.4, 0.5, 0.9, 0.3, 0.2])


@pytest.mark.parametrize(
    ("power", "value", "error"),
    [(0.0, 0.5, 0.15811388), (0.5, 0.50083333, 0.13625781), (1.0, 0.50166667, 0.13514721)],
)
def test_mean_and_error_are_those_of_the_authors_package(power, value, error):
    """ppi-python 0.2.3, `ppi_mean_pointestimate` and `ppi_mean_ci`, whose variances divide by n."""
    ours = Corrected(GRADED - power * JUDGED, power * OTHERS, 0.5 * power, 2, 0.0, 1.0, ADDED_SHARE)
    assert ours.value == pytest.approx(value, abs=1e-8)
    by_n = [np.var(ours.residuals) / len(GRADED), np.var(ours.carried) / len(OTHERS)]
    assert np.sqrt(sum(by_n)) == pytest.approx(error, abs=1e-8)
    unbiased = by_n[0] * 10 / 9 + by_n[1] * 12 / 11
    assert ours.standard_error == pytest.approx(np.sqrt(unbiased))


def test_power_tuning_makes_the_error_as_small_as_any_power_does():
    """And close to the package's own, 0.5012 ± 0.1329, which estimates the spreads otherwise."""
    tuned = corrected_share(GRADED, JUDGED, OTHERS)
    assert tuned.value == pytest.approx(0.50121, abs=5e-4)
    fixed = [
        Corrected(GRADED - p * JUDGED, p * OTHERS, 0.0, 2, 0.0, 1.0, ADDED_SHARE).standard_error
        for p in np.linspace(0, 1, 101)
    ]
    assert tuned.standard_error == pytest.approx(min(fixed), abs=1e-5)


def test_a_constant_judge_a_contrary_one_and_no_other_prompts_leave_the_mean_of_the_grades():
    for judged, others in (
        (np.full(10, 0.3), np.full(12, 0.3)),
        (1 - JUDGED, 1 - OTHERS),
        (JUDGED, np.zeros(0)),
    ):
        found = corrected_share(GRADED, judged, others)
        assert found.value == pytest.approx(GRADED.mean())
        assert found.interval(0.95).low < 0.5 < found.interval(0.95).high


def test_the_change_is_the_difference_of_what_it_lies_between():
    before = corrected_share(1 - GRADED, 1 - JUDGED, 1 - OTHERS)
    after = corrected_share(GRADED, JUDGED, OTHERS)
    assert after.minus(before).value == pytest.approx(after.value - before.value)


def test_grades_that_are_all_alike_leave_room_for_those_not_seen():
    """Of 20 replies none: by Clopper and Pearson up to 0.168 is within 95%."""
    found = corrected_share(np.zeros(20), np.linspace(0, 1, 20), np.zeros(44)).interval(0.95)
    assert found.value == found.low == 0
    assert 0.13 < found.high < 0.23


def world(judge, before, after, rng, n=64, completions=2):
    """Grades and readings, (n, 2, completions) each: the replies of a prompt are alike."""
    shared, own = rng.standard_normal((n, 1, 1)), rng.standard_normal((n, 2, completions))
    latent = np.sqrt(0.3) * shared + np.sqrt(0.7) * own
    threshold = norm.ppf([before, after])[None, :, None]
    yes = (latent < threshold).astype(float)
    noisy = 3 * (threshold - latent) + rng.standard_normal(yes.shape)
    read = {
        "perfect": yes,
        "useless": rng.uniform(size=yes.shape),
        "constant": np.full(yes.shape, 0.3),
        "good": expit(noisy),
        "too strict": expit(noisy - 3),
        "contrary": 1 - expit(noisy),
        "fooled by steering": 0.4 * rng.uniform(size=yes.shape) + [[[0.0], [0.6]]],
    }
    return yes, read[judge]


@pytest.mark.parametrize(
    "judge",
    ["perfect", "useless", "constant", "good", "too strict", "contrary", "fooled by steering"],
)
@pytest.mark.parametrize(("before", "after"), [(0.05, 0.5), (0.15, 0.15), (0.5, 0.95)])
def test_intervals_from_20_graded_prompts_of_64_hold_the_truth(judge, before, after):
    rng, n, worlds = np.random.default_rng(7), 20, 300
    held = np.zeros(3)
    for _ in range(worlds):
        yes, read = world(judge, before, after, rng)
        shares = [
            corrected_share(yes[:n, side, 0], read[:n, side, 0], read[n:, side].mean(axis=1))
            for side in (0, 1)
        ]
        shares.append(shares[1].minus(shares[0]))
        for at, (share, truth) in enumerate(
            zip(shares, (before, after, after - before), strict=True)
        ):
            found = share.interval(0.95)
            held[at] += found.low <= truth <= found.high
    noise = np.sqrt(0.95 * 0.05 / worlds)
    assert (held / worlds).min() >= 0.93 - noise


def test_a_good_judge_makes_intervals_narrower_than_the_grades_alone():
    rng = np.random.default_rng(1)
    widths = {"good": [], "constant": []}
    for judge, found in widths.items():
        for _ in range(40):
            yes, read = world(judge, 0.4, 0.6, rng)
            share = corrected_share(yes[:20, 1, 0], read[:20, 1, 0], read[20:, 1].mean(axis=1))
            interval = share.interval(0.95)
            found.append(interval.high - interval.low)
    assert np.mean(widths["good"]) < 0.88 * np.mean(widths["constant"])


def test_auc_counts_pairs_and_its_interval_holds_the_truth():
    rng, truth, held = np.random.default_rng(3), norm.cdf(1.5 / np.sqrt(2)), 0
    for _ in range(400):
        positive = rng.uniform(size=40) < 0.3
        scores = rng.standard_normal(40) + 1.5 * positive
        found = auc(scores, positive, 0.95)
        u = mannwhitneyu(scores[positive], scores[~positive]).statistic
        assert found.value == pytest.approx(u / (positive.sum() * (~positive).sum()))
        held += found.low <= truth <= found.high
    assert held / 400 >= 0.93


def test_an_auc_without_a_fault_still_has_an_interval_and_one_of_one_kind_is_undefined():
    scores, positive = np.arange(10.0), np.arange(10) >= 5
    assert auc(scores, positive, 0.95).value == auc(scores, positive, 0.95).high == 1
    assert 0.5 < auc(scores, positive, 0.95).low < 0.9
    assert auc(-scores, positive, 0.95).low == 0
    assert auc(scores, np.zeros(10, dtype=bool), 0.95) is None
