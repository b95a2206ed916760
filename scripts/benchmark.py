"""Name the strength that spends a budget in four ways, and write docs/benchmark.md.

    python scripts/benchmark.py [--concept joy --layer 10]

On the same model, block, corpus and budget, one after the other in one process: (a) a grid of 129
strengths; (b) regula falsi in log-log; (c) Optuna's TPE; (d) this project's pilot. The first three
run the whole model for every strength, as a tool does that knows nothing of blocks. Half an hour on
two cores, and nothing else should run meanwhile; what was measured is kept, and not measured again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import matplotlib.pyplot as plt
import numpy as np
import optuna
from markdown_tables import DOCS, table
from scipy.optimize import brentq

from calibrate import load_model
from calibrate.completions import sample
from calibrate.concept import read_concept, read_prompts
from calibrate.cross_entropy import Corpus, UnsteeredRun, delta_ce, run_unsteered
from calibrate.model import LoadedModel, borrowed
from calibrate.pilot import concept_token_ids, run_pilot
from calibrate.search import FIRST_PART, rung_sizes
from calibrate.settings import Sampling, Settings
from calibrate.tokens import TokenSequence, encode_prompt
from calibrate.vector import SteeringVector, concept_vectors

MODEL = "smollm2"
CONCEPTS = ("joy", "evil", "impolite")
LAYERS = (10, 15, 20)
SIZES = (16, 32, 64, 128)  # sequences, for the growth of the cost
N_SEQUENCES = 64
SAMPLING = Sampling(max_new_tokens=24)
SETTINGS = Settings()
GRID = 129  # strengths, of either sign, up to ‖αv‖ = ‖h‖
TIMED = 3  # full passes of the grid that are timed; the others take as long
TOLERANCE = 0.01  # |ΔCE / budget - 1| at which a root-finder stops: half of it in α
REACH = (0.005, 1.0)  # ‖αv‖ / ‖h‖ between which TPE looks
MOST_TRIALS = 60
WAYS = {
    "grid": "(a) grid of 129, full passes",
    "falsi": "(b) regula falsi in log-log, full passes",
    "tpe": "(c) Optuna TPE, full passes",
    "ours": "(d) this project",
}


@dataclass(frozen=True)
class Found:
    """What one way named, and what it took.

    tokens: token-forwards, the unsteered pass included. memory: bytes above those at its start.
    """

    strength: float
    passes: int
    tokens: int
    seconds: float
    memory: int


@dataclass(frozen=True, eq=False)
class Task:
    """A block's vector, the corpus, and the model to find a strength on."""

    loaded: LoadedModel
    sequences: tuple[TokenSequence, ...]
    vector: SteeringVector
    concept_tokens: tuple[int, ...]

    def run(self, layers: tuple[int, ...] = ()) -> UnsteeredRun:
        """The unsteered pass; residuals are kept after `layers` alone."""
        parts = rung_sizes(len(self.sequences), FIRST_PART)
        corpus = Corpus(self.sequences, self_sampled=True)
        return run_unsteered(self.loaded, corpus, layers, parts)

    def full(self) -> Callable[[float], float]:
        """ΔCE by strength, each with a pass through the whole model."""
        kept = self.run((self.vector.layer,))
        whole = replace(kept, batches=tuple(replace(one, residuals={}) for one in kept.batches))
        return lambda strength: self.rise(whole, strength)

    def rise(self, run: UnsteeredRun, strength: float) -> float:
        return delta_ce(self.loaded, run, self.vector.values, self.vector.layer, strength).value

    @property
    def unit(self) -> float:
        """The strength at which ‖αv‖ = ‖h‖."""
        return 1 / self.vector.relative(1.0)


@click.command()
@click.option("--concept", "concepts", multiple=True, default=CONCEPTS, show_default=True)
@click.option("--layer", "layers", multiple=True, type=int, default=LAYERS, show_default=True)
def main(concepts: tuple[str, ...], layers: tuple[int, ...]) -> None:
    target = DOCS / "benchmark.json"
    found: dict[str, Any] = json.loads(target.read_text()) if target.exists() else {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    loaded = load_model(MODEL)
    with borrowed(loaded):
        sequences = replies(loaded, max(SIZES))
        for concept in concepts:
            texts = read_concept(concept).split()["vector"]
            vectors = concept_vectors(loaded, texts, SETTINGS)
            tokens = concept_token_ids(
                loaded, [text.text for text in texts.positives],
                [text.text for text in texts.negatives], [],
            )  # fmt: skip
            for layer in layers:
                key = f"{concept} {layer}"
                if key not in found:
                    task = Task(loaded, sequences[:N_SEQUENCES], vectors[layer], tokens)
                    found[key] = measure(task)
                    target.write_text(json.dumps(found, indent=1) + "\n")
                    click.echo(key)
            if "growth" not in found:
                task = Task(loaded, sequences, vectors[layers[0]], tokens)
                found["growth"] = growth(task)
    target.write_text(json.dumps(found, indent=1) + "\n")
    (DOCS / "benchmark").mkdir(exist_ok=True)
    draw_ways(found, DOCS / "benchmark" / "ways.png")
    draw_growth(found["growth"], DOCS / "benchmark" / "growth.png")
    (DOCS / "benchmark.md").write_text(page(found), encoding="utf-8")


def replies(loaded: LoadedModel, n: int) -> tuple[TokenSequence, ...]:
    prompts = [encode_prompt(loaded, text) for text in read_prompts()[:n]]
    drawn = [one.sequence for one in sample(loaded, prompts, SAMPLING, 0)]
    return tuple(one for one in drawn if one.n_scored)


def measure(task: Task) -> dict[str, Any]:
    kept = task.run((task.vector.layer,))
    named = spent(task, ours)
    truth = brentq(
        lambda strength: task.rise(kept, strength) - SETTINGS.ce_budget,
        0.8 * named.strength, 1.25 * named.strength, xtol=1e-4 * named.strength,
    )  # fmt: skip
    ways = {"ours": named, "falsi": spent(task, falsi), "tpe": spent(task, tpe)}
    ways["grid"] = grid(task, kept)
    scored = sum(len(one.ids) for one in task.sequences)
    return {
        "truth": truth,
        "corpus_tokens": scored,
        "ways": {name: asdict(one) for name, one in ways.items()},
    }


def spent(task: Task, way: Callable[[Task], tuple[float, int]]) -> Found:
    """What a way names, and what it takes."""
    meter = task.loaded.meter
    tokens, before, started = meter.tokens, reset_peak(), time.perf_counter()
    strength, passes = way(task)
    seconds = time.perf_counter() - started
    return Found(strength, passes, meter.tokens - tokens, seconds, memory("VmHWM") - before)


def ours(task: Task) -> tuple[float, int]:
    run = task.run((task.vector.layer,))
    pilot = run_pilot(task.loaded, run, task.vector, task.concept_tokens, SETTINGS)
    return pilot.strength_at_budget.value, len(pilot.points)


def falsi(task: Task) -> tuple[float, int]:
    """Secant steps in log-log, kept within the bracket once there is one."""
    rise_at, budget = task.full(), SETTINGS.ce_budget
    seen: list[tuple[float, float]] = []  # log α, log ΔCE / budget
    at = float(np.log(0.1 * task.unit))
    while not seen or abs(np.expm1(seen[-1][1])) > TOLERANCE:
        seen.append((at, float(np.log(rise_at(float(np.exp(at))) / budget))))
        below = max((one for one in seen if one[1] < 0), default=None)
        above = min((one for one in seen if one[1] >= 0), default=None)
        if below and above:
            pair = (below, above)
        else:
            pair = (seen[-1], seen[-2]) if len(seen) > 1 else (seen[-1], None)
        slope = (pair[0][1] - pair[1][1]) / (pair[0][0] - pair[1][0]) if pair[1] else 2.0
        at = pair[0][0] - pair[0][1] / slope
    return float(np.exp(seen[-1][0])), len(seen)


def tpe(task: Task) -> tuple[float, int]:
    """As many trials as it takes to come as close as the root-finder has to."""
    rise_at, budget = task.full(), SETTINGS.ce_budget
    low, high = (share * task.unit for share in REACH)

    def off(trial: optuna.Trial) -> float:
        strength = trial.suggest_float("strength", low, high, log=True)
        return abs(rise_at(strength) / budget - 1)

    def enough(study: optuna.Study, _trial: Any) -> None:
        if study.best_value <= TOLERANCE:
            study.stop()

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=SETTINGS.seed))
    study.optimize(off, n_trials=MOST_TRIALS, callbacks=[enough])
    return float(study.best_params["strength"]), len(study.trials)


def grid(task: Task, kept: UnsteeredRun) -> Found:
    """What the grid says, interpolated; its cost is that of a few passes, and as much for each."""
    strengths = np.linspace(-task.unit, task.unit, GRID)
    below, named = (0.0, 0.0), 0.0
    for strength in map(float, strengths[GRID // 2 + 1 :]):
        rise = task.rise(kept, strength)
        if rise > SETTINGS.ce_budget:
            named = float(np.interp(SETTINGS.ce_budget, (below[1], rise), (below[0], strength)))
            break
        below = strength, rise

    def few(task: Task) -> tuple[float, int]:
        rise_at = task.full()
        for strength in strengths[:TIMED]:
            rise_at(float(strength))
        return named, GRID

    def alone(task: Task) -> tuple[float, int]:
        task.full()
        return named, 0

    timed, unsteered = spent(task, few), spent(task, alone)

    def in_all(few: float, none: float) -> float:
        return none + (few - none) * GRID / TIMED

    return Found(
        named, GRID, round(in_all(timed.tokens, unsteered.tokens)),
        in_all(timed.seconds, unsteered.seconds), timed.memory,
    )  # fmt: skip


def growth(task: Task) -> list[dict[str, float]]:
    """Cost of the pilot by the size of the corpus."""
    rows = []
    for size in SIZES:
        part = replace(task, sequences=task.sequences[:size])
        found = spent(part, ours)
        tokens = sum(len(one.ids) for one in part.sequences)
        rows.append({"corpus_tokens": tokens, "tokens": found.tokens, "seconds": found.seconds})
    return rows


def reset_peak() -> int:
    """Begin a new peak of resident memory, and return where it begins, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def memory(kind: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{kind}:"))


def page(found: dict[str, Any]) -> str:
    cells = [one for key, one in found.items() if key != "growth"]
    return "\n".join([HEADER, ways_table(cells), cell_table(found), growth_table(found["growth"])])


HEADER = f"""# What a strength costs

Written by `scripts/benchmark.py`; every point is in [benchmark.json](benchmark.json). Model:
{MODEL}; corpus: own replies of {SAMPLING.max_new_tokens} tokens to {N_SEQUENCES} prompts; budget
{SETTINGS.ce_budget:g} nat per token. Four ways to the strength that spends it, one after the
other in one process. The truth is found by bisection. Regula falsi and TPE stop once ΔCE is within
{TOLERANCE:.0%} of the budget, which is half of that in α. The seconds and token-forwards of the
grid are those of {TIMED} of its passes, and as much for each of the others; its answer is
interpolated.
"""


def ratio(cells: list[dict[str, Any]], name: str, what: str) -> float:
    return float(np.median([one["ways"][name][what] / one["ways"]["ours"][what] for one in cells]))


def errors(cells: list[dict[str, Any]], name: str) -> list[float]:
    return [abs(one["ways"][name]["strength"] / one["truth"] - 1) for one in cells]


def ways_table(cells: list[dict[str, Any]]) -> str:
    rows = []
    for name, title in WAYS.items():
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
    return (
        f"## Four ways\n\nMedians over {len(cells)} cells (concept × block); ratios are taken "
        "within a cell. Full passes include the unsteered one, padding, and, for this project, the "
        "derivatives and the pass that tests the law.\n\n"
        + table(headings, rows)
        + "\n![The four ways](benchmark/ways.png)\n"
    )


def cell_table(found: dict[str, Any]) -> str:
    rows = []
    for key, one in found.items():
        if key != "growth":
            for name, title in WAYS.items():
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
        "read off the laws and cost nothing: `pilot.law.predict(strengths)`, "
        "`pilot.law.invert(budget)`.\n\n"
        + table(headings, body)
        + "\n![Cost by corpus and by number of strengths](benchmark/growth.png)\n"
    )


def draw_ways(found: dict[str, Any], path: Path) -> None:
    """Error of α against full passes of the corpus, a point a cell."""
    cells = [one for key, one in found.items() if key != "growth"]
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, title in WAYS.items():
        full = [one["ways"][name]["tokens"] / one["corpus_tokens"] for one in cells]
        axes.scatter(full, [max(off, 1e-4) for off in errors(cells, name)], label=title)
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
