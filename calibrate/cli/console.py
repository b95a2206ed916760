"""Printing to any console: a character it lacks or a closed pipe is never an error.

A console that cannot print α gets "alpha"; JSON gets an escape, and loses nothing. After a closed
pipe (`calibrate show DIR | head -1`) the rest is dropped, and the exit status stays the same.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import click

from calibrate.common.errors import CalibrateWarning

STAND_INS = dict(
    pair.split(" ")
    for pair in (
        *("α alpha", "ℓ l", "Δ delta", "→ ->", "← <-", "✓ ok", "✗ x", "‖ ||", "… ...", "∞ inf"),
        *("– -", "— -", "− -", "× x", "· .", "≤ <=", "≥ >=", "≈ ~", "± +-", "½ 1/2", "• *"),
        *('“ "', '” "', '„ "', "‘ '", "’ '"),
    )
)
ON_TEXT, IN_JSON = "calibrate-stand-in", "calibrate-escape"


def readable(text: str) -> str:
    """Stand-ins in ASCII for characters that a console lacks."""
    return "".join(_stand_in(character) for character in text)


def _stand_in(character: str) -> str:
    if character in STAND_INS:
        return STAND_INS[character]
    if "\u2500" <= character <= "\u257f":  # lines and corners of tables
        name = unicodedata.name(character)
        return "-" if name.endswith("HORIZONTAL") else "|" if name.endswith("VERTICAL") else "+"
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return plain or "?"


def _stand_in_handler(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return readable(error.object[error.start : error.end]), error.end


def _escape_handler(error: UnicodeError) -> tuple[str, int]:
    """Write JSON escapes; outside of strings JSON is ASCII, so its content stays the same."""
    assert isinstance(error, UnicodeEncodeError)
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    pairs = (units[i : i + 2].hex() for i in range(0, len(units), 2))
    return "".join(f"\\u{pair}" for pair in pairs), error.end


codecs.register_error(ON_TEXT, _stand_in_handler)
codecs.register_error(IN_JSON, _escape_handler)


class Readable:
    """A click command whose help uses only characters that stdout can print."""

    def get_help(self, ctx: click.Context) -> str:
        """Return the help, with stand-ins where they are needed."""
        text: str = super().get_help(ctx)  # type: ignore[misc]
        return text if is_utf(sys.stdout) else readable(text)

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """Return the option --help, which prints by `say`."""
        option: click.Option | None = super().get_help_option(ctx)  # type: ignore[misc]
        if option is not None:
            option.callback = _show_help
        return option


def _show_help(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        say(ctx.get_help())
        ctx.exit()


def say(text: object = "", *, err: bool = False, nl: bool = True) -> None:
    """Print a text to stdout or stderr at once."""
    stream = sys.stderr if err else sys.stdout
    if stream is not None:
        with _closed_pipe_ignored(stream):
            stream.write(f"{text}\n" if nl else str(text))
            stream.flush()


def say_json(text: str) -> None:
    """Print JSON to stdout, with what the console cannot print escaped."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    say(text.encode(encoding, IN_JSON).decode(encoding))


@contextmanager
def printing() -> Iterator[None]:
    """Use stand-ins for what stdout and stderr cannot print, inside the `with`."""
    streams = [s for s in (sys.stdout, sys.stderr) if isinstance(s, io.TextIOWrapper)]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors=ON_TEXT)
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            with _closed_pipe_ignored(stream):
                stream.flush()
            stream.reconfigure(errors=errors)


@contextmanager
def _closed_pipe_ignored(stream: TextIO) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        silence(stream)


def silence(stream: TextIO) -> None:
    """Send a stream, and what its buffer still holds, to the null device."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, stream.fileno())
    os.close(devnull)


@contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Show each CalibrateWarning once, as a line on stderr, and hide all other warnings."""
    shown: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        text = " ".join(str(message).split())
        if issubclass(category, CalibrateWarning) and text not in shown:
            shown.add(text)
            say(f"calibrate: note: {text}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", CalibrateWarning)
        warnings.showwarning = show
        yield


def is_utf(stream: TextIO | None) -> bool:
    """Whether a stream prints every character."""
    return (getattr(stream, "encoding", None) or "utf-8").lower().startswith("utf")
