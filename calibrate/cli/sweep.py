"""calibrate sweep: many calibrations, and what they say together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from calibrate.cli.console import say
from calibrate.cli.exit_status import EXIT_INFEASIBLE
from calibrate.cli.option_types import FILE, TEXT
from calibrate.cli.shared import Command

if TYPE_CHECKING:
    from calibrate.pipelines.sweep.cells import Cell
    from calibrate.pipelines.sweep.run import Swept

EXIT_FAILED = 1


@click.command(cls=Command)
@click.argument("plan", type=FILE, required=False, metavar="[PLAN.toml]")
@click.option("--model", "models", type=TEXT, multiple=True, metavar="MODEL", help="Repeatable.")
@click.option(
    "--concept", "concepts", type=TEXT, multiple=True, metavar="CONCEPT", help="Repeatable."
)
@click.option(
    "--ce-budget", "budgets", type=float, multiple=True, metavar="NATS", help="Repeatable."
)
@click.option(
    "--layer",
    "layers",
    type=TEXT,
    multiple=True,
    metavar="AUTO|N|N-M|N,N,…|SEARCH",
    help="Repeatable.",
)
@click.option(
    "--set",
    "options",
    type=TEXT,
    multiple=True,
    metavar="NAME=VALUE",
    help="Another option of calibrate, for all cells, such as min-gain=0.02 or dtype=bfloat16: any "
    "but out, storage, study, tensor-parallel and what makes texts a concept (positives, "
    "negatives=FILE, describe). Repeatable.",
)
@click.option(
    "--out",
    type=TEXT,
    required=True,
    metavar="DIR|ADDRESS",
    help="Where all cells go: a directory, or a store such as s3://BUCKET/PATH.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Processes at once.  [default: one a core, as memory allows]",
)
@click.option(
    "--on",
    type=TEXT,
    default="local",
    show_default=True,
    metavar="LOCAL|RAY|RAY://HOST:PORT",
    help="Processes of this machine, or a Ray cluster whose nodes share DIR or reach ADDRESS.",
)
@click.option("--json", "as_json", is_flag=True, help="Print an event a line as JSON.")
def sweep(
    plan: Path | None,
    models: tuple[str, ...],
    concepts: tuple[str, ...],
    budgets: tuple[float, ...],
    layers: tuple[str, ...],
    options: tuple[str, ...],
    out: str,
    workers: int | None,
    on: str,
    as_json: bool,
) -> None:
    """Calibrate every model for every concept, with every budget and at every choice of blocks.

    PLAN.toml may hold tables [[sweep]] with models, concepts, ce-budgets, layers and options. A
    model is loaded once for all its concepts. Cells that fail do not stop the others, and the same
    command goes on where an earlier one ended. The exit status is 0 if every cell is done, 3 if
    some are infeasible, and 1 if some failed.
    """
    from calibrate.cli.progress_bars import PatientConsole
    from calibrate.cli.sweep_table import SweepLines, SweepTable
    from calibrate.pipelines.sweep.cells import cells_of, distinct, read_plan
    from calibrate.pipelines.sweep.run import sweep as run_sweep

    shared = dict(map(_assigned, options))
    cells: tuple[Cell, ...] = () if plan is None else read_plan(plan)
    if models or concepts or plan is None:
        more = cells_of(models or ("smollm2",), concepts, budgets, layers, shared)
        cells = distinct([*cells, *more])
    elif shared or budgets or layers:
        raise click.UsageError("what a plan's cells take stands in the plan")
    if as_json:
        swept = run_sweep(cells, out, workers=workers, on=on, heard=SweepLines().heard)
    else:
        table = SweepTable(PatientConsole(stderr=True))
        with table.live():
            swept = run_sweep(cells, out, workers=workers, on=on, heard=table.heard)
    _print_result(swept, as_json)
    if swept.count("failed"):
        raise click.exceptions.Exit(EXIT_FAILED)
    if swept.count("infeasible"):
        raise click.exceptions.Exit(EXIT_INFEASIBLE)


def _assigned(given: str) -> tuple[str, Any]:
    """NAME=VALUE, the value as JSON has it, or else as text."""
    name, equals, value = given.partition("=")
    if not equals:
        raise click.UsageError(f"--set takes NAME=VALUE, got {given}")
    try:
        return name.replace("-", "_"), json.loads(value)
    except ValueError:
        return name.replace("-", "_"), value


def _print_result(swept: Swept, as_json: bool) -> None:
    counts = {name: swept.count(name) for name in ("done", "infeasible", "failed")}
    if as_json:
        say(json.dumps({"swept": counts, "report": swept.report}))
        return
    said = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    say(f"{said}; the report is {swept.report}")
