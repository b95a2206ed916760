"""A sweep, from cells to the report."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from calibrate.common.errors import ArtefactError, InputError
from calibrate.common.files import writing_to
from calibrate.pipelines.sweep.cells import Cell
from calibrate.pipelines.sweep.ledger import Heard, Outcome, SweepLedger, kept_outcomes
from calibrate.pipelines.sweep.on_ray import RayPool
from calibrate.pipelines.sweep.pool import Pool
from calibrate.pipelines.sweep.report import PAGE_FILE, Row, write_report
from calibrate.pipelines.sweep.store import LOCK, Store


@dataclass(frozen=True)
class Swept:
    """The outcomes of all cells, and the report: its table, and where its page is."""

    outcomes: tuple[Outcome, ...]
    rows: tuple[Row, ...]
    report: str

    def count(self, status: str) -> int:
        """How many cells ended like that."""
        return sum(one.status == status for one in self.outcomes)


def sweep(
    cells: Sequence[Cell],
    out: str | Path,
    *,
    workers: int | None = None,
    on: str = "local",
    heard: Heard = lambda _cell, _outcome: None,
) -> Swept:
    """Calibrate every cell into a directory of its own, and write what they say together.

    out: a directory, or an address of a store, as fsspec has them: s3://BUCKET/PATH.

    The same call goes on with an interrupted sweep: cells that are done or infeasible are not
    touched, and those that failed are tried again.

    workers: processes at once; None for as many as there are cores, and memory allows. on: "local"
        for processes of this machine, or "ray" or ray://HOST:PORT for a cluster. heard: told of
        each cell that waits, when it begins, with None, and what became of it.
    Raises: InputError, or ArtefactError if `out` is not a sweep's or another sweep runs there.
    """
    if not cells:
        raise InputError("a sweep needs at least one cell")
    if workers is not None and workers < 1:
        raise InputError(f"--workers must be 1 or more, got {workers}")
    if on not in ("local", "ray") and not on.startswith("ray://"):
        raise InputError(f"--on must be local, ray or ray://HOST:PORT, got {on}")
    if on != "local" and workers is not None:
        raise InputError("--workers is for --on local; a cluster's cores decide there")
    with Store(out) as store, _alone_in(store):
        ledger = SweepLedger(store, cells)
        left = [cell for cell in cells if not ledger.has_ended(cell)]
        for cell in left:
            heard(cell, ledger.change(cell, status="waiting", reasons=(), tries=0))
        if left:
            _pool(store, ledger, on, workers, len(left), heard).run(left)
        rows = write_report(store, cells, ledger)
        return Swept(ledger.outcomes, tuple(rows), store.link(PAGE_FILE))


@contextmanager
def _alone_in(store: Store) -> Iterator[None]:
    """Hold a sweep's directory inside the `with`; another's is looked at, and left as it is.

    Raises: ArtefactError if it is not new, empty or a sweep's, cannot be written, or another sweep
        runs there.
    """
    kept_outcomes(store)
    lock = FileLock(store.directory / LOCK)
    with writing_to(store.directory):
        store.directory.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise ArtefactError(f"another sweep runs in {store.place}; wait for it") from error
    try:
        yield
    finally:
        lock.release()


def _pool(
    store: Store, ledger: SweepLedger, on: str, workers: int | None, n_cells: int, heard: Heard
) -> Pool | RayPool:
    if on != "local":
        return RayPool(store, ledger, on, heard)
    cores = os.cpu_count() or 1
    most = min(workers or cores, n_cells)
    return Pool(store, ledger, most, max(cores // most, 1), heard)
