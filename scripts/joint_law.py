"""The joint law of two vectors: what they cost together, from what each costs alone.

With strengths α₁ and α₂ a token's log-odds move by α₁M₁ + α₂M₂, so that ΔCE near 0 is half a
quadratic form (Theorem 3.8 of arXiv:2602.02712 for one vector):

    q(α₁, α₂) = ½(c₁₁α₁² + 2c₁₂α₁α₂ + c₂₂α₂²),    c₁₂ = E Cov_p₀[M₁, M₂]

The cross term comes from the curvature of the sum of both: c₁₂ = ½(c(v₁ + v₂) - c₁₁ - c₂₂). It is
a correlation, r = c₁₂/√(c₁₁c₂₂), that says whether the vectors pay for the same changes (r near 1),
for different ones (0), or undo each other's (r < 0).

Farther out the doses saturate. Norm layers divide by the size of the residual stream, which the
shift α₁v₁ + α₂v₂ makes grow; so the saturations add up as its length does, with the cosine of v₁
and v₂, and the plateau is that of the vector that moves the residual stream more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import brentq

from calibrate.engine.unsteered import UnsteeredRun
from calibrate.laws.dose import dose_of
from calibrate.laws.formulas import CrossEntropyLaw
from calibrate.laws.log_odds import measure_log_odds
from calibrate.laws.pilot import Pilot
from calibrate.models.model import LoadedModel
from calibrate.search.joint import mixed

FARTHEST = 64.0  # times the strengths named, within which a ray is searched for a budget


@dataclass(frozen=True)
class JointLaw:
    """ΔCE of two vectors steered together.

    first, second: the law of each alone, for strengths of the signs that are used. correlation: of
    their log-odds, in [-1, 1]. cosine: of the vectors, in [-1, 1].
    """

    first: CrossEntropyLaw
    second: CrossEntropyLaw
    correlation: float
    cosine: float

    def predict(self, first: float, second: float) -> float:
        """ΔCE in nats per token at two strengths."""
        factor = self._factor(first, second)
        a, b = factor * first, factor * second
        cross = self.correlation * np.sqrt(self.first.curvature * self.second.curvature)
        reach = self.first.slope * a + self.second.slope * b
        reach += 0.5 * (self.first.curvature * a**2 + self.second.curvature * b**2)
        reach += cross * a * b
        return float(reach / (1 + max(reach, 0.0) / self._plateau(first, second)))

    def invert(self, budget: float, first: float, second: float) -> float:
        """How many times the two strengths spend a budget together.

        Returns: infinity if no multiple up to FARTHEST does.
        """

        def left(times: float) -> float:
            return self.predict(times * first, times * second) - budget

        if left(FARTHEST) <= 0:
            return float("inf")
        return float(brentq(left, 0.0, FARTHEST))

    def _factor(self, first: float, second: float) -> float:
        """Effective dose over strength, the same for both."""
        x, y = self.first.saturation * abs(first), self.second.saturation * abs(second)
        alike = self.cosine * np.sign(first) * np.sign(second)
        squared = x * abs(x) + y * abs(y) + 2 * alike * np.sign(x + y) * abs(x * y)
        size = float(np.sign(squared) * np.sqrt(abs(squared)))
        return float(dose_of(1.0, size))

    def _plateau(self, first: float, second: float) -> float:
        """Of the vector that moves the residual stream more."""
        costs = self.first.curvature * first**2, self.second.curvature * second**2
        return self.first.plateau if costs[0] >= costs[1] else self.second.plateau


def joint_law(loaded: LoadedModel, run: UnsteeredRun, first: Pilot, second: Pilot) -> JointLaw:
    """The law of both together: one derivative more, along their sum in units of their α_B.

    run: the first sequences, on which both pilots measured their log-odds.
    """
    a, b = first.strength_at_budget.value, second.strength_at_budget.value
    both = mixed(first.site, a, second.site, b)
    together = measure_log_odds(loaded, run, both, ()).law(1).curvature
    costs = a**2 * first.law.curvature, b**2 * second.law.curvature
    cosine = torch.nn.functional.cosine_similarity(first.site.total, second.site.total, dim=0)
    return JointLaw(first.law, second.law, correlation_of(*costs, together), float(cosine))


def correlation_of(first: float, second: float, together: float) -> float:
    """The correlation of two vectors' log-odds from their curvatures and that of their sum."""
    cross = 0.5 * (together - first - second)
    return float(np.clip(cross / np.sqrt(first * second), -1.0, 1.0))
