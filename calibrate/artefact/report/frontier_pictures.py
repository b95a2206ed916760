"""The picture of a frontier: presence against what it costs, in both currencies, and loops."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calibrate.artefact.frontier import Frontier, PointSection, RivalSection
from calibrate.common.estimate import Interval
from calibrate.common.marks import TOOL
from calibrate.common.pictures import literal
from calibrate.laws.limit import farthest_presence
from calibrate.laws.presence import PresenceLaw

POINTS, LAW, REFUSED, LIMIT, MUTED = "#4c72b0", "#dd8452", "#c44e52", "#55a868", "#999999"
MARKS = {"asked in words": "s", "asked and steered": "D", "random vector": "v"}
FINE = 200  # points of a drawn curve

Cost = Callable[[PointSection], Interval]


def frontier_pictures(frontier: Frontier) -> dict[str, bytes]:
    """Return `frontier.png` and `frontier.svg`; nothing where no point was measured."""
    if not frontier.points:
        return {}
    figure = Figure(figsize=(13.2, 4.4), layout="constrained")
    by_token, by_reply, loops = figure.subplots(1, 3)
    _draw_by_token(by_token, frontier)
    _draw_by_reply(by_reply, frontier)
    _draw_loops(loops, frontier)
    for axes in (by_token, by_reply, loops):
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    where = literal(f"{frontier.concept} on {frontier.model}, {frontier.where}")
    figure.suptitle(f"What each nat buys: {where}")
    return {"frontier.png": _rendered(figure, "png"), "frontier.svg": _rendered(figure, "svg")}


def law_curve(frontier: Frontier) -> tuple[np.ndarray, np.ndarray]:
    """The law of presence against ΔCE, between and up to the points.

    ΔCE is taken to grow with the square of the strength between neighbours.
    """
    sizes = np.array([0.0, *(abs(point.strength) for point in frontier.points)])
    rises = np.array([0.0, *(max(point.delta_ce.value, 0.0) for point in frontier.points)])
    fine = np.linspace(0, sizes[-1], FINE)
    presence = PresenceLaw(*frontier.law).predict(frontier.sign * fine)
    return np.interp(fine**2, sizes**2, rises), np.asarray(presence)


def limit_curve(frontier: Frontier, end: float, back: bool) -> tuple[np.ndarray, np.ndarray]:
    """The farthest presence that a cost a reply allows, up to `end` nats."""
    costs = end * np.linspace(0, 1, FINE) ** 2  # steep at first
    return costs, _farthest(frontier, costs, back)


def limit_by_token(frontier: Frontier) -> tuple[np.ndarray, np.ndarray]:
    """The farthest presence against ΔCE, up to the last point.

    What a reply costs is taken to grow evenly with ΔCE between neighbours.
    """
    rises, costs = (
        np.array([0.0, *(max(each.value, 0.0) for each in column)])
        for column in zip(*((point.delta_ce, point.cost) for point in frontier.points), strict=True)
    )
    fine = rises[-1] * np.linspace(0, 1, FINE) ** 2
    return fine, _farthest(frontier, np.interp(fine, rises, costs), back=False)


def _farthest(frontier: Frontier, costs: np.ndarray, back: bool) -> np.ndarray:
    before = float(np.clip(frontier.baseline.value, 1e-6, 1 - 1e-6))
    return np.array([farthest_presence(before, cost, frontier.sign, back) for cost in costs])


def _draw_by_token(axes: Axes, frontier: Frontier) -> None:
    """Presence against ΔCE a token, the currency of the budget."""
    axes.axhspan(frontier.baseline.low, frontier.baseline.high, color=MUTED, alpha=0.25, lw=0)
    axes.axhline(frontier.baseline.value, color=MUTED, label="unsteered")
    axes.plot(*limit_by_token(frontier), color=LIMIT, label="limit")
    axes.plot(*law_curve(frontier), color=LAW, lw=1.2, label="law of presence")
    _draw_points(axes, frontier, lambda point: point.delta_ce)
    for rival in frontier.rivals:
        if rival.delta_ce is not None:
            _draw_rival(axes, rival, rival.delta_ce)
    axes.set(
        xlabel="ΔCE (nats per token)",
        ylabel=f"presence of {literal(frontier.concept)}",
        ylim=(0, 1),
    )


def _draw_by_reply(axes: Axes, frontier: Frontier) -> None:
    """Presence against KL(steered‖plain) a reply, which best of n has, too, and its limit."""
    costs = [point.cost_back.value for point in frontier.points]
    costs += [rival.cost_back.value for rival in frontier.rivals]
    axes.plot(*limit_curve(frontier, max(costs), back=True), color=LIMIT, label="limit")
    _draw_points(axes, frontier, lambda point: point.cost_back)
    for rival in frontier.rivals:
        _draw_rival(axes, rival, rival.cost_back)
    axes.set_xscale("symlog", linthresh=1)
    axes.set(xlabel="KL(steered‖plain) (nats per reply)", ylabel="presence", ylim=(0, 1))


def _draw_loops(axes: Axes, frontier: Frontier) -> None:
    """Loops of long replies, what is still known, and how unlikely replies are, by ΔCE."""
    rises = [point.delta_ce.value for point in frontier.points]
    drops = [point.fluency_drop.value for point in frontier.points]
    loops = [point.loops for point in frontier.points if point.loops is not None]
    if len(loops) == len(rises):
        axes.plot(rises, loops, "o-", color=REFUSED, label="share of tokens in loops")
    known = [point.guard.accuracy.value for point in frontier.points if point.guard is not None]
    if len(known) == len(rises):
        axes.plot(rises, known, "s-", color=LIMIT, label="questions answered rightly")
    axes.plot(rises, drops, "x--", color=POINTS, label="drop of log-probability (nats per token)")
    axes.set(xlabel="ΔCE (nats per token)", ylabel="what breaks")


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
    axes.errorbar(
        cost.value,
        rival.presence.value,
        yerr=_bars([rival.presence]),
        fmt=MARKS.get(rival.name, "*"),
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
