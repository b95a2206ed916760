"""calibrate push: a calibration on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from calibrate.cli.console import say
from calibrate.cli.option_groups import HELD, options
from calibrate.cli.option_types import FILE, TEXT
from calibrate.cli.shared import Command, working
from calibrate.common.export_formats import FORMATS


@click.command(cls=Command)
@click.argument("directory", type=FILE, metavar="DIR")
@click.argument("repository", type=TEXT, metavar="USER/NAME")
@click.option(
    "--export",
    "formats",
    type=TEXT,
    multiple=True,
    metavar="FORMAT",
    help=f"Put an export beside it, checked: {', '.join(FORMATS)}. May be repeated.",
)
@click.option("--public", is_flag=True, help="Let everyone see a repository that is new.")
@click.option("--dry-run", type=FILE, metavar="FOLDER", help="Write a folder; send nothing.")
@options("elsewhere", *HELD)
def push(
    directory: Path,
    repository: str,
    formats: tuple[str, ...],
    public: bool,
    dry_run: Path | None,
    **loading: Any,
) -> None:
    """Put the calibration in DIR on the Hugging Face Hub, with a model card made from its evidence.

    The repository is private unless --public is given. `calibrate.load("USER/NAME")` and `calibrate
    verify hub:USER/NAME` read it there.
    """
    from calibrate.pipelines.hub import push as push_calibration

    with working() as progress:
        pushed = push_calibration(
            directory,
            repository,
            formats=formats,
            private=not public,
            dry_run=dry_run,
            progress=progress,
            **loading,
        )
    say(f"{len(pushed.files)} files are in {pushed.place}")
