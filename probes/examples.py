"""Written texts of either label, from which a judge learns."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """One text with its label.

    text: what is read. positive: whether it expresses the concept.
    group: examples of one group (a prompt, a matched pair) share a cross-validation fold.
    bare: whether it has no prompt.

    >>> probes.Example("What a wonderful morning!", positive=True, group="morning").bare
    False
    """

    text: str
    positive: bool
    group: str
    bare: bool = False
