"""Measured points as JSON: floats at six significant digits, one record a line.

A record holds scalars, and what else fits on its line: lists or objects of scalars. What holds
records is opened, an item a line, so that a change of one shows as a change of one line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

DIGITS = 6
page_option = click.option(
    "--page", "only_page", is_flag=True, help="Write the page from what is kept; measure nothing."
)


def read_records(path: Path) -> Any:
    """What was written, and nothing where nothing was."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write_records(path: Path, facts: Any) -> Any:
    """Write, and return what will be read: a page from it is the same now and later."""
    path.write_text(_text(_rounded(facts)) + "\n", encoding="utf-8")
    return read_records(path)


def sentences(records: Mapping[str, Mapping[str, Any]], key: str) -> str:
    """What the records say by a key, a sentence each, with the names of those that say it.

    Names are left out where all say the same. A "note" says how a record was measured where today's
    script would do otherwise; a "machine", on what.
    """
    names: dict[str, list[str]] = {}
    for name, record in records.items():
        if said := record.get(key):
            names.setdefault(said, []).append(name)
    return " ".join(
        f"{said}." if len(of) == len(records) else f"{', '.join(of)}: {said}."
        for said, of in names.items()
    )


def _text(facts: Any) -> str:
    if _is_record(facts):
        return _line(facts)
    if isinstance(facts, dict):
        items = [f"{_line(key)}:{_text(one)}" for key, one in facts.items()]
        return "{\n" + ",\n".join(items) + "\n}"
    return "[\n" + ",\n".join(map(_text, facts)) + "\n]"


def _line(facts: Any) -> str:
    return json.dumps(facts, ensure_ascii=False, separators=(",", ":"))


def _is_record(facts: Any) -> bool:
    depth = _depth(facts)
    return depth < 2 or (depth == 2 and any(_depth(one) == 0 for one in _items(facts) or ()))


def _depth(facts: Any) -> int:
    """0 of a scalar, 1 of what holds scalars, and so on."""
    items = _items(facts)
    return 0 if items is None else 1 + max(map(_depth, items), default=0)


def _items(facts: Any) -> list[Any] | None:
    if isinstance(facts, dict):
        return list(facts.values())
    return list(facts) if isinstance(facts, (list, tuple)) else None


def _rounded(facts: Any) -> Any:
    if isinstance(facts, dict):
        return {key: _rounded(one) for key, one in facts.items()}
    if isinstance(facts, (list, tuple)):
        return [_rounded(one) for one in facts]
    return float(f"{facts:.{DIGITS}g}") if isinstance(facts, float) else facts
