"""What all pictures share."""

from __future__ import annotations


def literal(text: str) -> str:
    r"""A text as matplotlib shows it as it is: a pair of dollars would be read as a formula.

    >>> literal("make $$")
    'make \\$\\$'
    """
    return text.replace("$", r"\$")
