"""The guard: questions with known answers, which steering should not make a model forget.

A row of a file is one of these:

    question, choices, answer    the answer is the number of a choice, from 0, or the choice itself
    question, answer             a cloze: the model itself has to go on with the answer

The built-in items, 80 each of common knowledge, arithmetic and language, were written for this
project; they speak of none of the built-in concepts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from calibrate.common.errors import ConceptError
from calibrate.texts.chat_entries import plain_text
from calibrate.texts.rows import Row, brief, read_rows

BUILT_IN = "built-in"
MIN_ITEMS = 20  # fewer cannot show a drop of a tenth
NAMES = ("question", "choices", "answer")


@dataclass(frozen=True)
class GuardItem:
    """One question.

    choices: what may follow it, each once; one alone for a cloze. answer: the place of the right
    one. as_is: whether the question is put word by word, without a template or a line of its own,
    and the choices follow with their own spaces.
    """

    question: str
    choices: tuple[str, ...]
    answer: int
    as_is: bool = False


@dataclass(frozen=True)
class Guard:
    """Questions, and what they are called: BUILT_IN, the name of their file, or of their task."""

    name: str
    items: tuple[GuardItem, ...]

    @property
    def guessed(self) -> float:
        """The share that guessing answers rightly; clozes cannot be guessed."""
        shares = [1 / len(item.choices) for item in self.items if len(item.choices) > 1]
        return sum(shares) / len(self.items)

    @property
    def sha256(self) -> str:
        """The hash of the questions, choices and answers."""
        asked = [asdict(item) for item in self.items]
        for facts in asked:
            if not facts["as_is"]:  # as before there were others
                del facts["as_is"]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def read_guard(path: str | Path | None = None) -> Guard:
    """Read a guard's file; the built-in one if None.

    Raises: ConceptError with the line that cannot be used, or if there are fewer than MIN_ITEMS.
    """
    file = Path(__file__).with_name("guard.jsonl") if path is None else Path(path)
    items = tuple(dict.fromkeys(_items(file)))
    answers: dict[tuple[str, tuple[str, ...]], GuardItem] = {}
    for item in items:
        known = answers.setdefault((item.question, item.choices), item)
        if known is not item:
            raise ConceptError(
                f"each question must have one answer, but {brief(item.question)} has two in {file}"
            )
    if len(items) < MIN_ITEMS:
        raise ConceptError(
            f"a guard must have at least {MIN_ITEMS} different questions, got {len(items)} in "
            f"{file}"
        )
    return Guard(BUILT_IN if path is None else file.name, items)


def guard_again(name: str, sha256: str, kept: Sequence[GuardItem]) -> Guard | None:
    """The guard of a finished calibration; None where this release has other questions.

    kept: its questions, if they are not the built-in ones.
    """
    guard = Guard(name, tuple(kept)) if kept else read_guard()
    return guard if guard.sha256 == sha256 else None


def _items(file: Path) -> Iterator[GuardItem]:
    for row in read_rows(file, NAMES):
        if not isinstance(row.value, dict):
            raise ConceptError(f"{row.place} must be an object with question and answer")
        question = _text(row, "question", row.value.get("question"))
        choices, answer = row.value.get("choices"), row.value.get("answer")
        lists = [name for name, value in row.value.items() if isinstance(value, list)]
        if lists and "choices" not in lists:
            raise ConceptError(
                f"{row.place}: the list of what may be answered must be called choices, got "
                f"{lists[0]}"
            )
        if choices is None:
            yield GuardItem(question, (_text(row, "answer", answer),), 0)
            continue
        if not isinstance(choices, list) or len(choices) < 2:
            got = f"{len(choices)}" if isinstance(choices, list) else brief(choices)
            raise ConceptError(f"{row.place}: choices must be a list of at least two, got {got}")
        texts = tuple(_text(row, "choices", choice) for choice in choices)
        if len({*texts}) < len(texts):
            raise ConceptError(f"{row.place}: each choice must be there once, got {brief(choices)}")
        yield GuardItem(question, texts, _place(row, answer, texts))


def _text(row: Row, what: str, value: Any) -> str:
    return plain_text(row.place, str(value) if _is_number(value) else value, what)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _place(row: Row, answer: Any, choices: tuple[str, ...]) -> int:
    """The place of the right choice, which the answer numbers or names."""
    text = str(answer).strip() if isinstance(answer, str) or _is_number(answer) else None
    named = choices.index(text) if text in choices else None
    numbered = answer if type(answer) is int and 0 <= answer < len(choices) else None
    if None not in (named, numbered) and named != numbered:
        raise ConceptError(
            f"{row.place}: the answer must name one choice, but {answer} is the number of one and "
            f'the text of another; give it as text, "{answer}"'
        )
    found = named if numbered is None else numbered
    if found is None:
        raise ConceptError(
            f"{row.place}: the answer must be the number of a choice, from 0 to "
            f"{len(choices) - 1}, or the choice itself, got {brief(answer)}"
        )
    return found
