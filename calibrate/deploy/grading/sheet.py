"""Replies to grade as a sheet for a spreadsheet or a team, and the grades that come back."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from calibrate.artefact.grades import Grades
from calibrate.common.errors import InputError
from calibrate.common.files import write_together
from calibrate.deploy.grading.blind import BlindReply
from calibrate.texts.rows import Row, brief, read_rows, shown

COLUMNS = ("id", "prompt", "reply", "grade")
FORMULA = ("=", "+", "-", "@")  # with which a spreadsheet takes a cell for one
GIVEN = {"0": 0, "1": 1, "2": 2}


def write_sheet(path: Path, replies: Sequence[BlindReply]) -> None:
    """Write replies with an empty grade each, .csv or .jsonl.

    Raises: InputError for another kind of file; ArtefactError if it is there already, or cannot be
        written.
    """
    content = _form(path, "--export")(replies)
    write_together(path.parent, {path.name: content}, last=path.name)


def read_sheet(path: Path, known: Collection[str]) -> dict[str, int]:
    """Read the grades in a sheet, by reply; rows without one are left out.

    known: ids of the replies that may be graded.
    Raises: InputError for a row that cannot be used, or an id that is unknown or there twice.
    """
    _form(path, "--import")
    given: dict[str, int] = {}
    seen: set[str] = set()
    for row in read_rows(path, COLUMNS):
        reply, grade = _read(row, known)
        if reply in seen:
            raise InputError(
                f"{row.place} must grade a reply of its own, got id {brief(reply)} a second time; "
                "sheets of several people are imported one by one, each with its --grader"
            )
        seen.add(reply)
        if grade is not None:
            given[reply] = grade
    if not given:
        raise InputError(f"{shown(path)} must have grades in column 'grade', got none")
    return given


def with_sheet(grades: Grades, grader: str, given: dict[str, int]) -> Grades:
    """Return grades with those of a sheet, which take the place of what the grader said before."""
    for reply, grade in given.items():
        grades = grades.with_grade(grader, reply, grade)
    return grades


def _read(row: Row, known: Collection[str]) -> tuple[str, int | None]:
    fields = row.value if isinstance(row.value, dict) else {}
    reply, grade = fields.get("id"), fields.get("grade")
    if not isinstance(reply, str) or reply.strip() not in known:
        raise InputError(
            f"{row.place} must have the id of a reply of this calibration, got {brief(reply)}; "
            "--export writes a sheet with all of them"
        )
    if grade is None or (isinstance(grade, str) and not grade.strip()):
        return reply.strip(), None
    if isinstance(grade, bool) or str(grade).strip() not in GIVEN:
        raise InputError(
            f"{row.place} must have grade 0, 1, 2 or nothing, got {brief(grade)}; leave it empty "
            "where you cannot tell"
        )
    return reply.strip(), GIVEN[str(grade).strip()]


def _form(path: Path, option: str) -> Callable[[Sequence[BlindReply]], bytes]:
    forms = {".csv": _as_csv, ".jsonl": _as_json_lines}
    if path.suffix.lower() not in forms:
        raise InputError(f"{option} must be a .csv or .jsonl file, got {shown(path)}")
    return forms[path.suffix.lower()]


def _as_csv(replies: Sequence[BlindReply]) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in replies:
        writer.writerow((one.id, _as_text(one.prompt), _as_text(one.text), ""))
    return out.getvalue().encode("utf-8-sig")  # without the mark Excel takes it for Latin-1


def _as_text(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{cell}" if cell.startswith(FORMULA) else cell


def _as_json_lines(replies: Sequence[BlindReply]) -> bytes:
    def line(one: BlindReply) -> str:
        facts: dict[str, Any] = {"id": one.id, "prompt": one.prompt, "reply": one.text}
        return json.dumps({**facts, "grade": None}, ensure_ascii=False)

    return "".join(f"{line(one)}\n" for one in replies).encode()
