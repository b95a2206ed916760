"""Where the laws held, in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.text import Text

from calibrate.cli.rich_tables import headed
from calibrate.laws.formulas import Goodness

if TYPE_CHECKING:
    from calibrate.laws.curves import BlockCurves
    from calibrate.laws.law_curves import LawCurves

LAW_NAMES = {
    "cross_entropy": "ΔCE, relative error",
    "cross_entropy_remainder": "ΔCE, by the remainder",
    "concept": "concept, log-odds error",
    "concept_remainder": "concept, by the remainder",
    "bumps": "tokens with more than one bump",
    "peaks": "peaks, 1 - rank correlation",
}


def laws_headline(curves: LawCurves) -> Text:
    """Return what was measured, on how much, in one line."""
    return Text.from_markup(
        f"The laws of steering [bold]{escape(curves.model.id)}[/] towards "
        f"[bold]{escape(curves.concept)}[/], on {curves.n_sequences} sequences, judged up to "
        "α at the budget"
    )


def laws_summary(curves: LawCurves, directory: Path) -> RenderableType:
    """Return where each law held, and what is left far out; it goes below the headline."""
    table = headed("steered", "α at budget", *LAW_NAMES.values())
    blocks = {block.where: block for block in curves.blocks}
    blocks |= {f"{block.where}, {name}": block for name, block in curves.variants.items()}
    for name, block in blocks.items():
        at_budget = block.strength_at_budget["positive"]
        table.add_row(
            f"[bold]{name}[/]",
            f"{at_budget.value:.4g} ({at_budget.low:.4g} to {at_budget.high:.4g})",
            *(_verdict(block.goodness.get(law)) for law in LAW_NAMES),
        )
    return Group(
        "",
        table,
        "",
        _far_ends(blocks),
        *_panels(curves),
        "",
        Text.from_markup(f"Pictures and every point are in [bold]{escape(str(directory))}/[/]."),
    )


def _far_ends(blocks: Mapping[str, BlockCurves]) -> RenderableType:
    """The likeliest tokens far out, as foretold without a pass, and as measured."""
    table = headed("far end", "at α", "foretold", "measured", "in both", "total variation")
    for name, block in blocks.items():
        for far in block.far.values():
            table.add_row(
                f"[bold]{name}[/]",
                f"{far.strength:+g}",
                _tokens(far.predicted),
                _tokens(far.measured),
                f"{far.shared} of {len(far.predicted)}",
                f"{far.total_variation:.3f}",
            )
    return table


def _tokens(likeliest: Sequence[str]) -> str:
    """Tokens from the likeliest on, each in quotes where it is not a plain word."""
    shown = (token.strip() for token in likeliest)
    return escape(" ".join(token if token.isalnum() else repr(token) for token in shown))


def _panels(curves: LawCurves) -> list[RenderableType]:
    """What was read and asked at each block, a line each."""
    lines: list[RenderableType] = []
    for block in curves.blocks:
        if (panel := block.presence) is not None:
            falls = [f"{at:.3g}" for at in panel.fall.values() if at is not None]
            turns = f", turning back at {' and '.join(falls)}" if falls else ""
            held = (
                "too few points to judge the sigmoid by"
                if panel.goodness is None
                else f"the sigmoid is off by {panel.goodness.error:.1f} standard errors"
            )
            lines.append(
                f"{block.where.capitalize()}: presence by {escape(panel.judge)} from "
                f"{min(panel.heard):.2f} to {max(panel.heard):.2f}{turns}; {held}"
            )
        if (asked := block.accuracy) is not None:
            zero, least = asked.strengths.index(0.0), min(asked.accuracy)
            lines.append(
                f"{block.where.capitalize()}: {asked.accuracy[zero]:.0%} of {asked.n_questions} "
                f"questions answered rightly, {least:.0%} at worst"
            )
    return ["", *lines] if lines else []


def _verdict(goodness: Goodness | None) -> str:
    if goodness is None:
        return "–"
    colour, word = ("green", "holds") if goodness.good else ("red", "fails")
    return f"[{colour}]{word}[/] ({goodness.error:.3f}, {goodness.tolerance:.3g} will do)"
