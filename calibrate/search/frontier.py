"""The frontier: what each budget buys at a calibrated site, measured point by point.

Every budget gets its own strength, by the law of ΔCE and passes over the search corpus, and its own
one-sided bound on the verification's replies, from small strengths to large (`search.budget`).
Replies to the verification's prompts show presence, loops and fluency there. A budget that cannot
be held, or that the law levels off below, is missed, and said to be. Budgets are gone through from
small to large, until more strength only breaks the model (`search.frontier_end`) or silences it.

A point stays at the strength that spends its budget. A calibration and a pick also step down from
there while long replies loop (`search.budget`). Loops are judged by the mean over 24 long replies,
which need not grow with the strength: a point may loop too much between two that do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from calibrate.common.cost import Ledger
from calibrate.common.errors import Infeasible
from calibrate.common.estimate import RatioEstimate
from calibrate.common.record import TestedStrength
from calibrate.common.settings import Settings
from calibrate.common.trial import PROPOSED_SHARE
from calibrate.engine.cross_entropy import delta_ce
from calibrate.engine.divergence import Way, divergence
from calibrate.engine.generation import Completion, Request, sample_all
from calibrate.engine.site import Site
from calibrate.engine.unsteered import Corpus, UnsteeredRun, run_unsteered
from calibrate.judging.fluency import Fluency, measure_fluency
from calibrate.judging.guard import Guarded, measure_guard
from calibrate.judging.panel import Panel
from calibrate.judging.presence import Presence, measure_presence, read
from calibrate.laws.formulas import CrossEntropyLaw
from calibrate.models.model import LoadedModel
from calibrate.search.budget import spending_strength, verify_budget
from calibrate.search.effect import LOOKS
from calibrate.search.frontier_end import End, Known, end_of
from calibrate.search.long_run import answer_at_length
from calibrate.texts.guard import Guard
from calibrate.texts.replies import UnsteeredReplies
from probes import Reader


class Silenced(Infeasible):
    """Hardly a reply says anything, so that nothing can be said of them."""


@dataclass(frozen=True, eq=False)
class Bench:
    """What all points of a frontier are measured on, and by whom.

    panel: the judges; those of final replies read. corpora: "search" names strengths, "verify"
    holds them to their budgets. guard: questions put at each point.
    """

    loaded: LoadedModel
    site: Site
    panel: Panel
    replies: UnsteeredReplies
    corpora: dict[str, Corpus]
    settings: Settings
    guard: Guard | None = None

    @property
    def reader(self) -> Reader:
        """Who reads presence."""
        return self.panel.final

    @property
    def auditor(self) -> Reader | None:
        """The second judge, if there is one."""
        return self.panel.auditor

    @cached_property
    def runs(self) -> dict[str, UnsteeredRun]:
        """The unsteered pass over each corpus."""
        layers = [self.site.first]
        return {
            split: run_unsteered(self.loaded, corpus, layers)
            for split, corpus in self.corpora.items()
        }

    @cached_property
    def baseline(self) -> Presence:
        """Presence in the plain replies to the verification's prompts."""
        return read(self.reader, self.plain)

    @cached_property
    def audited_baseline(self) -> Presence | None:
        """The same by the second judge."""
        return None if self.auditor is None else read(self.auditor, self.plain)

    @property
    def plain(self) -> tuple[Completion, ...]:
        """The plain replies to the verification's prompts."""
        return self.replies.completions["verify"]

    @cached_property
    def plain_run(self) -> UnsteeredRun:
        """The unsteered pass over the first plain replies."""
        own = self.corpora["verify"].self_sampled
        return self.runs["verify"] if own else self.run(self.replies.first_replies("verify"))

    @cached_property
    def fluency(self) -> Fluency:
        """Of the first plain replies."""
        return measure_fluency(self.loaded, self.replies.first_replies("verify"), self.plain_run)

    def run(self, replies: Sequence[Completion]) -> UnsteeredRun:
        """An unsteered pass over replies that are not empty."""
        corpus = Corpus(tuple(reply.sequence for reply in replies), self_sampled=False)
        return run_unsteered(self.loaded, corpus, [self.site.first])

    def change(self, presence: Presence) -> RatioEstimate:
        """The change of presence in these replies.

        Raises: Silenced where fewer than two prompts are answered by these and by plain ones.
        """
        answered = presence.by_prompt.keys() & self.baseline.by_prompt.keys()
        first = {reply.prompt_index for reply in presence.first_replies if reply.spoken}
        if min(len(answered), len(first & {*self.fluency.prompts})) < 2:
            raise Silenced(["fewer than two prompts are answered with more than silence"])
        return presence.change_from(self.baseline)

    def audited(self, presence: Presence) -> RatioEstimate | None:
        """The change of presence in these replies by the second judge."""
        if self.auditor is None or self.audited_baseline is None:
            return None
        return read(self.auditor, presence.completions).change_from(self.audited_baseline)

    def guarded(self, strength: float) -> Guarded | None:
        """How the guard's questions are answered at a strength, if there is a guard."""
        if self.guard is None:
            return None
        return measure_guard(self.loaded, self.guard, self.site, strength)

    def cost(self, strength: float) -> RatioEstimate:
        """KL(plain‖steered) at the replies' temperature, nats a token, over plain replies."""
        plain, steered = self._ways(strength)
        return self._spent(plain, steered, self.replies.first_replies("verify"), self.plain_run)

    def cost_back(
        self, strength: float, replies: Sequence[Completion], run: UnsteeredRun
    ) -> RatioEstimate:
        """KL(steered‖plain) there, over replies at this strength; run: the pass over them."""
        plain, steered = self._ways(strength)
        return self._spent(steered, plain, replies, run)

    def costs(self, strength: float) -> tuple[RatioEstimate, RatioEstimate]:
        """Both of them, over a reply to each prompt as the verification draws it."""
        request = Request(self.replies.prompts["verify"], 1, self.site.steering(strength))
        (drawn,) = sample_all(self.loaded, [request], self.settings.sampling, self.settings.seed)
        spoken = [reply for reply in drawn if reply.spoken]
        return self.cost(strength), self.cost_back(strength, spoken, self.run(spoken))

    def _ways(self, strength: float) -> tuple[Way, Way]:
        prompts = self.replies.prompts["verify"]
        return Way(prompts), Way(prompts, self.site, strength)

    def _spent(
        self, mine: Way, other: Way, replies: Sequence[Completion], run: UnsteeredRun
    ) -> RatioEstimate:
        temperature = self.settings.sampling.temperature
        return divergence(self.loaded, mine, other, replies, [temperature], run)[0]


@dataclass(frozen=True, eq=False)
class Point:
    """One strength of the frontier, measured on prompts and replies that nothing was tuned on.

    tested: the strengths tried for this budget. change, audited: of presence, by either judge.
    loops: what long replies are like, the share of tokens in loops and how much more than
    unsteered; None without room for them. fluency_drop: nats a token. cost, cost_back:
    KL(plain‖steered) and KL(steered‖plain) at the replies' temperature, nats a token. guarded: how
    the guard's questions are answered.
    """

    budget: float
    strength: float
    tested: tuple[TestedStrength, ...]
    delta_ce: RatioEstimate
    presence: Presence
    change: RatioEstimate
    audited: RatioEstimate | None
    loops: tuple[RatioEstimate, RatioEstimate] | None
    fluency_drop: RatioEstimate
    cost: RatioEstimate
    cost_back: RatioEstimate
    guarded: Guarded | None

    @property
    def known(self) -> Known:
        """What is kept of it for the points after it."""
        change, loops = self.change, self.loops
        return Known(
            self.budget,
            self.presence.estimate.value,
            change.value,
            change.standard_error,
            self.presence.empty,
            None if loops is None else (loops[0].value, loops[1].value),
        )


@dataclass(frozen=True, eq=False)
class Frontier:
    """What budgets buy.

    points: from small to large. missed: why each other budget was not measured. ended: why nothing
    after the last point was tried; None where every budget was.
    """

    points: tuple[Point, ...]
    missed: dict[float, str]
    ended: End | None


def measure_frontier(
    bench: Bench,
    law: CrossEntropyLaw,
    budgets: Sequence[float],
    ledger: Ledger,
    earlier: Sequence[Known] = (),
    silent: End | None = None,
) -> Frontier:
    """Measure what each budget buys, from small to large, until more only breaks the model.

    law: of ΔCE at the site. ledger: books what each budget took, by `stage_of`. earlier: points
    of other budgets that these are added to. silent: the budget that silenced the model then.
    """
    sign, known = bench.settings.sign, list(earlier)
    points: list[Point] = []
    missed: dict[float, str] = {}
    ended = end_of(known, sign) or silent
    for budget in sorted(budgets):
        if ended is not None and budget > ended.budget:
            missed[budget] = ended.forbids
            continue
        try:
            with ledger.stage(stage_of(budget)):
                point, law = _measured(bench, law, budget)
        except Infeasible as failure:
            missed[budget] = str(failure)
            farthest = all(each.budget < budget for each in known)
            if isinstance(failure, Silenced) and farthest:
                ended = End(budget, str(failure))
            continue
        points.append(point)
        known.append(point.known)
        ended = end_of(known, sign) or ended
    return Frontier(tuple(points), missed, ended)


def stage_of(budget: float) -> str:
    """What a budget's stage is called."""
    return f"{budget:g} nat"


def _measured(bench: Bench, law: CrossEntropyLaw, budget: float) -> tuple[Point, CrossEntropyLaw]:
    """What a budget buys, and the law through the strength that spends it."""
    loaded, settings, site = bench.loaded, bench.settings, bench.site
    wanted, law = spending_strength(loaded, bench.runs["search"], site, law, budget, settings.sign)
    verified = verify_budget(
        lambda tried: delta_ce(loaded, bench.runs["verify"], site, tried),
        PROPOSED_SHARE * wanted,
        budget,
        settings.confidence,
    )
    strength, steering = verified.strength, site.steering(verified.strength)
    prompts = bench.replies.prompts["verify"]
    request = Request(prompts, LOOKS[0], steering)
    (presence,) = measure_presence(
        loaded, bench.reader, [request], settings.sampling, settings.seed
    )
    change = bench.change(presence)
    loops = None
    long_replies = answer_at_length(loaded, prompts, settings, steering)
    if long_replies is not None:
        steered = long_replies.steered(steering)
        loops = long_replies.loops(steered), long_replies.excess(steered)
    spoken = [reply for reply in presence.first_replies if reply.spoken]
    run = bench.run(spoken)
    point = Point(
        budget=budget,
        strength=strength,
        tested=verified.tested,
        delta_ce=verified.delta_ce,
        presence=presence,
        change=change,
        audited=bench.audited(presence),
        loops=loops,
        fluency_drop=measure_fluency(loaded, spoken, run).drop_from(bench.fluency),
        cost=bench.cost(strength),
        cost_back=bench.cost_back(strength, spoken, run),
        guarded=bench.guarded(strength),
    )
    return point, law
