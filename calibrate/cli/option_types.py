"""Types of options: what is checked before a command runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from calibrate.common.errors import InputError


class TextType(click.ParamType):  # type: ignore[type-arg]
    """A text that UTF-8 can hold, and that is not empty unless that is allowed."""

    name = "text"

    def __init__(self, *, may_be_empty: bool = False) -> None:
        self._may_be_empty = may_be_empty

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        """Return the text."""
        if not (value or self._may_be_empty):
            self.fail("must not be empty", param, ctx)
        try:
            return utf8("it", value)
        except InputError as error:
            self.fail(str(error), param, ctx)


class FileType(click.Path):
    """A path, which an empty text is not."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the path."""
        if not value:
            self.fail("must not be empty", param, ctx)
        return super().convert(value, param, ctx)


def utf8(what: str, text: str) -> str:
    """Return a text that was typed, if it arrived whole.

    Raises: InputError if the console's encoding could not be read.
    """
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError(
            f"{what} must be text in the encoding of the console, got bytes that are not "
            f"({ascii(text)[:60]}); set PYTHONUTF8=1, or a locale that has these characters"
        )
    return text


TEXT, PROMPT = TextType(), TextType(may_be_empty=True)
FILE = FileType(path_type=Path)


class LayerType(click.ParamType):  # type: ignore[type-arg]
    """`auto`, or the number of a block."""

    name = "auto|N"

    def convert(self, value: Any, param: Any, ctx: Any) -> int | None:
        """Return None for auto."""
        if value is None or value == "auto":
            return None
        try:
            return int(value)
        except ValueError:
            self.fail(f"must be auto or a block's number, got {value!r}", param, ctx)


class JsonType(click.ParamType):  # type: ignore[type-arg]
    """A JSON object."""

    name = "JSON"

    def convert(self, value: Any, param: Any, ctx: Any) -> dict[str, Any]:
        """Return the object."""
        try:
            found = json.loads(value)
        except ValueError as error:
            self.fail(f"must be a JSON object, got {value!r} ({error})", param, ctx)
        if not isinstance(found, dict):
            self.fail(f"must be a JSON object, got {value!r}", param, ctx)
        return found
