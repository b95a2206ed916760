"""The frontier as a chart in the report: SVG whose points show their reply when pointed at.

Coordinates are computed here, and drawn by `templates/frontier.html`; no script from elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calibrate.artefact.frontier import Frontier
from calibrate.artefact.report.frontier_pictures import law_curve, limit_by_token
from calibrate.common.estimate import Interval

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 760, 380, 56, 44, 16  # of the drawing and its margins, pixels
TICKS = 5  # of the horizontal axis, about
ROOM = 1.08  # the horizontal axis ends so much beyond the dearest point
CURVE = 60  # points of the law's curve


@dataclass(frozen=True)
class Mark:
    """A point of the chart: where it stands, its error bar, and what it says.

    kind: "ships", "refused" or "rival".
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
class Chart:
    """All that the template draws, in pixels.

    law, limit: the law of presence, and the farthest presence that such a cost allows.
    """

    marks: tuple[Mark, ...]
    law: str
    limit: str
    baseline: tuple[float, float, float]
    across: tuple[tuple[float, str], ...]
    up: tuple[tuple[float, str], ...]


def chart(frontier: Frontier) -> Chart:
    """Lay the frontier out: ΔCE across, presence up."""
    rivals = [rival for rival in frontier.rivals if rival.delta_ce is not None]
    dearest = max(
        [point.delta_ce.value for point in frontier.points]
        + [rival.delta_ce.value for rival in rivals if rival.delta_ce is not None]
    )
    end = ROOM * max(dearest, 1e-9)

    def x(rise: float) -> float:
        return round(LEFT + (WIDTH - LEFT) * max(rise, 0.0) / end, 1)

    marks = [
        Mark(
            x(point.delta_ce.value),
            *_heights(point.presence),
            "ships" if point.ships else "refused",
            f"{point.budget:g} nat{', shipped' if point is frontier.shipped else ''}: "
            f"α = {point.strength:.4g}",
            f"ΔCE {point.delta_ce.value:.3f}, at most {point.upper:.3f}; presence "
            f"{point.presence.value:.2f} ({point.change.value:+.2f})"
            + (f"; {point.why_not}" if point.why_not else ""),
            point.example,
        )
        for point in frontier.strengths
    ]
    marks += [
        Mark(
            x(rival.delta_ce.value),
            *_heights(rival.presence),
            "rival",
            rival.name,
            f"ΔCE {rival.delta_ce.value:.3f}; presence {rival.presence.value:.2f} "
            f"({rival.change.value:+.2f})",
            "",
        )
        for rival in rivals
        if rival.delta_ce is not None
    ]

    def line(curve: tuple[np.ndarray, np.ndarray]) -> str:
        rises, presence = curve
        drawn = np.linspace(0, len(rises) - 1, CURVE).round().astype(int)
        return " ".join(f"{x(rises[place])},{_y(presence[place])}" for place in drawn)

    return Chart(
        tuple(marks),
        line(law_curve(frontier)),
        line(limit_by_token(frontier)),
        _heights(frontier.baseline),
        tuple((x(rise), f"{rise:g}") for rise in _round_steps(end)),
        tuple((_y(share), f"{share:g}") for share in (0, 0.25, 0.5, 0.75, 1)),
    )


def _y(share: float) -> float:
    """Pixels from the top for a presence in [0, 1]."""
    return round(TOP + (HEIGHT - BOTTOM - TOP) * (1 - min(max(float(share), 0.0), 1.0)), 1)


def _heights(presence: Interval) -> tuple[float, float, float]:
    return _y(presence.value), _y(presence.low), _y(presence.high)


def _round_steps(end: float) -> list[float]:
    """About TICKS round numbers from 0 to `end`."""
    rough = end / TICKS
    power = 10.0 ** np.floor(np.log10(rough))
    step = float(power * min(each for each in (1, 2, 5, 10) if each * power >= rough))
    return [round(k * step, 10) for k in range(int(end / step) + 1)]
