"""The joint law of two vectors, which `scripts/measure_joint.py` holds against measurements."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calibrate.laws.formulas import CrossEntropyLaw
from calibrate.laws.log_odds import measure_log_odds
from calibrate.search.joint import mixed

SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "joint_law.py"))
JointLaw, correlation_of = SCRIPT["JointLaw"], SCRIPT["correlation_of"]

strengths = st.floats(-3, 3)
laws = st.builds(
    CrossEntropyLaw,
    slope=st.just(0.0),
    curvature=st.floats(0.05, 5),
    saturation=st.floats(-0.3, 1),
    plateau=st.floats(2, 20),
)


@given(laws, laws, strengths, st.floats(-1, 1), st.floats(-1, 1))
def test_one_vector_alone_costs_what_its_own_law_says(first, second, alpha, r, cosine):
    joint = JointLaw(first, second, r, cosine)
    assert joint.predict(alpha, 0.0) == pytest.approx(float(first.predict(alpha)), abs=1e-12)
    assert joint.predict(0.0, alpha) == pytest.approx(float(second.predict(alpha)), abs=1e-12)


@given(laws, strengths, strengths)
def test_a_vector_beside_itself_is_steered_by_both_strengths(law, one, other):
    joint = JointLaw(law, law, 1.0, 1.0)
    assert joint.predict(one, other) == pytest.approx(float(law.predict(one + other)), abs=1e-9)


@given(laws, laws, st.floats(0.1, 2), st.floats(0.1, 2), st.floats(-0.9, 0.9))
def test_the_inverse_along_a_ray_spends_the_budget(first, second, one, other, r):
    joint = JointLaw(first, second, r, r)
    times = joint.invert(0.1, one, other)
    if np.isfinite(times):
        assert joint.predict(times * one, times * other) == pytest.approx(0.1, rel=1e-6)


def test_a_budget_above_the_plateau_is_never_spent():
    low = CrossEntropyLaw(0.0, 1.0, 0.0, 0.05)
    assert JointLaw(low, low, 0.0, 0.0).invert(0.1, 1.0, 1.0) == float("inf")


def test_the_cross_term_is_the_covariance_of_the_log_odds(loaded, sequences, parts):
    run, one, other = parts
    curvatures = [
        measure_log_odds(loaded, run, site, ()).law(1).curvature
        for site in (one, other, mixed(one, 1.0, other, 1.0))
    ]
    covariances, variances = [], []
    for sequence in sequences:
        ids = torch.tensor([sequence.ids])
        rows = slice(sequence.start - 1, len(sequence.ids) - 1)

        def logits(site, strength, ids=ids, rows=rows):
            with site.apply(loaded.blocks, strength):
                return loaded.model(input_ids=ids).logits[0, rows].double()

        p = loaded.model(input_ids=ids).logits[0, rows].double().softmax(-1)
        odds = [(logits(s, 0.01) - logits(s, -0.01)) / 0.02 for s in (one, other)]
        means = [(p * m).sum(-1, keepdim=True) for m in odds]
        centred = [m - mean for m, mean in zip(odds, means, strict=True)]
        covariances += (p * centred[0] * centred[1]).sum(-1).tolist()
        variances += (p * centred[0] ** 2).sum(-1).tolist()
    assert curvatures[0] == pytest.approx(np.mean(variances), rel=1e-3)
    expected = np.mean(covariances) / np.sqrt(curvatures[0] * curvatures[1])
    assert correlation_of(*curvatures) == pytest.approx(expected, abs=2e-3)
