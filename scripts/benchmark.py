"""Name the strength that spends a budget in four ways, and write docs/benchmark.md.

    python scripts/benchmark.py [--cell "joy 8-26"] [--page]

On the same model, site, corpus and budget, one after the other in one process: (a) a grid of 129
strengths; (b) regula falsi in log-log; (b′) the same with passes that run only the blocks after the
first steered one; (c) Optuna's TPE; (d) this project's pilot. Grid, TPE and (b) run the whole model
for every strength, as a tool does that knows nothing of blocks; such passes are alike, so that a
few are timed, and what the others would find is measured in cheaper ways. Five minutes a cell; what
was measured is kept, and not measured again.
"""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click
import matplotlib.pyplot as plt
import numpy as np
import optuna
from markdown_tables import DOCS, table
from records import page_option, read_records, write_records
from scipy.interpolate import PchipInterpolator
from scipy.optimize import brentq

from calibrate import load_model
from calibrate.common.blocks import check_blocks
from calibrate.common.settings import Sampling, Settings
from calibrate.engine.cross_entropy import delta_ce
from calibrate.engine.generation import sample
from calibrate.engine.site import Site
from calibrate.engine.unsteered import Corpus, UnsteeredRun, run_unsteered
from calibrate.laws.pilot import run_pilot
from calibrate.models.model import LoadedModel, preserving_model_state
from calibrate.models.prompts import encode_prompt
from calibrate.models.tokens import TokenSequence
from calibrate.search.objective import FIRST_PART, rung_sizes
from calibrate.texts.concept import read_concept, read_prompts
from calibrate.texts.concept_tokens import concept_token_ids
from calibrate.texts.extraction import concept_vectors

TARGET = DOCS / "benchmark.json"
MODEL = "smollm2"
CELLS = ("joy 8-26", "evil 8-26", "impolite 8-26", "joy 15", "evil 20")  # concept and blocks
SIZES = (16, 32, 64, 128)  # sequences, for the growth of the cost
N_SEQUENCES = 64
SAMPLING = Sampling(max_new_tokens=24)
SETTINGS = Settings()
GRID = 129  # strengths, of either sign, up to ‖αv‖ = ‖h‖
TIMED = 3  # full passes that are timed; all others take as long
TOLERANCE = 0.01  # |ΔCE / budget - 1| at which TPE stops: half of it in α
REACH = (0.005, 1.0)  # ‖αv‖ / ‖h‖ between which regula falsi and TPE look
MAX_STRENGTHS = 60
CURVE = 21  # strengths between which the curve that TPE is run on is interpolated
CLOSE = (0.9, 0.97, 1.0, 1.03, 1.1)  # and these times the truth
SEEDS = 5  # of TPE, of which the middle one counts
WAYS = {
    "grid": "(a) grid of 129, full passes",
    "falsi": "(b) regula falsi in log-log, full passes",
    "suffix": "(b′) regula falsi, suffix-only passes",
    "tpe": "(c) Optuna TPE, full passes",
    "ours": "(d) this project",
}


@dataclass(frozen=True)
class Spent:
    """tokens: token-forwards. memory: the peak, in bytes above those at the start."""

    tokens: int
    seconds: float
    memory: int


@dataclass(frozen=True)
class Found:
    """What one way named, and what it took, the unsteered pass included."""

    strength: float
    passes: int
    tokens: int
    seconds: float
    memory: int


@dataclass(frozen=True, eq=False)
class Task:
    """A site, the corpus, and the model to find a strength on."""

    loaded: LoadedModel
    sequences: tuple[TokenSequence, ...]
    site: Site
    concept_tokens: tuple[int, ...]

    def run(self, lend_prefix: bool = True) -> UnsteeredRun:
        """The unsteered pass, with what suffix-only passes need."""
        parts = rung_sizes(len(self.sequences), FIRST_PART)
        corpus = Corpus(self.sequences, self_sampled=True)
        return run_unsteered(self.loaded, corpus, [self.site.first], parts, lend_prefix)

    def rise(self, run: UnsteeredRun, strength: float) -> float:
        return delta_ce(self.loaded, run, self.site, strength).value

    @property
    def unit(self) -> float:
        """The strength at which ‖αv‖ = ‖h‖."""
        return 1 / self.site.relative(1.0)


@click.command()
@click.option("--cell", "cells", multiple=True, default=CELLS, show_default=True)
@page_option
def main(cells: tuple[str, ...], only_page: bool) -> None:
    if not only_page:
        measure_all(cells)
    found = read_records(TARGET)
    (DOCS / "benchmark").mkdir(exist_ok=True)
    draw_ways(found, DOCS / "benchmark" / "ways.png")
    draw_growth(found["growth"], DOCS / "benchmark" / "growth.png")
    (DOCS / "benchmark.md").write_text(page(found), encoding="utf-8")


def measure_all(cells: tuple[str, ...]) -> None:
    """Measure what is not kept yet."""
    found: dict[str, Any] = read_records(TARGET)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    loaded = load_model(MODEL)
    with preserving_model_state(loaded):
        sequences = replies(loaded, max(SIZES))
        run_unsteered(loaded, Corpus(sequences, self_sampled=True), [0])  # warms up
        for cell in cells:
            if cell not in found:
                found[cell] = measure(task_of(loaded, sequences[:N_SEQUENCES], cell))
                write_records(TARGET, found)
                click.echo(cell)
        if "growth" not in found:
            found["growth"] = growth(task_of(loaded, sequences, cells[0]))
    write_records(TARGET, found)


def task_of(loaded: LoadedModel, sequences: tuple[TokenSequence, ...], cell: str) -> Task:
    concept, blocks = cell.split(" ", 1)
    texts = read_concept(concept).split()["vector"]
    vectors = concept_vectors(loaded, texts, SETTINGS)
    target, other = ([text.text for text in side] for side in (texts.positives, texts.negatives))
    layers = np.atleast_1d(check_blocks("--cell must end in blocks, such as 8-26", blocks))
    site = Site(tuple(vectors[layer] for layer in layers))
    return Task(loaded, sequences, site, concept_token_ids(loaded, target, other, []))


def replies(loaded: LoadedModel, n: int) -> tuple[TokenSequence, ...]:
    prompts = [encode_prompt(loaded, text) for text in read_prompts()[:n]]
    drawn = [one.sequence for one in sample(loaded, prompts, SAMPLING, 0)]
    return tuple(one for one in drawn if one.n_scored)


def measure(task: Task) -> dict[str, Any]:
    (named, passes), cost = spent(task, lambda: ours(task))
    kept = task.run()
    rise_at = partial(task.rise, kept)
    truth = brentq(
        lambda strength: rise_at(strength) - SETTINGS.ce_budget,
        0.8 * named, 1.25 * named, xtol=1e-4 * named,
    )  # fmt: skip
    as_near = max(abs(rise_at(named) / SETTINGS.ce_budget - 1), 1e-3)
    curve = interpolated(rise_at, task.unit, truth)
    tried = sorted(
        (tpe(curve, task.unit, seed) for seed in range(SEEDS)),
        key=lambda one: (one[1], abs(one[0] / truth - 1)),
    )
    found = {
        "grid": grid(rise_at, task.unit),
        "falsi": falsi(rise_at, task.unit, as_near),
        "tpe": tried[SEEDS // 2],
    }
    suffix, suffix_cost = spent(task, partial(suffix_falsi, task, as_near))
    unsteered, each = full_passes(task)
    ways = {
        name: Found(
            strength, n, unsteered.tokens + n * each.tokens,
            unsteered.seconds + n * each.seconds, each.memory,
        )
        for name, (strength, n) in found.items()
    }  # fmt: skip
    for name, (strength, n), took in (
        ("suffix", suffix, suffix_cost),
        ("ours", (named, passes), cost),
    ):
        ways[name] = Found(strength, n, took.tokens, took.seconds, took.memory)
    return {
        "truth": truth,
        "corpus_tokens": sum(len(one.ids) for one in task.sequences),
        "ways": {name: asdict(one) for name, one in ways.items()},
    }


Result = TypeVar("Result")


def spent(task: Task, work: Callable[[], Result]) -> tuple[Result, Spent]:
    """What some work finds, and what it takes."""
    meter = task.loaded.meter
    tokens, before, started = meter.tokens, reset_peak(), time.perf_counter()
    result = work()
    seconds = time.perf_counter() - started
    return result, Spent(meter.tokens - tokens, seconds, memory("VmHWM") - before)


def full_passes(task: Task) -> tuple[Spent, Spent]:
    """What an unsteered and a steered pass take that run every block for every token."""
    kept, unsteered = spent(task, lambda: task.run(lend_prefix=False))
    batches = tuple(replace(one, residuals={}) for one in kept.batches)
    whole, strength = replace(kept, batches=batches), REACH[0] * task.unit
    timed = [spent(task, lambda: task.rise(whole, strength))[1] for _ in range(TIMED)]
    return unsteered, sorted(timed, key=lambda one: one.seconds)[TIMED // 2]


def ours(task: Task) -> tuple[float, int]:
    pilot = run_pilot(task.loaded, task.run(), task.site, task.concept_tokens, SETTINGS)
    return pilot.strength_at_budget.value, len(pilot.points)


def suffix_falsi(task: Task, tolerance: float) -> tuple[float, int]:
    """Regula falsi with passes from the first steered block on, the unsteered pass included."""
    rise_at = partial(task.rise, task.run(lend_prefix=False))
    return falsi(rise_at, task.unit, tolerance)


def falsi(rise_at: Callable[[float], float], unit: float, tolerance: float) -> tuple[float, int]:
    """A bracket by doubling from the middle of REACH, then regula falsi in log-log (Illinois)."""
    seen: list[tuple[float, float]] = []  # log α, log ΔCE / budget

    def off(at: float) -> float:
        seen.append((at, float(np.log(rise_at(float(np.exp(at))) / SETTINGS.ce_budget))))
        return seen[-1][1]

    def done() -> bool:
        return abs(np.expm1(seen[-1][1])) <= tolerance or len(seen) == MAX_STRENGTHS

    here = float(np.log(np.sqrt(REACH[0] * REACH[1]) * unit))
    value = beyond = off(here)
    there = here
    while value * beyond > 0 and not done():
        here, value = there, beyond
        there = here - float(np.sign(value) * np.log(2))
        beyond = off(there)
    while not done():
        new = (here * beyond - there * value) / (beyond - value)
        middle = off(new)
        if middle * beyond < 0:
            here, value = there, beyond
        else:
            value /= 2  # the end that stays counts for half
        there, beyond = new, middle
    return float(np.exp(seen[-1][0])), len(seen)


def interpolated(
    rise_at: Callable[[float], float], unit: float, truth: float
) -> Callable[[float], float]:
    """ΔCE as a function of strength within REACH, from CURVE passes and some close to the truth."""
    strengths = np.geomspace(REACH[0] * unit, REACH[1] * unit, CURVE)
    strengths = np.sort(np.concatenate([strengths, truth * np.array(CLOSE)]))
    rises = [rise_at(float(strength)) for strength in strengths]
    curve = PchipInterpolator(np.log(strengths), np.log(rises))
    return lambda strength: float(np.exp(curve(np.log(strength))))


def tpe(rise_at: Callable[[float], float], unit: float, seed: int) -> tuple[float, int]:
    """As many trials as it takes to come within TOLERANCE of the budget."""
    low, high = (share * unit for share in REACH)

    def off(trial: optuna.Trial) -> float:
        strength = trial.suggest_float("strength", low, high, log=True)
        return abs(rise_at(strength) / SETTINGS.ce_budget - 1)

    def enough(study: optuna.Study, _trial: Any) -> None:
        if study.best_value <= TOLERANCE:
            study.stop()

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    study.optimize(off, n_trials=MAX_STRENGTHS, callbacks=[enough])
    return float(study.best_params["strength"]), len(study.trials)


def grid(rise_at: Callable[[float], float], unit: float) -> tuple[float, int]:
    """Where the curve between the strengths of the grid crosses the budget."""
    strengths = np.linspace(-unit, unit, GRID)
    below = (0.0, 0.0)
    for strength in map(float, strengths[GRID // 2 + 1 :]):
        rise = rise_at(strength)
        if rise > SETTINGS.ce_budget:
            ends = (below[1], rise), (below[0], strength)
            return float(np.interp(SETTINGS.ce_budget, *ends)), GRID
        below = strength, rise
    return below[0], GRID


def growth(task: Task) -> list[dict[str, float]]:
    """Cost of the pilot by the size of the corpus."""
    rows = []
    for size in SIZES:
        part = replace(task, sequences=task.sequences[:size])
        _, found = spent(part, partial(ours, part))
        tokens = sum(len(one.ids) for one in part.sequences)
        rows.append({"corpus_tokens": tokens, "tokens": found.tokens, "seconds": found.seconds})
    return rows


def reset_peak() -> int:
    """Begin a new peak of resident memory, and return where it begins, in bytes.

    What the C library has kept of freed memory goes back first: work would hide in it.
    """
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def memory(kind: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{kind}:"))


def page(found: dict[str, Any]) -> str:
    cells = {key: one for key, one in found.items() if key != "growth"}
    bands = {key: one for key, one in cells.items() if "-" in key}
    blocks = {key: one for key, one in cells.items() if key not in bands}
    return "\n".join([
        HEADER,
        EXPLAINED,
        *(ways_table(kind, some) for kind, some in (("band", bands), ("block", blocks)) if some),
        "![The five ways](benchmark/ways.png)\n",
        cell_table(cells),
        growth_table(found["growth"]),
    ])  # fmt: skip


HEADER = f"""# What a strength costs

Written by `scripts/benchmark.py`; every point is in [benchmark.json](benchmark.json). Model:
{MODEL}; corpus: own replies of {SAMPLING.max_new_tokens} tokens to {N_SEQUENCES} prompts; budget
{SETTINGS.ce_budget:g} nat per token. Five ways to the strength that spends it, in one process.
The truth is found by bisection. Regula falsi begins in the middle of {REACH[0]:g} to
{REACH[1]:g} of the residual norm, doubles or halves the strength until the budget lies in between,
and stops as near to it as this project came; TPE looks between the same ends, and stops once ΔCE is
within {TOLERANCE:.0%} of the budget, which is half of that in α, or after {MAX_STRENGTHS} trials;
of {SEEDS} seeds the middle one counts. Full passes all cost the same: {TIMED} are timed, and the
median is multiplied by their number. (b′) and (d) are timed as they run. A site is a block, or a
band of blocks steered with one strength.
"""


EXPLAINED = """## Five ways

Ratios are taken within a cell. Full passes include the unsteered one, padding, and, for this
project, the derivatives and the pass that tests the law. What (d) saves over (b) has three parts:
passes that run only the blocks after the first steered one, a chat template that runs once for all
replies, and fewer strengths, thanks to the law. (b′) has only the first. A band's passes begin at
its first block, so that it saves less, and its pilot took two strengths.
"""


def ratio(cells: list[dict[str, Any]], name: str, what: str) -> float:
    return float(np.median([one["ways"][name][what] / one["ways"]["ours"][what] for one in cells]))


def errors(cells: list[dict[str, Any]], name: str) -> list[float]:
    return [abs(one["ways"][name]["strength"] / one["truth"] - 1) for one in cells]


def ways_table(kind: str, found: dict[str, Any]) -> str:
    rows, cells = [], list(found.values())
    for name, title in ways_of(cells[0]).items():
        ones = [one["ways"][name] for one in cells]
        full = [one["ways"][name]["tokens"] / one["corpus_tokens"] for one in cells]
        off = errors(cells, name)
        rows.append(
            [title, f"{np.median(off):.2%}", f"{max(off):.2%}",
             f"{np.median([one['passes'] for one in ones]):g}", f"{np.median(full):.1f}",
             f"{ratio(cells, name, 'tokens'):.1f}", f"{ratio(cells, name, 'seconds'):.1f}",
             f"{np.median([one['memory'] for one in ones]) / 2**20:.0f} MiB"]
        )  # fmt: skip
    headings = [
        "way", "median error of α", "worst", "strengths", "full passes of the corpus",
        "token-forwards, times ours", "seconds, times ours", "memory above the model",
    ]  # fmt: skip
    return f"### A {kind}: medians over {len(cells)} concepts or blocks\n\n{table(headings, rows)}"


def ways_of(cell: dict[str, Any]) -> dict[str, str]:
    """The ways that were measured there, by name; (b′) came later than the cells of a block."""
    return {name: title for name, title in WAYS.items() if name in cell["ways"]}


def cell_table(found: dict[str, Any]) -> str:
    rows = []
    for key, one in found.items():
        for name, title in ways_of(one).items():
            way = one["ways"][name]
            rows.append(
                [key, title, f"{way['strength']:.4g}", f"{one['truth']:.4g}",
                 f"{way['passes']}", f"{way['tokens']:,}", f"{way['seconds']:.1f}"]
            )  # fmt: skip
    headings = ["cell", "way", "α", "truth", "strengths", "token-forwards", "seconds"]
    return "## Every cell\n\n" + table(headings, rows)


def growth_table(rows: list[dict[str, float]]) -> str:
    body = [
        [f"{one['corpus_tokens']:,.0f}", f"{one['tokens']:,.0f}",
         f"{one['tokens'] / one['corpus_tokens']:.2f}", f"{one['seconds']:.1f}"]
        for one in rows
    ]  # fmt: skip
    headings = ["corpus tokens", "token-forwards", "per corpus token", "seconds"]
    return (
        "## What it grows with\n\nThe pilot costs in proportion to the corpus, less on large ones, "
        "whose derivatives are taken on a part. Budgets and strengths asked for afterwards are "
        "read off the laws without a further pass: `config.laws.cross_entropy.law` has "
        "`predict(strengths)` and `invert(budget)`, which hold up to about the budget that it was "
        "fitted at, and [less well beyond]"
        "(reproduction.md#the-papers-laws-and-the-bounded-remainder).\n\n"
        + table(headings, body)
        + "\n![Cost by corpus and by number of strengths](benchmark/growth.png)\n"
    )


def draw_ways(found: dict[str, Any], path: Path) -> None:
    """Error of α against full passes of the corpus, a point a cell."""
    cells = [one for key, one in found.items() if key != "growth"]
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, title in WAYS.items():
        some = [one for one in cells if name in one["ways"]]
        full = [one["ways"][name]["tokens"] / one["corpus_tokens"] for one in some]
        axes.scatter(full, [max(off, 1e-4) for off in errors(some, name)], label=title)
    axes.set(
        xscale="log", yscale="log", xlabel="full passes of the corpus, unsteered one included",
        ylabel="relative error of α",
    )  # fmt: skip
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_growth(rows: list[dict[str, float]], path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    left.plot([one["corpus_tokens"] for one in rows], [one["tokens"] for one in rows], "o-")
    left.set(xlabel="corpus tokens", ylabel="token-forwards", xlim=(0, None), ylim=(0, None))
    asked = np.array([1, 10, 100, 1000])
    last = rows[-1]
    right.plot(asked, np.full(len(asked), last["tokens"]), "o-", label="this project")
    right.plot(asked, (asked + 1) * last["corpus_tokens"], "s--", label="a full pass for each")
    right.set(xscale="log", yscale="log", xlabel="strengths asked for", ylabel="token-forwards")
    right.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
