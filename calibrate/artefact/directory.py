"""The output directory: whether it may be used, and whether it holds a finished calibration.

Only files whose contents show that we wrote them (`wrote`) are ever replaced; this is checked
before anything is measured.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from calibrate.artefact.config import CONFIG_FILE, FORMAT, VECTOR_FILE
from calibrate.artefact.evidence import EVIDENCE_FILE
from calibrate.artefact.frontier import FRONTIER_FILE, FRONTIER_FORMAT
from calibrate.artefact.grades import GRADES_FILE, is_grades
from calibrate.common.errors import ArtefactError
from calibrate.common.files import is_plain_file, never_ours, require_ours, writing_to
from calibrate.common.layout import (
    JOURNAL_FILE,
    JOURNAL_LOCK,
    LAWS_FILE,
    LAWS_KEYS,
    REPORT_FILE,
    WORKER_LOCK,
    WORKERS_FOLDER,
    WRITING_LOCK,
    is_journal,
)
from calibrate.common.marks import facts_in, names_us, sha256_of

# What a calibration writes beside its journal.
ARTEFACT_FILES = (
    CONFIG_FILE, VECTOR_FILE, EVIDENCE_FILE, "probe/probe.json", "probe/probe.safetensors",
    REPORT_FILE, "delta_ce.png", "presence.png", "blocks.png", "long_run.png",
)  # fmt: skip
FRONTIER_FILES = (FRONTIER_FILE, "frontier.png", "frontier.svg")  # of `calibrate frontier`
INFEASIBLE_FILES = {REPORT_FILE, *FRONTIER_FILES}  # all that one without a strength leaves

# All that a later run of the same command reads again.
KEPT_FILES = (JOURNAL_FILE, *ARTEFACT_FILES, *FRONTIER_FILES, GRADES_FILE)


def wrote(path: Path) -> bool:
    """Whether a file in an output directory shows by its contents that we wrote it."""
    facts = facts_in(path) if path.suffix == ".json" else {}
    if path.name == CONFIG_FILE:
        return facts.get("format") == FORMAT
    if path.name == EVIDENCE_FILE:
        return facts.keys() >= {"pilots", "trials", "completions", "splits"}
    if path.name == FRONTIER_FILE:
        return facts.get("format") == FRONTIER_FORMAT
    if path.name == GRADES_FILE:
        return is_grades(path)
    if path.name == LAWS_FILE:
        return facts.keys() >= LAWS_KEYS
    if path.name == VECTOR_FILE:
        beside = facts_in(path.with_name(CONFIG_FILE)).get("vector")
        return isinstance(beside, dict) and beside.get("sha256") == sha256_of(path)
    if path.name.startswith("probe."):
        from probes.probe import is_probe  # imports torch, which takes seconds

        return is_probe(path)
    return names_us(path)


def open_workspace(out: str | Path | None, *fingerprints: str) -> tuple[Path | None, bool]:
    """Return the output directory, made if need be, and whether this run's result is in it.

    fingerprints: of all results that the run may have.
    Raises: ArtefactError if it holds something else, or cannot be made.
    """
    if out is None:
        return None, False
    directory = Path(out)
    finished = directory / CONFIG_FILE
    if finished.is_file():
        if _fingerprint_of(finished) in fingerprints:
            return directory, True
        require_ours(finished, wrote)
        raise ArtefactError(
            f"{directory} holds a calibration made with other settings, data or another model; "
            "choose another --out, or remove it"
        )
    require_free(directory, JOURNAL_FILE, (*ARTEFACT_FILES, *FRONTIER_FILES, GRADES_FILE))
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtefactError(f"cannot make --out {directory}: {error.strerror}") from error
    return directory, False


@contextmanager
def writing(directory: Path | None, *fingerprints: str) -> Iterator[bool]:
    """Lock an output directory for writing; yield whether its result is there already.

    Other writers wait, so the second of two workers finds what the first wrote. The operating
    system releases the lock of a process that dies.
    Raises: ArtefactError if nothing can be written there.
    """
    if directory is None:
        yield False
        return
    locks, finished = directory / WORKERS_FOLDER, directory / CONFIG_FILE
    with writing_to(directory):
        locks.mkdir(exist_ok=True)
    with FileLock(locks / WRITING_LOCK):
        yield finished.is_file() and _fingerprint_of(finished) in fingerprints
        if finished.is_file():
            _clear(locks)


def require_free(directory: Path, ours: str, files: Iterable[str] = ()) -> None:
    """Raise ArtefactError unless a directory is new, empty, or holds an earlier run of ours.

    ours: the file that marks an earlier run. files: what will be written beside it.
    """
    if directory.exists() and not directory.is_dir():
        raise ArtefactError(f"--out must be a directory, got the file {directory}")
    if directory.is_dir() and not os.access(directory, os.W_OK):
        raise ArtefactError(f"{directory} must be writable, and is not; choose another directory")
    names = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    _require_locks(directory)
    left = {WORKERS_FOLDER, *(INFEASIBLE_FILES & {*files})}  # by a run with its study elsewhere
    if not {*names} <= left and not (directory / ours).exists():
        raise ArtefactError(
            f"--out must be new, empty or of an earlier run, but {directory} holds {names[0]!r}; "
            "choose another --out"
        )
    require_ours(directory / ours, is_journal if ours == JOURNAL_FILE else wrote)
    for name in files:
        require_ours(directory / name, wrote)


def _require_locks(directory: Path) -> None:
    """Raise ArtefactError if something else is where the workers' locks go."""
    lock, locks = directory / JOURNAL_LOCK, directory / WORKERS_FOLDER
    linked = lock.is_symlink() and Path(os.readlink(lock)).name == JOURNAL_FILE
    if os.path.lexists(lock) and not linked:
        require_ours(lock, never_ours)
    if os.path.lexists(locks) and (locks.is_symlink() or not locks.is_dir()):
        require_ours(locks, never_ours)


def _clear(locks: Path) -> None:
    """Remove the workers' locks, and their folder if nothing else is in it."""
    for lock in locks.iterdir():
        if is_plain_file(lock) and (lock.name == WRITING_LOCK or WORKER_LOCK.fullmatch(lock.name)):
            with suppress(OSError):
                lock.unlink()
    with suppress(OSError):
        locks.rmdir()


def _fingerprint_of(config: Path) -> str | None:
    try:
        facts = json.loads(config.read_text(encoding="utf-8"))
        return str(facts["provenance"]["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
