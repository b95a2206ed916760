"""Other budgets, where the first one asked for does not ship.

A change that is too small is worth more strength, up to the next larger budgets. Where replies
loop, break or forget, more strength does more harm, so that smaller budgets are tried. A budget
that the refusal of another leaves no hope for is left out (`search.refusals`). No study is made
again. The law of ΔCE names the strength that spends a budget, passes over the search corpus correct
it, and verification holds it to that budget.

Each budget is one more test on the same prompts, at the confidence of a single one: with k budgets
a change of 0 ships with a probability of up to k times what `search.effect` states. The share of
loops is likewise looked at once more for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from calibrate.common.errors import Infeasible
from calibrate.common.settings import Settings
from calibrate.common.trial import PROPOSED_SHARE
from calibrate.engine.unsteered import UnsteeredRun
from calibrate.laws.pilot import Pilot
from calibrate.models.model import LoadedModel
from calibrate.search.budget import ascending, spending_strength
from calibrate.search.refusals import LESS, MORE, Neither, TooLittle, TooMuch
from calibrate.search.verification import Verified


@dataclass(frozen=True, eq=False)
class Bought:
    """What was verified, by the settings with the budget that bought it; the pilot likewise.

    Its law goes through the strength that spends that budget.
    """

    verified: Verified
    pilot: Pilot
    settings: Settings


@dataclass(frozen=True, eq=False)
class Asked:
    """Budgets that were asked for, in the order they are tried, and what refused some of them."""

    budgets: tuple[float, ...]
    refusals: Mapping[float, Infeasible] = field(default_factory=dict)

    def refused(self, budget: float, refusal: Infeasible) -> Asked:
        """These, one of which was refused."""
        return replace(self, refusals={**self.refusals, budget: refusal})

    @property
    def left(self) -> list[float]:
        """Those not yet tried that may ship, for all that the refusals of others say."""
        least = max(self._of(TooLittle), default=0.0)
        most = min(self._of(TooMuch), default=float("inf"))
        untried = (budget for budget in self.budgets if budget not in self.refusals)
        return [budget for budget in untried if least < budget < most]

    @property
    def refusal(self) -> Infeasible:
        """The refusal of them all: the only one, or what each budget's says."""
        if len(self.budgets) == 1:
            return next(iter(self.refusals.values()))
        reasons = [
            f"at {budget:g} nat: {'; '.join(refusal.reasons)}"
            for budget, refusal in sorted(self.refusals.items())
        ]
        if spared := sorted({*self.budgets} - {*self.refusals, *self.left}):
            shown = ", ".join(f"{budget:g}" for budget in spared)
            reasons.append(f"not verified, since it would do no better: {shown} nat")
        advice = [each for refusal in self.refusals.values() for each in refusal.advice]
        useless = {LESS} if self._of(TooLittle) else set()
        useless |= {MORE} if self._of(TooMuch) else set()
        return self._kind(reasons, [each for each in dict.fromkeys(advice) if each not in useless])

    def unafforded(self) -> Infeasible:
        """The refusal where the limits leave no room to verify the next budget."""
        more = f"verify {self.left[0]:g} nat too, with a higher --max-tokens or --max-minutes"
        refusal = self.refusal
        return type(refusal)(refusal.reasons, [more, *refusal.advice])

    @property
    def _kind(self) -> type[Infeasible]:
        if self._of(TooLittle) and self._of(TooMuch):
            return Neither
        return TooLittle if self._of(TooLittle) else TooMuch if self._of(TooMuch) else Infeasible

    def _of(self, kind: type[Infeasible]) -> list[float]:
        """The budgets that were refused in this way."""
        return [budget for budget, one in self.refusals.items() if isinstance(one, kind)]


def asked_budgets(others: Iterable[float], settings: Settings) -> Asked:
    """The first budget, then larger ones, and then smaller ones, the nearest first.

    Raises: InputError if one is out of range.
    """
    first, checked = settings.ce_budget, ascending(others)
    larger = [budget for budget in checked if budget > first]
    smaller = [budget for budget in reversed(checked) if budget < first]
    return Asked((first, *larger, *smaller))


def spendable_pilots(
    run_at: Callable[[Settings], Mapping[str, Pilot]], asked: Asked, settings: Settings
) -> tuple[Mapping[str, Pilot], Asked, Settings]:
    """Run the pilots at the first budget, or the next smaller one that can be spent.

    Returns: the pilots, the budgets with those refused that cannot be spent, and the settings with
        the budget that can be.
    Raises: Infeasible if the law of ΔCE levels off below all of them.
    """
    first = asked.budgets[0]
    for budget in (first, *(each for each in asked.budgets if each < first)):
        its = replace(settings, ce_budget=budget)
        try:
            return run_at(its), asked, its
        except Infeasible as plateau:
            asked = asked.refused(budget, TooMuch(plateau.reasons, plateau.advice))
    raise asked.refusal


def verify_affordable(
    verify_at: Callable[[float, Settings], Verified],
    loaded: LoadedModel,
    run: UnsteeredRun,
    pilot: Pilot,
    strength: float,
    settings: Settings,
    asked: Asked,
    affords: Callable[[int], bool] = lambda _: True,
) -> Bought:
    """Verify a strength, and where it is refused, what the other budgets that may ship name.

    verify_at: verifies a strength. run: of the search corpus. strength: for the budget of the
        settings, which the pilot was run at. affords: whether the limits leave room for so many
        more verifications.
    Raises: Infeasible if no budget ships, with the reasons of each.
    """
    while asked.left:
        budget = asked.left[0]
        if asked.refusals and not affords(1):
            raise asked.unafforded()
        its, its_pilot, tried = replace(settings, ce_budget=budget), pilot, strength
        try:
            if budget != settings.ce_budget:
                spending, law = spending_strength(
                    loaded, run, pilot.site, pilot.law, budget, settings.sign
                )
                at_budget = pilot.strength_at_budget.scaled_to(spending)
                its_pilot = replace(pilot, law=law, strength_at_budget=at_budget)
                tried = PROPOSED_SHARE * spending
            return Bought(verify_at(tried, its), its_pilot, its)
        except Infeasible as refusal:
            asked = asked.refused(budget, refusal)
    raise asked.refusal
