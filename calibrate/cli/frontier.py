"""calibrate frontier and calibrate pick: what other budgets buy, and shipping one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from calibrate.cli.console import say_json
from calibrate.cli.main_job import print_result
from calibrate.cli.option_groups import HELD, options
from calibrate.cli.option_types import FILE, PLACE, budgets
from calibrate.cli.shared import Command, say_origin, working


@click.command(cls=Command)
@click.argument("directory", type=PLACE, metavar="DIR")
@click.option(
    "--budgets",
    "wanted",
    type=budgets,
    metavar="NATS,…",
    help="Budgets, nats per token.  [default: 0.5, 1, 2 and 4 times that of DIR]",
)
@click.option(
    "--no-rivals",
    is_flag=True,
    help="Leave out asking in words, asking and steering, a random vector and best of n.",
)
@options("corpus", "elsewhere", *HELD, "batch-tokens", "json")
def frontier(
    directory: str | Path,
    wanted: tuple[float, ...] | None,
    no_rivals: bool,
    corpus: Path | None,
    as_json: bool,
    **loading: Any,
) -> None:
    """Measure what other budgets buy at the site calibrated in DIR, and what else would.

    Each budget gets a strength with its own verified bound. The result goes into DIR:
    frontier.json, pictures, and the report.
    """
    from calibrate.artefact.config import CONFIG_FILE
    from calibrate.artefact.directory import FRONTIER_FILES, require_free
    from calibrate.artefact.hub import own_directory
    from calibrate.artefact.saved import save_frontier
    from calibrate.cli.frontier_table import frontier_summary
    from calibrate.cli.progress_bars import PatientConsole
    from calibrate.deploy.finished import Calibration
    from calibrate.deploy.frontier import require_one_concept
    from calibrate.deploy.verify import open_model

    directory = own_directory(directory, "the frontier is")
    calibration = Calibration.load(directory)
    require_one_concept(calibration.config)
    require_free(directory, CONFIG_FILE, FRONTIER_FILES)
    with working(as_json) as progress:
        loaded = open_model(calibration.config, progress=progress, **loading)
        measured = calibration.with_frontier(
            wanted, loaded, corpus=corpus, rivals=not no_rivals, progress=progress
        )
        assert measured.frontier is not None
        found = save_frontier(directory, measured.frontier)
    if as_json:
        say_json(found.model_dump_json(indent=2))
    else:
        PatientConsole().print(frontier_summary(found, directory))


@click.command(cls=Command)
@click.argument("directory", type=PLACE, metavar="DIR")
@click.option("--out", required=True, type=FILE, metavar="DIR2", help="Where the config goes.")
@options("one-budget", "corpus", "elsewhere", *HELD, "batch-tokens", "json")
def pick(
    directory: str | Path,
    out: Path,
    ce_budget: float,
    corpus: Path | None,
    as_json: bool,
    **loading: Any,
) -> None:
    """Ship another budget of the site calibrated in DIR, verified anew, without a new study."""
    from calibrate.artefact.directory import open_workspace
    from calibrate.common.errors import InputError
    from calibrate.deploy.finished import Calibration
    from calibrate.deploy.frontier import require_one_concept
    from calibrate.deploy.verify import open_model
    from calibrate.search.fingerprint import fingerprint_picked

    if out.resolve() == Path(directory).resolve():
        raise InputError(f"--out must be another directory than DIR, got {out} for both")
    calibration = Calibration.load(directory)
    config = calibration.config
    require_one_concept(config)
    say_origin(config.origin)
    _, finished = open_workspace(out, fingerprint_picked(config.provenance.fingerprint, ce_budget))
    if not finished:
        with working(as_json) as progress:
            loaded = open_model(config, progress=progress, **loading)
            picked = calibration.pick(ce_budget, loaded, corpus=corpus, progress=progress)
            picked.save(out)
    result = Calibration.load(out)
    print_result(result.config, result.evidence, out, as_json, False, result.frontier)
