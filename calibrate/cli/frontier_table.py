"""A menu of budgets in the terminal, one line a budget, and what stands beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.text import Text

from calibrate.artefact.frontier import Frontier, PointSection, RivalSection
from calibrate.artefact.menu import MenuRow, frontier_facts, frontier_menu
from calibrate.cli.rich_tables import headed
from calibrate.common.errors import Infeasible
from calibrate.common.estimate import Interval

EXAMPLE = 48  # characters of a reply


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
            f"[bold]{escape(frontier.model)}[/], {escape(frontier.where)}; unsteered presence "
            f"{frontier.baseline.value:.3f}"
        ),
        "",
        *measured_menu(frontier),
        *([] if not frontier.rivals else ["", _rivals(frontier)]),
        "",
        Text(frontier.advice),
        *(Text(sentence) for sentence in frontier.endings),
    )


def refused_facts(refusal: Infeasible) -> dict[str, Any]:
    """Why nothing ships, and what budgets and rivals bring all the same, for machines."""
    found: Frontier | None = refusal.frontier
    return {
        "reasons": list(refusal.reasons),
        "advice": list(refusal.advice),
        "menu": [] if found is None else frontier_facts(found),
        "rivals": [] if found is None else [one.model_dump(mode="json") for one in found.rivals],
    }


def measured_menu(frontier: Frontier) -> list[RenderableType]:
    """What each budget of a frontier buys, and below it what that breaks."""
    return [_menu(frontier_menu(frontier), replies=True), "", _broken(frontier)]


def default_menu(rows: Sequence[MenuRow], directory: Path | None) -> RenderableType:
    """What was verified at one budget, what the laws foretell of others, and how to measure it."""
    where = "DIR" if directory is None else escape(str(directory))
    return Group(
        _menu(rows, replies=False),  # the summary shows some below
        Text.from_markup(
            "[dim]what is foretold is by the laws; to measure it:[/] "
            f"[bold]calibrate frontier {where}[/]"
        ),
    )


def _menu(rows: Sequence[MenuRow], replies: bool) -> RenderableType:
    """One line a budget: strength, ΔCE, presence, loops, whether it ships, and a reply.

    A column of which nothing is known is left out. replies: whether to show them.
    """
    heads = "budget|α|ΔCE, at most|presence|change|second\njudge|loops|ships|reply".split("|")
    lines = [
        (
            f"[bold]{row.budget:g}[/]",
            f"{row.strength:.4g}",
            f"{row.delta_ce.value:.3g}" + ("" if row.upper is None else f" ≤ {row.upper:.3g}"),
            "" if row.presence is None else _give_or_take(row.presence),
            _change(row.change),
            _change(row.audited),
            "" if row.loops is None else f"{row.loops:.1%}",
            _ships(row),
            _on_one_line(row.example if replies else None),
        )
        for row in rows
    ]
    known = [place for place in range(len(heads)) if any(line[place] for line in lines)]
    table = headed(*(heads[place] for place in known))
    for column in table.columns[:-2]:
        column.no_wrap = True
    for line in lines:
        table.add_row(*(line[place] for place in known))
    return table


def _give_or_take(measured: Interval) -> str:
    """A value, and half the width of its interval."""
    return f"{measured.value:.2f} ±{(measured.high - measured.low) / 2:.2f}"


def _on_one_line(reply: str | None) -> Text:
    """The beginning of a reply, as much of it as there is room for."""
    return Text(" ".join((reply or "").split())[:EXAMPLE], no_wrap=True, overflow="ellipsis")


def _ships(row: MenuRow) -> str:
    if row.is_foretold:
        return "[dim]foretold[/]"
    if row.source == "verified":
        return "[bold green]shipped[/]"
    return "[green]yes[/]" if row.ships else f"[yellow]{escape(str(row.why_not))}[/]"


def _broken(frontier: Frontier) -> RenderableType:
    """One line a budget: what the model still knows, how its replies read, and what that costs."""
    table = headed(
        "budget", "knows", "points lost, at most", "drop of log-probability", "nats/reply"
    )
    for point in frontier.strengths:
        guard = point.guard
        table.add_row(
            f"[bold]{point.budget:g}[/]",
            "" if guard is None else f"{guard.accuracy.value:.1%}",
            "" if guard is None else f"{100 * guard.drop_upper:.1f}",
            _interval(point.fluency_drop),
            _spent(frontier, point),
        )
    return table


def _rivals(frontier: Frontier) -> RenderableType:
    table = headed("instead", "ΔCE", "presence", "change", "second judge", "nats/reply")
    for rival in frontier.rivals:
        table.add_row(
            f"[bold]{escape(rival.name)}[/]",
            "" if rival.delta_ce is None else f"{rival.delta_ce.value:.4f}",
            _interval(rival.presence),
            _change(rival.change),
            _change(rival.audited),
            _spent(frontier, rival),
        )
    return table


def _interval(measured: Interval | None) -> str:
    """A value with its interval; empty where it is not known."""
    if measured is None:
        return ""
    return f"{measured.value:.3f} ({measured.low:.3f} to {measured.high:.3f})"


def _change(change: Interval | None) -> str:
    return "" if change is None else f"{change.value:+.3f}"


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
