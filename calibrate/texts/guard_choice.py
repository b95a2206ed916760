"""Which questions a calibration puts to its model: those of the guard that was asked for."""

from __future__ import annotations

from pathlib import Path

from calibrate.common.errors import InputError
from calibrate.common.progress import SILENT, Progress, stage
from calibrate.texts.guard import Guard, read_guard
from calibrate.texts.harness import check_harness, harness_guard, is_of_harness

GuardChoice = Guard | str | Path | None


def check_guard_choice(guard: GuardChoice, most: float | None = None) -> None:
    """Raise what `choose_guard` would, as far as can be told at once: a task is not read."""
    if is_of_harness(guard):
        check_harness(str(guard))
    else:
        choose_guard(guard, most)


def choose_guard(
    guard: GuardChoice, most: float | None = None, progress: Progress = SILENT
) -> Guard | None:
    """The guard of a file or of the harness' tasks; "auto": the built-in one; "none", None: none.

    most: the largest drop of its accuracy that will do, if any is.
    Raises: InputError if there is such a limit and no guard; as `read_guard` and `harness_guard`.
    """
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
