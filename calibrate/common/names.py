"""Names of models, concepts and judges: they stand in code, commands, cards and tables."""

from __future__ import annotations

import unicodedata

BREAKING = ("Cc", "Cs", "Zl", "Zp")  # Unicode's control characters, surrogates, line separators


def is_name(text: str) -> bool:
    r"""Whether a text is one line that every page and terminal can show.

    >>> is_name("joy of life"), is_name("joy\nimport os")
    (True, False)
    """
    return not any(unicodedata.category(character) in BREAKING for character in text)
