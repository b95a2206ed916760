"""Where the laws held, in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.text import Text

from calibrate.cli.rich_tables import headed
from calibrate.laws.formulas import Goodness

if TYPE_CHECKING:
    from calibrate.laws.experiment import LawCurves

LAW_NAMES = {
    "cross_entropy": "ΔCE, relative error",
    "concept": "concept, log-odds error",
    "bumps": "tokens with more than one bump",
    "peaks": "peaks, 1 - rank correlation",
}


def laws_summary(curves: LawCurves, directory: Path) -> RenderableType:
    """Return where each law held, block by block."""
    table = headed("block", "α at budget", *LAW_NAMES.values())
    for block in curves.blocks:
        at_budget = block.strength_at_budget["positive"]
        table.add_row(
            f"[bold]{block.layer}[/]",
            f"{at_budget.value:.4g} ({at_budget.low:.4g} to {at_budget.high:.4g})",
            *(_verdict(block.goodness[law]) for law in LAW_NAMES),
        )
    return Group(
        Text.from_markup(
            f"The laws of steering [bold]{escape(curves.model.id)}[/] towards "
            f"[bold]{escape(curves.concept)}[/], on {curves.n_sequences} sequences, judged up to "
            "α at the budget"
        ),
        "",
        table,
        "",
        Text.from_markup(f"Pictures and every point are in [bold]{escape(str(directory))}/[/]."),
    )


def _verdict(goodness: Goodness) -> str:
    colour, word = ("green", "holds") if goodness.good else ("red", "fails")
    return f"[{colour}]{word}[/] ({goodness.error:.3f}, {goodness.tolerance:g} will do)"
