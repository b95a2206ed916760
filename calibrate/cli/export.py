"""calibrate export: write the config in another tool's format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from calibrate.cli.console import say
from calibrate.cli.option_groups import HELD, options
from calibrate.cli.option_types import FILE, PLACE
from calibrate.cli.shared import Command, say_origin, working
from calibrate.common.export_formats import FORMATS

*FIRST, LAST = FORMATS


@click.command(name="export", cls=Command)
@click.argument("directory", type=PLACE, metavar="DIR")
@click.option(
    "--format",
    "format_name",
    required=True,
    metavar="NAME",
    help=f"{', '.join(FIRST)} or {LAST}.",
)
@click.option("--to", required=True, type=FILE, metavar="PATH", help="File or directory.")
@click.option("--no-check", is_flag=True, help="Do not load it back and compare.")
@options("elsewhere", *HELD)
def export_config(
    directory: str | Path,
    format_name: str,
    to: Path,
    no_check: bool,
    **loading: Any,
) -> None:
    """Write the config in DIR for a consumer, and check that it does there what it does here."""
    from calibrate.artefact.config import load
    from calibrate.deploy.export import check_request, export
    from calibrate.deploy.verify import open_model

    config = load(directory)
    say_origin(config.origin)
    check_request(config, format_name, to, directory)
    with working() as progress:
        loaded = open_model(config, progress=progress, **loading)
        written = export(config, format_name, to, loaded, check=not no_check, source=directory)
    if written.gap is None:
        say(f"wrote {written.path}, unchecked")
    else:
        say(
            f"wrote {written.path}; log-probabilities as in the calibration within "
            f"{written.gap:.1e} (at most {written.tolerance:g} will do)"
        )
    for line in written.serve:
        say(f"  {line}")
