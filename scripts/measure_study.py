"""Measure the study and the gates on a real model, and write docs/study.md.

    python scripts/measure_study.py [--concept joy --concept evil] [--page]

With `--layer search`, where the study chooses a single block: how far the shipped strength stays
below the best of a dense grid; how well blocks are ranked; which sampler finds most; how often the
shipped strength would break the budget; what survives kill -9; what the gate says to every kind of
tampering. Two hours on two cores; what was measured is kept, and not measured again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import click
import numpy as np
import optuna
from markdown_tables import DOCS, table
from records import page_option, read_records, sentences, write_records
from safetensors.numpy import load_file, save_file
from scipy.stats import spearmanr

from calibrate import calibrate, check_directory, load_model
from calibrate.common.errors import Infeasible
from calibrate.common.estimate import RatioEstimate
from calibrate.common.settings import Settings
from calibrate.engine.cross_entropy import delta_ce
from calibrate.engine.generation import Request
from calibrate.engine.site import Site
from calibrate.engine.unsteered import run_unsteered
from calibrate.judging.presence import measure_presence, read
from calibrate.laws.pilot import run_pilot
from calibrate.models.model import preserving_model_state
from calibrate.search.effect import require_effect
from calibrate.texts.concept import read_concept, read_prompts
from calibrate.texts.extraction import concept_vectors
from calibrate.texts.replies import build_corpora, sample_unsteered
from probes import Reader

TARGET = DOCS / "study.json"
MODEL, OTHER_MODEL = "smollm2", "gemma3-270m"
CONCEPTS = ("joy", "evil", "impolite", "optimistic")
GRID_STEP = 4  # every fourth block of the middle of the model, and those the study tried
GRID_SHARES = (0.2, 0.35, 0.5, 0.65, 0.75, 0.85, 0.95, 1.0)  # of α_B
LAYER: Literal["search"] = "search"  # of the calibrations: the study chooses a block
SETTINGS = Settings(layer=LAYER)
REPETITIONS = 10
SURVIVORS = (
    "test_killed_in_the_middle_of_a_trial_it_resumes_to_the_same_answer",
    "test_a_torn_last_line_of_the_journal_is_mended",
    "test_a_second_worker_joins_and_nothing_is_measured_twice",
    "test_a_killed_workers_trial_is_taken_over_by_the_other",
    "test_two_workers_share_a_database_and_nothing_is_measured_twice",
    "test_heartbeats_give_a_dead_workers_trial_to_another",
    "test_if_the_one_who_writes_dies_another_takes_over",
)


@click.command()
@click.option("--concept", "concepts", multiple=True, default=CONCEPTS, show_default=True)
@page_option
def main(concepts: tuple[str, ...], only_page: bool) -> None:
    if not only_page:
        measure(concepts)
    (DOCS / "study.md").write_text(page(read_records(TARGET)), encoding="utf-8")


def measure(concepts: tuple[str, ...]) -> None:
    """Measure what is not kept yet."""
    found: dict[str, Any] = read_records(TARGET)

    def measured(key: str, measure: Callable[[], Any]) -> None:
        if key not in found:
            found.update(write_records(TARGET, {**found, key: measure()}))
            click.echo(key)

    with tempfile.TemporaryDirectory() as scratch:
        for concept in concepts:
            measured(f"grid {concept}", partial(grid, concept, Path(scratch)))
        measured("gate", lambda: gate(Path(scratch)))
    measured("samplers", lambda: samplers(found))
    measured("bound", bound)
    measured("survival", survival)


@dataclass(frozen=True)
class Cell:
    """One strength of the grid: presence in replies to the search prompts, and ΔCE there."""

    layer: int
    share: float
    strength: float
    delta_ce: float
    presence: float
    standard_error: float


def grid(concept: str, scratch: Path) -> dict[str, Any]:
    """Calibrate, then measure a dense grid with the same judge, prompts and noise.

    What ships is measured again beside the grid: on the search prompts, by which it was chosen.
    """
    loaded = load_model(MODEL)
    with graded_all_the_same() as refusals:
        result = calibrate(loaded, concept, out=scratch / concept, layer=LAYER)
    assert result.probe is not None
    reader = Reader(result.probe.on(loaded), concept, "probe")
    layers = sorted(
        {*range(loaded.num_layers // 6, loaded.num_layers - 3, GRID_STEP)}
        | {pilot.layer for pilot in result.evidence.pilots}
    )
    with preserving_model_state(loaded):
        replies = sample_unsteered(loaded, read_prompts(), SETTINGS)
        corpus = build_corpora(loaded, replies, None)["search"]
        run = run_unsteered(loaded, corpus, layers)
        vectors = concept_vectors(loaded, read_concept(concept).split()["vector"], SETTINGS)
        baseline = read(reader, replies.completions["search"])

        def measured(site: Site, strengths: Sequence[float]) -> list[Cell]:
            prompts = replies.prompts["search"]
            presences = measure_presence(
                loaded,
                reader,
                [Request(prompts, 1, site.steering(strength)) for strength in strengths],
                SETTINGS.sampling,
                SETTINGS.seed,
            )
            return [
                Cell(
                    site.first,
                    strength / alphas[site.first],
                    strength,
                    delta_ce(loaded, run, site, strength).value,
                    presence.estimate.value,
                    presence.change_from(baseline).standard_error,
                )
                for strength, presence in zip(strengths, presences, strict=True)
            ]

        sites = {layer: Site((vectors[layer],)) for layer in layers}
        alphas = {
            layer: run_pilot(loaded, run, site, (), SETTINGS).strength_at_budget.value
            for layer, site in sites.items()
        }
        before = loaded.meter.tokens
        cells = [
            cell
            for layer, site in sites.items()
            for cell in measured(site, [share * alphas[layer] for share in GRID_SHARES])
        ]
        spent = loaded.meter.tokens - before
        strength = result.config.intervention.strength
        (shipped,) = measured(result.config.site, [strength])
    cost = result.config.cost
    return {
        "refused": "; ".join(refusals),
        "baseline": baseline.estimate.value,
        "cells": [asdict(one) for one in cells],
        "shipped": asdict(shipped),
        "ranks": [asdict(rank) for rank in result.evidence.ranks],
        "n_trials": len(result.evidence.trials),
        "grid_tokens": spent,
        "our_tokens": sum(cost[s].token_forwards for s in ("blocks", "pilot", "study")),
    }


@contextmanager
def graded_all_the_same() -> Iterator[list[str]]:
    """What the study chose is wanted even where the verification would not ship it.

    Yields: the reasons for which it would not.
    """
    refusals: list[str] = []

    def noted(change: RatioEstimate, n_replies: int, settings: Settings, *looped: Any) -> None:
        try:
            require_effect(change, n_replies, settings, *looped)
        except Infeasible as refusal:
            refusals.extend(refusal.reasons)

    with patch("calibrate.search.verification.require_effect", noted):
        yield refusals


def best_of(one: dict[str, Any]) -> dict[str, Any]:
    within = [cell for cell in one["cells"] if cell["delta_ce"] <= SETTINGS.ce_budget]
    return max(within, key=lambda cell: cell["presence"])


def gate(scratch: Path) -> list[tuple[str, bool, str]]:
    """What the gate says to a fresh artefact, and to every kind of tampering with it."""
    directory = scratch / "joy"
    loaded = load_model(MODEL)
    if not (directory / "steering.json").exists():
        calibrate(loaded, "joy", out=directory, layer=LAYER)
    vector = directory / "steering.safetensors"

    def negated(facts: dict[str, Any], folder: Path) -> None:
        values = load_file(folder / vector.name)
        save_file({name: -one for name, one in values.items()}, folder / vector.name)
        digest = hashlib.sha256((folder / vector.name).read_bytes()).hexdigest()
        facts["vector"]["sha256"] = digest

    def tripled(facts: dict[str, Any], _folder: Path) -> None:
        facts["intervention"]["strength"] *= 3

    def shifted(facts: dict[str, Any], _folder: Path) -> None:
        facts["intervention"]["layer"] += 1

    def untouched(_facts: dict[str, Any], _folder: Path) -> None:
        pass

    rows = []
    for name, change, model in (
        ("fresh", untouched, loaded),
        ("strength × 3", tripled, loaded),
        ("block shifted by one", shifted, loaded),
        ("vector negated, hash and all", negated, loaded),
        (f"another model, {OTHER_MODEL}", untouched, load_model(OTHER_MODEL)),
    ):
        folder = scratch / name.split(",")[0].replace(" ", "-")
        shutil.copytree(directory, folder)
        facts = json.loads((folder / "steering.json").read_text())
        change(facts, folder)
        (folder / "steering.json").write_text(json.dumps(facts))
        report = check_directory(folder, model)
        said = report.failures or tuple(check.found for check in report.checks)
        rows.append((name, report.passed, "; ".join(said)))
    return rows


def samplers(found: dict[str, Any]) -> dict[str, list[float]]:
    """How far each sampler's best stays below the grid's, on recorded grids, without the laws.

    Twelve trials over every block and shares up to 1.3, as where a law does not hold; presence
    and ΔCE are interpolated between the grid's cells, and beyond the budget a trial is pruned.
    """
    kinds: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
        "TPE": lambda seed: optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=4, multivariate=True, constant_liar=True
        ),
        "GP": lambda seed: optuna.samplers.GPSampler(seed=seed, n_startup_trials=4),
        "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    }
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    regrets: dict[str, list[float]] = {kind: [] for kind in kinds}
    for concept in (key for key in found if key.startswith("grid ")):
        one = found[concept]
        best = best_of(one)["presence"]
        for kind, make in kinds.items():
            for seed in range(10):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    study = optuna.create_study(direction="maximize", sampler=make(seed))
                    study.optimize(partial(replayed, one=one), n_trials=12)
                try:
                    regrets[kind].append(best - study.best_value)
                except ValueError:
                    regrets[kind].append(best - one["baseline"])
    return regrets


def replayed(trial: optuna.Trial, one: dict[str, Any]) -> float:
    layers = sorted({cell["layer"] for cell in one["cells"]})
    layer = trial.suggest_categorical("layer", layers)
    share = trial.suggest_float("share", 0.05, 1.3)
    cells = [cell for cell in one["cells"] if cell["layer"] == layer]
    shares = [0.0, *(cell["share"] for cell in cells)]
    rise = float(np.interp(share, shares, [0.0, *(cell["delta_ce"] for cell in cells)]))
    if share > 1:
        rise *= share**2
    trial.set_constraint("delta_ce", rise - SETTINGS.ce_budget)
    if rise > SETTINGS.ce_budget:  # as in a real study, where nothing is replied to beyond it
        raise optuna.TrialPruned
    presences = [one["baseline"], *(cell["presence"] for cell in cells)]
    return float(np.interp(share, shares, presences))


DISTRIBUTIONS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "log-normal, σ = 0.25": lambda rng, n: rng.lognormal(-(0.25**2) / 2, 0.25, n),
    "log-normal, σ = 0.5": lambda rng, n: rng.lognormal(-(0.5**2) / 2, 0.5, n),
    "log-normal, σ = 1": lambda rng, n: rng.lognormal(-0.5, 1.0, n),
    "exponential": lambda rng, n: rng.exponential(1.0, n),
    "normal, sd 0.3": lambda rng, n: rng.normal(1.0, 0.3, n),
    "Student's t, 3 degrees, scale 0.3": lambda rng, n: 1 + 0.3 * rng.standard_t(3, n),
    "Pareto, third moment infinite": lambda rng, n: (rng.pareto(3.0, n) + 1) * 2 / 3,
}
SIZES = (8, 16, 32, 64)
REPLICATIONS = 4000


def bound() -> dict[str, list[tuple[float, float]]]:
    """How often the upper bound lies below the truth, and how far above the mean it lies."""
    rates = {}
    for name, draw in DISTRIBUTIONS.items():
        rng = np.random.default_rng(0)
        rows = []
        for n in SIZES:
            uppers = []
            for _ in range(REPLICATIONS):
                counts = rng.integers(8, 33, size=n)
                uppers.append(RatioEstimate(counts * draw(rng, n), counts).upper(0.95))
            rows.append((float(np.mean(np.array(uppers) < 1)), float(np.median(uppers)) - 1))
        rates[name] = rows
    return rates


def survival() -> dict[str, int]:
    """How often each test of survival passes, of REPETITIONS in a row."""
    passed = dict.fromkeys(SURVIVORS, 0)
    tests = Path(__file__).parents[1] / "tests" / "search" / "test_workers.py"
    for _ in range(REPETITIONS):
        for name in SURVIVORS:
            done = subprocess.run(
                [sys.executable, "-m", "pytest", "-q", f"{tests}", "-k", name],
                check=False, capture_output=True, text=True,
            )  # fmt: skip
            passed[name] += done.returncode == 0 and "skipped" not in done.stdout
    return passed


def page(found: dict[str, Any]) -> str:
    grids = {key.removeprefix("grid "): one for key, one in found.items() if key[:5] == "grid "}
    return "\n".join(
        [
            HEADER.format(notes=sentences(grids, "note")),
            regret_table(grids),
            ranking_table(grids),
            sampler_table(found["samplers"]),
            bound_table(found["bound"]),
            gate_table(found["gate"]),
            survival_table(found["survival"]),
        ]
    )


HEADER = f"""# The study, and the gates behind it

Written by `scripts/measure_study.py`; every point is in [study.json](study.json). Model: {MODEL},
budget {SETTINGS.ce_budget:g} nat per token, `--layer {LAYER}`: the study chooses a single block.
{{notes}}
"""


def regret_table(grids: dict[str, Any]) -> str:
    rows, regrets, shares = [], [], []
    for concept, one in grids.items():
        best, shipped = best_of(one), one["shipped"]
        regrets.append(best["presence"] - shipped["presence"])
        shares.append(one["our_tokens"] / one["grid_tokens"])
        rows.append(
            [concept + (" *" if one["refused"] else ""), f"{one['baseline']:.3f}",
             f"{shipped['presence']:.3f}",
             f"{shipped['layer']}", f"{shipped['strength']:.3g}", f"{best['presence']:.3f}",
             f"{best['layer']}", f"{best['strength']:.3g}", f"{regrets[-1]:+.3f}",
             f"{best['standard_error']:.3f}", f"{one['n_trials']}",
             f"{one['our_tokens']:,} of {one['grid_tokens']:,} ({shares[-1]:.0%})"]
        )  # fmt: skip
    rows.append(
        ["mean", "", "", "", "", "", "", "", f"{np.mean(regrets):+.3f}", "", "",
         f"{np.mean(shares):.0%}"]
    )  # fmt: skip
    refused = [
        f"\\* {concept}: {one['refused']}.\n" for concept, one in grids.items() if one["refused"]
    ]
    headings = ["concept", "unsteered", "shipped", "block", "α", "best of grid", "block", "α",
                "shipped below best", "standard error", "trials", "token-forwards"]  # fmt: skip
    blocks = max(len({cell["layer"] for cell in one["cells"]}) for one in grids.values())
    return (
        "## How close to the best\n\nPresence of the shipped strength against the best of a grid "
        f"of {len(GRID_SHARES)} strengths at up to {blocks} blocks, under the same budget, in "
        "replies to the same prompts with the same noise: those of the search, by which the study "
        "chose what ships, so that its presence is flattered, and how far it stays below the best "
        "looks smaller than it is. The grid's best, too, is the largest of many noisy values; the "
        "standard error is that of one of them. Token-forwards are those of "
        "ranking, pilots and study against those of the grid. Where there is a star, the study's "
        "choice is graded here though the verification, on other prompts, would not ship it.\n\n"
        + "\n".join([table(headings, rows), *refused])
    )


def ranking_table(grids: dict[str, Any]) -> str:
    rows = []
    for concept, one in grids.items():
        gains = {rank["layer"]: rank["gain"] for rank in one["ranks"]}
        full = [cell for cell in one["cells"] if np.isclose(cell["share"], GRID_SHARES[-2])]
        presences = [cell["presence"] for cell in full]
        ours = [gains[cell["layer"]] for cell in full]
        alphas = {cell["layer"]: cell["strength"] / cell["share"] for cell in full}
        errors = [
            abs(rank["strength_at_budget"] / alphas[rank["layer"]] - 1)
            for rank in one["ranks"]
            if rank["layer"] in alphas
        ]
        rows.append(
            [concept, f"{spearmanr(ours, presences).statistic:.2f}", f"{len(full)}",
             f"{np.median(errors):.1%}", f"{max(errors):.1%}"]
        )  # fmt: skip
    headings = ["concept", "rank correlation of gain and presence", "blocks",
                "α at the budget: median error", "worst"]  # fmt: skip
    return (
        "## Which block\n\nThe gain that derivatives promise at the budget, against presence "
        f"measured at {GRID_SHARES[-2]:g} of it: 1 if both rank the blocks alike, 0 if the gain "
        "says nothing about presence, -1 if it ranks them the wrong way round. And α at the budget "
        "as derivatives estimate it, against the pilots'.\n\n" + table(headings, rows)
    )


def sampler_table(regrets: dict[str, list[float]]) -> str:
    rows = [
        [kind, f"{np.mean(values):.3f}", f"{np.median(values):.3f}", f"{np.max(values):.3f}"]
        for kind, values in regrets.items()
    ]
    return (
        "## Which sampler\n\nWhere a law fails, the sampler chooses the trials. How far presence "
        "stays below the grid's best after twelve trials that it chose alone, on the recorded "
        "grids, ten seeds each: less is better. As in a study, trials beyond the budget are "
        "pruned; TPE learns from these, GP does not.\n\n"
        + table(["sampler", "mean", "median", "worst"], rows)
    )


def bound_table(rates: dict[str, list[tuple[float, float]]]) -> str:
    rows = [
        [name, *(f"{rate:.1%} (+{width:.0%})" for rate, width in row)]
        for name, row in rates.items()
    ]
    return (
        "## How often the bound breaks\n\nThe 95 % upper bound of ΔCE should lie below the truth "
        "in 5 % of the cases: that is how often a strength just above α at the budget would pass. "
        f"{REPLICATIONS:,} replications for each number of held-out sequences; parentheses say how "
        "far above the mean the bound lies. Replies of real models are like the first row. No "
        "bound can hold for the last: the values that decide its mean are too rare to be drawn.\n\n"
        + table(["per-sequence ΔCE", *(f"n = {n}" for n in SIZES)], rows)
    )


def gate_table(rows: list[tuple[str, bool, str]]) -> str:
    shown = [[name, "opens" if passed else "closed", said] for name, passed, said in rows]
    return "## The gate\n\n`calibrate verify` on joy's artefact.\n\n" + table(
        ["artefact", "", "says"], shown
    )


def survival_table(passed: dict[str, int]) -> str:
    rows = [[name.removeprefix("test_").replace("_", " "), f"{n}"] for name, n in passed.items()]
    return (
        "## What survives\n\nTests of `tests/search/test_workers.py`, passed of "
        f"{REPETITIONS} in a row.\n\n" + table(["test", "passed"], rows)
    )


if __name__ == "__main__":
    main()
