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
from pathlib import Path
from typing import Any, TextIO

import psutil

from calibrate.calibration import calibrate
from calibrate.common.errors import CalibrateError, Infeasible
from calibrate.engine.loading import load_model
from calibrate.models.model import LoadedModel


def main() -> None:
    """Work until there is nothing more to do."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # what libraries print is no event
    name, loaded = "", None
    for line in sys.stdin:
        asked = json.loads(line)
        started = time.perf_counter()
        try:
            if asked["model"] != name or loaded is None:
                loaded = None
                gc.collect()
                name, loaded = asked["model"], load_model(asked["model"])
                _say(events, event="loaded", bytes=psutil.Process().memory_info().rss)
            facts = _calibrated(loaded, asked)
        except Exception as error:  # the sweep goes on with the next cell
            kind = "" if isinstance(error, CalibrateError) else f"{type(error).__name__}: "
            facts = {"status": "failed", "reasons": [f"{kind}{error}"]}
        _say(events, event="ended", seconds=time.perf_counter() - started, **facts)


def _calibrated(loaded: LoadedModel, asked: dict[str, Any]) -> dict[str, Any]:
    try:
        options = {name: _as_given(value) for name, value in asked["options"]}
        calibrate(loaded, asked["concept"], out=Path(asked["out"]), **options)
    except Infeasible as infeasible:
        return {"status": "infeasible", "reasons": list(infeasible.reasons)}
    return {"status": "done", "reasons": []}


def _as_given(value: Any) -> Any:
    """A list of JSON as the tuple it was, such as several blocks."""
    return tuple(value) if isinstance(value, list) else value


def _say(events: TextIO, **facts: Any) -> None:
    events.write(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main()
