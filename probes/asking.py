"""What all asked judges share: the question, and how its answer is read.

The question begins with the text. P(yes) is read from the log-probabilities of the next token.
"Yes" and "no" count in any case, with or without a space before; other tokens are left out, so that
P(yes) + P(no) = 1.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from string import Formatter

import numpy as np

from calibrate.common.errors import CalibrateWarning, InputError

QUESTION = """Text:
{text}

Does this text express {concept}? Answer with yes or no."""
PLACES = {"text", "concept"}
MIN_UNCLEAR = 3  # answers, all neither yes nor no, from which a judge is refused
SHOWN = 40  # characters of an answer that a message repeats

Answer = float | str  # P(yes), or an answer that is neither yes nor no
NEITHER = 0.0  # what the latter counts as


class Asked:
    """A judge that is asked one question per text.

    identity: who answers; the same identity gives the same answers to the same prompts.
    question: has places for {text} and {concept}.
    """

    identity: str
    question: str

    def answers(self, prompts: Sequence[str]) -> Iterator[tuple[int, float | None]]:
        """Yield each prompt's index and P(yes), as soon as it is known, in any order.

        None stands for an answer that is neither yes nor no.
        """
        raise NotImplementedError

    def score(self, texts: Sequence[str], concept: str) -> np.ndarray:
        """Return P(yes) / (P(yes) + P(no)) for each text, shape (n_texts,).

        Raises: InputError if the judge cannot be reached, or answers neither yes nor no.
        """
        scores = np.zeros(len(texts))
        for index, score in self.answers(asked_about(self.question, texts, concept)):
            scores[index] = NEITHER if score is None else score
        return scores


def asked_about(question: str, texts: Sequence[str], concept: str) -> list[str]:
    """The question about each of some texts."""
    return [question.format(text=text, concept=concept) for text in texts]


def check_question(question: str) -> str:
    """Return a question that has exactly its two places, or raise InputError."""
    try:
        places = {name for _, name, _, _ in Formatter().parse(question) if name is not None}
        if places == PLACES:
            question.format(text="", concept="")
            return question
        got = ", ".join(f"{{{name}}}" for name in sorted(places)) or "none"
    except (ValueError, LookupError, AttributeError) as error:
        got = str(error)
    raise InputError(
        "the judge's question must have the places {text} and {concept} and no others, got "
        f"{got}; write a brace that is meant as {{{{ or }}}}"
    )


def probability_of_yes(likely: Iterable[tuple[str, float]]) -> float | None:
    """Return P(yes) / (P(yes) + P(no)) among likely next tokens; None if neither is there.

    likely: tokens as text, with their natural log-probabilities.
    """
    mass = {"yes": 0.0, "no": 0.0}
    for token, log_probability in likely:
        word = token.strip().lower()
        if word in mass:
            mass[word] += math.exp(log_probability)
    total = sum(mass.values())
    return mass["yes"] / total if total else None


def first_word(answer: str) -> str:
    """The first word of an answer, in lower case."""
    words = re.findall(r"[^\W\d_]+", answer)
    return words[0].lower() if words else ""


def settled(
    answers: Iterable[tuple[int, Answer]], judge: str
) -> Iterator[tuple[int, float | None]]:
    """Yield answers as they come; then None for those that are neither yes nor no.

    Raises: InputError if there are MIN_UNCLEAR of these or more, and no others.
    """
    neither: dict[int, str] = {}
    understood = 0
    for index, answer in answers:
        if isinstance(answer, str):
            neither[index] = answer
        else:
            understood += 1
            yield index, answer
    if not neither:
        return
    example = next(iter(neither.values()))[:SHOWN]
    if not understood and len(neither) >= MIN_UNCLEAR:
        raise InputError(
            f"judge {judge} must answer yes or no, got answers such as {example!r}; name an "
            "instruct model that does not think first, or ask otherwise with --judge-question"
        )
    warnings.warn(
        f"{len(neither)} answers of judge {judge} are neither yes nor no, such as {example!r}, "
        "and count as no",
        CalibrateWarning,
        stacklevel=2,
    )
    for index in neither:
        yield index, None
