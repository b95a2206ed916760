"""Where a study is kept: a journal in a directory, or a database."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial
from sqlalchemy import make_url, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from calibrate.common.errors import ArtefactError, InputError
from calibrate.common.files import require_ours
from calibrate.common.layout import FINGERPRINT, JOURNAL_FILE, is_journal
from calibrate.models.ranks import Ranks

HEARTBEAT = 30  # seconds between heartbeats in a database; twice as long without one means dead
OPENINGS = 3  # attempts at opening a database
POLL = 0.5  # seconds between two looks at what other workers do
ORIGIN = "origin"  # trial attribute: what it was started for; each origin is measured once

Direction = Literal["maximize", "minimize"]


@dataclass(frozen=True)
class StudyStore:
    """Where a study is kept, and the fingerprint of the calibration it belongs to.

    url: a database as SQLAlchemy names it (sqlite:///study.db, postgresql://…), an Optuna gRPC
        proxy (grpc://host:port), or None for a journal in `directory`, or for memory if that is
        None too.
    """

    name: str
    fingerprint: str
    directory: Path | None = None
    url: str | None = None


def check_storage(store: StudyStore, ranks: Ranks) -> None:
    """Refuse a database or a proxy that was named and cannot be opened, or not be used.

    Raises: ArtefactError, or InputError where several processes hold the model.
    """
    if store.url is not None:
        if not ranks.alone:
            raise InputError(
                "--storage shares a study between workers that each hold a model, and here "
                f"{ranks.size} processes hold one; leave it out"
            )
        open_storage(store)


def open_storage(store: StudyStore) -> BaseStorage:
    """Open where a study is kept.

    Raises: ArtefactError if it cannot be opened.
    """
    if store.url is None and store.directory is None:
        return InMemoryStorage()
    if store.url is None:
        assert store.directory is not None
        path = store.directory / JOURNAL_FILE
        _mend(path)
        with quiet_optuna():
            return JournalStorage(JournalFileBackend(str(path)))
    try:
        with quiet_optuna():
            if store.url.startswith("grpc://"):
                return _proxy(store.url)
            return _database(store.url)
    except Exception as error:  # SQLAlchemy's, gRPC's, and those of every database driver
        raise ArtefactError(
            f"--storage must be a database URL or grpc://HOST:PORT that can be opened, got "
            f"{shown_url(store.url)!r} ({_without_secrets(str(error), store.url)})"
        ) from error


def open_study(
    store: StudyStore, direction: Direction, pruner: optuna.pruners.BasePruner | None = None
) -> optuna.Study:
    """Make a study, or open the one of this name that was made with the same settings."""
    with quiet_optuna():
        study = optuna.create_study(
            storage=open_storage(store),
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


def shown_url(url: str) -> str:
    """A database's URL without what is secret in it: no password, and no options."""
    try:
        return make_url(url).set(query={}).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        return f"{url.partition(':')[0]}:…" if {"@", "?"} & {*url} else url


def _without_secrets(said: str, url: str) -> str:
    """A driver's message, which may repeat the URL or the password."""
    try:
        password = make_url(url).password
    except (ArgumentError, ValueError):  # then any part of it may be the password
        return "it cannot be read as one"
    said = said.replace(url, shown_url(url))
    return said.replace(password, "***") if password else said


def _database(url: str) -> BaseStorage:
    """Open a database; tried again where other workers make its tables at the same moment."""
    if url.rstrip("/") == "sqlite:" or ":memory:" in url:
        raise ValueError("a database in memory is another one in every thread; name a file")
    attempt = 0
    while True:
        try:
            return RDBStorage(
                url,
                heartbeat_interval=HEARTBEAT,
                heartbeat_stale_trial_callback=queue_again,
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


def has_heartbeat(storage: BaseStorage, trial_id: int) -> bool:
    """Whether a running trial has a heartbeat, so that Optuna notices when it stops.

    Optuna never fails a trial whose worker died before the first.
    """
    backend = getattr(storage, "_backend", storage)  # a study wraps its database in a cache
    if not isinstance(backend, RDBStorage):
        return False
    query = text("SELECT COUNT(*) FROM trial_heartbeats WHERE trial_id = :trial_id")
    with backend.engine.connect() as connection:
        return bool(connection.execute(query, {"trial_id": trial_id}).scalar())


def queue_again(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queue a failed trial with the same parameters, once; those it never came to are kept."""
    params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
    origin = trial.user_attrs.get(ORIGIN, f"trial {trial.number}")
    later = study.get_trials(deepcopy=False)[trial.number + 1 :]
    if params and origin not in {other.user_attrs.get(ORIGIN) for other in later}:
        study.enqueue_trial(params, {ORIGIN: origin})


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keep Optuna's own reports off the terminal.

    Its warnings, too: it logs every error inside a trial with its traceback, an interrupt or a
    dropped trial as well, before it raises them to us.
    """
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        try:
            yield
        finally:
            optuna.logging.set_verbosity(verbosity)
