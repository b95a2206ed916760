"""What a frontier says in words: where it bends, and whether prompting does better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from calibrate.laws.presence import PresenceLaw
from calibrate.search.frontier import Bench, Frontier, Point
from calibrate.search.rivals import Rival

STEP = 0.1  # nats a token: what more is worth is said for that much


def advice(
    bench: Bench,
    frontier: Frontier,
    law: PresenceLaw,
    rivals: Sequence[Rival],
    refusals: Mapping[float, str | None],
) -> str:
    """Say where the frontier bends, which budget a gain needs, and what a rival does.

    refusals: why a budget's point may not be shipped, None where it may.
    """
    if not frontier.points:
        return f"No budget could be measured: {frontier.ended}."
    sentences = [
        _bend(bench, frontier.points, law),
        _needed(bench, refusals),
        _prompting(bench, frontier.points, rivals),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def worth_of_step(points: Sequence[Point], law: PresenceLaw, sign: int) -> list[float]:
    """Presence that STEP more nats buy from each point on, by the law of presence.

    ΔCE between points is taken to grow with the square of the strength.
    """
    rises = [0.0, *(max(point.delta_ce.value, 0.0) for point in points)]
    sizes = [0.0, *(abs(point.strength) for point in points)]
    worth = []
    for point in points:
        further = _size_at(point.delta_ce.value + STEP, rises, sizes)
        now, then = (law.predict(sign * size) for size in (abs(point.strength), further))
        worth.append(sign * float(then - now))
    return worth


def _size_at(rise: float, rises: Sequence[float], sizes: Sequence[float]) -> float:
    """The size of the strength at which ΔCE is `rise`."""
    if rise > rises[-1]:
        return float(sizes[-1] * np.sqrt(rise / max(rises[-1], 1e-12)))
    return float(np.sqrt(np.interp(rise, rises, np.square(sizes))))


def _bend(bench: Bench, points: Sequence[Point], law: PresenceLaw) -> str:
    """The smallest point from which another step buys less than its presence is known to."""
    for point, worth in zip(points, worth_of_step(points, law, bench.settings.sign), strict=True):
        if worth < point.change.standard_error:
            return (
                f"Most is bought by {point.budget:g} nat a token, where presence changes by "
                f"{point.change.value:+.3f}: another {STEP:g} nat brings about {worth:.3f}, less "
                f"than the error of {point.change.standard_error:.3f}."
            )
    last = points[-1]
    return (
        f"Up to {last.budget:g} nat a token more strength keeps bringing more: presence changes by "
        f"{last.change.value:+.3f} there."
    )


def _needed(bench: Bench, refusals: Mapping[float, str | None]) -> str:
    """The smallest budget that ships, if the calibration's own does not."""
    enough = [budget for budget, reason in refusals.items() if reason is None]
    if not enough:
        budget, reason = next(iter(refusals.items()))
        return f"None of these points may be shipped; at {budget:g} nat, {reason}."
    if min(enough) <= bench.settings.ce_budget:
        return ""
    return f"A change that may be shipped takes {min(enough):g} nat."


def _prompting(bench: Bench, points: Sequence[Point], rivals: Sequence[Rival]) -> str:
    """Whether asking in words brings more than the point of most change."""
    asked = next((rival for rival in rivals if rival.name == "asked in words"), None)
    if asked is None or asked.delta_ce is None:
        return ""
    sign = bench.settings.sign
    best = max(points, key=lambda point: sign * point.change.value)
    lead = sign * (asked.change.value - best.change.value)
    error = float(np.hypot(asked.change.standard_error, best.change.standard_error))
    word = "more" if lead > 2 * error else "less" if lead < -2 * error else "about as much"
    return (
        f"Asking in words alone brings {word}: {asked.change.value:+.3f} beside at most "
        f"{best.change.value:+.3f}, at a ΔCE of {asked.delta_ce.value:.3f}."
    )
