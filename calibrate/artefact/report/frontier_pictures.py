"""The picture of a frontier: presence against cost in both currencies, and what breaks."""

from __future__ import annotations

import io
from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from calibrate.artefact.frontier import Frontier, PointSection, RivalSection
from calibrate.artefact.report.frontier_curves import (
    NATS,
    Breaking,
    highest_drawn,
    law_curve,
    limit_by_token,
    limit_curve,
    what_breaks,
)
from calibrate.common.estimate import Interval
from calibrate.common.marks import TOOL
from calibrate.common.pictures import literal
from calibrate.search.long_run import LOOP_MARGIN

POINTS, LAW, REFUSED, LIMIT, MUTED = "#4c72b0", "#dd8452", "#c44e52", "#55a868", "#999999"
RIVALS = {
    "asked in words": ("s", "#8172b3"),
    "asked and steered": ("D", "#937860"),
    "random vector": ("v", "#666666"),
    "best of 2": ("*", "#da8bc3"),
    "best of 4": ("P", "#da8bc3"),
}

Cost = Callable[[PointSection], Interval]


def frontier_pictures(frontier: Frontier) -> dict[str, bytes]:
    """Return `frontier.png` and `frontier.svg`; nothing where no point was measured."""
    if not frontier.points:
        return {}
    figure = Figure(figsize=(11.0, 7.4), layout="constrained")
    rows = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.65, 1))
    upper, lower = rows[:, 0]
    by_token, by_reply = upper.subplots(1, 2, sharey=True)
    _draw_by_token(by_token, frontier)
    _draw_by_reply(by_reply, frontier)
    breaking = what_breaks(frontier, LOOP_MARGIN)
    small = list(lower.subplots(1, len(breaking), squeeze=False)[0])
    for axes, one in zip(small, breaking, strict=True):
        _draw_breaking(axes, one, frontier.confidence)
    for axes in (by_token, by_reply, *small):
        axes.spines[["top", "right"]].set_visible(False)
    handles = {
        label: handle
        for axes in (by_token, by_reply)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    upper.legend(
        handles.values(), handles.keys(), loc="outside right upper", frameon=False, fontsize=8
    )
    where = literal(f"{frontier.concept} on {frontier.model}, {frontier.where}")
    figure.suptitle(f"What each nat buys: {where}")
    return {"frontier.png": _rendered(figure, "png"), "frontier.svg": _rendered(figure, "svg")}


def _draw_by_token(axes: Axes, frontier: Frontier) -> None:
    """Presence against ΔCE a token, the currency of the budget."""
    _draw_unsteered(axes, frontier)
    axes.plot(*limit_by_token(frontier), color=LIMIT, ls="--", lw=1.2, label="limit")
    law = law_curve(frontier)
    axes.fill_between(law.rises, law.low, law.high, color=LAW, alpha=0.2, lw=0)
    label = f"law of presence ({frontier.confidence:.0%})"
    axes.plot(law.rises, law.presence, color=LAW, lw=1.4, label=label)
    _draw_points(axes, frontier, lambda point: point.delta_ce)
    for rival in frontier.rivals:
        if rival.delta_ce is not None:
            _draw_rival(axes, rival, rival.delta_ce)
    axes.set(
        xlabel="ΔCE (nats per token)",
        ylabel=f"presence of {literal(frontier.concept)}",
        xlim=(0, None),
        ylim=(0, highest_drawn(frontier)),
    )


def _draw_by_reply(axes: Axes, frontier: Frontier) -> None:
    """Presence against KL(steered‖plain) a reply, which best of n has, too, and its limit."""
    costs = [point.cost_back.value for point in frontier.strengths]
    costs += [rival.cost_back.value for rival in frontier.rivals]
    _draw_unsteered(axes, frontier)
    axes.plot(*limit_curve(frontier, max(costs), back=True), color=LIMIT, ls="--", lw=1.2)
    _draw_points(axes, frontier, lambda point: point.cost_back)
    for rival in frontier.rivals:
        _draw_rival(axes, rival, rival.cost_back)
    axes.set_xscale("asinh", linear_width=1)
    axes.set_xticks(NATS, [f"{cost:g}" for cost in NATS])
    axes.set(xlabel="KL(steered‖plain) (nats per reply)", xlim=(0, 1.3 * max(costs)))


def _draw_unsteered(axes: Axes, frontier: Frontier) -> None:
    axes.axhspan(frontier.baseline.low, frontier.baseline.high, color=MUTED, alpha=0.2, lw=0)
    axes.axhline(frontier.baseline.value, color=MUTED, lw=1, label="unsteered")


def _draw_breaking(axes: Axes, breaking: Breaking, confidence: float) -> None:
    """One thing that breaks, along the strength, beside what it is unsteered."""
    points = [(point.strength, seen) for point, seen, _ in breaking.points]
    strengths = [strength for strength, _ in points]
    axes.axhline(breaking.unsteered, color=MUTED, lw=1, label="unsteered")
    if breaking.most is not None:
        axes.axhline(breaking.most, color=REFUSED, lw=1, ls=":", label="most that ships")
    axes.errorbar(
        strengths,
        [seen.value for _, seen in points],
        yerr=_bars([seen for _, seen in points]),
        fmt="o-",
        ms=4,
        lw=1,
        color=POINTS,
        ecolor=f"{POINTS}88",
        capsize=2,
    )
    bounds = [(point.strength, bound) for point, _, bound in breaking.points if bound is not None]
    if bounds:
        label = f"at least ({confidence:.0%} bound)"
        axes.plot(*zip(*bounds, strict=True), "_--", color=REFUSED, lw=0.8, ms=9, label=label)
    is_share = breaking.name != "fluency"
    if is_share:
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_title(f"share {breaking.measures}" if is_share else breaking.measures, fontsize=9)
    axes.set_xlabel("strength α")
    axes.margins(y=0.12)
    axes.legend(frameon=False, fontsize=7.5)


def _draw_points(axes: Axes, frontier: Frontier, cost: Cost) -> None:
    for ships, colour, label in ((True, POINTS, "may ship"), (False, REFUSED, "may not ship")):
        chosen = [point for point in frontier.strengths if point.ships == ships]
        if chosen:
            axes.errorbar(
                [cost(point).value for point in chosen],
                [point.presence.value for point in chosen],
                yerr=_bars([point.presence for point in chosen]),
                fmt="o",
                color=colour,
                capsize=2,
                label=label,
            )


def _draw_rival(axes: Axes, rival: RivalSection, cost: Interval) -> None:
    mark, colour = RIVALS.get(rival.name, ("X", MUTED))
    axes.errorbar(
        cost.value,
        rival.presence.value,
        yerr=_bars([rival.presence]),
        fmt=mark,
        color=colour,
        ecolor=f"{colour}88",
        ms=5,
        capsize=2,
        label=rival.name,
    )


def _bars(intervals: list[Interval]) -> tuple[list[float], list[float]]:
    """Distances to the lower and to the upper ends of intervals."""
    below = [each.value - each.low for each in intervals]
    return below, [each.high - each.value for each in intervals]


def _rendered(figure: Figure, form: str) -> bytes:
    buffer = io.BytesIO()
    maker = {"png": "Software", "svg": "Creator"}[form]
    figure.savefig(buffer, format=form, dpi=130, metadata={maker: TOOL})
    return buffer.getvalue()
