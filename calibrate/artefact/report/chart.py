"""The frontier as charts in the report: SVG whose marks show a reply when pointed at.

Three panels, of which the page shows one: presence by ΔCE, presence by nats a reply, and what
breaks along the strength. Coordinates are computed here, and drawn by `templates/frontier.html`; no
script from elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

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
from calibrate.common.numbers import in_points
from calibrate.search.long_run import LOOP_MARGIN

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 760, 380, 56, 44, 16  # of the drawing and its margins, pixels
TICKS = 5  # of the horizontal axis, about
ROOM = 1.08  # the horizontal axis ends so much beyond the dearest point
CURVE = 60  # points of a curve

Scale = Callable[[float], float]  # pixels of a value
Ticks = tuple[tuple[float, str], ...]  # pixels, and what stands there


@dataclass(frozen=True)
class Mark:
    """A point of a panel: where it stands, its error bar, and what it says.

    kind: "ships", "refused", "rival", "loops" or "questions".
    """

    x: float
    y: float
    low: float
    high: float
    kind: str
    title: str
    says: str
    reply: str


@dataclass(frozen=True)
class Curve:
    """A line, or an area with its ends, as the points of SVG; kind: the class it is drawn by."""

    points: str
    kind: str


@dataclass(frozen=True)
class Panel:
    """All that the template draws of one panel, in pixels.

    name: in an identifier. label: of the switch. across, up: places and texts of ticks. hint: what
    is to be seen.
    """

    name: str
    label: str
    axis: str
    marks: tuple[Mark, ...]
    areas: tuple[Curve, ...]
    lines: tuple[Curve, ...]
    across: Ticks
    up: Ticks
    hint: str


def chart(frontier: Frontier) -> tuple[Panel, ...]:
    """Lay the frontier out in its panels; what breaks is left out where nothing is known of it."""
    breaking = [each for each in what_breaks(frontier, LOOP_MARGIN) if each.name != "fluency"]
    along = [_along(frontier, breaking)] if breaking else []
    return (_by_token(frontier), _by_reply(frontier), *along)


def _by_token(frontier: Frontier) -> Panel:
    """ΔCE across, presence up."""
    rivals = [(each, each.delta_ce) for each in frontier.rivals if each.delta_ce is not None]
    points = [(each, each.delta_ce) for each in frontier.strengths]
    (x, across), (y, up) = (
        _linear([cost.value for _, cost in (*points, *rivals)]),
        _shares(highest_drawn(frontier)),
    )
    law = law_curve(frontier)
    band = [*_thinned(law.rises, law.low), *reversed(_thinned(law.rises, law.high))]
    return Panel(
        "token",
        "by ΔCE",
        "ΔCE (nats per token)",
        _presence_marks(x, y, points, rivals, frontier.shipped),
        (_unsteered_area(y, frontier.baseline), Curve(_line(x, y, band), "band")),
        (
            _level(y(frontier.baseline.value), "unsteered"),
            Curve(_line(x, y, _thinned(*limit_by_token(frontier))), "limit"),
            Curve(_line(x, y, _thinned(law.rises, law.presence)), "law"),
        ),
        across,
        up,
        "Blue may be shipped, red may not, grey are other ways to the concept; the orange line is "
        "the law of presence with its errors, the green one the farthest that such a cost allows, "
        "the band the unsteered model.",
    )


def _by_reply(frontier: Frontier) -> Panel:
    """KL(steered‖plain) a reply across, by its asinh, presence up; best of n has that, too."""
    points = [(each, each.cost_back) for each in frontier.strengths]
    rivals = [(each, each.cost_back) for each in frontier.rivals]
    dearest = max(cost.value for _, cost in (*points, *rivals))
    end = ROOM * float(np.arcsinh(max(dearest, 1e-9)))
    y, up = _shares(highest_drawn(frontier))

    def x(cost: float) -> float:
        return _across(float(np.arcsinh(cost)) / end)

    limit = _thinned(*limit_curve(frontier, dearest, back=True))
    return Panel(
        "reply",
        "by nats a reply",
        "KL(steered‖plain) (nats per reply)",
        _presence_marks(x, y, points, rivals, frontier.shipped),
        (_unsteered_area(y, frontier.baseline),),
        (
            _level(y(frontier.baseline.value), "unsteered"),
            Curve(_line(x, y, limit), "limit"),
        ),
        tuple((x(cost), f"{cost:g}") for cost in NATS if np.arcsinh(cost) <= end),
        up,
        "What choosing among plain replies costs is known a reply, and it stands here, too. The "
        "green line is the farthest that such a cost allows.",
    )


def _along(frontier: Frontier, breaking: Sequence[Breaking]) -> Panel:
    """The size of the strength across; loops and questions up."""
    (x, across), (y, up) = (
        _linear([abs(point.strength) for point in frontier.strengths]),
        _shares(1.0),
    )
    marks = [
        Mark(
            x(abs(point.strength)),
            *_heights(y, seen),
            one.name,
            f"{point.budget:g} nat: α = {point.strength:.4g}",
            _broken(one, point, seen, bound),
            point.example,
        )
        for one in breaking
        for point, seen, bound in one.points
    ]
    lines = []
    for one in breaking:
        seen = [(abs(point.strength), value.value) for point, value, _ in one.points]
        bounds = [
            (abs(point.strength), bound) for point, _, bound in one.points if bound is not None
        ]
        lines += [Curve(_line(x, y, seen), one.name), _level(y(one.unsteered), f"plain {one.name}")]
        lines += [Curve(_line(x, y, bounds), f"bound {one.name}")] if bounds else []
        lines += [] if one.most is None else [_level(y(one.most), f"bound {one.name}")]
    return Panel(
        "strength",
        "what breaks",
        "strength |α|" if frontier.sign < 0 else "strength α",
        tuple(marks),
        (),
        tuple(lines),
        across,
        up,
        "Red is the share of long replies' tokens in loops, green that of the questions answered "
        "rightly; level lines are the unsteered model's. Dotted: the most that ships of loops, and "
        "the least that is sure of questions.",
    )


def _broken(one: Breaking, point: PointSection, seen: Interval, bound: float | None) -> str:
    """What a mark of the last panel says."""
    says = (
        f"{seen.value:.1%} {one.measures}, {in_points(seen.value - one.unsteered)} from unsteered"
    )
    if bound is not None:
        says += f", at least {bound:.1%}"
    return says + (f"; {point.why_not}" if point.why_not else "")


def _presence_marks(
    x: Scale,
    y: Scale,
    points: Iterable[tuple[PointSection, Interval]],
    rivals: Iterable[tuple[RivalSection, Interval]],
    shipped: PointSection | None,
) -> tuple[Mark, ...]:
    marks = [
        Mark(
            x(cost.value),
            *_heights(y, point.presence),
            "ships" if point.ships else "refused",
            f"{point.budget:g} nat{', shipped' if point is shipped else ''}: "
            f"α = {point.strength:.4g}",
            f"ΔCE {point.delta_ce.value:.3f}, at most {point.upper:.3f}; {_presence(point)}"
            + (f"; {point.why_not}" if point.why_not else ""),
            point.example,
        )
        for point, cost in points
    ]
    others = [
        Mark(
            x(cost.value),
            *_heights(y, rival.presence),
            "rival",
            rival.name,
            f"at most {rival.cost_back.value:.2f} nat a reply; {_presence(rival)}"
            if rival.delta_ce is None
            else f"ΔCE {rival.delta_ce.value:.3f}; {_presence(rival)}",
            rival.example or "",
        )
        for rival, cost in rivals
    ]
    return (*marks, *others)


def _presence(one: PointSection | RivalSection) -> str:
    return f"presence {one.presence.value:.2f} ({one.change.value:+.2f})"


def _linear(values: Sequence[float]) -> tuple[Scale, Ticks]:
    """A linear horizontal axis from 0 to beyond the largest of these, and its ticks."""
    end = ROOM * max(*values, 1e-9)

    def x(value: float) -> float:
        return _across(value / end)

    return x, tuple((x(step), f"{step:g}") for step in _round_steps(end))


def _shares(end: float) -> tuple[Scale, Ticks]:
    """A vertical axis of shares from 0 to `end`, in pixels from the top, and its ticks."""

    def y(share: float) -> float:
        part = min(max(float(share) / end, 0.0), 1.0)
        return round(TOP + (HEIGHT - BOTTOM - TOP) * (1 - part), 1)

    return y, tuple((y(step), f"{step:g}") for step in _round_steps(end))


def _across(share: float) -> float:
    """Pixels from the left for a share of the horizontal axis."""
    return round(LEFT + (WIDTH - LEFT) * max(share, 0.0), 1)


def _heights(y: Scale, share: Interval) -> tuple[float, float, float]:
    return y(share.value), y(share.low), y(share.high)


def _thinned(across: np.ndarray, up: np.ndarray) -> list[tuple[float, float]]:
    """CURVE points of a curve, its ends among them."""
    drawn = np.linspace(0, len(across) - 1, CURVE).round().astype(int)
    return [(float(across[place]), float(up[place])) for place in drawn]


def _line(x: Scale, y: Scale, points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x(across)},{y(up)}" for across, up in points)


def _level(height: float, kind: str) -> Curve:
    return Curve(f"{LEFT},{height} {WIDTH},{height}", kind)


def _unsteered_area(y: Scale, baseline: Interval) -> Curve:
    _, low, high = _heights(y, baseline)
    return Curve(f"{LEFT},{low} {WIDTH},{low} {WIDTH},{high} {LEFT},{high}", "baseline")


def _round_steps(end: float) -> list[float]:
    """About TICKS round numbers from 0 to `end`."""
    rough = end / TICKS
    power = 10.0 ** np.floor(np.log10(rough))
    step = float(power * min(each for each in (1, 2, 5, 10) if each * power >= rough))
    return [round(k * step, 10) for k in range(int(end / step) + 1)]
