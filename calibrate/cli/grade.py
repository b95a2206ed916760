"""calibrate grade: people read final replies blind, and grade them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from calibrate.cli.console import say, say_json
from calibrate.cli.option_types import FILE, PLACE, TEXT
from calibrate.cli.shared import Command
from calibrate.common.errors import InputError

if TYPE_CHECKING:
    from calibrate.artefact.grades import Grades
    from calibrate.artefact.measured_sections import ReadersSection
    from calibrate.deploy.grading.blind import ReadingRoom


@click.command(cls=Command)
@click.argument("directory", type=PLACE, metavar="DIR")
@click.option(
    "--replies",
    type=int,
    default=40,
    show_default=True,
    metavar="N",
    help="Replies to read, half of them steered.",
)
@click.option(
    "--grader", type=TEXT, metavar="NAME", help="Whose grades these are.  [default: login name]"
)
@click.option(
    "--apply", is_flag=True, help="Correct the probe's scale, and write the result into DIR."
)
@click.option("--export", type=FILE, metavar="FILE", help="Write the replies to a .csv or .jsonl.")
@click.option("--import", "sheet", type=FILE, metavar="FILE", help="Read grades from such a file.")
@click.option("--json", "as_json", is_flag=True, help="Print the result so far as JSON.")
def grade(
    directory: str | Path,
    replies: int,
    grader: str | None,
    apply: bool,
    export: Path | None,
    sheet: Path | None,
    as_json: bool,
) -> None:
    """Read final replies of the calibration in DIR blind, and grade how clearly each expresses it.

    One key a reply, and the next call goes on where this one stopped. The judge's readings of all
    replies, corrected by your grades, are presence as you see it.
    """
    from calibrate.artefact.grades import load_grades
    from calibrate.artefact.hub import own_directory
    from calibrate.deploy.grading.blind import ReadingRoom

    if export is not None and (sheet is not None or apply or as_json):
        raise click.UsageError("--export goes alone; give --import, --apply or --json afterwards")
    directory = own_directory(directory, "grades are")
    room = ReadingRoom.open(directory)
    grades = load_grades(directory)
    name = grader or _login_name()
    if export is not None:
        _export(room, export, replies, name)
        return
    if sheet is not None:
        _import(room, sheet, name, as_json)
    elif not (apply or as_json) and _session(room, grades, replies, name):
        return
    _result(room, load_grades(directory), apply, as_json)


def _export(room: ReadingRoom, path: Path, n_replies: int, grader: str) -> None:
    from calibrate.deploy.grading.sheet import write_sheet
    from calibrate.texts.rubrics import rubric

    write_sheet(path, room.sample(n_replies, grader))
    say(f"wrote {n_replies} replies to {path}; column grade: {rubric(room.config.concept.name)}")


def _import(room: ReadingRoom, path: Path, grader: str, as_json: bool) -> None:
    from calibrate.deploy.grading.sheet import read_sheet, with_sheet

    sheet = read_sheet(path, {reply.id for pair in room.pairs for reply in pair.replies})
    _update(room, lambda grades: with_sheet(grades, grader, sheet))
    say(f"{len(sheet)} grades came in from {path}, as those of {grader}", err=as_json)


def _session(room: ReadingRoom, grades: Grades, n_replies: int, grader: str) -> bool:
    """Have replies graded; return whether any are left."""
    from calibrate.cli.grade_session import Session, is_terminal
    from calibrate.cli.progress_bars import PatientConsole
    from calibrate.texts.rubrics import rubric

    session = Session(
        PatientConsole(),
        rubric(room.config.concept.name),
        room.sample(n_replies, grader),
        grader,
        lambda change: _update(room, change),
    )
    if session.left(grades) and not is_terminal():
        raise InputError(
            "grades are given in a terminal, and this is none; write a sheet with --export FILE, "
            "and read it back with --import FILE"
        )
    left = session.left(session.run(grades))
    if left:
        say(f"{n_replies - left} of {n_replies} replies are done; the same command goes on")
    return bool(left)


def _update(room: ReadingRoom, change: Callable[[Grades], Grades]) -> Grades:
    """Change the grades on disk under the directory's lock, since others may be grading."""
    from calibrate.artefact.directory import writing
    from calibrate.artefact.grades import GRADES_FILE, is_grades, load_grades
    from calibrate.common.files import write_together

    with writing(room.directory, room.config.provenance.fingerprint):
        changed = change(load_grades(room.directory))
        files = {GRADES_FILE: changed.to_bytes()}
        write_together(room.directory, files, last=GRADES_FILE, ours=is_grades)
    return changed


def _result(room: ReadingRoom, grades: Grades, apply: bool, as_json: bool) -> None:
    from calibrate.deploy.grading.readers import infer

    if not apply:
        _print(infer(room, grades), as_json)
        return
    from calibrate.deploy.grading.apply import apply_grades

    readers, changes = apply_grades(room, grades)
    _print(readers, as_json)
    for line in changes or ["nothing changes: it is all in DIR already"]:
        say(line, err=as_json)


def _print(readers: ReadersSection, as_json: bool) -> None:
    if as_json:
        say_json(readers.model_dump_json(indent=2))
        return
    from calibrate.cli.progress_bars import PatientConsole
    from calibrate.cli.reader_table import readers_table

    PatientConsole().print(readers_table(readers))


def _login_name() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        raise InputError("--grader must name you where there is no login name") from None
