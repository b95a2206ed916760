"""A menu of budgets: what each buys, measured by a frontier, or verified at one and foretold else.

Where no frontier was measured, the calibration's own budget is what was verified, and the others
are foretold: the law of ΔCE names the strength that `calibrate frontier` would try first, and the
law of presence what it would bring. What no law tells, such as loops, is left open.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any, Literal

from calibrate.artefact.config import SteeringConfig
from calibrate.artefact.evidence import Evidence
from calibrate.artefact.frontier import Frontier, PointSection
from calibrate.artefact.measured_sections import GuardSection
from calibrate.common.estimate import Interval
from calibrate.common.record import Section
from calibrate.common.trial import PROPOSED_SHARE

FORETOLD = (0.5, 2.0, 4.0)  # times the budget


class MenuRow(Section):
    """What one budget buys; all else as in a frontier's point (`PointSection`).

    source: "measured" by a frontier, "verified" by the calibration itself, or "foretold" by the
    laws. strength_interval: of a foretold strength, from that of α_B. What is not known is None.
    """

    source: Literal["measured", "verified", "foretold"]
    budget: float
    strength: float
    strength_interval: tuple[float, float] | None = None
    delta_ce: Interval
    upper: float | None = None
    presence: Interval | None = None
    change: Interval | None = None
    audited: Interval | None = None
    loops: float | None = None
    loop_excess: Interval | None = None
    fluency_drop: Interval | None = None
    guard: GuardSection | None = None
    ships: bool | None = None
    why_not: str | None = None
    example: str | None = None

    @property
    def is_foretold(self) -> bool:
        """Whether it rests on the laws alone."""
        return self.source == "foretold"


def menu(config: SteeringConfig, evidence: Evidence) -> list[MenuRow]:
    """Return the menu where no frontier was measured, from small budgets to large."""
    limit = config.budget.limit
    foretold = [_foretold(config, share * limit) for share in FORETOLD]
    rows = [_verified(config, evidence), *(row for row in foretold if row is not None)]
    return sorted(rows, key=lambda row: row.budget)


def frontier_menu(frontier: Frontier) -> list[MenuRow]:
    """The points of a frontier as a menu."""
    return [_measured(point, frontier) for point in frontier.strengths]


def menu_facts(
    config: SteeringConfig, evidence: Evidence, frontier: Frontier | None
) -> list[dict[str, Any]]:
    """The menu for machines."""
    if frontier is not None:
        return frontier_facts(frontier)
    rows = menu(config, evidence)
    return [_facts(row.is_foretold, row.source, row) for row in rows]


def frontier_facts(frontier: Frontier) -> list[dict[str, Any]]:
    """A frontier's menu for machines, with all that its points have."""
    rows = zip(frontier_menu(frontier), frontier.strengths, strict=True)
    return [_facts(False, row.source, point) for row, point in rows]


def _facts(foretold: bool, source: str, section: Section) -> dict[str, Any]:
    return {
        "measured": not foretold,
        "shipped": source == "verified",
        "source": source,
        **section.model_dump(mode="json"),
    }


def _measured(point: PointSection, frontier: Frontier) -> MenuRow:
    known = MenuRow.model_fields.keys() & PointSection.model_fields.keys()
    return MenuRow(
        source="verified" if point is frontier.shipped else "measured",
        **{name: getattr(point, name) for name in known},
    )


def _verified(config: SteeringConfig, evidence: Evidence) -> MenuRow:
    """The calibration's own budget: all that its verification measured."""
    measured, completions = config.measured, evidence.first_completions
    long_run = measured.long_run
    return MenuRow(
        source="verified",
        budget=config.budget.limit,
        strength=config.intervention.strength,
        delta_ce=_plain(measured.delta_ce),
        upper=measured.delta_ce.upper,
        presence=_plain(measured.presence),
        change=measured.presence.change,
        audited=None if measured.audit is None else measured.audit.change,
        loops=None if long_run is None else long_run.loops,
        loop_excess=None if long_run is None else long_run.loop_excess,
        fluency_drop=measured.fluency.drop,
        guard=measured.guard,
        ships=True,
        example=completions[0].steered if completions else None,
    )


def _plain(section: Interval) -> Interval:
    """The interval alone of a section that says more."""
    return Interval(section.value, section.low, section.high)


def _foretold(config: SteeringConfig, budget: float) -> MenuRow | None:
    """What the laws foretell of a budget; None where the law of ΔCE levels off below it."""
    law, known = config.laws.cross_entropy, config.range.strength_at_budget
    spending = law.invert(budget, config.settings.sign)
    if not math.isfinite(spending):
        return None
    strength = known.scaled_to(PROPOSED_SHARE * spending)
    # Where α_B is larger than it was taken for, the same strength costs less.
    rises = sorted(
        float(law.predict(strength.value * known.value / end)) for end in (known.low, known.high)
    )
    return MenuRow(
        source="foretold",
        budget=budget,
        strength=strength.value,
        strength_interval=(strength.low, strength.high),
        delta_ce=Interval(float(law.predict(strength.value)), *rises),
        presence=_foretold_presence(config, strength),
    )


def _foretold_presence(config: SteeringConfig, strength: Interval) -> Interval | None:
    """Presence by its law; None from where it turns back, of which the law says nothing.

    The interval has the errors of the law, and those of the strength that the budget comes to.
    """
    fit = config.laws.presence.fit
    if fit.fall is not None and abs(strength.value) >= abs(fit.fall):
        return None
    quantile = NormalDist().inv_cdf(0.5 + config.budget.confidence / 2)
    value, *ends = (
        float(fit.law.predict(end)) for end in (strength.value, strength.low, strength.high)
    )
    low, high = fit.interval(strength.value, quantile)
    below = math.hypot(value - low, value - min(ends))
    above = math.hypot(high - value, max(ends) - value)
    return Interval(value, max(value - below, 0.0), min(value + above, 1.0))
