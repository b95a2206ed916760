"""What a frontier says in words: where it bends, and whether prompting does better."""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot
from statistics import NormalDist

import numpy as np

from calibrate.artefact.frontier import Frontier, PointSection, RivalSection
from calibrate.common.estimate import student_quantile
from calibrate.laws.presence import PresenceLaw

STEP = 0.1  # nats a token: what more is worth is said for that much


def advice(frontier: Frontier, ce_budget: float) -> str:
    """Say where a frontier bends, which budget a gain needs, and what a rival does.

    ce_budget: the calibration's own.
    """
    if not frontier.points:
        return f"No budget could be measured: {' '.join(frontier.endings)}"
    sentences = [_bend(frontier), _needed(frontier.points, ce_budget), _prompting(frontier)]
    return " ".join(sentence for sentence in sentences if sentence)


def worth_of_step(points: Sequence[PointSection], law: PresenceLaw, sign: int) -> list[float]:
    """Presence towards the goal that STEP more nats buy from each point on, by its law.

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


def error_of(measured: PointSection | RivalSection, confidence: float) -> float:
    """The standard error of a change; where it is not known over how many prompts, of many."""
    tail, n = 0.5 + confidence / 2, measured.n_prompts
    errors = NormalDist().inv_cdf(tail) if n is None else student_quantile(tail, max(n - 1, 1))
    return (measured.change.high - measured.change.low) / 2 / errors


def _bend(frontier: Frontier) -> str:
    """The knee: from there on neither another step nor any larger point brings what can be seen."""
    points, sign = frontier.points, frontier.sign
    errors = [error_of(point, frontier.confidence) for point in points]
    worths = worth_of_step(points, PresenceLaw(*frontier.law), sign)
    for n, (point, worth, error) in enumerate(zip(points[:-1], worths, errors, strict=False)):
        gains = [sign * (later.change.value - point.change.value) for later in points[n + 1 :]]
        if sign * point.change.value > error > max(worth, *gains):
            return (
                f"Most is bought by {point.budget:g} nat a token, where presence changes by "
                f"{point.change.value:+.3f}: another {STEP:g} nat brings about "
                f"{sign * worth:+.3f}, less than the error of {error:.3f}."
            )
    last = points[-1]
    return (
        f"At {last.budget:g} nat a token, the most that was measured, presence changes by "
        f"{last.change.value:+.3f}; another {STEP:g} nat would bring about "
        f"{sign * worths[-1]:+.3f} by the law of presence."
    )


def _needed(points: Sequence[PointSection], ce_budget: float) -> str:
    """The smallest budget that ships, if none of those up to the calibration's own does."""
    enough = [point.budget for point in points if point.ships]
    if not enough:
        first = points[0]
        return f"None of these points is sure to ship; at {first.budget:g} nat: {first.why_not}."
    if min(enough) <= ce_budget or points[0].budget > ce_budget:
        return ""
    return f"A change that may be shipped takes {min(enough):g} nat."


def _prompting(frontier: Frontier) -> str:
    """Whether asking in words brings more than the point of most change."""
    asked = next((rival for rival in frontier.rivals if rival.name == "asked in words"), None)
    if asked is None or asked.delta_ce is None:
        return ""
    sign = frontier.sign
    best = max(frontier.points, key=lambda point: sign * point.change.value)
    lead = sign * (asked.change.value - best.change.value)
    errors = [error_of(each, frontier.confidence) for each in (asked, best)]
    error = hypot(*errors)
    word = "more" if lead > 2 * error else "less" if lead < -2 * error else "about as much"
    return (
        f"Asking in words alone brings {word}: {asked.change.value:+.3f} beside at most "
        f"{best.change.value:+.3f}, at a ΔCE of {asked.delta_ce.value:.3f}."
    )
