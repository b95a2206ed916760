"""The study: Optuna searches site × share of α_B for presence under the budget.

A site is a block, and which positions are steered there. The first trials are what the laws
propose: nearly all of α_B at each site, then less of it at the best, to see whether presence has
fallen. They are usually the last as well: where the laws hold presence rises with strength
(arXiv:2602.02712, Theorem 3.6), and once they leave less to gain than the wished precision,
nothing more is tried. Otherwise the sampler goes on.

A trial begins with what is cheap. ΔCE comes first, and beyond the budget nothing is generated;
then prompts are replied to in rungs, and a trial that is clearly behind the best so far, prompt
by prompt, is pruned.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import optuna

from calibrate.common.cost import Allowance, Cost
from calibrate.common.errors import Infeasible
from calibrate.common.estimate import RatioEstimate
from calibrate.common.progress import SILENT, Progress
from calibrate.common.settings import Settings
from calibrate.common.trial import Trial
from calibrate.judging.presence import MAX_EMPTY
from calibrate.laws.pilot import Pilot
from calibrate.search.objective_types import Objective
from calibrate.search.refusals import LESS, MORE, TooMuch
from calibrate.search.storage import Direction, StudyStore
from calibrate.search.trials import TrialPolicy, as_trial, best_trial, may_read_worse
from calibrate.search.workers import SharedStudy, shared_study

BEHIND = 0.1  # p-value, by Wilcoxon's test, below which a trial counts as behind the best


@dataclass(frozen=True)
class StudyResult:
    """All finished trials, and the best of those that kept to the limits.

    refusal: why none did, where none did; the best is then the one that came nearest.
    """

    trials: tuple[Trial, ...]
    best: Trial
    refusal: Infeasible | None = None

    @property
    def cost(self) -> Cost:
        """What all trials took, whoever ran them, and when."""
        return Cost(
            sum(trial.token_forwards for trial in self.trials),
            sum(trial.seconds for trial in self.trials),
        )


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
    Raises: ArtefactError if the store holds a study of this name made with other settings, or
        cannot be opened.
    """
    policy = TrialPolicy(pilots, objective, baseline, settings, allowance, progress)
    direction: Direction = "maximize" if settings.goal == "increase" else "minimize"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        pruner = optuna.pruners.WilcoxonPruner(p_threshold=BEHIND)
    with shared_study(store, direction, pruner) as shared:
        for trial in shared.finished:
            progress.tried(as_trial(trial))
        shared.take_part(policy)
        trials = tuple(as_trial(trial) for trial in shared.finished)
        return _result(shared, trials, settings)


def _result(shared: SharedStudy, trials: tuple[Trial, ...], settings: Settings) -> StudyResult:
    try:
        return StudyResult(trials, as_trial(shared.study.best_trial))
    except ValueError:  # none kept to the limits
        return StudyResult(trials, _nearest(trials, settings), _none_kept(trials, settings))


def _nearest(trials: Sequence[Trial], settings: Settings) -> Trial:
    """Of trials that all broke a limit, the best where only fluency did, or the cheapest."""
    readable = best_trial(trials, replace(settings, max_fluency_drop=None))
    return readable or min(trials, key=lambda trial: trial.delta_ce)


def _none_kept(trials: Sequence[Trial], settings: Settings) -> Infeasible:
    """Why no trial kept to the limits, and what would help, by the limits they failed.

    A budget that some kept to is not what is missing: where those fell silent or read worse, more
    strength would do more harm.
    """
    limits = f"ΔCE within {settings.ce_budget:g} nat"
    if settings.max_fluency_drop is not None:
        limits += f" and the drop of fluency within {settings.max_fluency_drop:g}"
    silent = sum(trial.empty > MAX_EMPTY for trial in trials)
    if silent:
        limits += f", or most replies from being empty, as {silent} did not"
    reason = f"none of {len(trials)} trials kept {limits}"
    worse = any(may_read_worse(trial, settings) for trial in trials)
    if not (silent or worse):
        return Infeasible([reason], [MORE, "try more with --trials"])
    fluent = ["allow more with --max-fluency-drop"] if worse else []
    spoken = ["try another --layer"] if silent else []
    return TooMuch([reason], [*fluent, LESS, *spoken, "try more with --trials"])
