"""How presence and accuracy are drawn against strength."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes

from calibrate.common.pictures import literal
from calibrate.laws.curves import BlockCurves
from calibrate.laws.law_curves import LawCurves

LAW, MEASURED, BUDGET, MUTED = "#dd8452", "#4c72b0", "#c44e52", "#999999"
MASS = "#55a868"

Draw = Callable[[Axes, LawCurves, BlockCurves], None]


def draw_presence(axes: Axes, curves: LawCurves, block: BlockCurves) -> None:
    """Presence, its sigmoid, and where it falls; the mass of the concept's tokens on the right."""
    panel = block.presence
    if panel is None:
        return
    strengths = np.array(panel.strengths)
    presence, error = (np.array(row, dtype=float) for row in (panel.presence, panel.error))
    axes.errorbar(
        strengths, presence, yerr=error, fmt="o", ms=3.5, color=MEASURED,
        label=literal(f"read by {panel.judge}"),
    )  # fmt: skip
    low, high = (panel.fall[name] for name in ("negative", "positive"))
    inside = (strengths > (low or -np.inf)) & (strengths < (high or np.inf))
    axes.plot(strengths[inside], np.array(panel.law)[inside], "-", color=LAW, label="sigmoid")
    for fall in (low, high):
        if fall is not None:
            axes.axvline(fall, color=LAW, lw=0.8, ls="--")
    for level in (panel.floor, panel.ceiling):
        axes.axhline(level, color=MUTED, lw=0.8, ls="-.")
    axes.set_ylim(0, 1)
    axes.set_ylabel("share of replies (dashed: where presence turns back)")
    if panel.goodness is not None:
        axes.set_title(f"off by {panel.goodness.error:.1f} standard errors")
    near = [abs(strength) <= np.abs(strengths).max() for strength in block.strengths]
    mass = axes.twinx()
    mass.plot(
        np.array(block.strengths)[near], np.array(block.law_concept_mass)[near], ":", color=MASS
    )
    mass.set_ylim(0, None)
    mass.set_ylabel("mass of the concept's tokens, by its law", color=MASS)
    axes.plot([], [], ":", color=MASS, label="law of mass (right)")


def draw_accuracy(axes: Axes, curves: LawCurves, block: BlockCurves) -> None:
    """Accuracy, and what guessing would get."""
    panel = block.accuracy
    if panel is None:
        return
    axes.errorbar(
        panel.strengths, panel.accuracy, yerr=panel.error, fmt="o-", ms=3.5, color=MEASURED,
        label=literal(f"{panel.n_questions} questions, {panel.guard}"),
    )  # fmt: skip
    axes.axhline(panel.chance, color=MUTED, lw=0.8, ls="-.", label="guessing")
    axes.set_ylim(0, 1)
    axes.set_ylabel("share answered rightly")
    at = block.strength_at_budget["positive"].value
    bound = panel.drop_bound[int(np.argmin(np.abs(np.array(panel.strengths) - at)))]
    axes.set_title(f"a drop of at most {bound:.3f} at the budget")
