"""Waiting for what others bring about, with an end: a test that hangs fails."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 300  # seconds after which whoever waits takes it that something is broken


def wait_until(happened: Callable[[], bool], what: str) -> None:
    """Return once something has happened.

    Raises: TimeoutError if it does not.
    """
    end = time.monotonic() + PATIENCE
    while not happened():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not come")
        time.sleep(0.01)
