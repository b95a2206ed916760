"""The largest strength that keeps to the budget on held-out text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from calibrate.common.errors import Infeasible
from calibrate.common.estimate import RatioEstimate
from calibrate.common.numbers import in_points
from calibrate.common.record import TestedStrength
from calibrate.common.settings import Settings
from calibrate.engine.cross_entropy import delta_ce
from calibrate.engine.generation import Completion
from calibrate.engine.site import Site
from calibrate.engine.unsteered import UnsteeredRun
from calibrate.laws.formulas import CrossEntropyLaw
from calibrate.laws.spending import spend_budget
from calibrate.models.model import LoadedModel
from calibrate.models.steering import Steering
from calibrate.models.tokens import Prompt
from calibrate.search.long_run import LOOP_MARGIN, LongReplies, LongRun, answer_at_length
from calibrate.search.refusals import LESS, MORE, TooMuch
from probes import Reader

# Shares of the strength the study chose. The steps near 1 are small, since the answer nearly
# always lies there; the first are a fall-back for text unlike the search corpus.
LADDER = (0.5, 0.8, 0.9, 1.0)


@dataclass(frozen=True, eq=False)
class VerifiedBudget:
    """The strength that keeps to the budget, and every strength that was tested.

    rises: ΔCE of each of those, by its strength.
    """

    strength: float
    tested: tuple[TestedStrength, ...]
    rises: Mapping[float, RatioEstimate]

    @property
    def delta_ce(self) -> RatioEstimate:
        """ΔCE of the strength that keeps to the budget."""
        return self.rises[self.strength]

    @property
    def looped(self) -> TestedStrength | None:
        """The smallest strength within the budget whose long replies loop too much, if any do."""
        return next((one for one in self.tested if (one.loop_excess or 0.0) > LOOP_MARGIN), None)


def ascending(budgets: Iterable[float]) -> tuple[float, ...]:
    """Budgets, each once, from small to large.

    Raises: InputError if one is out of range.
    """
    return tuple(sorted({Settings(ce_budget=budget).ce_budget for budget in budgets}))


def spending_strength(
    loaded: LoadedModel,
    run: UnsteeredRun,
    site: Site,
    law: CrossEntropyLaw,
    budget: float,
    sign: int,
) -> tuple[float, CrossEntropyLaw]:
    """The strength that spends a budget on the search corpus, and the law through it.

    run: of the search corpus. law: of ΔCE at the site, corrected by a few passes over it.
    Raises: TooMuch if the law levels off below the budget.
    Warns with CalibrateWarning if no pass comes near to the budget.
    """
    try:
        spent = spend_budget(
            lambda strength: delta_ce(loaded, run, site, strength).value,
            law,
            run.corpus.self_sampled,
            budget,
            sign,
            site.name,
        )
    except Infeasible as plateau:
        raise TooMuch(plateau.reasons, [LESS]) from plateau
    return spent.strength, spent.law


def largest_strength(
    loaded: LoadedModel,
    reader: Reader,
    site: Site,
    strength: float,
    run: UnsteeredRun,
    prompts: Sequence[Prompt],
    settings: Settings,
    rungs: Sequence[float] = LADDER,
) -> tuple[VerifiedBudget, LongRun | None]:
    """The largest share of `strength` within the budget, and without loops in long replies.

    rungs: the shares, from small to large.
    Returns: it, and what long replies are like; None where no long run is asked for or fits.
    Raises: Infeasible as the two below do.
    """
    budget = verify_budget(
        lambda tried: delta_ce(loaded, run, site, tried),
        strength,
        settings.ce_budget,
        settings.confidence,
        rungs,
    )
    steering = cache(site.steering)
    long_replies = answer_at_length(loaded, prompts, settings, steering(budget.strength))
    if long_replies is None:
        return budget, None
    budget, steered = verify_long_run(long_replies, budget, steering)
    return budget, long_replies.read(reader, steered)


def verify_budget(
    measure_delta_ce: Callable[[float], RatioEstimate],
    strength: float,
    budget: float,
    confidence: float,
    rungs: Sequence[float] = LADDER,
) -> VerifiedBudget:
    """Return the largest verified share of `strength`.

    measure_delta_ce: ΔCE of a strength on held-out text. rungs: the shares, from small to large.
    Raises: Infeasible if not even the first strength keeps to the budget.
    """
    tested: list[TestedStrength] = []
    rises: dict[float, RatioEstimate] = {}
    for rung in (share * strength for share in rungs):
        rises[rung] = rise = measure_delta_ce(rung)
        upper = rise.upper(confidence)
        tested.append(TestedStrength(rung, rise.value, upper, upper <= budget))
        if not tested[-1].within:
            break
    passed = [rung for rung in tested if rung.within]
    if not passed:
        first = tested[0]
        raise Infeasible(
            [
                f"at strength {first.strength:.3g}, the smallest tried, held-out ΔCE may be as "
                f"high as {first.upper:.3g} nat ({confidence:.0%} bound), above the budget of "
                f"{budget:g}"
            ],
            [MORE, "give more prompts or a larger --corpus"],
        )
    return VerifiedBudget(passed[-1].strength, tuple(tested), rises)


def verify_long_run(
    long_replies: LongReplies, budget: VerifiedBudget, steering: Callable[[float], Steering]
) -> tuple[VerifiedBudget, tuple[Completion, ...]]:
    """Return the largest strength within the budget whose long replies hardly loop, and those.

    steering: what steers by a strength.
    Raises: TooMuch if those of the smallest loop too.
    """
    tested = list(budget.tested)
    *smaller, largest = [place for place, rung in enumerate(tested) if rung.within]
    others = [steering(tested[place].strength) for place in smaller]
    for place in (largest, *reversed(smaller)):
        rung = tested[place]
        ahead = () if place == largest else others
        steered = long_replies.steered(steering(rung.strength), ahead)
        excess = long_replies.excess(steered)
        tested[place] = replace(rung, loop_excess=excess.value)
        if excess.value <= LOOP_MARGIN:
            return replace(budget, strength=rung.strength, tested=tuple(tested)), steered
    raise TooMuch(
        [
            f"replies of {long_replies.n_tokens} tokens loop too much: even at strength "
            f"{rung.strength:.3g}, the smallest tried, the share of their tokens in loops "
            f"is {in_points(excess.value)} beside unsteered ones, and {in_points(LOOP_MARGIN)} "
            "are allowed"
        ],
        [LESS, "try another --layer"],
    )
