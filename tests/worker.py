"""A worker on a shared study, for tests that kill it: python worker.py '{"…": …}'.

Measures a synthetic objective slowly, and writes a line to a log before and after every trial.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from test_study import ALPHAS, BASELINE, Synthetic, by_site

from calibrate.common.settings import Settings
from calibrate.search.agreement import act_once
from calibrate.search.storage import StudyStore
from calibrate.search.study import run_study


class Slow(Synthetic):
    """Takes its time over every rung, and keeps a log."""

    log: Path
    seconds: float

    def write(self, *words: object) -> None:
        with self.log.open("a") as file:
            file.write(json.dumps([os.getpid(), *words]) + "\n")

    def delta_ce(self, site: str, strength: float) -> Any:
        self.write("started", site, strength)
        return super().delta_ce(site, strength)

    def replies(self, site: str, strength: float, rung: int) -> Any:
        time.sleep(self.seconds)
        replied = super().replies(site, strength, rung)
        if rung + 1 == len(self.rungs):
            self.write("measured", site, strength)
        return replied


def main(given: dict[str, Any]) -> None:
    log = Path(given["log"])
    objective = Slow(ALPHAS, best_layer=5)
    objective.log, objective.seconds = log, given["seconds"]
    directory = Path(given["directory"]) if given.get("directory") else None
    store = StudyStore("joy", "f", directory, given.get("url"), heartbeat=1)
    settings = Settings(trials=given["trials"], seed=4)
    pilots = by_site(ALPHAS, good=False)  # so that the sampler has its say, up to `trials`
    found = run_study(pilots, objective, BASELINE, settings, store)

    def act() -> None:
        objective.write("acting")
        time.sleep(given["seconds"])
        objective.write("acted")

    where = act_once(store, f"here {os.getpid()}", act)
    best = [found.best.site, found.best.share, found.best.presence]
    print(json.dumps({"best": best, "trials": len(found.trials), "where": where}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
