"""A study that several workers may share, and that outlives each of them.

A worker is a process. The study is kept in a journal in the output directory, or in a storage
named by its URL; every process that runs the same command on it is a worker. Nobody coordinates:
each worker starts trials until enough are finished, whoever ran them.

The trial of a dead worker is queued again. With a journal a worker is alive as long as it holds the
lock on its own file, which the operating system releases however it dies, so that its trial is
queued at once; with a database, whose workers may be on other machines, it takes a minute until
Optuna misses the heartbeat. Where two workers start the same trial at the same moment, the one with
the higher trial number drops it.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import optuna
from filelock import FileLock
from optuna.trial import FrozenTrial, TrialState

from calibrate.common.layout import WORKERS_FOLDER
from calibrate.engine.loading import rendered_with
from calibrate.models.model import LoadedModel
from calibrate.search.locks import holds_lock, lock_file, other_locks
from calibrate.search.storage import (
    ORIGIN,
    POLL,
    Direction,
    StudyStore,
    has_heartbeat,
    open_study,
    queue_again,
    quiet_optuna,
)

WORKER = "worker"  # trial attribute: who runs it
STARTED = "started"  # trial attribute: when, in seconds since the epoch
SURPLUS = "surplus"  # trial attribute: it was started beside another, and dropped

OVERDUE = 3  # times the longest trial, after which one without a heartbeat counts as abandoned
PATIENCE = timedelta(minutes=10)  # before that, at the least

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
ENDED_BY_ANOTHER = (optuna.exceptions.UpdateFinishedTrialError, ValueError, AssertionError)


@dataclass(frozen=True)
class Proposal:
    """A trial worth starting: its parameters, and its origin, for which it is measured once."""

    origin: str
    params: Mapping[str, Any]


class _Surplus(Exception):
    """Another worker has this trial already, or there are enough without it."""


class Policy(Protocol):
    """What a study's trials are, and when there are enough of them."""

    @property
    def most(self) -> int:
        """How many trials are finished at most."""
        ...

    def enough(self, finished: Sequence[FrozenTrial]) -> bool:
        """Whether to stop with fewer than `most` trials."""
        ...

    def propose(self, counting: Sequence[FrozenTrial]) -> Proposal | None:
        """What to start next, given all trials so far; None to let the sampler choose."""
        ...

    def sampler(self, n_finished: int) -> optuna.samplers.BaseSampler:
        """The sampler to use after so many trials."""
        ...

    def measure(self, trial: optuna.Trial) -> float:
        """Run a trial and return its value, or raise TrialPruned."""
        ...

    def ended(self, trial: FrozenTrial) -> None:
        """Called with every trial this worker has finished or pruned."""
        ...


@dataclass(eq=False)
class _Attempt:
    """A worker's attempt at a trial, as Optuna's objective.

    number: of the trial. measured: whether its measurement began. error: what that raised; None
    also where it was pruned, or another worker had ended it.
    """

    shared: SharedStudy
    policy: Policy
    number: int | None = None
    measured: bool = False
    error: BaseException | None = None

    def __call__(self, trial: optuna.Trial) -> float:
        """Measure a trial, unless it is surplus."""
        self.number = trial.number
        trial.set_user_attr(WORKER, self.shared.worker)
        trial.set_user_attr(STARTED, time.time())
        self.shared.step_back_if_surplus(trial, self.policy.most)
        self.measured = True
        try:
            return self.policy.measure(trial)
        except (optuna.TrialPruned, optuna.exceptions.UpdateFinishedTrialError):
            raise
        except BaseException as error:
            self.error = error
            raise


@dataclass(frozen=True, eq=False)
class SharedStudy:
    """An Optuna study, shared by workers.

    worker: this process. directory: where workers hold their locks; None where heartbeats take
        their place, or there can be no other worker.
    """

    study: optuna.Study
    worker: str
    directory: Path | None

    @property
    def finished(self) -> list[FrozenTrial]:
        """Trials that were measured, pruned ones included, in the order they were started."""
        return self.study.get_trials(states=FINISHED)

    def take_part(self, policy: Policy) -> None:
        """Run trials until there are enough, and none is still run by another worker."""
        while True:
            self._hand_on_abandoned()
            finished = self.finished
            if policy.enough(finished) or len(finished) >= policy.most:
                if not self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
                    return
            elif len(self._under_way()) < policy.most and self._start(policy, len(finished)):
                continue
            time.sleep(POLL)

    def _start(self, policy: Policy, n_finished: int) -> bool:
        """Run one trial; False if it turned out to be surplus."""
        if not self.study.get_trials(deepcopy=False, states=[TrialState.WAITING]):
            proposal = policy.propose(self._counting())
            if proposal is not None:
                self.study.enqueue_trial(dict(proposal.params), {ORIGIN: proposal.origin})
        self.study.sampler = policy.sampler(n_finished)
        attempt = _Attempt(self, policy)
        with quiet_optuna():
            # Another worker may end a trial first: one that was handed it too, or took us for dead.
            # We hear of that from the storage, or from Optuna by errors that can mean other things,
            # and that hide what the trial itself raised.
            try:
                self.study.optimize(attempt, n_trials=1, catch=(_Surplus,))
            except ENDED_BY_ANOTHER:
                if attempt.error is not None:
                    raise attempt.error from None
                if not self._has_ended(attempt.number):
                    raise
                return attempt.measured
        if attempt.number is not None and attempt.measured:
            trial = self.study.trials[attempt.number]
            if trial.state in FINISHED:
                policy.ended(trial)
        return attempt.measured

    def _has_ended(self, number: int | None) -> bool:
        return number is not None and self.study.trials[number].state.is_finished()

    def _under_way(self) -> list[FrozenTrial]:
        """Trials that are finished or running."""
        return [trial for trial in self._counting() if trial.state != TrialState.WAITING]

    def _counting(self) -> list[FrozenTrial]:
        """Trials that are finished, running or waiting."""
        return [trial for trial in self.study.get_trials() if trial.state != TrialState.FAIL]

    def step_back_if_surplus(self, trial: optuna.Trial, most: int) -> None:
        """Drop a trial that another worker has, or without which there are enough.

        Raises: _Surplus.
        """
        earlier = [other for other in self._under_way() if other.number < trial.number]
        origin = trial.user_attrs.get(ORIGIN)
        origins = {other.user_attrs.get(ORIGIN) for other in earlier}
        if (origin is not None and origin in origins) or len(earlier) >= most:
            trial.set_user_attr(SURPLUS, True)
            raise _Surplus

    def _hand_on_abandoned(self) -> None:
        """Queue the trials again whose worker is gone, in the order they were started."""
        with quiet_optuna():
            optuna.storages.fail_stale_trials(self.study)
        for trial in self.study.get_trials(states=[TrialState.RUNNING]):
            if not self._alive(trial):
                with suppress(optuna.exceptions.UpdateFinishedTrialError, ValueError):
                    self.study.tell(trial.number, state=TrialState.FAIL)
        for trial in self.study.get_trials(states=[TrialState.FAIL]):
            if SURPLUS not in trial.user_attrs:
                queue_again(self.study, trial)

    def _alive(self, trial: FrozenTrial) -> bool:
        """Whether somebody still works on a running trial."""
        worker = trial.user_attrs.get(WORKER)
        if self.directory is not None:
            if worker is None:  # started a moment ago, or killed at that moment
                return bool(other_locks(self.directory, self.worker))
            return worker != self.worker and holds_lock(lock_file(self.directory, worker))
        if has_heartbeat(self.study._storage, trial._trial_id):  # Optuna fails those that stopped
            return True
        longest = max((ended.duration or PATIENCE for ended in self.finished), default=PATIENCE)
        return _age(trial) < max(OVERDUE * longest, PATIENCE)


@contextmanager
def shared_study(
    store: StudyStore,
    direction: Direction,
    pruner: optuna.pruners.BasePruner | None = None,
) -> Iterator[SharedStudy]:
    """Open a study, or join it if it exists, as a worker on it inside the `with`.

    Raises: ArtefactError if the store holds a study of this name made with other settings, or
        cannot be opened.
    """
    directory = store.directory if store.url is None else None
    study = open_study(store, direction, pruner)
    worker = uuid.uuid4().hex
    if directory is None:
        yield SharedStudy(study, worker, None)
        return
    (directory / WORKERS_FOLDER).mkdir(exist_ok=True)
    with FileLock(lock_file(directory, worker)):
        try:
            yield SharedStudy(study, worker, directory)
        finally:
            lock_file(directory, worker).unlink(missing_ok=True)
            with suppress(OSError):  # others are at work
                (directory / WORKERS_FOLDER).rmdir()


def with_first_date(loaded: LoadedModel, store: StudyStore) -> LoadedModel:
    """The model, its prompts rendered with the date on which the study's first worker began.

    Raises: ArtefactError as `shared_study` does.
    """
    if loaded.rendering.date is None:
        return loaded
    return rendered_with(loaded, None, str(agreed(store, "date", loaded.rendering.date)))


def agreed(store: StudyStore, what: str, own: Any) -> Any:
    """What the study's first worker noted under a name: its `own`, as JSON values.

    Each worker that finds nothing adds a trial that says its own. Storages number the trials of a
    study one after the other, so that the first of them is the same for everybody.
    Raises: ArtefactError as `shared_study` does.
    """
    study = open_study(replace(store, name=f"{store.name}: {what}"), "maximize")
    if not study.get_trials(deepcopy=False):
        study.add_trial(optuna.create_trial(value=0.0, user_attrs={what: own}))
    return min(study.get_trials(), key=lambda trial: trial.number).user_attrs[what]


def _age(trial: FrozenTrial) -> timedelta:
    """How long a trial has been running.

    Optuna keeps a local time without its zone, which a worker or a proxy elsewhere has another of.
    It counts only where a worker died before it could say when it started.
    """
    if STARTED in trial.user_attrs:
        return timedelta(seconds=time.time() - trial.user_attrs[STARTED])
    return datetime.now() - (trial.datetime_start or datetime.now())
