"""The workers of a sweep, and which cell goes to which.

A worker takes cells of the model it holds, and another model's only when none of those are left.
Workers are added one at a time, as long as there are cores, cells, and memory for one more: as much
as the largest so far holds with its model. A worker that dies is replaced; the cell it died in is
tried again, but not for ever.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from calibrate.common.errors import ArtefactError
from calibrate.pipelines.sweep.cells import Cell, next_cell
from calibrate.pipelines.sweep.ledger import Heard, SweepLedger
from calibrate.pipelines.sweep.store import Store
from calibrate.pipelines.sweep.worker import asked_of

MOST_TRIES = 2  # of a cell whose worker dies
COMMAND = (sys.executable, "-m", "calibrate.pipelines.sweep.worker")
SPARE = 1.2  # times a worker's memory that must be free for another


class Pool:
    """Runs cells in processes of this machine.

    most: workers at once. threads: of each. heard: told when a cell begins, with None, and when it
    ends.
    """

    def __init__(
        self, store: Store, ledger: SweepLedger, most: int, threads: int, heard: Heard
    ) -> None:
        self._store, self._ledger = store, ledger
        self._most, self._threads, self._heard = most, threads, heard
        self._left: list[Cell] = []
        self._changed = threading.Condition()
        self._processes: dict[int, subprocess.Popen[str]] = {}
        self._workers: list[threading.Thread] = []
        self._alive: set[int] = set()
        self._held: dict[int, str] = {}
        self._largest, self._stopping = 0, False
        self._broken: Exception | None = None

    def run(self, cells: Sequence[Cell]) -> None:
        """Run every cell, and return when all have ended.

        Raises: what ended a worker's thread, such as ArtefactError for a ledger that cannot be
            kept or a log that cannot be written.
        """
        self._left = list(cells)
        try:
            with self._changed:
                while True:
                    if self._broken is not None:
                        raise self._broken
                    if self._may_add():
                        self._add()
                    if not self._alive and not self._left:
                        return
                    self._changed.wait()
        finally:
            self._stop()
            logs = sorted(path.name for path in (self._store.directory / "logs").glob("*.log"))
            self._store.put(f"logs/{name}" for name in logs)

    def _may_add(self) -> bool:
        """Whether there are cores, cells and memory for one worker more."""
        if not self._left or len(self._alive) >= self._most:
            return False
        if not self._alive:
            return True
        return bool(self._largest) and (psutil.virtual_memory().available > SPARE * self._largest)

    def _add(self) -> None:
        number = len(self._workers)
        worker = threading.Thread(target=self._work, args=(number,), daemon=True)
        self._workers.append(worker)
        self._alive.add(number)
        worker.start()

    def _work(self, number: int) -> None:
        """One worker's thread: whatever ends it, `run` is told."""
        try:
            self._serve(self._started(number), number)
        except Exception as error:  # raised by `run`
            self._broken = error
        finally:
            with self._changed:
                self._processes.pop(number, None)
                self._alive.discard(number)
                self._held.pop(number, None)
                self._changed.notify_all()

    def _serve(self, process: subprocess.Popen[str], number: int) -> None:
        """Hand a worker cells until none are left, or it dies."""
        try:
            while (cell := self._take(number)) is not None:
                if not self._through(process, cell):
                    break
        finally:
            if process.stdin is not None:
                with suppress(OSError):  # it died with a question unread
                    process.stdin.close()
            process.wait()

    def _started(self, number: int) -> subprocess.Popen[str]:
        """Start a worker that writes its errors to a log.

        Raises: ArtefactError if it cannot be started, or its log not be written.
        """
        log = self._store.directory / "logs" / f"worker-{number}.log"
        try:
            process = self._begun(log)
        except OSError as error:
            raise ArtefactError(
                f"a worker must be started and its log {log} be written, and that fails "
                f"({error.strerror}); free memory and disk, or choose another --out"
            ) from error
        with self._changed:
            self._processes[number] = process
        return process

    def _begun(self, log: Path) -> subprocess.Popen[str]:
        log.parent.mkdir(exist_ok=True)
        threads = str(self._threads)
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        with log.open("ab") as errors:
            return subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                encoding="utf-8",
                env=environment,
            )

    def _take(self, number: int) -> Cell | None:
        """A worker's next cell."""
        with self._changed:
            if self._stopping or not self._left:
                return None
            others = Counter(self._held.values())
            cell = self._left.pop(next_cell(self._left, self._held.get(number, ""), others))
            self._held[number] = cell.held
            return cell

    def _through(self, process: subprocess.Popen[str], cell: Cell) -> bool:
        """Run one cell; whether its worker lives on."""
        with self._changed:
            tries = self._ledger.of(cell).tries + 1
            self._ledger.change(cell, tries=tries)
        self._heard(cell, None)
        ended = self._asked(process, cell)
        with self._changed:
            if ended is not None:
                outcome = self._ledger.change(
                    cell,
                    status=ended["status"],
                    reasons=tuple(ended["reasons"]),
                    seconds=ended["seconds"],
                )
            elif self._stopping:
                return False
            elif tries < MOST_TRIES:
                self._left.append(cell)
                outcome = self._ledger.of(cell)
            else:
                reason = f"its worker died {tries} times; the logs say more"
                outcome = self._ledger.change(cell, status="failed", reasons=(reason,))
            self._changed.notify_all()
        self._heard(cell, outcome)
        return ended is not None

    def _asked(self, process: subprocess.Popen[str], cell: Cell) -> dict[str, Any] | None:
        """What a worker says of a cell; None if it dies over it."""
        assert process.stdin is not None
        assert process.stdout is not None
        asked = asked_of(cell, self._store)
        try:
            process.stdin.write(json.dumps(asked) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                event: dict[str, Any] = json.loads(line)
                if event["event"] == "ended":
                    return event
                with self._changed:
                    self._largest = max(self._largest, event["bytes"])
                    self._changed.notify_all()
        except (OSError, ValueError):
            pass  # it died while being asked, or in the middle of a line
        return None

    def _stop(self) -> None:
        """End all workers; cells that were under way go on with the next run."""
        with self._changed:
            self._stopping = True
            for process in self._processes.values():
                process.terminate()
        for worker in self._workers:
            worker.join()
