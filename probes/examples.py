"""Labelled examples to fit a probe on, and degenerate text to teach it what is not language."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["written", "primed", "asked", "own", "degenerate"]
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

    Each example is broken in one of three ways, in turn: its tokens shuffled, a short run of
    its words repeated over and over, or as many tokens drawn at random.
    """
    rng = random.Random(seed)
    ways: list[Callable[[str, Any, random.Random], str]] = [_shuffled, _looped, _random_tokens]
    return tuple(
        Example(
            ways[i % len(ways)](example.text, tokenizer, rng), False, "degenerate", example.group
        )
        for i, example in enumerate(examples)
    )


def _shuffled(text: str, tokenizer: Any, rng: random.Random) -> str:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    rng.shuffle(ids)
    return str(tokenizer.decode(ids))


def _looped(text: str, _tokenizer: Any, rng: random.Random) -> str:
    words = text.split()
    length = rng.randint(1, 3)
    first = rng.randrange(max(1, len(words) - length + 1))
    loop = words[first : first + length]
    return " ".join(loop * max(2, len(words) // max(len(loop), 1)))


def _random_tokens(text: str, tokenizer: Any, rng: random.Random) -> str:
    n_tokens = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    special = set(tokenizer.all_special_ids)
    ordinary = [token for token in range(len(tokenizer)) if token not in special]
    return str(tokenizer.decode(rng.choices(ordinary, k=n_tokens)))
