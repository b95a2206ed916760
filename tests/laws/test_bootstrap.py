"""Intervals of α at the budget, where some resamples cannot spend it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calibrate.common.settings import Settings
from calibrate.laws.bootstrap import strength_interval
from calibrate.laws.formulas import CrossEntropyLaw

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
