"""The study: Optuna searches site × share of α_B for presence under the budget.

A site is a block, and which positions are steered there. The first trials are what the laws
suggest: nearly all of α_B at each site, then less of it at the best, to see whether presence has
fallen. They are usually the last as well: where the laws hold presence rises with strength
(arXiv:2602.02712, Theorem 3.6), and once they leave less to gain than the wished precision,
nothing more is tried. Otherwise the sampler goes on.

A trial is cheap before it is dear. ΔCE comes first, and beyond the budget nothing is generated;
then prompts are replied to in rungs, and a trial that is clearly behind the best so far, prompt
by prompt, is pruned.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from calibrate.cost import Allowance, Cost, Meter
from calibrate.errors import Infeasible
from calibrate.estimate import RatioEstimate
from calibrate.evidence import Trial
from calibrate.laws import PresenceFit, fit_presence
from calibrate.pilot import Pilot
from calibrate.presence import MOST_EMPTY
from calibrate.progress import SILENT, Progress
from calibrate.settings import SEEDS, Settings
from calibrate.shared_study import (
    FINISHED,
    ORIGIN,
    Direction,
    Proposal,
    SharedStudy,
    StudyStore,
    shared_study,
)

SUGGESTED_SHARE = 0.95  # of α_B: verification wants the upper bound, not the mean, in budget
LOWER_SHARE = 0.75  # tried at the best site, to see whether presence has fallen
SHARES = (0.6, SUGGESTED_SHARE)  # range searched where the laws fit
WIDE_SHARES = (0.05, 1.3)  # range searched where one does not
BEHIND = 0.1  # p-value, by Wilcoxon's test, below which a trial counts as behind the best


@dataclass(frozen=True)
class StudyResult:
    """All finished trials, and the best feasible one."""

    trials: tuple[Trial, ...]
    best: Trial

    @property
    def cost(self) -> Cost:
        """What all trials took, whoever ran them, and when."""
        return Cost(
            sum(trial.token_forwards for trial in self.trials),
            sum(trial.seconds for trial in self.trials),
        )


@dataclass(frozen=True, eq=False)
class Replied:
    """What a trial's replies to the prompts of one rung are like.

    scores: presence in each that is not empty, by the prompt's index. fluency_drop: how much less
    likely they are per token to the unsteered model than its own, nats; None where nobody asked, or
    there is nothing to compare. n_empty: how many are empty.
    """

    scores: Mapping[int, float]
    fluency_drop: RatioEstimate | None = None
    n_empty: int = 0


@dataclass(frozen=True)
class Rise:
    """ΔCE over the search corpus, nats per token, its standard error, and on how many sequences.

    The error is that of not measuring on all of them, and 0 where it was.
    """

    value: float
    standard_error: float
    n_sequences: int


class Objective(Protocol):
    """What a trial measures at a site and strength."""

    @property
    def rungs(self) -> Sequence[slice]:
        """The search prompts, rung by rung."""
        ...

    @property
    def meter(self) -> Meter:
        """Counts what is spent."""
        ...

    def delta_ce(self, site: str, strength: float) -> Rise:
        """ΔCE on the search corpus, measured on as much of it as it takes."""
        ...

    def replies(self, site: str, strength: float, rung: int) -> Replied:
        """What the replies to the search prompts of one rung are like."""
        ...


def laws_hold(pilots: Mapping[str, Pilot]) -> bool:
    """Whether the law of ΔCE held at every site, so that the search may be narrow."""
    return all(pilot.rise_goodness.good for pilot in pilots.values())


def run_study(
    pilots: Mapping[str, Pilot],
    objective: Objective,
    baseline: RatioEstimate,
    settings: Settings,
    store: StudyStore,
    allowance: Allowance | None = None,
    progress: Progress = SILENT,
) -> StudyResult:
    """Search until the laws leave nothing to gain, or `settings.trials` have finished.

    pilots: by site, most promising first. baseline: unsteered presence on the search prompts.
    allowance: what may be spent; the study ends before it would be exceeded, but not before its
        first trial. None for as much as it takes.
    Raises: Infeasible if no trial kept to the budget; ArtefactError if the store holds a study
        of this name made with other settings, or cannot be opened.
    """
    search = _Search(pilots, objective, baseline, settings, allowance, progress)
    direction: Direction = "maximize" if settings.goal == "increase" else "minimize"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        pruner = optuna.pruners.WilcoxonPruner(p_threshold=BEHIND)
    with shared_study(store, direction, pruner) as shared:
        for done in shared.finished:
            progress.tried(as_trial(done))
        shared.take_part(search)
        trials = tuple(as_trial(done) for done in shared.finished)
        return StudyResult(trials, _best(shared, trials, settings))


def _best(shared: SharedStudy, trials: Sequence[Trial], settings: Settings) -> Trial:
    try:
        return as_trial(shared.study.best_trial)
    except ValueError:
        limits = f"ΔCE within {settings.ce_budget:g} nat"
        if settings.max_fluency_drop is not None:
            limits += f" and the drop of fluency within {settings.max_fluency_drop:g}"
        silent = sum(trial.empty > MOST_EMPTY for trial in trials)
        if silent:
            limits += f", or most replies from being empty, as {silent} did not"
        raise Infeasible(
            [f"none of {len(trials)} trials kept {limits}"],
            ["allow more with --ce-budget", "try more with --trials"],
        ) from None


def as_trial(trial: FrozenTrial) -> Trial:
    """A finished trial, as the evidence keeps it."""
    measured = trial.user_attrs
    return Trial(
        number=trial.number,
        site=trial.params["site"],
        share=trial.params["share"],
        strength=measured["strength"],
        delta_ce=measured["delta_ce"],
        delta_ce_error=measured["delta_ce_error"],
        n_sequences=measured["n_sequences"],
        presence=measured.get("presence"),
        n_prompts=measured.get("n_prompts", 0),
        complete=trial.state == TrialState.COMPLETE,
        fluency_drop=measured.get("fluency_drop"),
        empty=measured.get("empty", 0.0),
        token_forwards=measured["token_forwards"],
        seconds=measured["seconds"],
    )


def presence_law(
    site: str, trials: Sequence[Trial], baseline: RatioEstimate, goal: str
) -> PresenceFit:
    """The law of presence at a site, fitted to its complete trials and to presence at α = 0."""
    points = [(0.0, baseline.value, float(len(baseline.counts)))]
    points += [
        (trial.strength, trial.presence, float(trial.n_prompts))
        for trial in trials
        if trial.site == site and trial.complete and trial.presence is not None
    ]
    strengths, presences, counts = zip(*points, strict=True)
    return fit_presence(strengths, presences, counts, rising=goal == "increase")


@dataclass(frozen=True, eq=False)
class _Search:
    """The study's plan (`calibrate.shared_study.Plan`)."""

    pilots: Mapping[str, Pilot]
    objective: Objective
    baseline: RatioEstimate
    settings: Settings
    allowance: Allowance | None
    progress: Progress

    @property
    def most(self) -> int:
        return self.settings.trials

    def enough(self, finished: Sequence[FrozenTrial]) -> bool:
        trials = [as_trial(done) for done in finished]
        if trials and self.allowance is not None:
            dearest = max(trial.token_forwards for trial in trials)
            if not self.allowance.left_for(dearest):
                return True
        if not laws_hold(self.pilots) or self._suggested(finished) is not None:
            return False
        return self._gain_left(trials) <= self.settings.precision

    def propose(self, counting: Sequence[FrozenTrial]) -> Proposal | None:
        return self._suggested(counting)

    def sampler(self, n_finished: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.TPESampler(
            seed=(self.settings.seed + n_finished) % SEEDS,
            n_startup_trials=len(self.pilots),
            multivariate=True,
            constant_liar=True,
        )

    def measure(self, trial: optuna.Trial) -> float:
        tokens, started = self.objective.meter.tokens, time.perf_counter()
        try:
            return self._measured(trial)
        finally:
            trial.set_user_attr("token_forwards", self.objective.meter.tokens - tokens)
            trial.set_user_attr("seconds", time.perf_counter() - started)

    def ended(self, trial: FrozenTrial) -> None:
        self.progress.tried(as_trial(trial))

    def _measured(self, trial: optuna.Trial) -> float:
        site = trial.suggest_categorical("site", list(self.pilots))
        share = trial.suggest_float("share", *self._shares())
        strength = share * self.pilots[site].strength_at_budget.value
        rise = self.objective.delta_ce(site, strength)
        trial.set_user_attr("strength", strength)
        trial.set_user_attr("delta_ce", rise.value)
        trial.set_user_attr("delta_ce_error", rise.standard_error)
        trial.set_user_attr("n_sequences", rise.n_sequences)
        _constrain(trial, delta_ce=rise.value - self.settings.ce_budget)
        if rise.value > self.settings.ce_budget:
            raise optuna.TrialPruned
        return self._presence(trial, site, strength)

    def _presence(self, trial: optuna.Trial, site: str, strength: float) -> float:
        """Presence over all rungs; prunes a trial that is behind after one, or mostly silent."""
        scores: dict[int, float] = {}
        n_empty = 0
        drops: list[RatioEstimate] = []
        for rung in range(len(self.objective.rungs)):
            replied = self.objective.replies(site, strength, rung)
            scores.update(replied.scores)
            drops += [replied.fluency_drop] if replied.fluency_drop is not None else []
            n_empty += replied.n_empty
            self._require_replies(trial, n_empty / (n_empty + len(scores)))
            for prompt, score in sorted(replied.scores.items()):
                trial.report(score, prompt)
            presence = RatioEstimate(np.array(list(scores.values())), np.ones(len(scores)))
            trial.set_user_attr("presence", presence.value)
            trial.set_user_attr("n_prompts", len(scores))
            if rung + 1 < len(self.objective.rungs) and trial.should_prune():
                raise optuna.TrialPruned
            if presence.half_width(self.settings.confidence) <= self.settings.precision:
                break
        if drops and self.settings.max_fluency_drop is not None:
            drop = RatioEstimate.joined(drops).value
            trial.set_user_attr("fluency_drop", drop)
            _constrain(trial, fluency_drop=drop - self.settings.max_fluency_drop)
        return presence.value

    def _require_replies(self, trial: optuna.Trial, empty: float) -> None:
        """Presence cannot be read from silence, which verification does not accept either."""
        trial.set_user_attr("empty", empty)
        if empty > MOST_EMPTY:
            _constrain(trial, empty=empty - MOST_EMPTY)
            raise optuna.TrialPruned

    def _shares(self) -> tuple[float, float]:
        return SHARES if laws_hold(self.pilots) else WIDE_SHARES

    def _suggested(self, counting: Sequence[FrozenTrial]) -> Proposal | None:
        """The first of the laws' suggestions that nobody has taken up."""
        taken = {trial.user_attrs.get(ORIGIN) for trial in counting}
        return next((one for one in self._suggestions(counting) if one.origin not in taken), None)

    def _suggestions(self, counting: Sequence[FrozenTrial]) -> Iterator[Proposal]:
        for site in self.pilots:
            yield Proposal(f"{site} at {SUGGESTED_SHARE}", _params(site, SUGGESTED_SHARE))
        finished = [as_trial(trial) for trial in counting if trial.state in FINISHED]
        best = self._best(finished)
        if best is not None:
            yield Proposal("below the best", _params(best.site, LOWER_SHARE))

    def _best(self, trials: Sequence[Trial]) -> Trial | None:
        sign = self.settings.sign
        complete = [trial for trial in trials if trial.complete and trial.presence is not None]
        return max(complete, key=lambda trial: sign * (trial.presence or 0.0), default=None)

    def _gain_left(self, trials: Sequence[Trial]) -> float:
        """How much more presence the law promises at the best site, up to the largest share.

        Infinite where presence has fallen before, since then the law says nothing of the peak.
        """
        best = self._best(trials)
        if best is None:
            return float("inf")
        law = presence_law(best.site, trials, self.baseline, self.settings.goal)
        if law.fall is not None:
            return float("inf")
        end = SHARES[1] * self.pilots[best.site].strength_at_budget.value
        here, there = (float(law.law.predict(at)) for at in (best.strength, end))
        return self.settings.sign * (there - here)


def _params(site: str, share: float) -> dict[str, str | float]:
    return {"site": site, "share": share}


def _constrain(trial: optuna.Trial, **limits: float) -> None:
    """Set constraints, feasible at 0 or below, for Optuna 5 and for optuna-dashboard alike.

    The dashboard reads only the list that Optuna wrote before version 5.
    """
    for name, excess in limits.items():
        trial.set_constraint(name, excess)
    known = trial.storage.get_trial_system_attrs(trial._trial_id).get("constraints", [])
    trial.storage.set_trial_system_attr(trial._trial_id, "constraints", [*known, *limits.values()])
