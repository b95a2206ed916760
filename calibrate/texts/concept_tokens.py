"""Tokens that occur much more often in a concept's texts than elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from calibrate.models.model import LoadedModel
from calibrate.texts.concept import Texts
from calibrate.texts.replies import UnsteeredReplies

MAX_TOKENS = 50  # typical tokens of a concept
TYPICAL_LIFT = 3.0  # how many times more often a typical token occurs in positive texts


def concept_token_ids(
    loaded: LoadedModel,
    positives: Sequence[str],
    negatives: Sequence[str],
    neutral: Sequence[str],
) -> tuple[int, ...]:
    """Return tokens typical of the positive texts and rare in the others, most typical first.

    A typical token occurs in at least two positive texts, and its rate there is TYPICAL_LIFT times
    its (smoothed) rate in the negatives and the neutral replies together, or more.
    """
    ids = [[_word_ids(loaded, text) for text in texts] for texts in (positives, negatives, neutral)]
    n_texts = Counter(token for text in ids[0] for token in set(text))
    inside = Counter(token for text in ids[0] for token in text)
    outside = Counter(token for part in ids[1:] for text in part for token in text)
    n_inside, n_outside = max(inside.total(), 1), max(outside.total(), 1)
    lift = {
        token: (inside[token] / n_inside) / ((outside[token] + 1) / n_outside)
        for token, n in n_texts.items()
        if n >= 2
    }
    ranked = sorted(lift, key=lambda token: (-lift[token], token))
    return tuple(token for token in ranked if lift[token] >= TYPICAL_LIFT)[:MAX_TOKENS]


def _word_ids(loaded: LoadedModel, text: str) -> list[int]:
    ids: list[int] = loaded.tokenizer(" " + text, add_special_tokens=False)["input_ids"]
    return ids


def concept_tokens(loaded: LoadedModel, texts: Texts, replies: UnsteeredReplies) -> tuple[int, ...]:
    """Tokens typical of a concept that are rare in the model's own replies to search prompts."""
    return concept_token_ids(
        loaded,
        [text.text for text in texts.positives],
        [text.text for text in texts.negatives],
        [completion.text for completion in replies.completions["search"]],
    )
