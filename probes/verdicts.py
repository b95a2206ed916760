"""A cache of judges' answers: no judge is asked the same question about the same reply twice.

An answer's key is the SHA-256 of the judge's identity and the whole prompt; neither is stored.
Each is written as soon as it is known, so that an interrupted run loses none. Only the latest
MAX_VERDICTS are kept.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calibrate.common.errors import CalibrateWarning
from calibrate.common.progress import SILENT, Progress
from calibrate.models.converted import cache_directory
from probes.asking import NEITHER, Asked, asked_about

FILE = "verdicts.sqlite3"
MAX_VERDICTS = 500_000  # about 50 MB
VERSION = 1  # part of every key; raise it when the same prompt gets another verdict
LOCK_TIMEOUT = 30  # seconds for which another process may write
PROGRESS_DELAY = 2  # seconds before progress is shown
TABLE = """CREATE TABLE IF NOT EXISTS verdicts
(number INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, score REAL NOT NULL)"""
DELETE_OLDEST = "DELETE FROM verdicts WHERE number <= (SELECT max(number) FROM verdicts) - ?"


@dataclass(frozen=True, eq=False)
class Remembered:
    """A judge that is asked only what it did not answer before on this machine.

    An answer that is neither yes nor no counts as no, and is not kept.
    """

    judge: Asked
    progress: Progress = SILENT

    def score(self, texts: Sequence[str], concept: str) -> np.ndarray:
        """Return the judge's P(yes) for each text, shape (n_texts,).

        Raises: what the judge raises; what it answered before is kept.
        """
        prompts = asked_about(self.judge.question, texts, concept)
        keys = [_key(self.judge.identity, prompt) for prompt in prompts]
        with _opened() as store:
            known = store.known(keys)
            asked = dict(zip(keys, prompts, strict=True))  # each once
            missing = {key: prompt for key, prompt in asked.items() if key not in known}
            names, started = list(missing), time.monotonic()
            for done, (index, score) in enumerate(self.judge.answers(list(missing.values())), 1):
                known[names[index]] = NEITHER if score is None else score
                if score is not None:
                    store.keep(names[index], score)
                if time.monotonic() - started > PROGRESS_DELAY:
                    self.progress.asked(done, len(names))
        return np.array([known[key] for key in keys])


class _Store:
    """The verdicts in a file; after an error nothing more is read or written."""

    def __init__(self, connection: sqlite3.Connection | None) -> None:
        self._connection = connection

    def known(self, keys: Sequence[bytes]) -> dict[bytes, float]:
        scores = {}
        for key in keys:
            for (score,) in self._run("SELECT score FROM verdicts WHERE key = ?", key):
                scores[key] = score
        return scores

    def keep(self, key: bytes, score: float) -> None:
        self._run("INSERT OR IGNORE INTO verdicts (key, score) VALUES (?, ?)", key, score)

    def forget_the_oldest(self) -> None:
        self._run(DELETE_OLDEST, MAX_VERDICTS)

    def prepare(self) -> None:
        self._run(TABLE)

    def _run(self, statement: str, *values: object) -> list[tuple[float]]:
        if self._connection is None:
            return []
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            _warn(error)
            self._connection = None
            return []


@contextmanager
def _opened() -> Iterator[_Store]:
    path = cache_directory() / FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=LOCK_TIMEOUT, isolation_level=None)
    except (OSError, sqlite3.Error) as error:
        _warn(error)
        yield _Store(None)
        return
    with closing(connection):
        store = _Store(connection)
        store.prepare()
        try:
            yield store
        finally:
            store.forget_the_oldest()


def _warn(error: Exception) -> None:
    path: Path = cache_directory() / FILE
    warnings.warn(
        f"a judge's verdicts cannot be kept in {path} ({error}), and are asked for anew every "
        "time; delete the file, or set STEERING_CALIBRATE_CACHE to another directory",
        CalibrateWarning,
        stacklevel=2,
    )


def _key(identity: str, prompt: str) -> bytes:
    return hashlib.sha256(json.dumps([VERSION, identity, prompt]).encode()).digest()
