"""What the calibrations of a sweep say together: a table, pictures, and what carries over.

In units of the residual norm, ‖αv‖/‖h‖, strengths can be compared across models. So each cell's
is foretold by the same concept's on the other models: where that is near, a new model starts from a
good guess.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from calibrate.artefact.config import SteeringConfig, load
from calibrate.common.files import write_together
from calibrate.common.marks import TOOL, facts_in, names_us
from calibrate.common.pictures import literal
from calibrate.pipelines.sweep.cells import Cell
from calibrate.pipelines.sweep.ledger import SweepLedger
from calibrate.pipelines.sweep.store import Store

TABLE_FILE, FACTS_FILE, PAGE_FILE, PICTURE_FILE = (
    "cells.csv", "cells.json", "report.html", "laws.png"
)  # fmt: skip
COLUMNS = 3  # of the small multiples
FORMAT = "steering-sweep-report"
LATER = ("goal", "blocks")  # columns that earlier tables lack


@dataclass(frozen=True)
class Row:
    """One cell of the table; None where there is no config.

    goal, blocks: as asked for. strength_at_budget, relative: α_B, and as ‖α_B·v‖/‖h‖. foretold: the
    latter from the same on the other models. loops: share of long replies' tokens.
    """

    cell: str
    model: str
    concept: str
    status: str
    reasons: str = ""
    goal: str = "increase"
    blocks: str = "auto"
    where: str | None = None
    budget: float | None = None
    strength: float | None = None
    strength_at_budget: float | None = None
    relative: float | None = None
    foretold: float | None = None
    delta_ce: float | None = None
    delta_ce_upper: float | None = None
    presence: float | None = None
    baseline: float | None = None
    loops: float | None = None
    token_forwards: int | None = None
    seconds: float = 0.0


def write_report(store: Store, cells: Sequence[Cell], ledger: SweepLedger) -> list[Row]:
    """Write table, pictures and page to the sweep's place, and return the table."""
    done = [cell.name for cell in cells if ledger.of(cell).status == "done"]
    for name in done:
        store.fetch_config(name)
    configs = {name: load(store.directory / name) for name in done}
    rows = foretold([_row(cell, ledger, configs.get(cell.name)) for cell in cells])
    facts = [asdict(row) for row in rows]
    picture = _picture(cells, configs)
    content = {"format": FORMAT, "version": 1, "error": transfer_error(rows), "cells": facts}
    files = {
        FACTS_FILE: json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n",
        TABLE_FILE: _table(facts).encode(),
        **({PICTURE_FILE: picture} if picture else {}),
        PAGE_FILE: _page(rows, picture).encode(),
    }
    write_together(store.directory, files, last=PAGE_FILE, ours=_wrote)
    store.put(files)
    return rows


def foretold(rows: Sequence[Row]) -> list[Row]:
    """The rows with each cell's relative strength foretold, leaving its model out.

    The geometric mean of those of the same concept, goal, budget and blocks on the other models.
    """

    def asked(row: Row) -> tuple[Any, ...]:
        return row.concept, row.goal, row.budget, row.blocks

    found = []
    for row in rows:
        others = [
            math.log(abs(other.relative))
            for other in rows
            if asked(other) == asked(row) and other.model != row.model and other.relative
        ]
        guess = math.exp(float(np.mean(others))) if row.relative and others else None
        if guess is not None and row.relative is not None:
            guess = math.copysign(guess, row.relative)
        found.append(Row(**{**asdict(row), "foretold": guess}))
    return found


def transfer_error(rows: Sequence[Row]) -> float | None:
    """By which factor, less 1, the foretold strengths miss in the median; None without any."""
    off = [
        abs(math.log(row.foretold / row.relative)) for row in rows if row.foretold and row.relative
    ]
    return float(np.exp(np.median(off)) - 1) if off else None


def _row(cell: Cell, ledger: SweepLedger, config: SteeringConfig | None) -> Row:
    outcome, options = ledger.of(cell), dict(cell.options)
    layer = options.get("layer", "auto")
    row = Row(
        cell.name, cell.model, cell.concept, outcome.status, "; ".join(outcome.reasons),
        goal=options.get("goal", "increase"),
        blocks=",".join(map(str, layer)) if isinstance(layer, list | tuple) else str(layer),
        seconds=outcome.seconds,
    )  # fmt: skip
    if config is None:
        return row
    measured, at_budget = config.measured, config.range.strength_at_budget.value
    unit = config.intervention.relative_strength / config.intervention.strength
    return Row(
        **{
            **asdict(row),
            "where": config.where,
            "budget": config.budget.limit,
            "strength": config.intervention.strength,
            "strength_at_budget": at_budget,
            "relative": unit * at_budget,
            "delta_ce": measured.delta_ce.value,
            "delta_ce_upper": measured.delta_ce.upper,
            "presence": measured.presence.value,
            "baseline": measured.presence.baseline,
            "loops": None if measured.long_run is None else measured.long_run.loops,
            "token_forwards": sum(stage.token_forwards for stage in config.cost.values()),
        }
    )


def _table(facts: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(facts[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(facts)
    return text.getvalue()


def _picture(cells: Sequence[Cell], configs: dict[str, SteeringConfig]) -> bytes | None:
    """Small multiples: ΔCE against ‖αv‖/‖h‖ by the laws, a concept each, a curve each model."""
    concepts = list(dict.fromkeys(cell.concept for cell in cells if cell.name in configs))
    if not concepts:
        return None
    height = -(-len(concepts) // COLUMNS)
    figure = Figure(figsize=(4.2 * COLUMNS, 3.0 * height), layout="constrained")
    grid = figure.subplots(height, COLUMNS, squeeze=False)
    for axes in grid.flat[len(concepts) :]:
        axes.set_visible(False)
    for axes, concept in zip(grid.flat, concepts, strict=False):
        for cell in cells:
            if cell.concept == concept and cell.name in configs:
                _draw(axes, cell, configs[cell.name])
        axes.set(title=literal(concept), xlabel="‖αv‖/‖h‖", ylabel="ΔCE (nats per token)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": TOOL})
    return buffer.getvalue()


def _draw(axes: Any, cell: Cell, config: SteeringConfig) -> None:
    unit = abs(config.intervention.relative_strength / config.intervention.strength)
    strengths = np.linspace(0, 1.3 * config.range.strength_at_budget.value, 60)
    rise = config.laws.cross_entropy.predict(strengths)
    (line,) = axes.plot(unit * np.abs(strengths), rise, label=literal(cell.name))
    measured = config.measured.delta_ce
    at = unit * abs(config.intervention.strength)
    axes.errorbar(
        at, measured.value, [[measured.value - measured.low], [measured.high - measured.value]],
        fmt="o", ms=4, color=line.get_color(),
    )  # fmt: skip


def _page(rows: Sequence[Row], picture: bytes | None) -> str:
    shown = [
        "cell", "status", "where", "budget", "strength", "strength_at_budget", "relative",
        "foretold", "delta_ce", "delta_ce_upper", "presence", "baseline", "loops",
        "token_forwards", "seconds", "reasons",
    ]  # fmt: skip
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in shown)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{_cell(row, name)}</td>" for name in shown) + "</tr>" for row in rows
    )
    error = transfer_error(rows)
    carried = (
        "<p>One model leaves nothing to compare strengths with.</p>"
        if error is None
        else "<p>Foretold from the other models, ‖αv‖/‖h‖ at the budget is off by "
        f"{error:.0%} in the median.</p>"
    )
    image = ""
    if picture:
        data = base64.b64encode(picture).decode()
        image = f'<img alt="The laws of all cells" src="data:image/png;base64,{data}">'
    return PAGE.format(tool=TOOL, head=head, body=body, carried=carried, image=image)


def _cell(row: Row, name: str) -> str:
    value = getattr(row, name)
    if name == "cell" and row.status == "done":
        return f'<a href="{escape(row.cell)}/report.html">{escape(row.cell)}</a>'
    if value is None:
        return "–"
    return escape(f"{value:.4g}" if isinstance(value, float) else f"{value}")


def _wrote(path: Path) -> bool:
    if path.name == FACTS_FILE:
        return facts_in(path).get("format") == FORMAT
    if path.name == TABLE_FILE:
        header = path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
        names = [field.name for field in fields(Row)]
        earlier = [name for name in names if name not in LATER]
        return header in (",".join(names), ",".join(earlier))
    return names_us(path)


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="generator" content="{tool}">
<title>Sweep</title>
<style>
  body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem; }}
  table {{ border-collapse: collapse; }}
  td, th {{ border-bottom: 1px solid #ddd; padding: .3rem .6rem; text-align: left; }}
  img {{ max-width: 100%; }}
</style>
<h1>Sweep</h1>
<table><thead><tr>{head}</tr></thead><tbody>
{body}
</tbody></table>
{carried}
{image}
</html>
"""
