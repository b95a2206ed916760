"""A study that several workers may share, and that outlives each of them.

A worker is a process. The study is kept in a journal in the output directory, or in a storage
named by its URL; whoever runs the same command on it takes part. Nobody coordinates: each worker
starts the next trial until enough are finished, by itself or by others.

A trial whose worker died is handed on. With a journal a worker is alive as long as it holds the
lock on its own file, which the operating system lets go of however it dies; with a database
Optuna's heartbeats tell. Two workers that start the same trial at the same moment are told apart
by its number: the later one steps back.
"""

from __future__ import annotations

import os
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

import optuna
from filelock import FileLock, Timeout
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from calibrate.errors import ArtefactError
from calibrate.files import require_ours
from calibrate.workspace import (
    FINGERPRINT,
    JOURNAL_FILE,
    WORKER_LOCK,
    WORKERS_FOLDER,
    is_journal,
)

HEARTBEAT = 30  # seconds between two signs of life in a database; silent for twice as long is dead
OPENINGS = 3  # attempts at opening a database
POLL = 0.5  # seconds between two looks at what other workers do
ORIGIN = "origin"  # trial attribute: what it was started for; trials of one origin are one
WORKER = "worker"  # trial attribute: who runs it
SURPLUS = "surplus"  # trial attribute: it was started beside another, and dropped

OVERDUE = 3  # times the longest trial, after which one without heartbeats counts as left behind
PATIENCE = timedelta(minutes=10)  # and how long it is waited for at least

Direction = Literal["maximize", "minimize"]
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class StudyStore:
    """Where a study is kept, and what tells it from another of the same name.

    url: a database as SQLAlchemy names it (sqlite:///study.db, postgresql://…), an Optuna gRPC
        proxy (grpc://host:port), or None for a journal in `directory`, or for memory if that is
        None too.
    """

    name: str
    fingerprint: str
    directory: Path | None = None
    url: str | None = None
    heartbeat: int = HEARTBEAT


@dataclass(frozen=True)
class Proposal:
    """A trial worth starting: its parameters, and what it is started for, once."""

    origin: str
    params: Mapping[str, Any]


class _Surplus(Exception):
    """Another worker has this trial already, or there are enough without it."""


class Plan(Protocol):
    """What a study's trials are, and when there are enough of them."""

    @property
    def most(self) -> int:
        """How many trials are finished at most."""
        ...

    def enough(self, finished: Sequence[FrozenTrial]) -> bool:
        """Whether the finished trials will do, though there are fewer than `most`."""
        ...

    def propose(self, counting: Sequence[FrozenTrial]) -> Proposal | None:
        """What to start next, beside the trials that count; None to let the sampler choose."""
        ...

    def sampler(self, n_finished: int) -> optuna.samplers.BaseSampler:
        """The sampler to use after so many trials."""
        ...

    def measure(self, trial: optuna.Trial) -> float:
        """Run a trial and return its value, or raise TrialPruned."""
        ...

    def ended(self, trial: FrozenTrial) -> None:
        """Be told of a trial this worker has finished or pruned."""
        ...


@dataclass(frozen=True, eq=False)
class SharedStudy:
    """An Optuna study and what is known of those who work on it.

    worker: this process. directory: where workers hold their locks; None where heartbeats tell,
        or nobody else can be there.
    """

    study: optuna.Study
    worker: str
    directory: Path | None

    @property
    def finished(self) -> list[FrozenTrial]:
        """Trials that were measured, pruned ones included, in the order they were started."""
        return self.study.get_trials(states=FINISHED)

    def take_part(self, plan: Plan) -> None:
        """Run trials until there are enough, and none is still run by another worker."""
        while True:
            self._hand_on_abandoned()
            finished = self.finished
            if plan.enough(finished) or len(finished) >= plan.most:
                if not self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
                    return
            elif len(self._under_way()) < plan.most and self._start(plan, len(finished)):
                continue
            time.sleep(POLL)

    def _start(self, plan: Plan, n_finished: int) -> bool:
        """Run one trial; False if it turned out to be surplus."""
        if not self.study.get_trials(deepcopy=False, states=[TrialState.WAITING]):
            proposal = plan.propose(self._counting())
            if proposal is not None:
                self.study.enqueue_trial(dict(proposal.params), {ORIGIN: proposal.origin})
        self.study.sampler = plan.sampler(n_finished)
        started = False

        def objective(trial: optuna.Trial) -> float:
            nonlocal started
            trial.set_user_attr(WORKER, self.worker)
            self._step_back_if_surplus(trial, plan.most)
            started = True
            return plan.measure(trial)

        def ended(_study: optuna.Study, trial: FrozenTrial) -> None:
            if trial.state in FINISHED:
                plan.ended(trial)

        with _quiet():
            self.study.optimize(objective, n_trials=1, catch=(_Surplus,), callbacks=[ended])
        return started

    def _under_way(self) -> list[FrozenTrial]:
        """Trials that are finished or running."""
        return [t for t in self._counting() if t.state != TrialState.WAITING]

    def _counting(self) -> list[FrozenTrial]:
        """Trials that are finished, running or waiting."""
        return [t for t in self.study.get_trials() if t.state != TrialState.FAIL]

    def _step_back_if_surplus(self, trial: optuna.Trial, most: int) -> None:
        earlier = [other for other in self._under_way() if other.number < trial.number]
        origin = trial.user_attrs.get(ORIGIN)
        twice = origin is not None and origin in {t.user_attrs.get(ORIGIN) for t in earlier}
        if twice or len(earlier) >= most:
            trial.set_user_attr(SURPLUS, True)
            raise _Surplus

    def _hand_on_abandoned(self) -> None:
        """Queue the trials again whose worker is gone, in the order they were started."""
        with _quiet():
            optuna.storages.fail_stale_trials(self.study)
        for trial in self.study.get_trials(states=[TrialState.RUNNING]):
            if not self._alive(trial):
                with suppress(optuna.exceptions.UpdateFinishedTrialError, ValueError):
                    self.study.tell(trial.number, state=TrialState.FAIL)
        for trial in self.study.get_trials(states=[TrialState.FAIL]):
            if SURPLUS not in trial.user_attrs:
                _queue_again(self.study, trial)

    def _alive(self, trial: FrozenTrial) -> bool:
        """Whether somebody still works on a running trial."""
        worker = trial.user_attrs.get(WORKER)
        if self.directory is not None:
            if worker is None:  # started a moment ago, or killed at that moment
                return bool(_others(self.directory, self.worker))
            return worker != self.worker and _holds_lock(_lock_file(self.directory, worker))
        if isinstance(self.study._storage, RDBStorage):  # Optuna has failed those without a beat
            return True
        longest = max((done.duration or PATIENCE for done in self.finished), default=PATIENCE)
        started = trial.datetime_start or datetime.now()
        return datetime.now() - started < max(OVERDUE * longest, PATIENCE)


@contextmanager
def shared_study(
    store: StudyStore,
    direction: Direction,
    pruner: optuna.pruners.BasePruner | None = None,
) -> Iterator[SharedStudy]:
    """Open a study, or join it if it exists, and be known as a worker on it inside the `with`.

    Raises: ArtefactError if the store holds a study of this name made with other settings, or
        cannot be opened.
    """
    directory = store.directory if store.url is None else None
    study = _opened(store, direction, pruner)
    worker = uuid.uuid4().hex
    if directory is None:
        yield SharedStudy(study, worker, None)
        return
    (directory / WORKERS_FOLDER).mkdir(exist_ok=True)
    with FileLock(_lock_file(directory, worker)):
        try:
            yield SharedStudy(study, worker, directory)
        finally:
            _lock_file(directory, worker).unlink(missing_ok=True)
            with suppress(OSError):  # others are at work
                (directory / WORKERS_FOLDER).rmdir()


def _opened(
    store: StudyStore, direction: Direction, pruner: optuna.pruners.BasePruner | None = None
) -> optuna.Study:
    """Make a study, or open the one of this name that was made with the same settings."""
    with _quiet():
        study = optuna.create_study(
            storage=_storage(store),
            study_name=store.name,
            direction=direction,
            pruner=pruner,
            load_if_exists=True,
        )
    if study.user_attrs.get(FINGERPRINT, store.fingerprint) != store.fingerprint:
        raise ArtefactError(
            f"study {store.name!r} was made with other settings, data or another model; choose "
            "another --out (or --study), or remove the old one"
        )
    study.set_user_attr(FINGERPRINT, store.fingerprint)
    return study


def agreed(store: StudyStore, what: str, mine: str) -> str:
    """What all workers of a study take for something: what the first of them took it for.

    Raises: ArtefactError as `shared_study` does.
    """
    study = _opened(replace(store, name=f"{store.name}: {what}"), "maximize")
    if what not in study.user_attrs:
        study.set_user_attr(what, mine)
    return str(study.user_attrs[what])


def act_once(store: StudyStore, place: str, act: Callable[[], None]) -> str:
    """Let exactly one worker of a study act, and return where that was.

    place: where this worker would act. If the one that acts dies, another takes over; whoever
    comes later learns where it was done, and acts only if it was here and has been undone.
    """
    if store.url is None:
        act()  # one directory has one writer at a time: see `calibrate.workspace.writing`
        return place
    turn = _Turn(place, act)
    with shared_study(replace(store, name=f"{store.name}: artefact"), "maximize") as shared:
        shared.take_part(turn)
        where = str(shared.finished[0].user_attrs["place"])
    if where == place and not turn.acted:
        act()
    return where


@dataclass(eq=False)
class _Turn:
    """The plan of a study whose only trial is to act."""

    place: str
    act: Callable[[], None]
    acted: bool = False
    most: int = 1

    def enough(self, finished: Sequence[FrozenTrial]) -> bool:
        return bool(finished)

    def propose(self, counting: Sequence[FrozenTrial]) -> None:
        return None

    def sampler(self, n_finished: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.RandomSampler(seed=n_finished)

    def measure(self, trial: optuna.Trial) -> float:
        self.act()
        self.acted = True
        trial.set_user_attr("place", self.place)
        return 1.0

    def ended(self, trial: FrozenTrial) -> None:
        pass


def check_storage(store: StudyStore) -> None:
    """Raise ArtefactError at once where a database or a proxy that was named cannot be opened."""
    if store.url is not None:
        _storage(store)


def _storage(store: StudyStore) -> BaseStorage:
    if store.url is None and store.directory is None:
        return InMemoryStorage()
    if store.url is None:
        assert store.directory is not None
        path = store.directory / JOURNAL_FILE
        _mend(path)
        with _quiet():
            return JournalStorage(JournalFileBackend(str(path)))
    try:
        with _quiet():
            if store.url.startswith("grpc://"):
                return _proxy(store.url)
            return _database(store.url, store.heartbeat)
    except Exception as error:  # SQLAlchemy's, gRPC's, and those of every database driver
        raise ArtefactError(
            f"--storage must be a database URL or grpc://HOST:PORT that can be opened, got "
            f"{store.url!r} ({error})"
        ) from error


def _database(url: str, heartbeat: int) -> BaseStorage:
    """Open a database; workers that make its tables at the same moment trip over each other."""
    if url.rstrip("/") == "sqlite:" or ":memory:" in url:
        raise ValueError("a database in memory is another one in every thread; name a file")
    attempt = 0
    while True:
        try:
            return RDBStorage(
                url,
                heartbeat_interval=heartbeat,
                heartbeat_stale_trial_callback=_queue_again,
            )
        except SQLAlchemyError:
            attempt += 1
            if attempt == OPENINGS:
                raise
            time.sleep(POLL * attempt)


def _proxy(url: str) -> BaseStorage:
    place = urlsplit(url)
    proxy = optuna.storages.GrpcStorageProxy(
        host=place.hostname or "localhost", port=place.port or 13000
    )
    proxy.wait_server_ready(timeout=10)
    return proxy


def _mend(journal: Path) -> None:
    """Cut off a last line that a power loss left incomplete, as anything after it would be lost."""
    if not journal.exists():
        return
    require_ours(journal, is_journal)
    lock = JournalFileSymlinkLock(str(journal))  # Optuna's own: nobody writes meanwhile
    lock.acquire()
    try:
        content = journal.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(journal, whole)
    finally:
        lock.release()


def _queue_again(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queue a failed trial with the same parameters, once."""
    params = trial.params or trial.system_attrs.get("fixed_params", {})
    origin = trial.user_attrs.get(ORIGIN, f"trial {trial.number}")
    later = study.get_trials(deepcopy=False)[trial.number + 1 :]
    if params and origin not in {t.user_attrs.get(ORIGIN) for t in later}:
        study.enqueue_trial(params, {ORIGIN: origin})


def _lock_file(directory: Path, worker: str) -> Path:
    return directory / WORKERS_FOLDER / f"{worker}.lock"


def _others(directory: Path, worker: str) -> list[Path]:
    """The locks that other workers hold."""
    found = (directory / WORKERS_FOLDER).glob("*.lock")
    locks = [lock for lock in found if WORKER_LOCK.fullmatch(lock.name)]
    return [lock for lock in locks if lock.stem != worker and _holds_lock(lock)]


def _holds_lock(path: Path) -> bool:
    """Whether the worker of a lock file is alive; the file of a dead one is removed."""
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            path.unlink(missing_ok=True)
            return False
    except Timeout:
        return True


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna's own reports off the terminal."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        try:
            yield
        finally:
            optuna.logging.set_verbosity(verbosity)
