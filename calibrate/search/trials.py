"""Which trials a study runs, and when to stop: the laws' proposals first, then the sampler's."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import dropwhile

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from calibrate.common.cost import Allowance
from calibrate.common.estimate import RatioEstimate
from calibrate.common.progress import Progress
from calibrate.common.settings import SEEDS, Settings
from calibrate.common.trial import PROPOSED_SHARE, Trial
from calibrate.judging.presence import MAX_EMPTY
from calibrate.laws.pilot import Pilot
from calibrate.laws.presence import PresenceFit, fit_presence
from calibrate.search.objective_types import Objective
from calibrate.search.storage import ORIGIN
from calibrate.search.workers import FINISHED, Proposal

LOWER_SHARE = 0.75  # tried at the best site, to see whether presence has fallen
SHARES = (0.6, PROPOSED_SHARE)  # range searched where the laws hold
WIDE_SHARES = (0.05, 1.3)  # range searched otherwise
AHEAD = "ahead"  # trial attribute: token-forwards of first replies, its own and others'
AHEAD_OF = "ahead_of"  # trial attribute: how many trials' first replies these were


def laws_hold(pilots: Mapping[str, Pilot]) -> bool:
    """Whether the law of ΔCE held at every site, so that the search may be narrow."""
    return all(pilot.rise_goodness.good for pilot in pilots.values())


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
        fluency_drop_upper=measured.get("fluency_drop_upper"),
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


def best_trial(trials: Sequence[Trial], settings: Settings) -> Trial | None:
    """The complete trial of most presence, or of least where the goal is to decrease it.

    Those whose replies may read worse than allowed do not count.
    """
    complete = [
        trial
        for trial in trials
        if trial.complete and trial.presence is not None and not may_read_worse(trial, settings)
    ]
    return max(complete, key=lambda trial: settings.sign * (trial.presence or 0.0), default=None)


def may_read_worse(trial: Trial, settings: Settings) -> bool:
    """Whether fluency may drop by more than allowed; by the bound, as verification judges it."""
    drop, most = trial.fluency_drop_upper, settings.max_fluency_drop
    return drop is not None and most is not None and drop > most


@dataclass(frozen=True, eq=False)
class TrialPolicy:
    """The laws' proposals first, then the sampler (`calibrate.search.workers.Policy`)."""

    pilots: Mapping[str, Pilot]
    objective: Objective
    baseline: RatioEstimate
    settings: Settings
    allowance: Allowance | None
    progress: Progress
    _drawn: set[str] = field(default_factory=set, init=False)  # origins drawn for ahead

    @property
    def most(self) -> int:
        """How many trials are finished at most."""
        return self.settings.trials

    def enough(self, finished: Sequence[FrozenTrial]) -> bool:
        """Whether nothing more may be spent, or the laws leave less to gain than the precision."""
        trials = [as_trial(trial) for trial in finished]
        proposal = self.propose(finished)
        if (
            trials
            and self.allowance is not None
            and not self.allowance.left_for(self._next_tokens(finished, proposal))
        ):
            return True
        if not laws_hold(self.pilots) or proposal is not None:
            return False
        return self._gain_left(trials) <= self.settings.precision

    def propose(self, counting: Sequence[FrozenTrial]) -> Proposal | None:
        """The first of the laws' proposals nobody has taken up; None to leave it to the sampler."""
        taken = {trial.user_attrs.get(ORIGIN) for trial in counting}
        proposals = [*self._at_each_site, *self._below_the_best(counting)]
        return next((proposal for proposal in proposals if proposal.origin not in taken), None)

    def sampler(self, n_finished: int) -> optuna.samplers.BaseSampler:
        """TPE over site and share, a startup trial for each site."""
        return optuna.samplers.TPESampler(
            seed=(self.settings.seed + n_finished) % SEEDS,
            n_startup_trials=len(self.pilots),
            multivariate=True,
            constant_liar=True,
        )

    def measure(self, trial: optuna.Trial) -> float:
        """Measure ΔCE, and presence where that keeps to the budget."""
        tokens, started = self.objective.meter.tokens, time.perf_counter()
        try:
            return self._measured(trial)
        finally:
            # Where another worker has ended the trial, what it raised itself is not to be hidden.
            with suppress(optuna.exceptions.UpdateFinishedTrialError):
                trial.set_user_attr("token_forwards", self.objective.meter.tokens - tokens)
                trial.set_user_attr("seconds", time.perf_counter() - started)

    def ended(self, trial: FrozenTrial) -> None:
        """Report a finished trial."""
        self.progress.tried(as_trial(trial))

    def _measured(self, trial: optuna.Trial) -> float:
        site = trial.suggest_categorical("site", list(self.pilots))
        strength = self._strength(site, trial.suggest_float("share", *self._shares()))
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
        """Presence over all rungs; prunes a trial that falls behind, or whose replies are empty."""
        scores: dict[int, float] = {}
        n_empty = 0
        drops: list[RatioEstimate] = []
        self._sample_ahead(trial)
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
            drop = RatioEstimate.joined(drops)
            upper = drop.upper(self.settings.confidence)
            trial.set_user_attr("fluency_drop", drop.value)
            trial.set_user_attr("fluency_drop_upper", upper)
            _constrain(trial, fluency_drop=upper - self.settings.max_fluency_drop)
        return presence.value

    def _sample_ahead(self, trial: optuna.Trial) -> None:
        """Draw the first replies of a proposed trial with those of the proposals after it."""
        batch = self._batch(trial.user_attrs.get(ORIGIN))
        tokens = self.objective.meter.tokens
        self.objective.sample_ahead([(site, strength) for _, site, strength in batch])
        self._drawn.update(origin for origin, _, _ in batch)
        trial.set_user_attr(AHEAD, self.objective.meter.tokens - tokens)
        trial.set_user_attr(AHEAD_OF, max(len(batch), 1))

    def _require_replies(self, trial: optuna.Trial, empty: float) -> None:
        """Prune a trial of mostly empty replies, which verification would refuse too."""
        trial.set_user_attr("empty", empty)
        if empty > MAX_EMPTY:
            _constrain(trial, empty=empty - MAX_EMPTY)
            raise optuna.TrialPruned

    def _shares(self) -> tuple[float, float]:
        return SHARES if laws_hold(self.pilots) else WIDE_SHARES

    def _strength(self, site: str, share: float) -> float:
        return share * self.pilots[site].strength_at_budget.value

    @property
    def _at_each_site(self) -> list[Proposal]:
        return [
            Proposal(f"{site} at {PROPOSED_SHARE}", {"site": site, "share": PROPOSED_SHARE})
            for site in self.pilots
        ]

    def _below_the_best(self, counting: Sequence[FrozenTrial]) -> list[Proposal]:
        finished = [as_trial(trial) for trial in counting if trial.state in FINISHED]
        best = best_trial(finished, self.settings)
        sites = [best.site] if best is not None else self._only_site
        return [Proposal("below the best", {"site": site, "share": LOWER_SHARE}) for site in sites]

    @property
    def _only_site(self) -> list[str]:
        """The site that is the best whatever is measured; empty where there are several."""
        return list(self.pilots) if len(self.pilots) == 1 else []

    def _next_tokens(self, finished: Sequence[FrozenTrial], proposal: Proposal | None) -> int:
        """Token-forwards of the next trial, by the costliest of those finished.

        The first replies count once for each trial that they have still to be drawn for.
        """
        measured = [trial.user_attrs for trial in finished]
        rest: int = max(each["token_forwards"] - each.get(AHEAD, 0) for each in measured)
        first_replies: float = max(each.get(AHEAD, 0) / each.get(AHEAD_OF, 1) for each in measured)
        to_draw = 1 if proposal is None else max(len(self._batch(proposal.origin)), 1)
        if proposal is not None and proposal.origin in self._drawn:
            to_draw = 0
        return round(rest + to_draw * first_replies)

    def _batch(self, origin: str | None) -> list[tuple[str, str, float]]:
        """Origin, site and strength of the trial of this origin, and of the proposals after it.

        Empty where the laws propose no such trial before anything is measured.
        """
        known = [*self._at_each_site, *self._below_the_best(())][: self.most]
        return [
            (each.origin, each.params["site"], self._strength(**each.params))
            for each in dropwhile(lambda proposal: proposal.origin != origin, known)
        ]

    def _gain_left(self, trials: Sequence[Trial]) -> float:
        """How much more presence the law promises at the best site, up to the largest share.

        Infinite where presence has fallen before, since the law does not tell where it peaks.
        """
        best = best_trial(trials, self.settings)
        if best is None:
            return float("inf")
        fit = presence_law(best.site, trials, self.baseline, self.settings.goal)
        if fit.fall is not None:
            return float("inf")
        at_best, at_end = (
            float(fit.law.predict(strength))
            for strength in (best.strength, self._strength(best.site, SHARES[1]))
        )
        return self.settings.sign * (at_end - at_best)


def _constrain(trial: optuna.Trial, **limits: float) -> None:
    """Set constraints, feasible at 0 or below, for Optuna 5 and for optuna-dashboard alike.

    The dashboard reads only the list that Optuna wrote before version 5.
    """
    for name, excess in limits.items():
        trial.set_constraint(name, excess)
    known = trial.storage.get_trial_system_attrs(trial._trial_id).get("constraints", [])
    trial.storage.set_trial_system_attr(trial._trial_id, "constraints", [*known, *limits.values()])
