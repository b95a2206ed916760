"""Larger budgets, for a gain that the first one does not buy.

Only a change that is too small is worth more strength: where replies loop, break or forget, more of
it does more harm. No study is made again. The law of ΔCE names the strength that spends a larger
budget, passes over the search corpus correct it, and verification holds it to that budget.

Each budget is one more test on the same prompts, at the confidence of a single one: with k budgets
a change of 0 ships with a probability of up to k times what `search.effect` states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from calibrate.common.errors import Infeasible, InputError
from calibrate.common.settings import Settings
from calibrate.engine.unsteered import UnsteeredRun
from calibrate.laws.pilot import Pilot
from calibrate.models.model import LoadedModel
from calibrate.search.budget import ascending, spending_strength
from calibrate.search.refusals import TooLittle
from calibrate.search.trials import PROPOSED_SHARE
from calibrate.search.verification import Verified


@dataclass(frozen=True, eq=False)
class Bought:
    """What was verified, by the settings with the budget that bought it; the pilot likewise."""

    verified: Verified
    pilot: Pilot
    settings: Settings


def checked_larger(budgets: Iterable[float], settings: Settings) -> tuple[float, ...]:
    """Budgets to go on to, each once, from small to large.

    Raises: InputError if one is out of range, or not above the first.
    """
    checked = ascending(budgets)
    if checked and checked[0] <= settings.ce_budget:
        raise InputError(
            f"larger budgets must be above ce_budget {settings.ce_budget:g}, got {checked[0]:g}"
        )
    return checked


def verify_affordable(
    verify_at: Callable[[float, Settings], Verified],
    loaded: LoadedModel,
    run: UnsteeredRun,
    pilot: Pilot,
    strength: float,
    settings: Settings,
    larger: Iterable[float],
    affords_another: Callable[[], bool] = lambda: True,
) -> Bought:
    """Verify a strength, and where it buys too little, what the next larger budget names.

    verify_at: verifies a strength. run: of the search corpus. larger: budgets from small to large.
    affords_another: whether the limits leave room for one more verification.
    Raises: Infeasible as `search.verification.verify` does, for the largest budget that can be
        spent.
    """
    law = pilot.law
    for budget in larger:
        try:
            return Bought(verify_at(strength, settings), pilot, settings)
        except TooLittle as too_little:
            if not affords_another():
                more = f"verify {budget:g} nat too, with a higher --max-tokens or --max-minutes"
                raise TooLittle(too_little.reasons, [more, *too_little.advice]) from None
            try:
                spending, law = spending_strength(
                    loaded, run, pilot.site, law, budget, settings.sign
                )
            except Infeasible:
                raise too_little from None
        settings = replace(settings, ce_budget=budget)
        pilot = replace(pilot, strength_at_budget=pilot.strength_at_budget.scaled_to(spending))
        strength = PROPOSED_SHARE * spending
    return Bought(verify_at(strength, settings), pilot, settings)
