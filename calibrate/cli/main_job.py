"""The main command, which finds a strength, and calibrate show, which prints its summary again."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from calibrate.cli.console import say_json
from calibrate.cli.exit_status import resumable
from calibrate.cli.option_groups import CALIBRATION, split_off
from calibrate.cli.option_types import PLACE
from calibrate.cli.shared import (
    Command,
    brought,
    checked,
    named,
    only_first_speaks,
    say_origin,
    working,
)
from calibrate.common.layout import stem
from calibrate.common.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from calibrate.artefact.config import SteeringConfig
    from calibrate.artefact.evidence import Evidence
    from calibrate.artefact.frontier import Frontier
    from calibrate.common.cost import Limits
    from calibrate.common.progress import Progress
    from calibrate.deploy.finished import Calibration
    from calibrate.models.model import LoadedModel
    from calibrate.texts.concept import Concept


def run_main_job(
    *,
    concept: str | None,
    out: Path | None,
    positives: Path | None,
    negatives: tuple[str, ...],
    describe: str | None,
    fetch_teacher: bool,
    as_json: bool,
    quiet: bool,
    ce_budget: tuple[float, ...],
    tensor_parallel: bool,
    **rest: Any,
) -> None:
    """Run the main job and print its result."""
    from calibrate.common.cost import Limits
    from calibrate.texts.concept import read_concept
    from calibrate.texts.guard_choice import check_guard_choice, choose_guard

    only_first_speaks(tensor_parallel)
    concept = named(concept)
    asked, rest = split_off(rest, CALIBRATION)
    judge, teacher = asked["judge"], asked["teacher"]
    file, loading, settings = checked(
        negatives, asked["prompts"], {"ce_budget": ce_budget[0], **rest}
    )
    limits = Limits(asked["max_tokens"], asked["max_minutes"])
    kept = settings["max_guard_drop"], settings["confidence"]
    check_guard_choice(asked["guard"], *kept)
    if describe and (positives or file):
        raise click.UsageError(
            "--describe has the model write the texts, so --positives and --negatives FILE must be "
            f"left out, got {positives or file}; leave one of them out"
        )
    texts = None if describe else read_concept(concept, positives, file)

    from calibrate.artefact.saved import save_frontier
    from calibrate.calibration import calibrate
    from calibrate.deploy.beside import checked_mix
    from calibrate.engine.loading import load_model
    from calibrate.judging.choice import check_fetching, check_judges

    directory = out or Path(f"{stem(concept)}-{stem(loading['model'])}")
    check_judges(judge, asked["audit"], Settings(**settings))
    check_fetching(judge, teacher, fetch_teacher)
    checked_mix(asked["mix"], asked["beside"], asked["start"])
    asked |= {name: brought(asked[name]) for name in ("start", "beside")}
    with refusal_printed(as_json, quiet), working(quiet) as progress:
        asked["guard"] = choose_guard(asked["guard"], *kept, progress)
        loaded = load_model(**loading, tensor_parallel=tensor_parallel, progress=progress)
        spent, began = loaded.meter.tokens, loaded.ranks.clock()
        with resumable(directory):
            result = calibrate(
                loaded,
                texts or _described(loaded, concept, describe, Settings(**settings), progress),
                out=directory,
                fetch_teacher=fetch_teacher or _may_fetch(judge, teacher, texts),
                other_budgets=ce_budget[1:],
                progress=progress,
                **asked,
                **settings,
            )
        frontier = result.frontier
        if len(ce_budget) > 1:
            left = limits.less(loaded.meter.tokens - spent, loaded.ranks.clock() - began)
            result = _with_frontier(result, ce_budget, loaded, asked["corpus"], left, progress)
            frontier = result.frontier
            if loaded.ranks.first and frontier is not None:
                frontier = save_frontier(directory, frontier)
    print_result(result.config, result.evidence, directory, as_json, quiet, frontier)


def _with_frontier(
    result: Calibration,
    budgets: tuple[float, ...],
    loaded: LoadedModel,
    corpus: Path | None,
    left: Limits,
    progress: Progress,
) -> Calibration:
    """The calibration with what all these budgets buy; as it is where that was measured.

    left: what may still be spent.
    Warns with CalibrateWarning of budgets that are not measured.
    """
    from calibrate.common.errors import InputError
    from calibrate.deploy.refused import NO_ROOM, warn_unmeasured

    frontier = result.frontier
    tried = set() if frontier is None else {*frontier.tried}
    missing = [budget for budget in budgets if budget not in tried]
    afforded = missing[: _affordable(len(missing), result.config, left)]
    if beyond := missing[len(afforded) :]:
        warn_unmeasured(beyond, NO_ROOM)
    if not afforded:
        return result
    try:
        return result.with_frontier(afforded, loaded, corpus=corpus, progress=progress)
    except InputError as error:
        warn_unmeasured(afforded, str(error))
        return result


def _affordable(most: int, config: SteeringConfig, left: Limits) -> int:
    """How many budgets can be measured, if each takes what the verification took.

    As much again is set aside for the replies before them and the rivals after them.
    """
    one = config.cost["verification"]
    return sum(
        left.allow((n + 1) * one.token_forwards, (n + 1) * one.seconds) for n in range(1, most + 1)
    )


def _may_fetch(judge: str, teacher: str | None, concept: Any) -> bool:
    """Ask whether the teacher may be fetched, if one is wanted and stdin is a terminal."""
    from calibrate.judging.choice import wants_fetching

    if not wants_fetching(judge, teacher, concept) or not sys.stdin.isatty():
        return False
    return click.confirm(
        "Nobody has graded replies for this concept. Fetch a teacher that does (qwen2.5-1.5b, "
        "1.1 GB, once)?",
        default=True,
        err=True,
    )


@click.command(cls=Command)
@click.argument("directory", type=PLACE, metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="Print the config and a menu as JSON.")
def show(directory: str | Path, as_json: bool) -> None:
    """Print the summary of the calibration in DIR again."""
    from calibrate.artefact.config import load
    from calibrate.artefact.evidence import Evidence
    from calibrate.artefact.frontier import Frontier
    from calibrate.artefact.hub import local_directory

    folder = local_directory(directory)
    config, evidence = load(folder), Evidence.load(folder)
    frontier = Frontier.load(folder, config.provenance.fingerprint)
    say_origin(config.origin)
    here = directory if isinstance(directory, Path) else None
    print_result(config, evidence, here, as_json, False, frontier)


def _described(
    loaded: LoadedModel, name: str, description: str | None, settings: Settings, progress: Progress
) -> Concept:
    from calibrate.models.model import preserving_model_state
    from calibrate.texts.describe import describe_concept

    assert description is not None
    progress.began("writing texts", None)
    try:
        with preserving_model_state(loaded):
            return describe_concept(loaded, name, description, settings)
    finally:
        progress.ended("writing texts")


@contextmanager
def refusal_printed(as_json: bool, quiet: bool) -> Iterator[None]:
    """Print what budgets buy where none ships; the reasons follow with the exit status."""
    from calibrate.cli.progress_bars import PatientConsole
    from calibrate.common.errors import Infeasible

    try:
        yield
    except Infeasible as refusal:
        from calibrate.cli.frontier_table import bought, refused_facts

        if as_json:
            say_json(json.dumps(refused_facts(refusal), indent=2, ensure_ascii=False))
        elif refusal.frontier is not None and not quiet:
            PatientConsole().print(bought(refusal.frontier))
        raise


def print_result(
    config: SteeringConfig,
    evidence: Evidence,
    directory: Path | None,
    as_json: bool,
    quiet: bool,
    frontier: Frontier | None = None,
) -> None:
    """Print a finished calibration: as JSON, as a summary, or in one line.

    The JSON is the config and a menu: what other budgets buy, measured or by the laws.

    directory: where it is; None for one in a repository.
    """
    if as_json:
        from calibrate.artefact.menu import menu_facts

        found = menu_facts(config, evidence, frontier)
        facts = {**json.loads(config.model_dump_json()), "menu": found}
        say_json(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    from calibrate.cli.progress_bars import PatientConsole
    from calibrate.cli.tables import headline, summary

    console = PatientConsole()
    console.print(headline(config), soft_wrap=True)
    if not quiet:
        console.print(summary(config, evidence, directory, frontier))
