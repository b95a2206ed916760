"""Which questions a calibration puts to its model: those of the guard that was asked for."""

from __future__ import annotations

import math
from pathlib import Path

from calibrate.common.errors import InputError
from calibrate.common.progress import SILENT, Progress, stage
from calibrate.texts.guard import Guard, read_guard
from calibrate.texts.harness import check_harness, harness_guard, is_of_harness

GuardChoice = Guard | str | Path | None


def check_guard_choice(
    guard: GuardChoice, most: float | None = None, confidence: float = 0.95
) -> None:
    """Raise what `choose_guard` would, as far as can be told at once: a task is not read."""
    if is_of_harness(guard):
        check_harness(str(guard))
    else:
        choose_guard(guard, most, confidence)


def choose_guard(
    guard: GuardChoice,
    most: float | None = None,
    confidence: float = 0.95,
    progress: Progress = SILENT,
) -> Guard | None:
    """The guard of a file or of the harness' tasks; "auto": the built-in one; "none", None: none.

    most: the largest drop of its accuracy that will do, by the bound of this confidence; None for
        any.
    Raises: InputError if there is such a limit and no guard, or too few questions to show that it
        is kept; as `read_guard` and `harness_guard`.
    """
    chosen = _chosen(guard, most, progress)
    if chosen is not None and most is not None:
        _require_enough(chosen, most, confidence)
    return chosen


def _require_enough(guard: Guard, most: float, confidence: float) -> None:
    """Require so many questions that the bound keeps to the limit where no answer changes."""
    n = len(guard.items)
    least = 1 - (1 - confidence) ** (1 / n)
    if most >= least:
        return
    needed = math.ceil(math.log(1 - confidence) / math.log1p(-most)) if most > 0 else None
    way_out = "a larger limit" if needed is None else f"{needed} questions, or a larger limit"
    raise InputError(
        f"--max-guard-drop {most:g} must be one that {n} {guard.name} questions can show to be "
        f"kept, which is {least:.2g} or more: even if no answer changes, more may be forgotten; "
        f"give {way_out}"
    )


def _chosen(guard: GuardChoice, most: float | None, progress: Progress) -> Guard | None:
    if isinstance(guard, Guard):
        return guard
    if guard in (None, "none"):
        if most is not None:
            raise InputError(
                f"--max-guard-drop {most:g} must have questions to hold to, got --guard none; give "
                "--guard auto or a file"
            )
        return None
    if is_of_harness(guard):
        with stage(progress, "questions"):
            return harness_guard(str(guard))
    return read_guard(None if guard == "auto" else guard)
