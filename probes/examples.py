"""Labelled examples to fit a probe on, and degenerate text to teach it what is not language."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from calibrate.alike import words

Kind = Literal["written", "primed", "asked", "own", "degenerate"]
FEWEST = 3  # words and tokens of a text that can be broken
LONGEST_RUN = 3  # tokens that a loop repeats, and at most a third of the text's
MODEL_MADE: tuple[Kind, ...] = ("primed", "asked")  # replies made on purpose, of either label


@dataclass(frozen=True)
class Example:
    """One text with its label.

    text: what is read. positive: whether it expresses the concept.
    kind: where it comes from. `written` by people; `primed`, a model's replies after it was
        shown written ones; `asked`, its replies when told in plain words what to express; `own`,
        its plain unsteered replies; `degenerate`, broken text.
    group: examples of one group (a prompt, a matched pair) share a cross-validation fold.
    bare: whether it is a written text that replies to nothing.
    """

    text: str
    positive: bool
    kind: Kind
    group: str
    bare: bool = False


def degenerate_examples(
    examples: Sequence[Example], tokenizer: Any, seed: int
) -> tuple[Example, ...]:
    """Break texts the way over-steered models do; all are negatives.

    Each example is broken in one of three WAYS, in turn. Where what comes out would still say what
    the text says, as it does for a text of one or two words, there is no broken copy of it.
    """
    rng, ways = random.Random(seed), list(WAYS)
    broken = [
        break_text(ways[i % len(ways)], example.text, tokenizer, rng)
        for i, example in enumerate(examples)
    ]
    return tuple(
        Example(text, False, "degenerate", example.group)
        for text, example in zip(broken, examples, strict=True)
        if text is not None
    )


def break_text(way: str, text: str, tokenizer: Any, rng: random.Random) -> str | None:
    """Break a text in one of the WAYS, or return None if it would not be broken then."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    said = words(text)
    if min(len(said), len(ids)) < FEWEST:
        return None
    broken = str(tokenizer.decode(WAYS[way](ids, tokenizer, rng)))
    return None if _contains(words(broken), said) or not broken.strip() else broken


def _shuffled(ids: Sequence[int], _tokenizer: Any, rng: random.Random) -> list[int]:
    return rng.sample(ids, len(ids))


def _looped(ids: Sequence[int], _tokenizer: Any, rng: random.Random) -> list[int]:
    """A short run of the tokens over and over, until there are as many."""
    length = rng.randint(1, min(LONGEST_RUN, len(ids) // FEWEST))
    first = rng.randrange(len(ids) - length + 1)
    return list(ids[first : first + length]) * max(2, len(ids) // length)


def _random_tokens(ids: Sequence[int], tokenizer: Any, rng: random.Random) -> list[int]:
    special = set(tokenizer.all_special_ids)
    ordinary = [token for token in range(len(tokenizer)) if token not in special]
    return rng.choices(ordinary, k=len(ids))


WAYS: dict[str, Callable[[Sequence[int], Any, random.Random], list[int]]] = {
    "shuffled": _shuffled,
    "looped": _looped,
    "random tokens": _random_tokens,
}


def _contains(long: Sequence[str], short: Sequence[str]) -> bool:
    """Whether some words stand within others, in the same order and without a gap."""
    n = len(short)
    return any(long[first : first + n] == short for first in range(len(long) - n + 1))
