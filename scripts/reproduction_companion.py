"""The table of docs/reproduction.md that has every figure of the paper, and its like here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from markdown_tables import table
from reproduction_sections import Panel

NAMES = {"cross_entropy": "ΔCE", "concept": "concept", "bumps": "bumps", "peaks": "peaks"}


class JudgedBlock(Protocol):
    """A block that laws were held against."""

    def holds(self, law: str, reach: str) -> bool | None: ...


def companion(panels: Sequence[Panel], one_layer: Sequence[JudgedBlock]) -> str:
    """Every figure and table of the paper, and where its like stands here.

    one_layer: the blocks of the GPT of one layer.
    """
    told = {
        SIGMOIDS: sigmoids(panels),
        LAST_TOKEN: at_last_token(panels),
        ONE_LAYER: within_budget(one_layer),
    }
    rows = [[*row[:-1], told.get(row[-1], row[-1])] for row in FIGURES]
    return f"{COMPANION}\n{table(['paper', 'what it shows', 'here', 'the same?'], rows)}"


def sigmoids(panels: Sequence[Panel]) -> str:
    """How many curves of presence are sigmoids, and how many fall."""
    read = [panel.block.presence for panel in panels if panel.block.presence is not None]
    if not read:
        return UNMEASURED
    good = sum(one.goodness is not None and one.goodness.good for one in read)
    turning = sum(any(at is not None for at in one.fall.values()) for one in read)
    return f"of {counted(len(read), 'curve')} {good} a sigmoid within errors, {turning} with a fall"


def at_last_token(panels: Sequence[Panel]) -> str:
    """For how many concepts each law holds at the last token alone, and at every one."""
    both = [
        (panel.curves.variants["last token"], panel.block)
        for panel in panels
        if "last token" in panel.curves.variants
    ]
    held = []
    for law, name in NAMES.items():
        judged = [
            [block.goodness[law].good for block in pair]
            for pair in both
            if all(law in block.goodness for block in pair)
        ]
        if judged:
            last, every = map(sum, zip(*judged, strict=True))
            held.append(f"{name} for {last} and {every} of {len(judged)}")
    if not held:
        return UNMEASURED
    return f"at the last token and at every one, within the budget: {', '.join(held)}"


def within_budget(blocks: Sequence[JudgedBlock]) -> str:
    """Which laws hold within the budget at all of these blocks."""
    held = {name: {one.holds(law, "within") for one in blocks} for law, name in NAMES.items()}
    good = [name for name, verdicts in held.items() if verdicts == {True}]
    bad = [name for name, verdicts in held.items() if False in verdicts]
    parts = [", ".join(good) + " within the budget"] if good else []
    parts += [f"not {', '.join(bad)}"] if bad else []
    return "; ".join(parts) or UNMEASURED


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


COMPANION = """## The paper's figures and tables

What each shows, what stands beside it here, and whether it is the same. The paper steers models of
.1 to 8 billion parameters on GPUs; here are two small ones on two cores, and models trained for it.
"""

SIGMOIDS, LAST_TOKEN, ONE_LAYER = "sigmoids", "last token", "one layer"  # told from figures
UNMEASURED = "not measured here"

FIGURES = (
    ("2, 3, 4, 5, B.1", "data and theorems of the unconstrained features model",
     "[trained](#the-papers-own-model)", "yes"),
    ("6, A.5, A.8", "tokens rise, peak and fall, middle block",
     "bumps and peaks, [where the laws hold](#where-the-laws-hold)",
     "within the budget; the share that rises twice is in [every block](#every-block)"),
    ("A.7", "the same, early block: tokens less often of the concept",
     "bumps, early", "no: a fifth of the tokens rise twice, since the direction in which logits "
     "move turns with α ([why](remainder.md))"),
    ("A.9", "the same, last block", "bumps, late: block 25 of 0 to 29, and 15 of 0 to 17",
     "at a late block yes; the last one was measured of the GPTs of one and two layers only"),
    ("A.10", "tokens at negative strengths", "both signs are in every row and picture", "yes"),
    ("7, top; A.11, A.12", "a judge reads the concept in replies: mostly a sigmoid, sometimes a "
     "fall", "[presence](#presence-in-replies)", SIGMOIDS),
    ("7, bottom; A.13", "ΔCE: quadratic near 0, a plateau far out",
     "ΔCE, [where the laws hold](#where-the-laws-hold)", "the shape yes; the law as fitted, within "
     "the budget"),
    ("A.1", "v of length 1", "[other ways to steer](#other-ways-to-steer)", "yes: only α's unit"),
    ("A.2", "the last token alone is steered", "[other ways to steer](#other-ways-to-steer)",
     LAST_TOKEN),
    ("A.3", "texts resampled", "error bars by `calibrate laws --resamples`", "not measured here"),
    ("A.4", "a 1-layer GPT, uppercase words", "gpt2-1layer in [every block](#every-block)",
     ONE_LAYER),
    ("A.6", "MMLU falls with strength of either sign", "[questions](#questions-answered-rightly)",
     "yes, from about three times the budget's strength on; up to twice, by a hundredth at most"),
    ("Table A.1", "eleven models", "[the eleven models](#the-eleven-models)",
     "their shapes, tiny; the real weights are a line each"),
    ("Table A.2", "likeliest tokens at 200", "[the far end](#the-far-end-by-token)",
     "late blocks; for earlier ones 200 is not far yet"),
)  # fmt: skip
