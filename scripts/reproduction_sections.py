"""Sections of docs/reproduction.md: what stands beside the paper's figures and tables."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from markdown_tables import table

from calibrate import LawCurves
from calibrate.cli.laws_table import LAW_NAMES
from calibrate.laws.curves import BlockCurves
from calibrate.laws.far_end import EXTREME, FAR, LISTED

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from paper_models import MODELS

PAPERS = {law: name for law, name in LAW_NAMES.items() if not law.endswith("_remainder")}
UNJUDGED = "–"  # a law was not held against this cell: too few tokens peak, or not yet
SHOWN_TOKENS = 5  # of the likeliest ones, in the table


@dataclass(frozen=True)
class Panel:
    """One block measured with all that was wished; name: concept and block."""

    name: str
    curves: LawCurves

    @property
    def block(self) -> BlockCurves:
        """Its only block."""
        return self.curves.blocks[0]


class FarBlock(Protocol):
    """What the far end is told of."""

    @property
    def model(self) -> str: ...

    @property
    def concept(self) -> str: ...

    @property
    def place(self) -> str: ...

    @property
    def far(self) -> dict[str, dict[str, Any]]: ...


def panel_sections(panels: Sequence[Panel]) -> list[str]:
    """Presence, other ways to steer, and questions."""
    return [presence(panels), ways(panels), accuracy(panels)] if panels else []


def presence(panels: Sequence[Panel]) -> str:
    rows, pictures = [], []
    for panel in panels:
        if (found := panel.block.presence) is None:
            continue
        unit = panel.block.strength_at_budget["positive"].value
        zero = found.strengths.index(0.0)
        best = int(np.nanargmax(np.array(found.presence, dtype=float)))
        rows.append(
            [
                panel.curves.concept,
                str(panel.block.layer),
                f"{found.presence[zero]:.2f}",
                f"{max(found.heard):.2f} at {found.strengths[best] / unit:.1f} α_B",
                f"{min(found.heard):.2f}",
                f"{found.floor:.2f}, {found.ceiling:.2f}",
                ", ".join(in_units(found.fall[sign], unit) for sign in ("negative", "positive")),
                ", ".join(
                    in_units(found.degenerate[sign], unit) for sign in ("negative", "positive")
                ),
                UNJUDGED if found.goodness is None else f"{found.goodness.error:.1f}",
            ]
        )
        pictures.append(f"![{panel.name}](reproduction/presence-{panel.name}.png)")
    heads = (
        "concept|block|plain|most|least|asymptotes|turns back at|degenerate at|"
        "sigmoid off by, standard errors"
    ).split("|")
    return in_order([PRESENCE, table(heads, rows), *pictures])


def in_order(parts: Sequence[str]) -> str:
    """Parts of a section, an empty line apart."""
    return "\n\n".join(part.strip() for part in parts)


def in_units(strength: float | None, unit: float) -> str:
    return "never" if strength is None else f"{strength / unit:.1f} α_B"


def ways(panels: Sequence[Panel]) -> str:
    rows, pictures = [], []
    for panel in panels:
        if not panel.curves.variants:
            continue
        every = {"the default here": panel.block, **panel.curves.variants}
        for name, block in every.items():
            unit = block.strength_at_budget["positive"].value
            rows.append(
                [
                    panel.curves.concept,
                    name,
                    f"{unit:.3g}",
                    *(both_reaches(block, law) for law in PAPERS),
                    f"{block.far['positive'].shared} of {LISTED}",
                ]
            )
        pictures.append(f"![{panel.name}](reproduction/variants-{panel.name}.png)")
    heads = ["concept", "way to steer", "α_B", *PAPERS.values(), "far tokens foretold"]
    return in_order([WAYS, table(heads, rows), *pictures]) if rows else ""


def both_reaches(block: BlockCurves, law: str) -> str:
    """Misfit within the budget and beyond it; in bold where it is too large."""
    found = (reach.get(law) for reach in (block.goodness, block.goodness_beyond))
    return ", ".join(
        UNJUDGED if one is None else f"{one.error:.3f}" if one.good else f"**{one.error:.3f}**"
        for one in found
    )


def accuracy(panels: Sequence[Panel]) -> str:
    rows, pictures = [], []
    for panel in panels:
        if (found := panel.block.accuracy) is None:
            continue
        unit = panel.block.strength_at_budget["positive"].value
        for strength, right, bound in zip(
            found.strengths, found.accuracy, found.drop_bound, strict=True
        ):
            rows.append(
                [panel.curves.concept, f"{strength / unit:.3g}", f"{right:.3f}", f"{bound:.3f}"]
            )
        pictures.append(f"![{panel.name}](reproduction/accuracy-{panel.name}.png)")
    heads = ["concept", "α/α_B", "answered rightly", "drop, 95 % bound"]
    return in_order([ACCURACY, table(heads, rows), *pictures]) if rows else ""


def far_tokens(blocks: Sequence[FarBlock]) -> str:
    """The likeliest tokens at ±FAR by concept, and how they stand in the log-odds by place."""
    measured = [block for block in blocks if block.far]
    if not measured:
        return ""
    words = [
        [
            block.model,
            block.concept,
            f"{far['strength']:+g}",
            listed(far["predicted"]),
            listed(far["measured"]),
        ]
        for block in measured
        if block.place == "middle"
        for far in block.far.values()
    ]
    places = sorted({(block.model, block.place) for block in measured})
    shares = []
    for model, place in places:
        ends = [
            far
            for block in measured
            if (block.model, block.place) == (model, place)
            for far in block.far.values()
        ]
        shared = [far["shared"] for far in ends]
        shares.append(
            [
                model,
                place,
                f"{np.mean(shared):.1f} of {LISTED}, at least {min(shared)}",
                f"{np.median([far['total_variation'] for far in ends]):.3f}, "
                f"{max(far['total_variation'] for far in ends):.3f}",
                f"{np.mean([far['extreme'] for far in ends]):.0%}",
            ]
        )
    foretold = table(
        ["model", "block", "foretold tokens found", "total variation: median, worst",
         "of extreme log-odds"], shares,
    )  # fmt: skip
    named = table(["model", "concept", "at α", "foretold", "measured"], words)
    return f"{FAR_TOKENS}\n{foretold}\nThe likeliest at the middle block:\n\n{named}"


def listed(tokens: Sequence[str]) -> str:
    """The likeliest of some tokens, as code."""
    shown = [token.strip().replace("`", "'").replace("|", "¦") for token in tokens]
    return " ".join(f"`{token or '␣'}`" for token in shown[:SHOWN_TOKENS])


def eleven_models() -> str:
    rows = [
        [
            one.name,
            f"{one.billions:g}",
            f"{one.layers} × {one.width}",
            f"{one.heads}, {one.heads // one.group}",
            one.norm,
            "yes" if one.tied else "no",
            one.also,
            f"`calibrate laws --model {one.name} --concept evil --judge auto --variants`",
        ]
        for one in MODELS
    ]
    heads = [
        "model", "10⁹ parameters", "layers × width", "heads, key-value heads", "norm", "tied",
        "also", "on the real weights",
    ]  # fmt: skip
    return f"{ELEVEN}\n{table(heads, rows)}"


PRESENCE = """## Presence in replies

A probe that learned from graded replies reads 32 replies at each of 41 strengths, of both signs, up
to where text has degenerated: replies are 3 nats a token less likely to the plain model, or half of
their tokens lie in a loop, or most are empty. The law is a sigmoid between two asymptotes, fitted
up to where presence turns back by more than noise does in one of twenty. The paper's judge says yes
where any word of the concept stands; this one reads as readers do. Dotted and on the right, the law
of the mass of the concept's tokens, which needs no reply: it still rises where replies, which
express the concept in many other tokens, have long levelled off.
"""

WAYS = """## Other ways to steer

Misfits within the budget and beyond it, middle block; too large ones in bold. Random negatives are
the paper's default, contrastive ones its Figure A.5 and the default here. Measured as presence is,
on replies by the default sampling, so that the first row is not that of the same block elsewhere on
this page.
"""

ACCURACY = """## Questions answered rightly

The guard's 240 questions, by the log-likelihood of their answers; the bound is on the drop from
strength 0, question by question.
"""

FAR_TOKENS = f"""## The far end by token

At ±{FAR:g} the likeliest {LISTED} tokens, over 16 contexts, beside those that norm(±v)·W_Uᵀ
foretells without a pass; total variation between the two distributions; and the share of the
foretold tokens whose mean log-odds are among the most extreme {EXTREME:.0%} of the vocabulary, of
which a small one has fewer: there among the {LISTED} most extreme. The paper finds that dominating
tokens have extreme log-odds at the last block but not at middle ones.
"""

ELEVEN = """## The eleven models

As published (the sizes are checked by building the shapes without memory), and a line to run each.
`tests/test_paper_models.py` runs `calibrate` and `measure_laws` on a tiny random model of each
shape. The eleventh, a 1-layer GPT, was trained by the paper's authors; the one trained for the
tests of this project stands for it.
"""
