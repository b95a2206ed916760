"""What a frontier's picture and its chart draw: the law with its band, the limit, what breaks."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from calibrate.artefact.advice import error_of, error_of_change
from calibrate.artefact.frontier import Frontier, PointSection
from calibrate.common.estimate import Interval
from calibrate.laws.limit import farthest_presence
from calibrate.laws.presence import PresenceLaw, errors_along

FINE = 200  # points of a drawn curve
ROOM_ABOVE = 1.25  # presence is drawn up to so much more than any that was measured
NATS = (0, 0.3, 1, 3, 10, 30, 100, 300, 1000)  # ticks of costs a reply, drawn by their asinh


@dataclass(frozen=True, eq=False)
class LawCurve:
    """The law of presence at rising ΔCE, with the ends of its band, all of one shape."""

    rises: np.ndarray
    presence: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Breaking:
    """One thing that breaks along the strength.

    name: in a word. measures: what of, or with its unit. unsteered: what it is without steering.
    points: a frontier's point, what is measured there, and the one-sided bound of it, if there is
    one; the intervals are those of the paired difference from unsteered. most: of it that ships, if
    limited.
    """

    name: str
    measures: str
    unsteered: float
    points: tuple[tuple[PointSection, Interval, float | None], ...]
    most: float | None = None


def highest_drawn(frontier: Frontier) -> float:
    """Where the axis of presence ends, at most 1."""
    measured = [frontier.baseline, *(point.presence for point in frontier.strengths)]
    measured += [rival.presence for rival in frontier.rivals]
    return min(1.0, ROOM_ABOVE * max(each.high for each in measured))


def fitted_points(frontier: Frontier) -> list[PointSection]:
    """The points that the law of presence was fitted to: those before presence turns back."""
    end = np.inf if frontier.fall is None else abs(frontier.fall)
    return [point for point in frontier.strengths if abs(point.strength) < end]


def law_curve(frontier: Frontier) -> LawCurve:
    """The law of presence against ΔCE, between and up to the points that it was fitted to.

    ΔCE is taken to grow with the square of the strength between neighbours.
    """
    points = fitted_points(frontier)
    sizes = np.array([0.0, *(abs(point.strength) for point in points)])
    rises = np.array([0.0, *(max(point.delta_ce.value, 0.0) for point in points)])
    law, fine = PresenceLaw(*frontier.law), np.linspace(0, sizes[-1], FINE)
    presence = np.asarray(law.predict(frontier.sign * fine))
    covariance = _covariance(frontier, points)
    errors = errors_along(law, frontier.sign * sizes, covariance, frontier.sign * fine)
    half = NormalDist().inv_cdf(0.5 + frontier.confidence / 2) * errors
    low, high = np.clip(presence - half, 0, 1), np.clip(presence + half, 0, 1)
    return LawCurve(np.interp(fine**2, sizes**2, rises), presence, low, high)


def _covariance(frontier: Frontier, points: list[PointSection]) -> np.ndarray:
    """Of presence at the law's points, the unsteered replies first.

    All answer the same prompts: what a point shares with the unsteered replies follows from the
    error of their paired difference, and the rest of its error is taken for its own.
    """
    confidence = frontier.confidence
    plain = error_of(frontier.baseline, points[0].n_prompts, confidence)
    errors = np.array([error_of(each.presence, each.n_prompts, confidence) for each in points])
    paired = np.array([error_of_change(each, confidence) for each in points])
    shared = (errors**2 + plain**2 - paired**2) / 2 / max(plain, 1e-12)
    shared = np.array([plain, *np.clip(shared, -errors, errors)])
    own = np.array([0.0, *errors]) ** 2 - np.array([0.0, *shared[1:]]) ** 2
    covariance: np.ndarray = np.outer(shared, shared) + np.diag(own)
    return covariance


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
        for column in zip(
            *((point.delta_ce, point.cost) for point in frontier.strengths), strict=True
        )
    )
    fine = rises[-1] * np.linspace(0, 1, FINE) ** 2
    return fine, _farthest(frontier, np.interp(fine, rises, costs), back=False)


def _farthest(frontier: Frontier, costs: np.ndarray, back: bool) -> np.ndarray:
    before = float(np.clip(frontier.baseline.value, 1e-6, 1 - 1e-6))
    return np.array([farthest_presence(before, cost, frontier.sign, back) for cost in costs])


def what_breaks(frontier: Frontier, margin: float) -> list[Breaking]:
    """Loops, questions and fluency along the strength; what was not measured is left out.

    margin: by how much more than unsteered replies may loop.
    """
    found = [_loops(frontier, margin), _questions(frontier), _fluency(frontier)]
    return [breaking for breaking in found if breaking is not None and breaking.points]


def _loops(frontier: Frontier, margin: float) -> Breaking | None:
    known = [
        (point, point.loops, point.loop_excess)
        for point in frontier.strengths
        if point.loops is not None and point.loop_excess is not None
    ]
    if not known:
        return None
    _, looping, excess = known[0]
    plain = looping - excess.value
    points = tuple(
        (point, _share(looping, plain + excess.low, plain + excess.high), None)
        for point, looping, excess in known
    )
    return Breaking("loops", "of long replies' tokens in loops", plain, points, plain + margin)


def _questions(frontier: Frontier) -> Breaking | None:
    known = [(point, point.guard) for point in frontier.strengths if point.guard is not None]
    if not known:
        return None
    _, first = known[0]
    plain = first.baseline
    points = tuple(
        (
            point,
            _share(guard.accuracy.value, plain - guard.drop.high, plain - guard.drop.low),
            plain - guard.drop_upper,
        )
        for point, guard in known
    )
    return Breaking(
        "questions", f"of {first.n_questions} questions answered rightly", plain, points
    )


def _share(value: float, low: float, high: float) -> Interval:
    return Interval(value, max(low, 0.0), min(high, 1.0))


def _fluency(frontier: Frontier) -> Breaking:
    points = tuple((point, point.fluency_drop, None) for point in frontier.strengths)
    return Breaking("fluency", "drop of log-probability (nats per token)", 0.0, points)
