"""calibrate verify: the gate before deployment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from calibrate.cli.console import say_json
from calibrate.cli.option_groups import SHARED, options
from calibrate.cli.option_types import FILE, PLACE, TEXT
from calibrate.cli.shared import Command, as_json_text, only_first_speaks, working


@click.command(cls=Command)
@click.argument("directory", type=PLACE, metavar="DIR")
@click.option(
    "--corpus",
    type=FILE,
    metavar="FILE",
    help="Texts to measure cross-entropy on.  [default: the replies it was verified on]",
)
@click.option("--quick", is_flag=True, help="Check identity and reference only: seconds.")
@click.option(
    "--against",
    type=TEXT,
    metavar="STACK",
    help="Export to llama.cpp, peft or folded, and measure ΔCE in that stack as well.",
)
@click.option(
    "--gguf",
    type=FILE,
    metavar="FILE",
    help="The model for llama.cpp.  [default: the file the model came from]",
)
@options("elsewhere", *SHARED, "batch-tokens", "json")
def verify(
    directory: str | Path,
    corpus: Path | None,
    quick: bool,
    against: str | None,
    gguf: Path | None,
    as_json: bool,
    **loading: Any,
) -> None:
    """Check that the config in DIR does what it says, on the model it will be used with.

    DIR is a calibration's directory, or hub:USER/NAME for one in a repository.
    Exit status 0 if everything holds, 4 if anything does not: meant for deployment pipelines.
    """
    from calibrate.artefact.config import load
    from calibrate.cli.progress_bars import PatientConsole
    from calibrate.cli.tables import gate_summary
    from calibrate.common.errors import AlteredError, InputError, VerificationFailed
    from calibrate.deploy.runtimes import check_stack, require_stack
    from calibrate.deploy.verify import (
        check_directory,
        gate_folder,
        open_model,
        require_measured,
    )
    from calibrate.texts.concept import read_lines

    only_first_speaks(loading["tensor_parallel"])
    if against is not None:
        require_stack(against, gguf)
    elif gguf is not None:
        raise InputError(
            "--gguf must come with --against llama.cpp, got no --against; give that, or leave "
            "--gguf out"
        )
    if corpus is not None:
        read_lines(corpus)
    if against is None:
        require_measured(corpus, quick)
    with working(as_json) as progress:
        try:
            directory = gate_folder(directory)  # fetched once, so that all see the same
            loaded = open_model(load(directory), progress=progress, **loading)
        except AlteredError:  # check_directory reports it
            loaded = None
        here = None if quick else corpus
        report = check_directory(directory, loaded, here, quick, progress)
        if against is not None and loaded is not None and report.passed:
            elsewhere = check_stack(directory, loaded, against, gguf, progress, corpus)
            report = report.with_check(elsewhere)
    if as_json:
        say_json(as_json_text(report.facts()))
    else:
        PatientConsole().print(gate_summary(report))
    if not report.passed:
        raise VerificationFailed("; ".join(report.failures))
