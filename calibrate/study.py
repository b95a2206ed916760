"""The study: Optuna searches block × share of α_B for presence under the budget.

A trial first measures ΔCE, which is cheap; beyond the budget it is pruned before anything is
generated. The first trials are what the laws suggest: nearly all of α_B at each candidate
block. With a journal in the output directory the same command resumes: finished trials are
never redone, and since the sampler's seed depends on how many there are, the rest of the study
is the one that would have been run without the interruption.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from calibrate.cross_entropy import UnsteeredRun, delta_ce
from calibrate.errors import ArtefactError, Infeasible
from calibrate.evidence import Trial
from calibrate.fluency import Fluency, measure_fluency
from calibrate.pilot import Pilot
from calibrate.presence import measure_presence
from calibrate.progress import SILENT, Progress
from calibrate.replies import UnsteeredReplies
from calibrate.settings import Settings
from calibrate.workspace import JOURNAL_FILE
from probes import Reader

if TYPE_CHECKING:
    from calibrate.model import LoadedModel

SUGGESTED_SHARE = 0.95  # of α_B: verification wants the upper bound, not the mean, in budget
SHARES = (0.6, 1.0)  # range searched where the laws fit
WIDE_SHARES = (0.05, 1.3)  # range searched where one does not
FINGERPRINT = "fingerprint"  # study attribute: hash of everything the trials depend on


@dataclass(frozen=True)
class StudyResult:
    """All finished trials, and the best feasible one."""

    trials: tuple[Trial, ...]
    best: Trial


@dataclass(frozen=True)
class StudyStore:
    """Where a study is kept, and what tells it from another of the same name.

    url: anything Optuna's RDBStorage takes (sqlite:///study.db, postgresql://…), or None for
        a journal in `directory`, or for memory if that is None too.
    """

    name: str
    fingerprint: str
    directory: Path | None = None
    url: str | None = None


@dataclass(frozen=True)
class Replied:
    """What a trial's replies are like.

    presence: mean probability. fluency_drop: how much less likely they are per token to the
    unsteered model than its own, nats; None where nobody asked.
    """

    presence: float
    fluency_drop: float | None = None


class Objective(Protocol):
    """What a trial measures at a block and strength."""

    def delta_ce(self, layer: int, strength: float) -> float:
        """ΔCE on the search corpus, nats per token."""
        ...

    def replies(self, layer: int, strength: float) -> Replied:
        """What the replies to the search prompts are like."""
        ...


@dataclass(frozen=True, eq=False)
class SearchObjective:
    """Measures a model on the search split."""

    loaded: LoadedModel
    reader: Reader
    run: UnsteeredRun
    pilots: Mapping[int, Pilot]
    unsteered: UnsteeredReplies
    settings: Settings

    def delta_ce(self, layer: int, strength: float) -> float:
        """ΔCE on the search corpus, nats per token."""
        values = self.pilots[layer].vector.values
        positions = self.settings.positions
        return delta_ce(self.loaded, self.run, values, layer, strength, positions).value

    def replies(self, layer: int, strength: float) -> Replied:
        """Read one reply to each search prompt, sampled with the noise of every other trial."""
        vector = self.pilots[layer].vector
        measured = measure_presence(
            self.loaded,
            self.reader,
            self.unsteered.prompts["search"],
            self.settings.sampling,
            self.settings.seed,
            steering=vector.apply(self.loaded.blocks, strength, self.settings.positions),
            share_prefix=self.settings.positions == "all",
        )
        if self.settings.max_fluency_drop is None:
            return Replied(measured.estimate.value)
        fluency = measure_fluency(self.loaded, measured.completions)
        return Replied(measured.estimate.value, fluency.drop_from(self._fluency).value)

    @cached_property
    def _fluency(self) -> Fluency:
        return measure_fluency(self.loaded, self.unsteered.first_replies("search"))


def laws_hold(pilots: Mapping[int, Pilot]) -> bool:
    """Whether the law of ΔCE held at every candidate block, so that the search may be narrow."""
    return all(pilot.rise_goodness.good for pilot in pilots.values())


def run_study(
    pilots: Mapping[int, Pilot],
    objective: Objective,
    settings: Settings,
    store: StudyStore,
    progress: Progress = SILENT,
) -> StudyResult:
    """Search until `settings.trials` have finished, and return them with the best feasible one.

    pilots: by layer, most promising first.
    Raises: Infeasible if no trial kept to the budget; ArtefactError if the store holds a study
        of this name made with other settings, or cannot be opened.
    """
    study = _opened(store, settings)
    for trial in study.get_trials(states=[TrialState.RUNNING]):  # of a process that was killed
        study.tell(trial.number, state=TrialState.FAIL)
    for done in _finished(study):
        progress.tried(_as_trial(done))
    while len(_finished(study)) < settings.trials:
        _run_trial(study, pilots, objective, settings)
        progress.tried(_as_trial(_finished(study)[-1]))
    trials = tuple(_as_trial(done) for done in _finished(study))
    try:
        best = _as_trial(study.best_trial)
    except ValueError:
        limits = f"ΔCE within {settings.ce_budget:g} nat"
        if settings.max_fluency_drop is not None:
            limits += f" and the drop of fluency within {settings.max_fluency_drop:g}"
        raise Infeasible(
            [f"none of {len(trials)} trials kept {limits}"],
            ["allow more with --ce-budget", "try more with --trials"],
        ) from None
    return StudyResult(trials, best)


def _opened(store: StudyStore, settings: Settings) -> optuna.Study:
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(
            storage=_storage(store),
            study_name=store.name,
            direction="maximize" if settings.goal == "increase" else "minimize",
            load_if_exists=True,
        )
    finally:
        optuna.logging.set_verbosity(verbosity)
    if study.user_attrs.get(FINGERPRINT, store.fingerprint) != store.fingerprint:
        raise ArtefactError(
            f"study {store.name!r} was made with other settings, data or another model; choose "
            "another --out (or --study), or remove the old one"
        )
    study.set_user_attr(FINGERPRINT, store.fingerprint)
    return study


def _storage(store: StudyStore) -> BaseStorage:
    if store.url is not None:
        try:
            return RDBStorage(store.url)
        except Exception as error:  # SQLAlchemy's, and those of every database driver
            raise ArtefactError(
                f"--storage must be a database URL that can be opened, got {store.url!r} ({error})"
            ) from error
    if store.directory is None:
        return InMemoryStorage()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return JournalStorage(JournalFileBackend(str(store.directory / JOURNAL_FILE)))


def _run_trial(
    study: optuna.Study, pilots: Mapping[int, Pilot], objective: Objective, settings: Settings
) -> None:
    trial = _asked(study, pilots, settings)
    layer = trial.suggest_categorical("layer", list(pilots))
    share = trial.suggest_float("share", *(SHARES if laws_hold(pilots) else WIDE_SHARES))
    strength = share * pilots[layer].strength_at_budget.value
    rise = objective.delta_ce(layer, strength)
    trial.set_user_attr("strength", strength)
    trial.set_user_attr("delta_ce", rise)
    trial.set_constraint("delta_ce", rise - settings.ce_budget)
    if rise > settings.ce_budget:
        study.tell(trial, state=TrialState.PRUNED)
        return
    replied = objective.replies(layer, strength)
    if replied.fluency_drop is not None and settings.max_fluency_drop is not None:
        trial.set_user_attr("fluency_drop", replied.fluency_drop)
        trial.set_constraint("fluency_drop", replied.fluency_drop - settings.max_fluency_drop)
    study.tell(trial, replied.presence)


def _asked(study: optuna.Study, pilots: Mapping[int, Pilot], settings: Settings) -> optuna.Trial:
    """The next trial: the laws' suggestions first, then the sampler's."""
    done, layers = len(_finished(study)), list(pilots)
    study.sampler = optuna.samplers.TPESampler(
        seed=settings.seed + done,
        n_startup_trials=len(layers),
        multivariate=True,
        constant_liar=False,
    )
    waiting = study.get_trials(deepcopy=False, states=[TrialState.WAITING])
    if done < len(layers) and not waiting:
        study.enqueue_trial({"layer": layers[done], "share": SUGGESTED_SHARE})
    return study.ask()


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.PRUNED])


def _as_trial(trial: optuna.trial.FrozenTrial) -> Trial:
    return Trial(
        number=trial.number,
        layer=trial.params["layer"],
        share=trial.params["share"],
        strength=trial.user_attrs["strength"],
        delta_ce=trial.user_attrs["delta_ce"],
        presence=trial.value,
        fluency_drop=trial.user_attrs.get("fluency_drop"),
    )
