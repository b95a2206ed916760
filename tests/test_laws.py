"""The laws are what their formulas say, and undo each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrate.laws import ConceptLaw, CrossEntropyLaw, Goodness

curvatures = st.floats(1e-3, 10)
plateaus = st.floats(2, 30)
budgets = st.floats(0.01, 0.5)


@st.composite
def laws(draw):
    """Laws whose denominator stays positive."""
    curvature, plateau = draw(curvatures), draw(plateaus)
    most_negative = -0.9 * np.sqrt(2 * curvature / plateau)
    return CrossEntropyLaw(
        slope=draw(st.floats(-0.05, 0.05)),
        curvature=curvature,
        saturation=draw(st.floats(float(most_negative), 2)),
        plateau=plateau,
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
    assert (plus - minus) / (2 * step) == pytest.approx(law.slope, abs=2e-6)
    assert (plus + minus) / step**2 == pytest.approx(law.curvature, rel=1e-3)


@given(curvatures, plateaus)
def test_the_law_without_slope_and_saturation_is_quadratic_near_zero(curvature, plateau):
    law = CrossEntropyLaw(0.0, curvature, 0.0, plateau)
    strength = 1e-3
    assert law.predict(strength) == pytest.approx(0.5 * curvature * strength**2, rel=1e-4)


@given(laws())
def test_the_law_tends_to_its_plateau(law):
    assert law.predict(1e9) == pytest.approx(law.plateau, rel=1e-3)
    assert law.predict(-1e9) == pytest.approx(law.plateau, rel=1e-3)


def test_a_plateau_below_the_budget_cannot_be_inverted():
    assert CrossEntropyLaw(0.0, 1.0, 0.0, 0.05).invert(0.1) == float("inf")
    assert CrossEntropyLaw(0.0, 1.0, 0.0, 0.05).invert(0.1, -1) == -float("inf")


@given(laws(), st.lists(st.floats(0.1, 3), min_size=1, max_size=3, unique=True))
def test_the_saturation_is_recovered_from_points_of_the_law(law, strengths):
    flat = CrossEntropyLaw(0.0, law.curvature, law.saturation, law.plateau)
    strengths = np.array(strengths)
    fitted = CrossEntropyLaw(0.0, law.curvature, 0.0, law.plateau).fitted_to(
        strengths, flat.predict(strengths)
    )
    assert fitted.saturation == pytest.approx(law.saturation, abs=1e-6)


@given(st.floats(0.001, 0.9), st.floats(-3, 3), st.floats(-2, 2))
def test_the_concept_law_is_a_sigmoid_through_the_unsteered_mass(mass, gain, strength):
    law = ConceptLaw.from_mass(mass, gain)
    assert law.predict(0.0) == pytest.approx(mass)
    odds = law.predict(strength) / (1 - law.predict(strength))
    assert odds == pytest.approx(mass / (1 - mass) * np.exp(gain * strength), rel=1e-6)


def test_the_strength_that_doubles_the_odds():
    law = ConceptLaw.from_mass(0.2, 0.5)
    at = law.predict(law.strength_for(2.0))
    assert at / (1 - at) == pytest.approx(2 * 0.25)
    assert ConceptLaw.from_mass(0.2, 0.0).strength_for(2.0) == float("inf")


def test_goodness_can_fail():
    assert Goodness(1.0, predicted=0.1, measured=0.103).good
    assert not Goodness(1.0, predicted=0.1, measured=0.12).good
