"""Replies with grades, to train probes and to validate judges.

Readers grade 0, 1 or 2: a text does not express the concept, does somewhat, or clearly does. A
teacher, a stronger model, gives the probability that it does at least somewhat.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from calibrate.common.errors import ArtefactError

NOT, SOMEWHAT, CLEARLY = 0.0, 1.0, 2.0


@dataclass(frozen=True)
class GradedText:
    """One text with the grades of readers or of a teacher.

    grade: from 0 to 2, how clearly it expresses the concept to a reader, or the mean of several.
    second: the grade of a second reader. taught: the teacher's probability. None if missing.
    group: texts of one group, such as a prompt's replies, are resampled together and share a
    fold; "" for a text that stands alone. condition: where it comes from, or "".

    >>> probes.GradedText("What a wonderful morning!", grade=2).says_yes
    True
    """

    text: str
    grade: float | None = None
    second: float | None = None
    group: str = ""
    condition: str = ""
    taught: float | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for a grade or a probability out of range."""
        if self.grade is not None and not NOT <= self.grade <= CLEARLY:
            raise ValueError(f"a grade must be from 0 to 2, got {self.grade!r}")
        if self.taught is not None and not 0 <= self.taught <= 1:
            raise ValueError(f"a probability must be from 0 to 1, got {self.taught!r}")

    @property
    def says_yes(self) -> bool:
        """Whether readers, or else the teacher, say that it expresses the concept somewhat."""
        return (self.taught or 0) >= 0.5 if self.grade is None else self.grade >= SOMEWHAT


def graded_lines(texts: Iterable[GradedText]) -> str:
    """One JSON object per line, without missing fields."""
    rows = ({k: v for k, v in asdict(text).items() if v not in (None, "")} for text in texts)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_graded_lines(path: Path) -> tuple[GradedText, ...]:
    """Read what `graded_lines` wrote.

    Raises: ArtefactError if the file is damaged.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return tuple(GradedText(**json.loads(line)) for line in lines)
    except (OSError, ValueError, TypeError) as error:
        raise ArtefactError(f"{path} must hold graded texts, one a line: {error}") from error
