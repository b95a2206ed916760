"""Tokens that are typical of a concept's texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from calibrate.models.model import LoadedModel
from calibrate.texts.concept import Texts
from calibrate.texts.replies import UnsteeredReplies

TYPICAL_LIFT = 3.0  # how much more often a concept's token stands in positive texts


def concept_token_ids(
    loaded: LoadedModel,
    positives: Sequence[str],
    negatives: Sequence[str],
    neutral: Sequence[str],
    most: int = 50,
) -> tuple[int, ...]:
    """Return tokens typical of the positive texts and rare in the others, most typical first.

    Typical are tokens found in at least two positive texts, ranked by the smoothed ratio of
    their rate there to their rate in the negatives and the neutral replies together.
    """
    ids = [[_word_ids(loaded, text) for text in texts] for texts in (positives, negatives, neutral)]
    spread = Counter(token for text in ids[0] for token in set(text))
    inside = Counter(token for text in ids[0] for token in text)
    outside = Counter(token for part in ids[1:] for text in part for token in text)
    n_inside, n_outside = max(inside.total(), 1), max(outside.total(), 1)
    lift = {
        token: (inside[token] / n_inside) / ((outside[token] + 1) / n_outside)
        for token, texts in spread.items()
        if texts >= 2
    }
    ranked = sorted(lift, key=lambda token: (-lift[token], token))
    return tuple(token for token in ranked if lift[token] >= TYPICAL_LIFT)[:most]


def _word_ids(loaded: LoadedModel, text: str) -> list[int]:
    ids: list[int] = loaded.tokenizer(" " + text, add_special_tokens=False)["input_ids"]
    return ids


def concept_tokens(loaded: LoadedModel, texts: Texts, replies: UnsteeredReplies) -> tuple[int, ...]:
    """Tokens of the concept's texts that the model's own replies to search prompts rarely have."""
    return concept_token_ids(
        loaded,
        [text.text for text in texts.positives],
        [text.text for text in texts.negatives],
        [completion.text for completion in replies.completions["search"]],
    )
