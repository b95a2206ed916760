"""Types of options, which check values before a command runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from calibrate.common.errors import InputError
from calibrate.common.settings import Settings


class FileType(click.Path):
    """A path that is not empty."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the path."""
        if not value:
            self.fail("must not be empty", param, ctx)
        return super().convert(value, param, ctx)


class PlaceType(FileType):
    """A directory, or the name of a repository on the Hub, which stays the text that it is."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the path, or the name."""
        from calibrate.artefact.hub import named_repository

        path = super().convert(value, param, ctx)
        return value if isinstance(value, str) and named_repository(value) else path


def utf8(what: str, text: str) -> str:
    """Return typed text if it was decoded without loss.

    Raises: InputError if it has bytes that the console's encoding cannot decode.
    """
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError(
            f"{what} must be text in the encoding of the console, got bytes that are not "
            f"({ascii(text)[:60]}); set PYTHONUTF8=1, or a locale that has these characters"
        )
    return text


def _text(typed: str) -> str:
    try:
        return utf8("it", typed)
    except InputError as error:
        raise click.BadParameter(str(error)) from None


def _filled_text(typed: str) -> str:
    if not typed:
        raise click.BadParameter("must not be empty")
    return _text(typed)


TEXT, PROMPT = _filled_text, _text  # an empty prompt is for the model to take or refuse
FILE, PLACE = FileType(path_type=Path), PlaceType(path_type=Path)


def json_object(typed: str) -> dict[str, Any]:
    """Return the JSON object that was typed."""
    rule = f"must be a JSON object, got {typed!r}"
    try:
        value = json.loads(typed)
    except ValueError as error:
        raise click.BadParameter(f"{rule} ({error})") from None
    if not isinstance(value, dict):
        raise click.BadParameter(rule)
    return value


def budgets(typed: str) -> tuple[float, ...]:
    """Return the budgets that were typed, such as "0.1" or "0.05,0.1,0.2", in their order."""
    try:
        given = [float(part) for part in typed.split(",")]
        return tuple(Settings(ce_budget=budget).ce_budget for budget in given)
    except ValueError:
        raise click.BadParameter(
            f"must be numbers set apart by commas, such as 0.05,0.1,0.2, got {typed!r}"
        ) from None
