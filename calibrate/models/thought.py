"""Models that think before they answer: where in a reply the answer begins.

A thought stands between two marks at the beginning of a reply. Some templates write the first mark
themselves, so that the reply begins inside the thought. What follows the last mark is the answer,
which is all that a user reads; a reply that is cut off before it has none.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

# How a thought begins and ends, in the text with its special tokens. In the channel formats
# everything before the channel of the answer counts as thought.
ANSWER_CHANNEL = "<|channel|>final<|message|>"
MARKS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel|>", ANSWER_CHANNEL),
    ("<|channel>thought", "<channel|>"),
)


def before_answer(template: str, prompt: str) -> str:
    """What a reply begins with that leads straight to the answer; empty if the answer does.

    It closes the thought which a rendered prompt has begun. Where the template names a channel of
    the answer, and the prompt leaves the channel to the model, it names that.
    """
    opened = opened_by(prompt)
    if opened:
        return f"\n{opened}\n\n"
    channel = ANSWER_CHANNEL in template and not prompt.rstrip().endswith(ANSWER_CHANNEL)
    return ANSWER_CHANNEL if channel else ""


def opened_by(prompt: str) -> str:
    """The mark that ends the thought which a rendered prompt has begun; empty if it has not."""
    begun = prompt.rstrip()
    return next((end for begin, end in MARKS if begun.endswith(begin)), "")


def thought_length(tokenizer: Any, ids: Sequence[int], opened: str = "") -> int | None:
    """How many of a reply's token ids are thought; None if it never gets to the answer.

    opened: the mark that ends a thought which the prompt has begun, if it has.
    """
    thought = 0
    end = opened or _begun(tokenizer, ids)
    while end:
        after = _position_after(tokenizer, ids[thought:], end)
        if after is None:
            return None
        thought += after
        end = _begun(tokenizer, ids[thought:])
    return thought


def _begun(tokenizer: Any, ids: Sequence[int]) -> str:
    """The mark that ends the thought with which a reply begins; empty if it begins with none."""
    text = str(tokenizer.decode(ids, skip_special_tokens=False)).lstrip()
    return next((end for begin, end in MARKS if text.startswith(begin)), "")


def _position_after(tokenizer: Any, ids: Sequence[int], mark: str) -> int | None:
    """How many token ids it takes until their text has `mark`; None if it never does."""

    def contains(count: int) -> bool:
        return mark in str(tokenizer.decode(ids[:count], skip_special_tokens=False))

    return bisect_left(range(len(ids)), True, key=contains) if contains(len(ids)) else None
