"""A frontier in the terminal, one line a budget."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.text import Text

from calibrate.artefact.config import SteeringConfig
from calibrate.artefact.frontier import Frontier, PointSection, RivalSection
from calibrate.cli.rich_tables import headed
from calibrate.common.errors import Infeasible

EXAMPLE = 60  # characters of a reply
FORETOLD = (0.5, 1.0, 2.0)  # times the budget


def frontier_summary(frontier: Frontier, directory: Path) -> RenderableType:
    """Return what each budget buys, where the pictures are, and how to ship one."""
    return Group(
        bought(frontier),
        "",
        Text.from_markup(
            f"Every point is in [bold]{escape(str(directory))}/frontier.json[/]; ship one with "
            f"[bold]calibrate pick {escape(str(directory))} --ce-budget NATS --out DIR[/]."
        ),
    )


def bought(frontier: Frontier) -> RenderableType:
    """Return every point, every rival, and what follows from them."""
    return Group(
        Text.from_markup(
            f"What each nat buys: [bold]{escape(frontier.concept)}[/] on "
            f"[bold]{escape(frontier.model)}[/], {frontier.where}; unsteered presence "
            f"{frontier.baseline.value:.3f}"
        ),
        "",
        menu(frontier),
        *([] if not frontier.rivals else ["", _rivals(frontier)]),
        "",
        Text(frontier.advice),
        *(Text(sentence) for sentence in frontier.endings),
    )


def menu(frontier: Frontier) -> RenderableType:
    """One line a strength: its budget, ΔCE, presence, loops, what it costs, and a reply."""
    table = headed(
        *"budget|α|ΔCE (at most)|presence|change|loops|knows|nats/reply|ships|reply".split("|")
    )
    for point in frontier.strengths:
        table.add_row(
            f"[bold]{point.budget:g}[/]",
            f"{point.strength:.4g}",
            f"{point.delta_ce.value:.4f} ({point.upper:.4f})",
            f"{point.presence.value:.3f} ({point.presence.low:.3f} to {point.presence.high:.3f})",
            f"{point.change.value:+.3f}",
            "" if point.loops is None else f"{point.loops:.1%}",
            "" if point.guard is None else f"{point.guard.accuracy.value:.0%}",
            _spent(frontier, point),
            _ships(frontier, point),
            escape(point.example[:EXAMPLE]),
        )
    return table


def _ships(frontier: Frontier, point: PointSection) -> str:
    if point is frontier.shipped:
        return "[bold green]shipped[/]"
    return "[green]yes[/]" if point.ships else f"[yellow]{point.why_not}[/]"


def menu_facts(config: SteeringConfig, frontier: Frontier | None) -> list[dict[str, Any]]:
    """The menu for machines: the frontier's points, or what the laws foretell."""
    if frontier is None:
        return [{"measured": False, **each} for each in _by_the_laws(config)]
    return _points(frontier)


def refused_facts(refusal: Infeasible) -> dict[str, Any]:
    """Why nothing ships, and what budgets and rivals bring all the same, for machines."""
    found: Frontier | None = refusal.frontier
    return {
        "reasons": list(refusal.reasons),
        "advice": list(refusal.advice),
        "menu": [] if found is None else _points(found),
        "rivals": []
        if found is None
        else [json.loads(one.model_dump_json()) for one in found.rivals],
    }


def _points(frontier: Frontier) -> list[dict[str, Any]]:
    return [
        {
            "measured": True,
            "shipped": each is frontier.shipped,
            **json.loads(each.model_dump_json()),
        }
        for each in frontier.strengths
    ]


def foretold(config: SteeringConfig, directory: Path | None) -> RenderableType:
    """What other budgets buy by the laws, where no frontier was measured."""
    table = headed("budget", "α by the laws", "presence by the laws")
    for each in _by_the_laws(config):
        table.add_row(f"{each['budget']:g}", f"{each['strength']:.4g}", f"{each['presence']:.2f}")
    where = "DIR" if directory is None else escape(str(directory))
    return Group(
        table,
        Text.from_markup(
            f"[dim]foretold from unsteered passes and the study; measure it:[/] "
            f"[bold]calibrate frontier {where}[/]"
        ),
    )


def _by_the_laws(config: SteeringConfig) -> list[dict[str, float]]:
    """Budgets, and the strength and presence that the laws give them."""
    rise, law = config.laws.cross_entropy, config.laws.presence.law
    budgets = [share * config.budget.limit for share in FORETOLD]
    spending = [(budget, rise.invert(budget, config.settings.sign)) for budget in budgets]
    return [
        {"budget": budget, "strength": strength, "presence": float(law.predict(strength))}
        for budget, strength in spending
        if math.isfinite(strength)
    ]


def _rivals(frontier: Frontier) -> RenderableType:
    table = headed("instead", "ΔCE", "presence", "change", "second judge", "nats/reply")
    for rival in frontier.rivals:
        table.add_row(
            f"[bold]{rival.name}[/]",
            "" if rival.delta_ce is None else f"{rival.delta_ce.value:.4f}",
            f"{rival.presence.value:.3f} ({rival.presence.low:.3f} to {rival.presence.high:.3f})",
            f"{rival.change.value:+.3f}",
            "" if rival.audited is None else f"{rival.audited.value:+.3f}",
            _spent(frontier, rival),
        )
    return table


def _spent(frontier: Frontier, point: PointSection | RivalSection) -> str:
    """What it costs a reply, and the share of it that such a change has to cost."""
    back = frontier.efficiency_back(point)
    if point.cost is None:
        needed = "" if back is None else f", ≥ {back:.1%} needed"
        return f"≤ {point.cost_back.value:.2f} back{needed}"
    shares = f"{_percent(frontier.efficiency(point))} needed, back {_percent(back)}"
    return f"{point.cost.value:.2f}, {shares}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"
