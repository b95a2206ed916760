"""The output directory: may it be used, does it hold a finished or an interrupted calibration."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from calibrate.config import CONFIG_FILE
from calibrate.errors import ArtefactError

JOURNAL_FILE = "study.journal"
LAWS_FILE = "laws.json"
WORKERS_FOLDER = ".workers"  # locks of those who work here; gone when the result is written
WRITING_LOCK = "writing.lock"


def open_workspace(out: str | Path | None, fingerprint: str) -> tuple[Path | None, bool]:
    """Return the output directory, made if need be, and whether it holds this very result.

    Raises: ArtefactError if it holds something else, or cannot be made.
    """
    if out is None:
        return None, False
    directory = Path(out)
    finished = directory / CONFIG_FILE
    if finished.is_file():
        if _fingerprint_of(finished) == fingerprint:
            return directory, True
        raise ArtefactError(
            f"{directory} holds a calibration made with other settings, data or another model; "
            "choose another --out, or remove it"
        )
    require_free(directory, JOURNAL_FILE)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtefactError(f"cannot make --out {directory}: {error.strerror}") from error
    return directory, False


@contextmanager
def writing(directory: Path | None, fingerprint: str) -> Iterator[bool]:
    """Hold the right to write into an output directory; tell whether its result is there already.

    Whoever else wants to write waits, so that the second of two workers finds what the first wrote.
    """
    if directory is None:
        yield False
        return
    locks, finished = directory / WORKERS_FOLDER, directory / CONFIG_FILE
    locks.mkdir(exist_ok=True)
    with FileLock(locks / WRITING_LOCK):
        yield finished.is_file() and _fingerprint_of(finished) == fingerprint
        if finished.is_file():
            shutil.rmtree(locks, ignore_errors=True)


def require_free(directory: Path, ours: str) -> None:
    """Raise ArtefactError unless a directory is new, empty, or holds our own file `ours`."""
    if directory.exists() and not directory.is_dir():
        raise ArtefactError(f"--out must be a directory, got the file {directory}")
    if directory.is_dir() and any(directory.iterdir()) and not (directory / ours).exists():
        example = sorted(path.name for path in directory.iterdir())[0]
        raise ArtefactError(
            f"--out must be new, empty or of an earlier run, but {directory} holds {example!r}; "
            "choose another --out"
        )


def _fingerprint_of(config: Path) -> str | None:
    try:
        facts = json.loads(config.read_text(encoding="utf-8"))
        return str(facts["provenance"]["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
