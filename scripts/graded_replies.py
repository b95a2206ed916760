"""Graded replies as data: what was sampled, what readers said in two readings, what a teacher says.

    scripts/graded/prompts.txt           for train, tune and test; prompts-second.txt for the rest
    scripts/graded/replies-MODEL.jsonl   what scripts/sample_graded_replies.py sampled
    scripts/graded/readings.jsonl        grades of two readings, and of a third where they differ
    scripts/graded/taught.jsonl          P(yes) of the teacher, by scripts/teach_graded_replies.py

A reply's grade is what both readings say, or else the middle one of three.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent / "graded"
MODELS = ("smollm2", "gemma3-270m")
PARTS = {"train": 40, "tune": 14, "test": 66}  # prompts


@dataclass(frozen=True)
class Reply:
    """One reply, for one concept.

    part: train, tune or test; or second, what the second judge learns from. grader: whether it is
    read "twice", or "once" for training alone. condition: a share of α at the budget, "broken",
    "primed" or "asked"; or a share at the default band, such as "band 1.5". readings: one to three
    grades.
    """

    id: str
    model: str
    concept: str
    part: str
    grader: str
    condition: str
    tokens: int
    prompt: str
    text: str
    readings: tuple[int, ...]
    taught: float | None

    @property
    def at_band(self) -> bool:
        """Whether it was steered at the default band."""
        return self.condition.startswith("band")

    @property
    def grade(self) -> int | None:
        """What readers say in the end."""
        return int(np.median(self.readings)) if self.readings else None


def prompts_by_part() -> dict[str, list[str]]:
    """Return the prompts, split once and for all; the second judge's are others."""
    texts = _prompts("prompts.txt")
    random.Random(0).shuffle(texts)
    ends = [0, *accumulate(PARTS.values())]
    split = {part: texts[ends[n] : ends[n + 1]] for n, part in enumerate(PARTS)}
    return {**split, "second": _prompts("prompts-second.txt")}


def _prompts(name: str) -> list[str]:
    return (FOLDER / name).read_text(encoding="utf-8").splitlines()


def replies(part: str | None = None, concept: str | None = None) -> list[Reply]:
    """Return all replies of a part and a concept."""
    readings = {row["id"]: tuple(row["grades"]) for row in lines("readings.jsonl")}
    taught = {row["id"]: row["yes"] for row in lines("taught.jsonl")}
    rows = [row for model in MODELS for row in lines(f"replies-{model}.jsonl")]
    return [
        Reply(**row, readings=readings.get(row["id"], ()), taught=taught.get(row["id"]))
        for row in rows
        if part in (None, row["part"]) and concept in (None, row["concept"])
    ]


def lines(name: str) -> list[dict[str, Any]]:
    """Rows of a file in the folder, none where it is absent."""
    path = FOLDER / name
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
