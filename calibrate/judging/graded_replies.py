"""The graded replies that come with the built-in concepts.

For every built-in concept there are replies of two small models, plain and steered, which readers
graded (0, 1, 2), a teacher graded (a probability), or both. A probe of any model learns from them.
The second judge learns from others, to other prompts.
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

    Raises: InputError if it is none.

    >>> sum(one.grade is not None for one in graded_replies("joy")) > 100
    True
    """
    path = FOLDER / f"{concept}.jsonl"
    if not path.is_file():
        raise InputError(
            f"there are graded replies of {', '.join(built_in_concepts())}, got {concept!r}"
        )
    return read_graded_lines(path)


def second_replies(concept: str, texts: Texts) -> tuple[GradedText, ...]:
    """Return the graded replies the second judge learns from; none where the concept has none.

    texts: of the concept's "probe" split, which must be those of the pack and not only its name's.
    """
    if concept not in built_in_concepts() or read_concept(concept).split()["probe"] != texts:
        return ()
    return read_graded_lines(FOLDER / "second" / f"{concept}.jsonl")


def is_built_in(concept: Concept) -> bool:
    """Whether a concept is a built-in one, with the texts of its pack and not only its name."""
    known = concept.name in built_in_concepts()
    return known and concept.data_sha256 == read_concept(concept.name).data_sha256


@lru_cache
def teacher_scale() -> Scale:
    """What the teacher's log-odds say of readers' yes, over all built-in concepts."""
    read = [
        one
        for concept in built_in_concepts()
        for one in graded_replies(concept)
        if one.grade is not None and one.taught is not None
    ]
    taught = log_odds([one.taught for one in read], CERTAIN)
    scale = fit_platt(taught, np.array([one.says_yes for one in read]))
    return scale or Scale()


def written_scale() -> Scale:
    """What the score of a probe that learned from written texts says of readers' yes.

    The score is in standard deviations of plain replies. Fitted to the graded replies of all
    built-in concepts together by scripts/ship_graded_replies.py.
    """
    return Scale(**json.loads((FOLDER / "written.json").read_text(encoding="utf-8")))
