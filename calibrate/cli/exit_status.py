"""Exit statuses of the commands, and the line on stderr that explains them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from calibrate.cli.console import say

EXIT_INPUT, EXIT_INFEASIBLE, EXIT_VERIFICATION = 2, 3, 4
EXIT_INTERRUPTED = 130


def run_to_status(command: click.Command) -> int:
    """Run the command line; return its exit status, after printing why it is not 0."""
    try:
        ended = command.main(standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        return _report(error.format_message(), EXIT_INPUT)
    except (click.Abort, KeyboardInterrupt):
        return _report("interrupted", EXIT_INTERRUPTED)
    except Interrupted as error:
        return _report(str(error), EXIT_INTERRUPTED)
    except Exception as error:
        status = _status_of(error)
        if status is None:
            raise
        return _report(_message_of(error), status)
    return ended if isinstance(ended, int) else 0


def _status_of(error: Exception) -> int | None:
    """Print the reasons of an infeasible request; return the status, None if unexpected."""
    from calibrate.common.errors import Infeasible, InputError, VerificationFailed, of_machine

    if isinstance(error, Infeasible):
        for advice in error.advice:
            say(f"could be tried: {advice}", err=True)
        return EXIT_INFEASIBLE
    if isinstance(error, InputError):
        return EXIT_INPUT
    if isinstance(error, VerificationFailed):
        return EXIT_VERIFICATION
    return EXIT_INPUT if of_machine(error) else None


def _message_of(error: Exception) -> str:
    from calibrate.common.errors import ran_out_of_memory

    if ran_out_of_memory(error):
        return (
            "memory must suffice for the model and one text, and it does not; give --dtype "
            "bfloat16, a smaller --batch-tokens, or another --device"
        )
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"cannot use {error.filename}: {error.strerror}"
    return str(error)


class Interrupted(Exception):
    """Ctrl-C during a calibration that can be resumed."""


@contextmanager
def resumable(directory: Path) -> Iterator[None]:
    """On Ctrl-C, say how to resume."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted; finished trials are kept in {directory}, and the same command "
            "goes on from there"
        ) from None


def _report(message: str, status: int) -> int:
    say(f"calibrate: {' '.join(message.split())}", err=True)
    return status
