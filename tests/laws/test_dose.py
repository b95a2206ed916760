"""The effective dose starts as the strength, bends one way, and can be undone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrate.laws.dose import dose_of, saturation_of, strength_of

saturations = st.floats(-4, 4)
sizes = st.floats(1e-3, 1e3)
signs = st.sampled_from([1, -1])


@given(saturations, sizes, signs)
def test_the_strength_of_a_dose_undoes_it(saturation, size, sign):
    strength = sign * size
    dose = float(dose_of(strength, saturation))
    assert np.sign(dose) == sign
    assert strength_of(dose, saturation) == pytest.approx(strength, rel=1e-9)


@given(saturations, sizes, signs)
def test_the_saturation_is_recovered_from_one_dose(saturation, size, sign):
    strength = sign * size
    dose = float(dose_of(strength, saturation))
    found = saturation_of(strength, dose)
    assert float(dose_of(strength, found)) == pytest.approx(dose, rel=1e-9)
    assert found * size == pytest.approx(saturation * size, rel=1e-3, abs=1e-6)


@given(saturations)
def test_the_dose_rises_and_starts_as_the_strength(saturation):
    strengths = np.geomspace(1e-6, 1e3, 200)
    doses = dose_of(strengths, saturation)
    assert (np.diff(doses) > 0).all()
    assert doses[0] == pytest.approx(strengths[0], rel=1e-6)
    assert dose_of(-strengths, saturation) == pytest.approx(-doses)


def test_the_dose_falls_behind_the_strength_or_outruns_it():
    """By hand: (1·4)^3/2 = 8, and √(1 + 8) = 3."""
    assert dose_of(4.0, 1.0) == pytest.approx(4 / 3)
    assert dose_of(4.0, -1.0) == pytest.approx(12.0)
    assert dose_of(4.0, 0.0) == 4.0


def test_nothing_and_everything_stay_what_they_are():
    assert strength_of(0.0, 1.0) == 0.0
    assert strength_of(float("inf"), 1.0) == float("inf")
