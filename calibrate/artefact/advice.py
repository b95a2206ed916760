"""What a frontier says in words: where it bends, what ships, and whether prompting does better."""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot
from statistics import NormalDist

import numpy as np

from calibrate.artefact.frontier import Frontier, PointSection, RivalSection
from calibrate.common.estimate import Interval, student_quantile
from calibrate.common.settings import Settings
from calibrate.laws.presence import PresenceLaw

STEP = 0.1  # nats a token: what more is worth is said for that much


def advice(frontier: Frontier, settings: Settings) -> str:
    """Say where a frontier bends, what of it ships or what forbids it, and what a rival does.

    settings: of the calibration.
    """
    if not frontier.points:
        return f"No budget could be measured: {' '.join(frontier.endings)}"
    sentences = [_bend(frontier), _shipping(frontier, settings), _prompting(frontier)]
    return " ".join(sentence for sentence in sentences if sentence)


def worth_of_step(points: Sequence[PointSection], law: PresenceLaw, sign: int) -> list[float]:
    """Presence towards the goal that STEP more nats buy from each point on, by its law.

    ΔCE between points is taken to grow with the square of the strength.
    """
    rises, sizes = _grown(points)
    worth = []
    for point in points:
        further = _size_at(point.delta_ce.value + STEP, rises, sizes)
        now, then = (law.predict(sign * size) for size in (abs(point.strength), further))
        worth.append(sign * float(then - now))
    return worth


def error_of(measured: Interval, n_prompts: int | None, confidence: float) -> float:
    """The standard error behind an interval over prompts, of many where their number is unknown."""
    tail = 0.5 + confidence / 2
    errors = (
        NormalDist().inv_cdf(tail)
        if n_prompts is None
        else student_quantile(tail, max(n_prompts - 1, 1))
    )
    return (measured.high - measured.low) / 2 / errors


def error_of_change(measured: PointSection | RivalSection, confidence: float) -> float:
    """The standard error of a change of presence."""
    return error_of(measured.change, measured.n_prompts, confidence)


def _grown(points: Sequence[PointSection]) -> tuple[list[float], list[float]]:
    """ΔCE and the size of the strength, from the plain model through all points."""
    rises = [0.0, *(max(point.delta_ce.value, 0.0) for point in points)]
    return rises, [0.0, *(abs(point.strength) for point in points)]


def _size_at(rise: float, rises: Sequence[float], sizes: Sequence[float]) -> float:
    """The size of the strength at which ΔCE is `rise`."""
    if rise > rises[-1]:
        return float(sizes[-1] * np.sqrt(rise / max(rises[-1], 1e-12)))
    return float(np.sqrt(np.interp(rise, rises, np.square(sizes))))


def _bend(frontier: Frontier) -> str:
    """The knee: from there on neither another step nor any larger point brings what can be seen."""
    points, sign = frontier.points, frontier.sign
    errors = [error_of_change(point, frontier.confidence) for point in points]
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


def _shipping(frontier: Frontier, settings: Settings) -> str:
    """The largest change that ships, and what it takes for any; what forbids it where none does."""
    sure = [point for point in frontier.strengths if point.ships]
    if not sure:
        return _forbidden(frontier, settings.min_gain)
    best = max(sure, key=frontier.change_of)
    said = [f"The largest change that is sure to ship is {best.change.value:+.3f}, "]
    if best is frontier.shipped:
        said.append(f"as calibrated: {best.strength:.4g} within {best.budget:g} nat.")
        said += [
            f" What spends that budget, {whole.strength:.4g}, is not: {whole.why_not}."
            for whole in frontier.points
            if whole.budget == best.budget and not whole.ships
        ]
    else:
        said.append(f"at {best.budget:g} nat.")
    least = min(point.budget for point in sure)
    if frontier.points[0].budget <= settings.ce_budget < least:
        said.append(f" Any that may be shipped takes {least:g} nat.")
    return "".join(said)


def _forbidden(frontier: Frontier, gain: float) -> str:
    """What the least change that may ship takes, and why it does not at the first point beyond.

    gain: that change, towards the goal. Bounds of ΔCE are taken to grow between points as ΔCE does.
    """
    points, law, sign = frontier.points, PresenceLaw(*frontier.law), frontier.sign
    said = "None of these points is sure to ship; pick tries weaker strengths as well."
    needed = sign * law.invert(float(law.predict(0.0)) + sign * gain) if gain else 0.0
    sizes = [0.0, *(abs(point.strength) for point in points)]
    if not 0 <= needed <= sizes[-1]:
        return f"{said} A change of {gain:g} takes more than {points[-1].budget:g} nat."
    point = next(
        each for each in points if frontier.change_of(each) >= gain or abs(each.strength) >= needed
    )
    forbids = f"{point.budget:g} nat: {point.why_not}."
    if not gain:
        return f"{said} At {forbids}"
    bounds = [0.0, *(point.upper for point in points)]
    budget = float(np.interp(needed**2, np.square(sizes), bounds))
    return f"{said} A change of {gain:g} takes about {budget:.2g} nat by the law; at {forbids}"


def _prompting(frontier: Frontier) -> str:
    """Whether asking in words brings more than steering that costs as much.

    Steering is measured at other costs. Between them its change is taken to be linear in the
    strength, and its error likewise, since errors at neighbours have most of their sources in
    common; beyond all of them, it is that of the last.
    """
    asked = next((rival for rival in frontier.rivals if rival.name == "asked in words"), None)
    if asked is None or asked.delta_ce is None:
        return ""
    points, sign = frontier.strengths, frontier.sign
    rises, sizes = _grown(points)
    cost = min(max(asked.delta_ce.value, 0.0), rises[-1])
    size = _size_at(cost, rises, sizes)
    steered, error = (
        float(np.interp(size, sizes, [0.0, *column]))
        for column in (
            [point.change.value for point in points],
            [error_of_change(point, frontier.confidence) for point in points],
        )
    )
    lead = sign * (asked.change.value - steered)
    unsure = 2 * hypot(error_of_change(asked, frontier.confidence), error)
    word = "more than" if lead > unsure else "less than" if lead < -unsure else "about as much as"
    most = max(points, key=frontier.change_of)
    return (
        f"Asking in words alone brings {word} steering at about its cost: "
        f"{asked.change.value:+.3f} at a ΔCE of {asked.delta_ce.value:.3f}, beside {steered:+.3f} "
        f"at {cost:.3f}, and at most {most.change.value:+.3f}, at {most.delta_ce.value:.3f}."
    )
