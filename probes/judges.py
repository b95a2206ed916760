"""What a judge of presence is, and where judges come from.

A judge is anything with `score(texts, concept) -> probabilities`. By name:

    probe                the probe of this project, the default
    question[:MODEL]     an instruct model asked a yes/no question (`probes.question`)
    lexicon              words and word pairs of the concept's texts (`probes.classifier`)
    embedding[:MODEL]    a sentence embedding of the texts (`probes.classifier`)
    module:function      your own `function(texts, concept)`
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from calibrate.errors import InputError, did_you_mean

NAMED = ("probe", "question", "lexicon", "embedding")
JudgeFunction = Callable[[Sequence[str], str], Any]


class Judge(Protocol):
    """Reads finished texts."""

    def score(self, texts: Sequence[str], concept: str) -> np.ndarray:
        """Return the probability that each text expresses the concept, shape (n_texts,)."""
        ...


@dataclass(frozen=True, eq=False)
class FunctionJudge:
    """A judge made of `function(texts, concept)`."""

    function: JudgeFunction

    def score(self, texts: Sequence[str], concept: str) -> np.ndarray:
        """Return what the function says."""
        return np.asarray(self.function(texts, concept), dtype=float)


@dataclass(frozen=True, eq=False)
class Reader:
    """A judge with the concept it looks for, whose every answer is checked.

    name: the judge's, for the artefact.
    """

    judge: Judge
    concept: str
    name: str

    def read(self, texts: Sequence[str]) -> np.ndarray:
        """Return the probability that each text expresses the concept; an empty text has 0.

        Raises: InputError if the judge does not answer with one probability a text.
        """
        said = [index for index, text in enumerate(texts) if text.strip()]
        scores = np.zeros(len(texts))
        if said:
            answers = np.asarray(
                self.judge.score([texts[index] for index in said], self.concept), dtype=float
            )
            if answers.shape != (len(said),) or not ((answers >= 0) & (answers <= 1)).all():
                raise InputError(
                    f"judge {self.name!r} must return {len(said)} probabilities, got "
                    f"{_described(answers)}"
                )
            scores[said] = answers
        return scores


def judge_function(name: str) -> FunctionJudge:
    """Return the judge `module:function` names.

    Raises: InputError if there is no such module or function.
    """
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise InputError(
            f"judge must be {', '.join(NAMED)} or module:function, got {name!r}"
            f"{did_you_mean(name, NAMED)}"
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"judge {name!r} must be a function that can be imported, got: {error}"
        ) from error
    if not callable(found):
        raise InputError(f"judge {name!r} must be a function, got {type(found).__name__}")
    return FunctionJudge(found)


def _described(answers: np.ndarray) -> str:
    if answers.ndim == 0 or answers.size == 0:
        return f"an array of shape {answers.shape}"
    low, high = np.min(answers), np.max(answers)
    return f"an array of shape {answers.shape} with values from {low:.3g} to {high:.3g}"
