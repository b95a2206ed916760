"""What several commands need: progress, checked arguments, JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from calibrate.cli.console import Readable, say, silence
from calibrate.cli.option_groups import MODEL, split_off
from calibrate.common.settings import Sampling, Settings, settings_of

if TYPE_CHECKING:
    from calibrate.artefact.hub import Origin
    from calibrate.cli.progress_bars import TerminalProgress

NEGATIVE_KINDS = settings_of(Settings)["negatives"].choices


class Command(Readable, click.Command):
    """A command whose help prints on any console."""


def only_first_speaks(tensor_parallel: bool) -> None:
    """Silence this process if it is one of several that share a model, and not the first."""
    if tensor_parallel and os.environ.get("RANK", "0") != "0":
        silence(sys.stdout)
        silence(sys.stderr)


def say_origin(origin: Origin) -> None:
    """Say on stderr from which repository a config was read, if from any."""
    if origin.says:
        say(f"calibrate: note: {origin.says}", err=True)


def brought(place: str | Path | None) -> Path | None:
    """The directory of a calibration; where it is a repository, fetched, and that is said."""
    from calibrate.artefact.hub import local_directory, origin_of

    if not isinstance(place, str):
        return place
    folder = local_directory(place)
    say_origin(origin_of(folder))
    return folder


@contextmanager
def working(quiet: bool = False) -> Iterator[TerminalProgress]:
    """Show progress on stderr, and use only cores that are idle."""
    from calibrate.cli.progress_bars import PatientConsole, TerminalProgress
    from calibrate.engine.threads import use_idle_cores

    use_idle_cores()
    with TerminalProgress(PatientConsole(stderr=True, quiet=quiet)) as progress:
        yield progress


def _negatives(given: tuple[str, ...]) -> tuple[str, Path | None]:
    """Return the kind of negatives and the file of them; both may be given."""
    kinds = [value for value in given if value in NEGATIVE_KINDS]
    files = [Path(value) for value in given if value not in NEGATIVE_KINDS]
    if len(kinds) > 1 or len(files) > 1:
        raise click.UsageError(
            f"--negatives takes one of {' or '.join(NEGATIVE_KINDS)}, and one file, got "
            f"{', '.join(given)}"
        )
    return (kinds[0] if kinds else NEGATIVE_KINDS[0]), (files[0] if files else None)


def checked(
    negatives: tuple[str, ...], prompts: Path | None, rest: dict[str, Any]
) -> tuple[Path | None, dict[str, Any], dict[str, Any]]:
    """Check what can be checked before torch is imported.

    Returns: the file of negatives, if one was given; the arguments of `load_model`; the settings.
    """
    from calibrate.texts.concept import read_prompts
    from calibrate.texts.rows import decoded

    loading, settings = split_off(rest, MODEL)
    settings["negatives"], file = _negatives(negatives)
    settings["sampling"] = Sampling(max_new_tokens=settings.pop("reply_tokens"))
    if settings.get("judge_question") is not None:
        settings["judge_question"] = decoded(settings["judge_question"])
    Settings(**settings)
    read_prompts(prompts)
    return file, loading, settings


def as_json_text(facts: Any) -> str:
    """Facts as JSON for a terminal or a machine."""
    return json.dumps(facts, ensure_ascii=False, indent=2, allow_nan=False)


def named(concept: str | None) -> str:
    """The concept that was named, or a usage error."""
    if concept is None:
        raise click.UsageError("--concept is missing; `calibrate concepts` lists the built-in ones")
    return concept
