"""The paper's three pictures: tokens, concept and cross-entropy against strength, by block."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calibrate.common.layout import LAWS_FILE
from calibrate.common.marks import TOOL
from calibrate.laws.curves import BEYOND, BlockCurves
from calibrate.laws.experiment import LawCurves

FORMATS = ("png", "svg")
LAW, MEASURED, BUDGET, MUTED = "#dd8452", "#4c72b0", "#c44e52", "#999999"
TOKEN_COLOURS = (
    "#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3", "#64b5cd"
)  # fmt: skip
LINEAR_SHARE = 1.0  # of α_B: strengths are drawn linearly up to here, logarithmically beyond

Draw = Callable[[Axes, LawCurves, BlockCurves], None]


def law_pictures(curves: LawCurves) -> dict[str, bytes]:
    """Return the pictures by file name, PNG and SVG, and `laws.json` with every point."""
    figures = {
        "tokens": _figure(curves, _draw_tokens, "Next-token probability against strength"),
        "concept": _figure(curves, _draw_concept, "Mass of the concept's tokens"),
        "delta_ce": _figure(curves, _draw_delta_ce, "Rise of cross-entropy"),
    }
    files = {
        f"{name}.{form}": _rendered(figure, form)
        for name, figure in figures.items()
        for form in FORMATS
    }
    return {**files, LAWS_FILE: curves.to_bytes()}


def _figure(curves: LawCurves, draw: Draw, title: str) -> Figure:
    blocks = curves.blocks
    figure = Figure(figsize=(5.2 * len(blocks), 4.6), layout="constrained")
    row = figure.subplots(1, len(blocks), squeeze=False)[0]
    for axes, block in zip(row, blocks, strict=True):
        draw(axes, curves, block)
        unit = abs(block.strength_at_budget["positive"].value)
        axes.set_xscale("symlog", linthresh=LINEAR_SHARE * unit, linscale=1.5)
        axes.axvline(0, color=MUTED, lw=0.6)
        for bound in block.strength_at_budget.values():
            axes.axvline(bound.value, color=BUDGET, lw=0.8, ls=":")
        _round_ticks(axes, unit)
        axes.set_xlabel("strength α (dotted: α at the budget)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.suptitle(f"{title}: {curves.concept} on {curves.model.id}")
    return figure


def _round_ticks(axes: Axes, unit: float) -> None:
    shares = np.array([-30, -5, -1, 0, 1, 5, 30])
    axes.set_xticks(shares * unit, [f"{share * unit:.2g}" for share in shares])
    axes.minorticks_off()


def _draw_tokens(axes: Axes, curves: LawCurves, block: BlockCurves) -> None:
    zero = block.strengths.index(0.0)
    for colour, token in zip(TOKEN_COLOURS, block.tokens, strict=False):
        change = np.array(token.probability) - token.probability[zero]
        predicted = np.array(token.predicted) - token.predicted[zero]
        label = repr(token.token).replace("$", r"\$")
        axes.plot(block.strengths, change, "-", color=colour, lw=1.4, label=label)
        axes.plot(block.strengths, predicted, ":", color=colour, lw=1.1)
        at = int(np.argmax(token.probability))
        axes.plot(block.strengths[at], change[at], "^", color=colour, ms=5)
    words = " ".join(block.context.replace("$", r"\$").split())
    axes.set_ylabel("increase of probability (solid: measured, dotted: law)")
    axes.set_title(f"block {block.layer}, after “…{words[-42:]}”", fontsize=9)


def _draw_concept(axes: Axes, curves: LawCurves, block: BlockCurves) -> None:
    _draw_measured(axes, block, block.concept_mass, block.concept_mass_error)
    axes.plot(block.strengths, block.law_concept_mass, "--", color=LAW, label="law")
    axes.set_ylim(0, min(1.05, 1.15 * max(block.concept_mass)))
    axes.set_ylabel("probability of the concept's tokens")
    axes.set_title(_verdict(block, "concept", "log-odds off by {:.2f}"), fontsize=9)


def _draw_delta_ce(axes: Axes, curves: LawCurves, block: BlockCurves) -> None:
    _draw_measured(axes, block, block.delta_ce, block.delta_ce_error)
    axes.plot(block.strengths, block.law_delta_ce, "-", color=LAW, label="law")
    axes.plot(block.strengths, block.quadratic, "--", color=MUTED, lw=1, label="½cα²")
    for index, plateau in enumerate(block.plateaus.values()):
        axes.axhline(plateau, color=MUTED, lw=0.8, ls="-.", label=None if index else "plateaus")
    axes.axhline(curves.budget, color=BUDGET, lw=1, label=f"budget {curves.budget:g} nat")
    axes.set_yscale("symlog", linthresh=curves.budget)
    axes.set_ylim(min(0.0, 1.2 * min(block.delta_ce)), 2 * max(block.plateaus.values()))
    axes.set_ylabel("ΔCE (nats per token)")
    axes.set_title(_verdict(block, "cross_entropy", "off by {:.1%}"), fontsize=9)


def _draw_measured(
    axes: Axes, block: BlockCurves, values: list[float], errors: list[float] | None
) -> None:
    axes.errorbar(
        block.strengths, values, yerr=errors, fmt="o", ms=3.5, color=MEASURED, label="measured"
    )


def _verdict(block: BlockCurves, law: str, error: str) -> str:
    within, beyond = block.goodness[law], block.goodness_beyond[law]
    return (
        f"block {block.layer}: {error.format(within.error)} within the budget, "
        f"{error.format(beyond.error).removeprefix('log-odds ')} up to {BEYOND:g} α_B"
    )


def _rendered(figure: Figure, form: str) -> bytes:
    buffer = io.BytesIO()
    maker = {"png": "Software", "svg": "Creator"}[form]
    figure.savefig(buffer, format=form, dpi=130, metadata={maker: TOOL})
    return buffer.getvalue()
