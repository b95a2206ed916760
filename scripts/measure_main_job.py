"""Run the main job as a user would, measure it, and write docs/main-job.md.

    python scripts/measure_main_job.py [--concept-file FILE.jsonl]

Takes four minutes a run on two cores, and nothing else should run meanwhile. Needs the `test`
dependencies: VADER reads the completions independently of the probe. What is kept in the user cache
is removed first.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from markdown_tables import DOCS, table
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from calibrate import Calibration, load_model
from calibrate.common.estimate import Interval
from calibrate.engine.cross_entropy import delta_ce
from calibrate.engine.unsteered import Corpus, run_unsteered
from calibrate.models.converted import cache_directory
from calibrate.models.model import preserving_model_state
from calibrate.models.prompts import encode_prompt

BATCH_TOKENS = (128, 4096)
JOYFUL = Path("scripts/joyful_prompts.txt")  # plain prompts leave joy no room to fall


@dataclass(frozen=True)
class Run:
    """One finished run of the command: how it was called, what it took, what it found."""

    command: str
    seconds: float
    result: Calibration


@click.command()
@click.option("--concept-file", type=click.Path(exists=True, path_type=Path))
def main(concept_file: Path | None) -> None:
    jobs = [
        ["--concept", "joy"],
        ["--concept", "joy"],
        ["--concept", "depression"],
        # Of a presence of a tenth there is no more to take away than about the default gain.
        ["--concept", "joy", "--goal", "decrease", "--prompts", str(JOYFUL), "--min-gain", "0.02"],
    ]
    if concept_file:
        jobs.append(["--concept", str(concept_file)])
    shutil.rmtree(cache_directory() / "kept", ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        runs = [run(options, Path(scratch) / str(n)) for n, options in enumerate(jobs)]
        pictures = DOCS / "main-job"
        pictures.mkdir(exist_ok=True)
        for picture in (Path(scratch) / "0").glob("*.png"):
            shutil.copy(picture, pictures)
    first, again = runs[0], runs[1]
    parts = [
        HEADER.format(
            cores=os.cpu_count(),
            machine=platform.machine(),
            torch=torch.__version__,
            python=platform.python_version(),
        ),
        results(runs),
        "![ΔCE against strength](main-job/delta_ce.png)\n\n![presence](main-job/presence.png)\n\n"
        "![what each block has to offer](main-job/blocks.png)\n",
        independent_reading(runs),
        repeatability(first, again),
        probes_table(runs),
        cost(runs),
        examples(first),
    ]
    (DOCS / "main-job.md").write_text("\n".join(parts), encoding="utf-8")


HEADER = """# The main job on a real model

Written by `scripts/measure_main_job.py`. Model: the embedded `smollm2` (SmolLM2-135M-Instruct,
float32); default settings, budget 0.1 nat per token; {cores} cores ({machine}), Python {python},
torch {torch}. ΔCE and presence are measured on prompts nothing was tuned on; brackets are 95 %
intervals, and "bound" is the one-sided 95 % bound that has to keep to the budget. The first run
starts with an empty cache; the second finds its unsteered replies, vectors and probe there, the
third its replies; the last, whose prompts call for joy, its vectors.
"""


def run(options: list[str], out: Path) -> Run:
    command = ["calibrate", "--model", "smollm2", *options]
    print(" ".join(command), flush=True)
    start = time.perf_counter()
    subprocess.run(
        [
            sys.executable,
            "-c",
            "from calibrate.cli import main; main()",
            *command[1:],
            "--out",
            str(out),
            "--quiet",
        ],
        check=True,
    )
    return Run(" ".join(command), time.perf_counter() - start, Calibration.load(out))


def interval(low: float, value: float, high: float, digits: int = 3) -> str:
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def of(section: Any, digits: int = 3) -> str:
    return interval(section.low, section.value, section.high, digits)


def results(runs: list[Run]) -> str:
    rows = []
    for one in runs:
        config = one.result.config
        measured, presence = config.measured, config.measured.presence
        rows.append(
            [
                f"`{one.command}`",
                f"{config.intervention.strength:+.4f}",
                str(config.intervention.layer),
                f"{of(measured.delta_ce, 4)}",
                f"{measured.delta_ce.upper:.4f}",
                interval(presence.baseline_interval[0], presence.baseline,
                         presence.baseline_interval[1]),
                of(presence),
                of(measured.controls.random_vector),
                of(measured.controls.prompt_only),
                f"{one.seconds / 60:.1f}",
            ]
        )  # fmt: skip
    headings = ["command", "α", "block", "ΔCE", "bound", "presence unsteered", "presence steered",
                "random vector", "asked in words", "minutes"]  # fmt: skip
    return "## Results\n\n" + table(headings, rows)


def independent_reading(runs: list[Run]) -> str:
    analyser = SentimentIntensityAnalyzer()
    rows = []
    for one in runs:
        completions = one.result.evidence.first_completions
        plain, steered = (
            np.array([analyser.polarity_scores(getattr(c, which))["compound"] for c in completions])
            for which in ("unsteered", "steered")
        )
        change = steered - plain
        rows.append(
            [f"`{one.command}`", f"{plain.mean():+.3f}", f"{steered.mean():+.3f}",
             f"{change.mean():+.3f} ± {change.std(ddof=1) / np.sqrt(len(change)):.3f}",
             str(len(change))]
        )  # fmt: skip
    headings = ["command", "unsteered", "steered", "change ± standard error", "replies"]
    return (
        "## An independent reading\n\nMean VADER sentiment, in [-1, 1], of the completions; "
        "nothing in the calibration uses it.\n\n" + table(headings, rows)
    )


def repeatability(first: Run, again: Run) -> str:
    strengths = [one.result.config.intervention.strength for one in (first, again)]
    rises = [remeasured(first.result, batch_tokens) for batch_tokens in BATCH_TOKENS]
    return (
        "## The same again\n\n"
        f"Same seed, same machine, two runs, the second with what the first kept: "
        f"α = {strengths[0]!r} and {strengths[1]!r}. "
        f"Mean ΔCE of the verified replies re-measured in batches of {BATCH_TOKENS[0]} and "
        f"{BATCH_TOKENS[1]} tokens: {rises[0]:.8f} and {rises[1]:.8f}, "
        f"{abs(rises[0] - rises[1]):.1e} apart.\n"
    )


def remeasured(result: Calibration, batch_tokens: int) -> float:
    loaded = load_model("smollm2", batch_tokens=batch_tokens)
    sequences = tuple(
        encode_prompt(loaded, one.prompt).followed_by(
            loaded.tokenizer(one.unsteered, add_special_tokens=False)["input_ids"]
        )
        for one in result.evidence.first_completions
        if one.unsteered
    )
    done = result.config.intervention
    with preserving_model_state(loaded):
        unsteered = run_unsteered(loaded, Corpus(sequences, self_sampled=True), [done.layer])
        vector = result.config.steering_vector.values
        return delta_ce(loaded, unsteered, vector, done.layer, done.strength).value


def probes_table(runs: list[Run]) -> str:
    rows = []
    for one in runs[1:]:
        learned = one.result.probe.learned
        quality = learned.quality
        rows.append(
            [one.result.probe.concept, ", ".join(map(str, one.result.probe.layers)),
             learned.source, within(quality.auc), within(quality.brier),
             within(quality.calibration_error),
             json.dumps(learned.n_texts).strip("{}").replace('"', "")]
        )  # fmt: skip
    headings = ["concept", "blocks read", "learned from", "AUC", "Brier", "calibration error",
                "texts"]  # fmt: skip
    return "## The probes\n\n" + table(headings, rows)


def within(measured: Interval) -> str:
    return f"{measured.value:.3f} ({measured.low:.3f} to {measured.high:.3f})"


def cost(runs: list[Run]) -> str:
    stages = list(runs[0].result.config.cost)
    rows = []
    for stage in stages:
        spent = [one.result.config.cost[stage] for one in runs]
        rows.append([stage, *(f"{s.token_forwards:,} in {s.seconds:.0f} s" for s in spent)])
    totals = [one.result.config.cost.values() for one in runs]
    rows.append(
        ["together", *(f"{sum(s.token_forwards for s in total):,} in "
                       f"{sum(s.seconds for s in total):.0f} s" for total in totals)]
    )  # fmt: skip
    headings = ["stage", *(f"`{one.command.removeprefix('calibrate --model ')}`" for one in runs)]
    return "## Cost\n\nToken-forwards and seconds.\n\n" + table(headings, rows)


def examples(one: Run) -> str:
    rows = [
        [text.replace("\n", " ").replace("|", "\\|") for text in (c.prompt, c.unsteered, c.steered)]
        for c in one.result.evidence.first_completions[:6]
    ]
    return (
        f"## Replies\n\nThe first six verification prompts under `{one.command}`, unpicked.\n\n"
        + table(["prompt", "unsteered", "steered"], rows)
    )


if __name__ == "__main__":
    main()
