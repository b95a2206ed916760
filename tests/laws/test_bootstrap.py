"""Laws of resampled sequences, and intervals of α at the budget where some cannot spend it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calibrate.common.estimate import RatioEstimate
from calibrate.common.settings import Settings
from calibrate.laws.bootstrap import resampled_laws, standard_errors, strength_interval
from calibrate.laws.formulas import CrossEntropyLaw
from calibrate.laws.log_odds import LogOdds
from calibrate.laws.tokens import TokenLaw

LAW = CrossEntropyLaw(slope=0.0, curvature=2.0, saturation=0.0, plateau=5.0)


@pytest.mark.parametrize("goal", ["increase", "decrease"])
def test_resamples_that_level_off_below_the_budget_leave_the_interval_finite(goal):
    settings = Settings(goal=goal)
    laws = [LAW] * 500 + [replace(LAW, plateau=0.08)] * 500
    low, high = strength_interval(laws, 64, settings)
    assert np.isfinite([low, high]).all()
    named = LAW.invert(settings.ce_budget, settings.sign)
    assert low <= named <= high
    assert max(abs(low), abs(high)) > 1.3 * abs(named)


def test_where_the_slope_was_fitted_its_error_is_that_of_the_fit():
    """All sequences cost the same, so that the fit is certain; the first ones' slopes are not."""
    true, one, n_first, n = replace(LAW, slope=0.02, saturation=0.1), np.ones(4), 4, 16
    odds = LogOdds(
        curvature=true.curvature * one,
        slope=np.array([-0.3, 0.0, 0.1, 0.3]),
        plateaus={1: true.plateau * one, -1: true.plateau * one},
        counts=one,
        mass=0.1 * one,
        mass_change=0.0 * one,
        tokens=TokenLaw(np.zeros((1, 2)), np.zeros((1, 2))),
    )
    passes = [
        (at, RatioEstimate(float(true.predict(at)) * np.ones(n), np.ones(n))) for at in (0.3, 0.2)
    ]
    both = resampled_laws(odds, passes, Settings())
    assert np.mean([law.slope for law in both]) == pytest.approx(true.slope, rel=1e-6)
    errors = standard_errors(both)
    assert max(errors["slope"], errors["saturation"]) < 1e-6
    near = standard_errors(resampled_laws(odds, passes[:1], Settings()))
    assert near["slope"] == pytest.approx(np.std(odds.slope) / np.sqrt(n_first), rel=0.2)
