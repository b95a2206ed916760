"""The pictures of `calibrate laws`: the paper's three, and the panels that were asked for."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calibrate.common.layout import LAWS_FILE
from calibrate.common.marks import TOOL
from calibrate.common.pictures import literal
from calibrate.laws.curves import BEYOND, BlockCurves
from calibrate.laws.law_curves import LawCurves
from calibrate.laws.panel_plots import (
    BUDGET,
    LAW,
    MEASURED,
    MUTED,
    Draw,
    draw_accuracy,
    draw_presence,
)

FORMATS = ("png", "svg")
TOKEN_COLOURS = (
    "#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3", "#64b5cd"
)  # fmt: skip
LINEAR_SHARE = 1.0  # of α_B: strengths are drawn linearly up to here, logarithmically beyond


def law_pictures(curves: LawCurves) -> dict[str, bytes]:
    """Return the pictures by file name, PNG and SVG, and `laws.json` with every point."""
    blocks = {block.where: block for block in curves.blocks}
    read = {name: block for name, block in blocks.items() if block.presence is not None}
    put = {name: block for name, block in blocks.items() if block.accuracy is not None}
    middle = curves.blocks[len(curves.blocks) // 2]
    ways = {middle.where: middle, **curves.variants} if curves.variants else {}
    three: list[Draw] = [_draw_tokens, _draw_concept, _draw_delta_ce]
    wanted: dict[str, tuple[str, list[Draw], dict[str, BlockCurves]]] = {
        "tokens": ("Next-token probability against strength", three[:1], blocks),
        "concept": ("Mass of the concept's tokens", three[1:2], blocks),
        "delta_ce": ("Rise of cross-entropy", three[2:], blocks),
        "presence": ("Presence in replies", [draw_presence], read),
        "accuracy": ("Questions answered rightly", [draw_accuracy], put),
        "variants": ("Other ways to steer", three, ways),
    }
    figures = {name: _figure(curves, *each) for name, each in wanted.items() if each[2]}
    files = {
        f"{name}.{form}": _rendered(figure, form)
        for name, figure in figures.items()
        for form in FORMATS
    }
    return {**files, LAWS_FILE: curves.to_bytes()}


def _figure(
    curves: LawCurves, title: str, draws: Sequence[Draw], columns: Mapping[str, BlockCurves]
) -> Figure:
    """A row of axes for each way to draw, and a column for each block or way to steer."""
    size = (5.2 * len(columns), 4.6 * len(draws))
    figure = Figure(figsize=size, layout="constrained")
    rows = figure.subplots(len(draws), len(columns), squeeze=False)
    for draw, row in zip(draws, rows, strict=True):
        for axes, (name, block) in zip(row, columns.items(), strict=True):
            draw(axes, curves, block)
            axes.set_title(f"{name}: {axes.get_title()}", fontsize=9)
            _across(axes, block, linear=draw is draw_presence)
    figure.suptitle(literal(f"{title}: {curves.concept} on {curves.model.id}"))
    return figure


def _across(axes: Axes, block: BlockCurves, linear: bool) -> None:
    """The axis of strengths, and what is the same in every picture."""
    if not linear:
        unit = abs(block.strength_at_budget["positive"].value)
        axes.set_xscale("symlog", linthresh=LINEAR_SHARE * unit, linscale=1.5)
        _round_ticks(axes, unit)
    axes.axvline(0, color=MUTED, lw=0.6)
    for bound in block.strength_at_budget.values():
        axes.axvline(bound.value, color=BUDGET, lw=0.8, ls=":")
    axes.set_xlabel("strength α (dotted: α at the budget)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


def _round_ticks(axes: Axes, unit: float) -> None:
    shares = np.array([-30, -5, -1, 0, 1, 5, 30])
    axes.set_xticks(shares * unit, [f"{share * unit:.2g}" for share in shares])
    axes.minorticks_off()


def _draw_tokens(axes: Axes, curves: LawCurves, block: BlockCurves) -> None:
    zero = block.strengths.index(0.0)
    for colour, token in zip(TOKEN_COLOURS, block.tokens, strict=False):
        change = np.array(token.probability) - token.probability[zero]
        predicted = np.array(token.predicted) - token.predicted[zero]
        label = literal(repr(token.token))
        axes.plot(block.strengths, change, "-", color=colour, lw=1.4, label=label)
        axes.plot(block.strengths, predicted, ":", color=colour, lw=1.1)
        at = int(np.argmax(token.probability))
        axes.plot(block.strengths[at], change[at], "^", color=colour, ms=5)
    words = " ".join(literal(block.context).split())
    axes.set_ylabel("increase of probability (solid: measured, dotted: law)")
    axes.set_title(f"after “…{words[-42:]}”")


def _draw_concept(axes: Axes, curves: LawCurves, block: BlockCurves) -> None:
    _draw_measured(axes, block, block.concept_mass, block.concept_mass_error)
    axes.plot(block.strengths, block.law_concept_mass, "--", color=LAW, label="sigmoid")
    axes.plot(block.strengths, block.remainder_concept_mass, ":", color=LAW, label="remainder")
    axes.set_ylim(0, min(1.05, 1.15 * max(block.concept_mass)))
    axes.set_ylabel("probability of the concept's tokens")
    axes.set_title(_verdict(block, "concept", "log-odds off by {:.2f}"))


def _draw_delta_ce(axes: Axes, curves: LawCurves, block: BlockCurves) -> None:
    _draw_measured(axes, block, block.delta_ce, block.delta_ce_error)
    axes.plot(block.strengths, block.law_delta_ce, "-", color=LAW, label="law")
    if block.remainder_delta_ce is not None:
        axes.plot(block.strengths, block.remainder_delta_ce, ":", color=LAW, label="remainder")
    axes.plot(block.strengths, block.quadratic, "--", color=MUTED, lw=1, label="½cα²")
    for index, plateau in enumerate(block.plateaus.values()):
        axes.axhline(plateau, color=MUTED, lw=0.8, ls="-.", label=None if index else "plateaus")
    axes.axhline(curves.budget, color=BUDGET, lw=1, label=f"budget {curves.budget:g} nat")
    axes.set_yscale("symlog", linthresh=curves.budget)
    axes.set_ylim(min(0.0, 1.2 * min(block.delta_ce)), 2 * max(block.plateaus.values()))
    axes.set_ylabel("ΔCE (nats per token)")
    axes.set_title(_verdict(block, "cross_entropy", "off by {:.1%}"))


def _draw_measured(
    axes: Axes, block: BlockCurves, values: list[float], errors: list[float] | None
) -> None:
    axes.errorbar(
        block.strengths, values, yerr=errors, fmt="o", ms=3.5, color=MEASURED, label="measured"
    )


def _verdict(block: BlockCurves, law: str, error: str) -> str:
    within, beyond = block.goodness[law], block.goodness_beyond[law]
    return (
        f"{error.format(within.error)} within the budget, "
        f"{error.format(beyond.error).removeprefix('log-odds ')} up to {BEYOND:g} α_B"
    )


def _rendered(figure: Figure, form: str) -> bytes:
    buffer = io.BytesIO()
    maker = {"png": "Software", "svg": "Creator"}[form]
    figure.savefig(buffer, format=form, dpi=130, metadata={maker: TOOL})
    return buffer.getvalue()
