"""A process that holds a model and works through cells: `python -m …sweep.worker`.

It reads a cell a line from stdin, as JSON, and writes an event a line to stdout: what it holds once
a model is loaded, and what became of the cell. It ends with its stdin.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil

from calibrate.calibration import calibrate
from calibrate.common.errors import CalibrateError, Infeasible
from calibrate.engine.loading import load_model
from calibrate.models.model import LoadedModel
from calibrate.pipelines.sweep.cells import Cell
from calibrate.pipelines.sweep.store import Store, working_at

Facts = dict[str, Any]


def asked_of(cell: Cell, store: Store) -> Facts:
    """A cell as plain values, with the place it goes to."""
    return {
        "model": cell.model,
        "loading": dict(cell.loading),
        "concept": cell.concept,
        "options": cell.options,
        "out": store.place_of(cell.name),
    }


class Holder:
    """Holds one model at a time, and calibrates it."""

    def __init__(self) -> None:
        self._held: tuple[str, Facts] = "", {}
        self._loaded: LoadedModel | None = None

    def run(self, asked: Facts, loaded: Callable[[], None] = lambda: None) -> Facts:
        """Run a cell, and return what became of it: status, reasons, seconds.

        loaded: told once another model is loaded. Errors end the cell, and nothing else.
        """
        started = time.perf_counter()
        try:
            model = self._holding(asked["model"], asked["loading"], loaded)
            options = {name: _as_given(value) for name, value in asked["options"]}
            with working_at(asked["out"]) as out:
                calibrate(model, asked["concept"], out=out, **options)
            status, reasons = "done", []
        except Infeasible as infeasible:
            status, reasons = "infeasible", list(infeasible.reasons)
        except Exception as error:  # the sweep goes on with the next cell
            kind = "" if isinstance(error, CalibrateError) else f"{type(error).__name__}: "
            status, reasons = "failed", [f"{kind}{error}"]
        return {
            "status": status,
            "reasons": reasons,
            "seconds": time.perf_counter() - started,
        }

    def _holding(self, name: str, loading: Facts, loaded: Callable[[], None]) -> LoadedModel:
        if self._loaded is None or (name, loading) != self._held:
            self._loaded = None
            gc.collect()
            self._held, self._loaded = (name, loading), load_model(name, **loading)
            loaded()
        return self._loaded


def _as_given(value: Any) -> Any:
    """A list of JSON as the tuple it was, such as several blocks."""
    return tuple(value) if isinstance(value, list) else value


def main() -> None:
    """Work until there is nothing more to do."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # what libraries print is no event

    def say(**facts: Any) -> None:
        events.write(json.dumps(facts) + "\n")

    def loaded() -> None:
        say(event="loaded", bytes=psutil.Process().memory_info().rss)

    holder = Holder()
    for line in sys.stdin:
        say(event="ended", **holder.run(json.loads(line), loaded))


if __name__ == "__main__":
    main()
