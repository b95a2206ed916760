"""People's grades of the replies they read: `grades.json` beside a calibration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from calibrate.common.errors import ArtefactError
from calibrate.common.marks import facts_in
from calibrate.texts.rubrics import GRADES

GRADES_FILE = "grades.json"
FORMAT, VERSION = "steering-grades", 1


@dataclass(frozen=True)
class Grades:
    """Grades by grader and reply, in the order they were given.

    by_grader: for each grader, by the reply's id, 0 (not), 1 (somewhat), 2 (clearly), or None where
    the reply was skipped.
    """

    by_grader: Mapping[str, Mapping[str, int | None]]

    def of(self, grader: str) -> Mapping[str, int | None]:
        """One grader's grades; empty for a new one."""
        return self.by_grader.get(grader, {})

    def with_grade(self, grader: str, reply: str, grade: int | None) -> Grades:
        """Return these and one more, which replaces the grader's earlier grade of the reply."""
        others = {key: value for key, value in self.of(grader).items() if key != reply}
        return self._with(grader, {**others, reply: grade})

    def without_last(self, grader: str) -> Grades:
        """Return these without the grader's last grade."""
        return self._with(grader, dict(list(self.of(grader).items())[:-1]))

    def to_bytes(self) -> bytes:
        """Return the contents of `grades.json`."""
        facts = {"format": FORMAT, "version": VERSION, "graders": self.by_grader}
        return f"{json.dumps(facts, indent=1, ensure_ascii=False)}\n".encode()

    def _with(self, grader: str, grades: Mapping[str, int | None]) -> Grades:
        return replace(self, by_grader={**self.by_grader, grader: grades})


def is_grades(path: Path) -> bool:
    """Whether a file shows by its contents that it holds grades we wrote."""
    return facts_in(path).get("format") == FORMAT


def load_grades(directory: Path) -> Grades:
    """Read `grades.json` in a directory; without one, nobody has graded yet.

    Raises: ArtefactError if it is not ours, damaged, or of another version.
    """
    path = directory / GRADES_FILE
    if not path.exists():
        return Grades({})
    facts = facts_in(path)
    if facts.get("format") != FORMAT:
        raise ArtefactError(
            f"{path} must hold grades that calibrate grade wrote, got something else; move it away"
        )
    if facts.get("version") != VERSION:
        raise ArtefactError(
            f"{path} must be {FORMAT} of version {VERSION}, got {facts.get('version')}; use the "
            "release that wrote it"
        )
    graders = facts.get("graders")
    if not isinstance(graders, dict) or not all(map(_are_grades, graders.values())):
        raise ArtefactError(
            f"{path} is damaged: graders must give 0, 1, 2 or null to each reply; move it away, "
            "and grade again or --import a sheet"
        )
    return Grades(graders)


def _are_grades(value: object) -> bool:
    return isinstance(value, dict) and all(
        grade is None or (type(grade) is int and grade in GRADES) for grade in value.values()
    )
