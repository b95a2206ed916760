"""The locks of a study's workers in its directory: each holds its own as long as it lives."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from calibrate.common.layout import WORKER_LOCK, WORKERS_FOLDER


def lock_file(directory: Path, worker: str) -> Path:
    """Where a worker holds its lock."""
    return directory / WORKERS_FOLDER / f"{worker}.lock"


def other_locks(directory: Path, worker: str) -> list[Path]:
    """The locks that other workers hold."""
    files = (directory / WORKERS_FOLDER).glob("*.lock")
    locks = [file for file in files if WORKER_LOCK.fullmatch(file.name) and file.stem != worker]
    return [lock for lock in locks if holds_lock(lock)]


def holds_lock(path: Path) -> bool:
    """Whether the worker of a lock file is alive; the file of a dead one is removed."""
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            path.unlink(missing_ok=True)
            return False
    except Timeout:
        return True
