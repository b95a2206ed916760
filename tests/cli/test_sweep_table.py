"""A sweep's cells, shown while they run."""

from __future__ import annotations

import io
import json

from rich.console import Console

from calibrate.cli import sweep_table
from calibrate.cli.sweep_table import SweepLines, SweepTable
from calibrate.pipelines.sweep.cells import cells_of
from calibrate.pipelines.sweep.ledger import Outcome

CELLS = cells_of(["m"], ["joy", "evil", "lying"])


def ended(cell, status, **more):
    return Outcome(cell.name, cell.key, status, **more)


def text_of(table):
    console = Console(file=io.StringIO(), width=80)
    console.print(table)
    return console.file.getvalue()


def test_the_table_shows_what_runs_what_waits_and_how_long_it_will_take(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(sweep_table.time, "monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    shown = SweepTable(console)
    with shown.live():
        for cell in CELLS:
            shown.heard(cell, ended(cell, "waiting"))
        shown.heard(CELLS[0], None)
        now[0] = 65.0
        text = text_of(shown.table())
        assert [line.split()[:2] for line in text.splitlines()[:3]] == [
            ["joy-m", "runs"], ["evil-m", "waits"], ["lying-m", "waits"],
        ]  # fmt: skip
        assert "1:05" in text
        assert "0 ended, 3 left" in text
        shown.heard(CELLS[0], ended(CELLS[0], "done", seconds=100.0, tries=1))
        shown.heard(CELLS[1], None)
        now[0] += 20.0
        assert "1 ended, 2 left, about 3:00" in text_of(shown.table())  # 2 × 100 s less 20
    assert "✓ joy-m done 100 s" in console.file.getvalue()


def test_without_a_terminal_each_event_is_a_line():
    console = Console(file=io.StringIO(), width=80)
    shown = SweepTable(console)
    with shown.live():
        shown.heard(CELLS[0], ended(CELLS[0], "waiting"))
        shown.heard(CELLS[0], None)
        shown.heard(CELLS[0], ended(CELLS[0], "waiting", tries=1))
        shown.heard(CELLS[0], None)
        shown.heard(CELLS[0], ended(CELLS[0], "failed", reasons=("why [not]",), seconds=1.0))
    assert console.file.getvalue().splitlines() == [
        "  joy-m begins",
        "joy-m: its worker died; it is tried again",
        "  joy-m begins",
        "✗ joy-m failed 1 s: why [not]",
    ]


def test_machines_read_how_many_are_left(capsys):
    lines = SweepLines()
    for cell in CELLS[:2]:
        lines.heard(cell, ended(cell, "waiting"))
    lines.heard(CELLS[0], None)
    lines.heard(CELLS[0], ended(CELLS[0], "done", seconds=2.0))
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["left"] for one in found] == [1, 2, 2, 1]
    assert [one["status"] for one in found] == ["waiting", "waiting", "begins", "done"]
