"""How a sweep is doing: a line for each cell that ended, and a table of the rest that lives on."""

from __future__ import annotations

import json
import time
from contextlib import AbstractContextManager, nullcontext

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from calibrate.cli.console import say_json
from calibrate.pipelines.sweep.cells import Cell
from calibrate.pipelines.sweep.ledger import Outcome

NEXT = 5  # waiting cells that the table names
LOOKS = {"done": "[green]✓[/]", "infeasible": "[yellow]✗[/]", "failed": "[red]✗[/]"}


class SweepTable:
    """Shows the cells of a sweep.

    Where the console is no terminal, each event leaves one plain line.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._waiting: list[str] = []
        self._running: dict[str, float] = {}
        self._took: list[float] = []

    def live(self) -> AbstractContextManager[object]:
        """Keep the table on the terminal inside a `with`."""
        if not self._console.is_terminal:
            return nullcontext()
        return Live(
            console=self._console, get_renderable=self.table, refresh_per_second=2, transient=True
        )

    def heard(self, cell: Cell, outcome: Outcome | None) -> None:
        """Note that a cell waits, that it begins, or what became of it."""
        if outcome is None:
            self._waiting = [name for name in self._waiting if name != cell.name]
            self._running[cell.name] = time.monotonic()
            if not self._console.is_terminal:
                self._console.print(f"  {escape(cell.name)} begins")
            return
        self._running.pop(cell.name, None)
        if outcome.status == "waiting":
            self._waiting.append(cell.name)
            if outcome.tries:
                self._console.print(f"{escape(cell.name)}: its worker died; it is tried again")
            return
        self._took.append(outcome.seconds)
        why = f": {escape('; '.join(outcome.reasons))}" if outcome.reasons else ""
        mark = LOOKS[outcome.status]
        self._console.print(
            f"{mark} {escape(cell.name)} {outcome.status} [dim]{outcome.seconds:.0f} s[/]{why}"
        )

    def table(self) -> Group:
        """The cells that run and the next that wait, and what is left."""
        now, found = time.monotonic(), Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for name, began in self._running.items():
            found.add_row(escape(name), "runs", _clock(now - began))
        for name in self._waiting[:NEXT]:
            found.add_row(f"[dim]{escape(name)}[/]", "[dim]waits[/]", "")
        return Group(found, self._left(now))

    def _left(self, now: float) -> str:
        """How many cells are left, and how long they will take if they are like the others."""
        n_left = len(self._waiting) + len(self._running)
        said = f"{len(self._took)} ended, {n_left} left"
        if not self._took or not self._running:
            return said
        each = sum(self._took) / len(self._took)
        begun = sum(min(now - began, each) for began in self._running.values())
        ahead = (n_left * each - begun) / len(self._running)
        return f"{said}, about {_clock(ahead)}"


class SweepLines:
    """The same for machines: an event a line, as JSON."""

    def __init__(self) -> None:
        self._left: set[str] = set()

    def heard(self, cell: Cell, outcome: Outcome | None) -> None:
        """Print an event."""
        facts = {"cell": cell.name, "status": "begins" if outcome is None else outcome.status}
        if outcome is not None:
            (self._left.add if outcome.status == "waiting" else self._left.discard)(cell.name)
        more = {} if outcome is None else {"seconds": outcome.seconds, "reasons": outcome.reasons}
        say_json(json.dumps({**facts, "left": len(self._left), **more}, ensure_ascii=False))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
