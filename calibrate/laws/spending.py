"""The strength that spends a budget of ΔCE: named by a law, which passes correct.

A pass at the strength the law names gives the saturation, and with it the law names another. If
that is less than CLOSE away, and the pass cost about the budget, it is taken without a pass: an
error of a twentieth in the law's exponent would move it by CLOSE/20. Otherwise the next pass runs
there, up to MAX_PASSES, or FURTHER_PASSES more while none has cost about the budget.

On text the model has not written, ΔCE has a slope: a pass may cost less than nothing, or what no
law explains. Where the law names a strength it was wrong at, or one beyond those already known to
cost too little or too much, the next pass runs between these, or at up to twice the strength; so
do the further ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from calibrate.common.errors import CalibrateWarning, Infeasible
from calibrate.laws.formulas import CrossEntropyLaw

CLOSE = 0.03  # relative change of α_B below which no further pass is made
SPENT = 0.12  # relative error of a cost about the budget: without a slope, CLOSE makes 11 % of cost
MAX_PASSES = 3  # over all sequences, where one of them costs about the budget
FURTHER_PASSES = 3  # beyond those, while none does
FARTHEST = 4.0  # times a strength that is known to cost too little: the law is not believed beyond

Cost = tuple[float, float]  # a strength, and the ΔCE of a pass there


@dataclass(frozen=True)
class Spent:
    """The strength that spends a budget, and the law of ΔCE that names it.

    fitted_at: strengths of the passes the law was fitted to, the one nearest to the budget first.
    """

    strength: float
    law: CrossEntropyLaw
    fitted_at: tuple[float, ...]


def spend_budget(
    rise_at: Callable[[float], float],
    law: CrossEntropyLaw,
    slope_known: bool,
    budget: float,
    sign: int,
    where: str,
) -> Spent:
    """Run passes until one costs the budget, and the law through the nearest names it again.

    rise_at: ΔCE of a strength, nats per token, by a pass. law: names the first strength.
    slope_known: whether the law's slope is that of the text; else it is fitted to the two nearest
    passes. where: the steered blocks in words.
    Raises: Infeasible if the law levels off at or below the budget; it says at which sign.
    Warns with CalibrateWarning if no pass came near to the budget; the strength is then a guess.
    """
    if law.plateau <= budget:
        raise Infeasible(
            [
                f"no {'positive' if sign > 0 else 'negative'} strength at {where} raises "
                f"cross-entropy by the budget of {budget:g} nat: the law levels off at "
                f"{law.plateau:.3g} nat"
            ],
            ["ask for a smaller --ce-budget, or another --layer"],
        )
    passes: list[Cost] = []
    prior, strength, spent = law, law.invert(budget, sign), False
    while len(passes) < MAX_PASSES + (0 if spent else FURTHER_PASSES):
        passes.append((strength, rise_at(strength)))
        nearest = _by_nearness(passes, budget)
        fitted = nearest[: 1 if slope_known else 2]
        law = prior.through_nearest(fitted)
        named, spent = law.invert(budget, sign), _costs(nearest[0], budget)
        settled = _costs(passes[-1], budget) and abs(named / strength - 1) < CLOSE
        strength = named if settled else _following(named, law, passes, budget)
        if settled:
            break
    if not spent:
        _warn_unspent(nearest[0], len(passes), budget, where)
    return Spent(strength, law, tuple(at for at, _ in fitted))


def _by_nearness(passes: Sequence[Cost], budget: float) -> list[Cost]:
    """Passes by how nearly they spent the budget; those without a rise last, latest first."""
    rising = [(at, rise) for at, rise in passes if rise > 0]
    flat = [(at, rise) for at, rise in passes if rise <= 0]
    return sorted(rising, key=lambda cost: abs(np.log(cost[1] / budget))) + flat[::-1]


def _costs(cost: Cost, budget: float) -> bool:
    return abs(cost[1] / budget - 1) < SPENT


def _bracket(passes: Sequence[Cost], budget: float) -> tuple[Cost, Cost]:
    """Sizes of strengths, and their costs, between which the budget is spent first.

    As far as passes tell: from 0, and to an infinite one where all cost less.
    """
    sizes = [(0.0, 0.0), *((abs(at), rise) for at, rise in passes)]
    high = min((cost for cost in sizes if cost[1] >= budget), default=(np.inf, np.inf))
    return max(cost for cost in sizes if cost[1] < budget and cost[0] < high[0]), high


def _following(named: float, law: CrossEntropyLaw, passes: Sequence[Cost], budget: float) -> float:
    """The strength for the next pass: the one the law names, unless passes contradict it.

    Then, and in further passes, it is that of a parabola through what is known on either side.
    """
    (low, little), (high, much) = _bracket(passes, budget)
    refuted = any(
        abs(named / at - 1) < CLOSE and abs(float(law.predict(at)) - rise) > SPENT * budget
        for at, rise in passes
    )
    likely = low < abs(named) < min(high, FARTHEST * low if low else high) and not refuted
    if likely and (len(passes) <= MAX_PASSES or np.isinf(high)):
        return named
    wanted, least, most = np.sqrt([budget, max(little, 0.0), much])
    if np.isinf(high):
        size = low * min(2.0, wanted / max(least, 1e-12))
    elif low == 0:
        size = high * budget / much
    else:
        size = low + (high - low) * (wanted - least) / (most - least)
    return float(np.copysign(size, named))


def _warn_unspent(nearest: Cost, n_passes: int, budget: float, where: str) -> None:
    strength, rise = nearest
    warnings.warn(
        f"a strength at {where} should cost the budget of {budget:g} nat, but of {n_passes} tried "
        f"the nearest, {strength:.3g}, costs {rise:.3g}; α at the budget is a guess: give another "
        "--ce-budget or --layer, or leave --corpus out",
        CalibrateWarning,
        stacklevel=3,
    )
