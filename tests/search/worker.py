"""A worker on a shared study, for tests that kill it.

It measures a synthetic objective and writes a line to a log at every step. Where it should be
killed it waits for that, and it waits for other workers that should be there, so that no test
depends on how fast the machine is.
"""

from __future__ import annotations

import json
import os
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patience import wait_until
from test_study import ALPHAS, BASELINE, Synthetic, by_site

from calibrate.artefact.config import CONFIG_FILE
from calibrate.artefact.directory import writing
from calibrate.common.settings import Settings
from calibrate.search.storage import StudyStore
from calibrate.search.study import run_study


@dataclass(frozen=True)
class Log:
    """Lines that all workers of a test write: [process id, what, details…]."""

    path: Path

    def write(self, *words: object) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps([os.getpid(), *words]) + "\n")

    def lines(self, *what: str) -> list[list[Any]]:
        """The complete lines of these kinds."""
        written = self.path.read_text() if self.path.exists() else ""
        whole = written[: written.rfind("\n") + 1].splitlines()
        return [line for line in map(json.loads, whole) if line[1] in what]

    def wait_to_be_killed(self) -> None:
        self.write("waiting to be killed")
        wait_until(lambda: False, "SIGKILL")


@dataclass
class Logged(Synthetic):
    """Keeps a log of its trials.

    hold: the number, from 1, of the trial in whose middle it waits to be killed; 0 for none.
    together: how many workers have to have started a trial before one goes on.
    """

    log: Log = Log(Path("log"))
    hold: int = 0
    together: int = 1
    n_started: int = 0

    def delta_ce(self, site: str, strength: float) -> Any:
        self.log.write("started", site, strength)
        self.n_started += 1
        wait_until(lambda: self.n_workers() >= self.together, "another worker")
        return super().delta_ce(site, strength)

    def replies(self, site: str, strength: float, rung: int) -> Any:
        if 0 < self.hold <= self.n_started:
            self.log.wait_to_be_killed()
        replied = super().replies(site, strength, rung)
        if rung + 1 == len(self.rungs):
            self.log.write("measured", site, strength)
        return replied

    def n_workers(self) -> int:
        return len({line[0] for line in self.log.lines("started")})


def work(given: dict[str, Any]) -> None:
    """Take part in a study, write into `out` if there is one, and log the answer or the error."""
    log = Log(Path(given["log"]))
    try:
        log.write("answer", take_part(log, given))
    except BaseException:
        log.write("error", traceback.format_exc())
        raise


def take_part(log: Log, given: dict[str, Any]) -> dict[str, Any]:
    objective = Logged(
        ALPHAS, 5, log=log, hold=given.get("hold", 0), together=given.get("together", 1)
    )
    directory = Path(given["directory"]) if "directory" in given else None
    store = StudyStore("joy", "f", directory, given.get("url"))
    settings = Settings(trials=given["trials"], seed=4)
    pilots = by_site(ALPHAS, good=False)  # so that the sampler has its say, up to `trials`
    result = run_study(pilots, objective, BASELINE, settings, store)
    if "out" in given:
        write_once(log, Path(given["out"]), given.get("hold_writing", False))
    best = [result.best.site, result.best.share, result.best.presence]
    return {"best": best, "trials": len(result.trials)}


def write_once(log: Log, out: Path, hold: bool) -> None:
    """Write what passes for an artefact, as `calibrate` does."""
    log.write("studied")
    with writing(out, "f") as written:
        if written:
            return
        if hold:
            log.wait_to_be_killed()
        (out / CONFIG_FILE).write_text(json.dumps({"provenance": {"fingerprint": "f"}}))
        log.write("written")
