"""The protocol of a judge of presence, and the names of judges.

A judge is anything with `score(texts, concept) -> probabilities`. By name:

    auto                 a probe of the steered model (`calibrate.judging`)
    question[:MODEL]     an instruct model that is asked yes or no (`calibrate.judging.asked`)
    openai:MODEL         a model on a server, asked the same (`probes.openai_question`)
    embedding[:MODEL]    a classifier of sentence embeddings (`probes.classifier`)
    module:function      your own `function(texts, concept)`
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from calibrate.common.errors import CalibrateError, InputError, did_you_mean
from probes.scale import Scale, log_odds

NAMED = ("auto", "question", "openai", "embedding")
CERTAIN = 1e-4  # probabilities are clipped this far from 0 and 1
ALIKE = 1e-3  # probabilities that differ by no more do not tell texts apart
SHOWN = 80  # characters of a judge's answer that a message repeats
JudgeFunction = Callable[[Sequence[str], str], Any]


class Judge(Protocol):
    """Reads finished texts.

    >>> class Exclamations:
    ...     def score(self, texts, concept):
    ...         return np.array([float("!" in text) for text in texts])
    >>> judge: probes.Judge = Exclamations()
    >>> judge.score(["What a wonderful morning!", "It rains."], "joy")
    array([1., 0.])
    """

    def score(self, texts: Sequence[str], concept: str) -> np.ndarray:
        """Return the probability that each text expresses the concept, shape (n_texts,)."""
        ...


@dataclass(frozen=True, eq=False)
class FunctionJudge:
    """A judge made of `function(texts, concept)`."""

    function: JudgeFunction

    def score(self, texts: Sequence[str], concept: str) -> np.ndarray:
        """Return the function's result unchecked: a Reader checks it."""
        return np.asarray(self.function(texts, concept))


@dataclass(frozen=True, eq=False)
class ScaledJudge:
    """A judge whose log-odds are mapped to the scale of readers."""

    judge: Judge
    scale: Scale

    def score(self, texts: Sequence[str], concept: str) -> np.ndarray:
        """Return the probability that a reader says yes, shape (n_texts,)."""
        return self.scale(log_odds(self.judge.score(texts, concept), CERTAIN))


@dataclass(frozen=True, eq=False)
class Reader:
    """A judge with the concept it looks for; every answer is checked.

    name: the judge's, for the artefact.

    >>> probe = probes.load("joy/probe")
    >>> reader = probes.Reader(probe.on(loaded), "joy", "probe")
    >>> reader.read(["sun and laugh and song", ""]) > 0
    array([ True, False])
    """

    judge: Judge
    concept: str
    name: str

    def read(self, texts: Sequence[str]) -> np.ndarray:
        """Return the probability that each text expresses the concept; an empty text has 0.

        Raises: InputError if the judge fails, or does not return one probability per text.
        """
        spoken = [index for index, text in enumerate(texts) if text.strip()]
        scores = np.zeros(len(texts))
        if spoken:
            scores[spoken] = self._answers([texts[index] for index in spoken])
        return scores

    def clear(self, scores: np.ndarray) -> np.ndarray | None:
        """Return the probability that texts of these scores clearly express it, (n_texts,).

        None where the judge cannot tell somewhat from clearly.
        """
        clear = getattr(self.judge, "clear", None)
        return None if clear is None else clear(scores)

    def _answers(self, texts: Sequence[str]) -> np.ndarray:
        try:
            answers = np.asarray(self.judge.score(texts, self.concept))
        except CalibrateError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:SHOWN]
            raise InputError(
                f"judge {self.name!r} must return {len(texts)} probabilities, got "
                f"{type(error).__name__}: {reason}"
            ) from error
        numbers = answers.dtype.kind in "fiub"
        if (
            not numbers
            or answers.shape != (len(texts),)
            or not ((answers >= 0) & (answers <= 1)).all()
        ):
            raise InputError(
                f"judge {self.name!r} must return {len(texts)} probabilities, got "
                f"{_described(answers)}"
            )
        return answers.astype(float)

    def require_distinctions(self, *texts: Sequence[str]) -> None:
        """Check that the judge tells some texts apart.

        texts: sets of texts; later ones are read only if all earlier ones score alike.
        Raises: InputError if all scores are alike.
        """
        scores: list[float] = []
        for part in texts:
            scores += self.read([text for text in part if text.strip()]).tolist()
            if scores and max(scores) - min(scores) > ALIKE:
                return
        if not scores:
            return
        low, high = min(scores), max(scores)
        got = f"{low:.3g}" if low == high else f"{low:.6g} to {high:.6g}"
        raise InputError(
            f"judge {self.name!r} must tell texts apart, got {got} for all of {len(scores)} texts, "
            f"written ones of either label and replies; name another judge"
        )


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
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"judge {name!r} must be a function that can be imported, got: {error}"
        ) from error
    if not callable(function):
        raise InputError(f"judge {name!r} must be a function, got {type(function).__name__}")
    return FunctionJudge(function)


def _described(answers: np.ndarray) -> str:
    if answers.ndim == 0 or answers.size == 0:
        return f"an array of shape {answers.shape}"
    if answers.dtype.kind not in "fiub":
        return f"values such as {str(answers.flat[0])[:SHOWN]!r}"
    low, high = np.min(answers), np.max(answers)
    return f"an array of shape {answers.shape} with values from {low:.3g} to {high:.3g}"
