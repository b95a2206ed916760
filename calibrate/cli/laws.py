"""calibrate laws: the paper's curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from calibrate.cli.console import say_json
from calibrate.cli.option_groups import LAWS, options
from calibrate.cli.option_types import TEXT
from calibrate.cli.shared import Command, checked, named, working
from calibrate.common.layout import stem


@click.command(cls=Command)
@options(*LAWS)
@click.option(
    "--layer",
    "layers",
    type=TEXT,
    multiple=True,
    metavar="N",
    help="Block to measure, a band such as 8-26, or auto for the default band; may be repeated.  "
    "[default: early, middle and late block]",
)
@click.option(
    "--judge",
    metavar="NAME",
    help="Who reads replies at 41 strengths: auto, question[:MODEL], openai:MODEL, "
    "embedding[:MODEL], or module:function.  [default: nobody]",
)
@click.option(
    "--guard",
    default="none",
    show_default=True,
    metavar="FILE",
    help="Questions put at every strength: auto for 240 built-in ones, a file, or "
    "lm-eval:TASK[:MOST].",
)
@click.option(
    "--variants",
    is_flag=True,
    help="Measure the middle block with random negatives, at the last token, and with v of "
    "length 1 as well.",
)
@click.option(
    "--resamples",
    type=int,
    default=0,
    show_default=True,
    metavar="N",
    help="Resample the concept's texts this often, twice or more, for error bars.",
)
def laws(
    *,
    concept: str | None,
    out: Path | None,
    positives: Path | None,
    negatives: tuple[str, ...],
    corpus: Path | None,
    prompts: Path | None,
    layers: tuple[str, ...],
    judge: str | None,
    teacher: str | None,
    guard: str,
    variants: bool,
    resamples: int,
    as_json: bool,
    quiet: bool,
    **rest: Any,
) -> None:
    """Measure the paper's curves at some blocks, and draw them with the laws over them."""
    from calibrate.artefact.directory import require_free, wrote
    from calibrate.common.blocks import check_sites
    from calibrate.common.layout import LAWS_FILE, LAWS_PICTURES
    from calibrate.common.numbers import check_resamples
    from calibrate.common.settings import Settings
    from calibrate.judging.choice import check_reading
    from calibrate.texts.concept import read_concept
    from calibrate.texts.guard_choice import check_guard_choice, choose_guard

    concept = named(concept)
    check_resamples(resamples)
    check_sites(layers)
    file, loading, settings = checked(negatives, prompts, rest)
    texts = read_concept(concept, positives, file)
    check_reading(texts, judge, teacher, Settings(**settings))
    check_guard_choice(guard)
    directory = out or Path(f"{stem(concept)}-{stem(loading['model'])}-laws")
    require_free(directory, LAWS_FILE, LAWS_PICTURES)

    from calibrate.cli.laws_table import laws_headline, laws_summary
    from calibrate.cli.progress_bars import PatientConsole
    from calibrate.common.files import remove_ours, write_together
    from calibrate.engine.loading import load_model
    from calibrate.laws.plots import law_pictures
    from calibrate.search.law_experiment import measure_laws

    with working(quiet) as progress:
        questions = choose_guard(guard, progress=progress)
        loaded = load_model(**loading, progress=progress)
        curves = measure_laws(
            loaded,
            texts,
            layers=layers,
            prompts=prompts,
            corpus=corpus,
            resamples=resamples,
            variants=variants,
            judge=judge,
            teacher=teacher,
            guard=questions,
            progress=progress,
            **settings,
        )
    pictures = law_pictures(curves)
    write_together(directory, pictures, last=LAWS_FILE, ours=wrote)
    remove_ours(directory, {*LAWS_PICTURES} - pictures.keys(), wrote)
    if as_json:
        say_json(curves.to_bytes().decode())
        return
    console = PatientConsole()
    console.print(laws_headline(curves), soft_wrap=True)
    if not quiet:
        console.print(laws_summary(curves, directory))
