"""The graded replies that come with the built-in concepts.

Each built-in concept has replies of two small models, plain and steered, graded by readers (0, 1,
2), by a teacher (a probability), or by both. Probes of every model learn from them. The second
judge learns from other replies, to other prompts.
The readers are a large language model in separate blind readings, not people: docs/judges.md, which
also shows how far judges agree with them on replies that do not ship.
"""

from __future__ import annotations

import json
from functools import lru_cache

import numpy as np

from calibrate.common.errors import InputError
from calibrate.texts.concept import PACKS, Concept, Texts, built_in_concepts, read_concept
from probes import GradedText
from probes.graded import read_graded_lines
from probes.scale import Scale, fit_platt, log_odds
from probes.student import CERTAIN

FOLDER = PACKS / "graded"


def graded_replies(concept: str) -> tuple[GradedText, ...]:
    """Return the graded replies of a built-in concept.

    Raises: InputError for any other concept.

    >>> sum(reply.grade is not None for reply in graded_replies("joy")) > 100
    True
    """
    path = FOLDER / f"{concept}.jsonl"
    if not path.is_file():
        raise InputError(
            f"there are graded replies of {', '.join(built_in_concepts())}, got {concept!r}"
        )
    return read_graded_lines(path)


def second_replies(concept: str, texts: Texts) -> tuple[GradedText, ...]:
    """Return the graded replies the second judge learns from; none if the concept has none.

    texts: the concept's "probe" split, which must equal the built-in one: its name is not enough.
    """
    if concept not in built_in_concepts() or read_concept(concept).split()["probe"] != texts:
        return ()
    return read_graded_lines(FOLDER / "second" / f"{concept}.jsonl")


def is_built_in(concept: Concept) -> bool:
    """Whether a concept is a built-in one, by its texts and not only its name."""
    known = concept.name in built_in_concepts()
    return known and concept.data_sha256 == read_concept(concept.name).data_sha256


@lru_cache
def teacher_scale() -> Scale:
    """Scale from the teacher's log-odds to readers' yes, fitted over all built-in concepts."""
    texts = [
        text
        for concept in built_in_concepts()
        for text in graded_replies(concept)
        if text.grade is not None and text.taught is not None
    ]
    taught = log_odds([text.taught for text in texts], CERTAIN)
    return fit_platt(taught, np.array([text.says_yes for text in texts])) or Scale()


def written_scale() -> Scale:
    """Scale from the score of a probe that learned from written texts to readers' yes.

    The score is in standard deviations of plain replies. scripts/ship_graded_replies.py fits the
    scale to the graded replies of all built-in concepts together.
    """
    return Scale(**json.loads((FOLDER / "written.json").read_text(encoding="utf-8")))
