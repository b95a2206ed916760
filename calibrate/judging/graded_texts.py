"""Texts that people have read and graded: what judges are held against.

A row of a file gives one text, in any form that `calibrate.texts.text_files` reads, and with it

    grade        0 not, 1 somewhat, 2 clearly; or the mean of several readers, such as 0.5
    label        instead of a grade: whether the text expresses the concept; yes is a grade of 1
    grade_2      or label_2: by a second reader, perhaps for some texts only
    condition    a text or number: the source of the text; levels are also shown by condition
    prompt       or group: texts of one prompt or group are not independent of each other
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calibrate.common.errors import ConceptError
from calibrate.texts.rows import brief, shown
from calibrate.texts.text_files import Entry, read_beside, read_label
from probes.graded import CLEARLY, NOT, SOMEWHAT, GradedText

MIN_GRADED = 10  # texts; fewer say next to nothing about a judge
OPINIONS = {"grade": "grade_2", "label": "label_2"}  # by a first and a second reader


def read_graded(path: str | Path) -> tuple[GradedText, ...]:
    """Read a file of graded or labelled texts.

    Raises: ConceptError with the file, line and field that cannot be used, or if there are fewer
        than MIN_GRADED texts, or some have grades and others labels.
    """
    if Path(path).suffix.lower() == ".txt":
        raise ConceptError(
            f"a file of graded texts must be .jsonl, .json, .csv or .tsv, got {shown(path)}"
        )
    rows = read_beside(path, (*OPINIONS, *OPINIONS.values(), "condition"))
    first = _opinion(rows[0][0].place, rows[0][0].value)
    texts = tuple(_graded(row.place, row.value, entry, first) for row, entry in rows)
    require_enough(len(texts), f"{shown(path)} must hold")
    return texts


def require_enough(n: int, rule: str) -> None:
    """Raise ConceptError if there are too few texts to validate a judge."""
    if n < MIN_GRADED:
        raise ConceptError(f"{rule} at least {MIN_GRADED} graded texts, got {n}")


def _graded(place: str, fields: Mapping[str, Any], entry: Entry, wanted: str) -> GradedText:
    name = _opinion(place, fields)
    if name != wanted:
        raise ConceptError(f"{place} must have a {wanted}, as the first text has, got a {name}")
    other = next(second for first, second in OPINIONS.items() if first != name)
    if fields.get(other) is not None:
        raise ConceptError(f"{place} must have {OPINIONS[name]!r} beside {name!r}, got {other!r}")
    second = fields.get(OPINIONS[name])
    return GradedText(
        entry.text,
        _grade(place, name, fields[name]),
        None if second is None else _grade(place, OPINIONS[name], second),
        entry.group or entry.prompt or "",
        _condition(place, fields.get("condition")),
    )


def _opinion(place: str, fields: Mapping[str, Any]) -> str:
    """Whether a row has a grade or a label."""
    names = [name for name in OPINIONS if fields.get(name) is not None]
    if len(names) != 1:
        got = " and ".join(names) or f"fields {', '.join(map(brief, list(fields)[:6]))}"
        raise ConceptError(
            f"{place} must have a grade (0, 1 or 2) or a label (yes or no) beside its text, "
            f"got {got}"
        )
    return names[0]


def _grade(place: str, name: str, value: Any) -> float:
    if name.startswith("label"):
        return SOMEWHAT if read_label(place, value) else NOT
    try:
        grade = math.nan if isinstance(value, (bool, list, dict)) else float(value)
    except (ValueError, OverflowError):
        grade = math.nan
    if not NOT <= grade <= CLEARLY:
        raise ConceptError(
            f"{place} must have a number from 0 (not) to 2 (clearly) in {name!r}, got "
            f"{brief(value)}"
        )
    return grade


def _condition(place: str, value: Any) -> str:
    if isinstance(value, (bool, list, dict)):
        raise ConceptError(f"{place} must have a text or number in 'condition', got {brief(value)}")
    return "" if value is None else " ".join(str(value).split())
