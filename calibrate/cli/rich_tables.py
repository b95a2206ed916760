"""Plain tables for the terminal: facts with labels, and columns with headings."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table


def labelled(rows: Iterable[tuple[str, str]]) -> Table:
    """Return a table of (label, markup) rows."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for label, value in rows:
        table.add_row(f"[dim]{label}[/]", value)
    return table


def headed(*headings: str, ratio: int | None = None) -> Table:
    """Return an empty table with these headings; with a ratio, columns share the whole width."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(f"[dim]{heading}[/]", ratio=ratio)
    return table
