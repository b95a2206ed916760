"""calibrate judge: compare a judge with people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from calibrate.cli.console import say_json
from calibrate.cli.option_groups import HELD, options
from calibrate.cli.option_types import FILE, TEXT
from calibrate.cli.shared import Command, as_json_text, working


@click.command(cls=Command)
@click.argument("judge", type=TEXT, metavar="NAME|DIR")
@click.option(
    "--texts",
    required=True,
    type=FILE,
    metavar="FILE",
    help="Texts with a grade (0 not, 1 somewhat, 2 clearly) or a label, and perhaps a prompt, a "
    "condition and a second reader's grade_2: .jsonl, .json, .csv or .tsv.",
)
@click.option(
    "--concept",
    type=TEXT,
    metavar="CONCEPT",
    help="What a judge with a NAME looks for; for embedding a built-in concept or a file.",
)
@click.option(
    "--model",
    type=TEXT,
    metavar="MODEL",
    help="What probe and question read with.  [default: the probe's, or smollm2]",
)
@options(*HELD, "batch-tokens", "json")
def judge(
    judge: str,
    texts: Path,
    concept: str | None,
    model: str | None,
    as_json: bool,
    **loading: Any,
) -> None:
    """Hold a judge against people who read the same texts.

    NAME is a judge as in --judge; DIR, a finished calibration or a probe's directory, is the probe
    in it. The texts may come from anywhere, best from where the steered model will speak.
    """
    from dataclasses import asdict

    from calibrate.judging.graded_texts import read_graded

    graded = read_graded(texts)

    from calibrate.cli.judge_table import judge_summary
    from calibrate.cli.progress_bars import PatientConsole
    from calibrate.deploy.judge import open_judge
    from calibrate.judging.validation import hold_against

    with working(as_json) as progress:
        reader = open_judge(judge, concept, model, progress, **loading)
        quality = hold_against(reader, graded)
    if as_json:
        say_json(as_json_text(asdict(quality)))
    else:
        PatientConsole().print(judge_summary(quality))
