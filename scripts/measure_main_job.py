"""Run the main job as a user would, measure it, and write docs/main-job.md.

    python scripts/measure_main_job.py [--run joy ...] [--against CHECKOUT] [--teaching] [--page]

Five minutes a run on two cores, fifteen for the one with a teacher, whose grading alone --teaching
times; nothing else should run meanwhile. Needs the `test` dependencies: VADER reads the completions
independently of the judges. What is kept in the user cache is removed first. CHECKOUT is this
project at an earlier commit: the first run is made with it as well.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from checkouts import command_of, commit_of
from kept import forget
from markdown_tables import DOCS, table
from records import page_option, read_records, sentences, write_records
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from calibrate import Calibration, load, load_model
from calibrate.common.settings import Settings
from calibrate.engine.cross_entropy import delta_ce
from calibrate.engine.site import Site
from calibrate.engine.unsteered import Corpus, run_unsteered
from calibrate.judging.asked import TEACHER
from calibrate.judging.choice import Lesson
from calibrate.judging.panel import make_judges
from calibrate.judging.teaching import JudgeInputs
from calibrate.models.model import preserving_model_state
from calibrate.models.prompts import encode_prompt
from calibrate.texts.concept import PACKS, read_concept, read_prompts
from calibrate.texts.extraction import concept_vectors
from calibrate.texts.replies import sample_unsteered

TARGET = DOCS / "main-job.json"
PICTURES = DOCS / "main-job"
OWN = "hopeful.jsonl"  # a concept that is not built in: the texts of `optimistic` by another name
JOYFUL = "scripts/joyful_prompts.txt"  # plain prompts leave joy less room to fall
JOBS = {
    "joy": ["--concept", "joy"],
    "joy again": ["--concept", "joy"],
    "optimistic": ["--concept", "optimistic"],
    "less joy": ["--concept", "joy", "--goal", "decrease", "--prompts", JOYFUL],
    "hopeful": ["--concept", OWN, "--teacher", TEACHER, "--layer", "search"],
}
EARLIER = "joy, earlier"
BATCH_TOKENS = (128, 4096)
SHOWN = 6


@click.command()
@click.option("--run", "names", multiple=True, type=click.Choice(list(JOBS)), default=list(JOBS))
@click.option("--teaching", is_flag=True, help="Only time how a teacher teaches the probe.")
@click.option("--against", type=click.Path(exists=True, file_okay=False, path_type=Path))
@page_option
def main(names: tuple[str, ...], teaching: bool, against: Path | None, only_page: bool) -> None:
    if teaching:
        write_records(TARGET, read_records(TARGET) | {"teaching": time_teaching()})
    elif not only_page:
        measure(names, against)
    (DOCS / "main-job.md").write_text(page(read_records(TARGET)), encoding="utf-8")


def measure(names: Sequence[str], against: Path | None) -> None:
    """Run each by its name; the first, and the earlier commit's, start with an empty cache."""
    found: dict[str, Any] = read_records(TARGET)
    runs = found.setdefault("runs", {})
    with tempfile.TemporaryDirectory() as scratch:
        if against is not None:
            runs[EARLIER] = run(JOBS["joy"], Path(scratch) / "earlier", against)
            found["earlier"] = commit_of(against)
            write_records(TARGET, found)
        forget()
        for name in names:
            out = Path(scratch) / name.replace(" ", "-")
            runs[name] = run(JOBS[name], out, Path.cwd())
            if name == "joy" and runs[name]["verdict"] == "ships":
                found["again"] = remeasured(Calibration.load(out))
                keep_pictures(out)
            write_records(TARGET, found)


def machine() -> str:
    """What runs this."""
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )


def time_teaching() -> dict[str, Any]:
    """What it takes until a probe has learned from a teacher, with nothing in the cache."""
    forget()
    settings, concept = Settings(), read_concept("optimistic")
    loaded, splits = load_model("smollm2"), concept.split()
    teacher = Lesson("taught", f"question:{TEACHER}")
    with preserving_model_state(loaded):
        replies = sample_unsteered(loaded, read_prompts(), settings)
        vectors = concept_vectors(loaded, splits["vector"], settings)
        site = Site((vectors[loaded.num_layers // 2],))
        inputs = JudgeInputs(OWN.removesuffix(".jsonl"), splits, replies, site)
        started = time.perf_counter()
        panel = make_judges(loaded, inputs, "auto", None, teacher, settings)
        seconds = time.perf_counter() - started
    assert panel.probe is not None
    return {
        "machine": machine(),
        "seconds": seconds,
        "replies": panel.probe.learned.n_texts["teacher"],
    }


def run(options: list[str], out: Path, checkout: Path) -> dict[str, Any]:
    """One run of the command: how it was called, what it took, what it found."""
    if checkout != Path.cwd():
        forget()
    command = ["calibrate", "--model", "smollm2", *options]
    print(" ".join(command), flush=True)
    files = {OWN: out.parent / OWN, JOYFUL: DOCS.parent / JOYFUL}
    shutil.copy(str(PACKS / "optimistic.jsonl"), files[OWN])
    given = [str(files.get(option, option)) for option in options]
    start = time.perf_counter()
    ended = subprocess.run(
        command_of(["--model", "smollm2", *given, "--seed", "0", "--out", str(out), "--quiet"]),
        cwd=checkout,
        stderr=subprocess.PIPE,
        text=True,
    )
    seconds = time.perf_counter() - start
    found = {"machine": machine(), "command": " ".join(command), "seconds": seconds}
    if ended.returncode == 0:
        config = load(out)
        found |= {"verdict": "ships", "strength": repr(config.intervention.strength)}
        found["cost"] = {
            name: [one.token_forwards, one.seconds] for name, one in config.cost.items()
        }
        return found | (shipped(Calibration.load(out)) if checkout == Path.cwd() else {})
    print(ended.stderr, file=sys.stderr)
    if ended.returncode != 3:  # not refused, but broken
        ended.check_returncode()
    reasons = [line for line in ended.stderr.splitlines() if line.startswith("calibrate: ")]
    return found | {"verdict": "refused", "reason": reasons[-1].removeprefix("calibrate: ")}


def shipped(result: Calibration) -> dict[str, Any]:
    config = result.config
    presence, controls = config.measured.presence, config.measured.controls
    audit, probe = config.measured.audit, result.probe
    assert probe is not None  # the judge of every job
    assert controls is not None
    return {
        "where": config.where,
        "delta_ce": [*estimate(config.measured.delta_ce), config.measured.delta_ce.upper],
        "presence": estimate(presence),
        "baseline": [
            presence.baseline_interval[0],
            presence.baseline,
            presence.baseline_interval[1],
        ],
        "change": estimate(presence.change),
        "second": None if audit is None else [audit.opinion, *estimate(audit.change)],
        "random_vector": estimate(controls.random_vector),
        "prompt_only": estimate(controls.prompt_only),
        "probe": {
            "concept": probe.concept,
            "layers": list(probe.layers),
            "source": probe.learned.source,
            "quality": [
                *estimate(probe.learned.quality.auc),
                *estimate(probe.learned.quality.brier),
                *estimate(probe.learned.quality.calibration_error),
            ],
            "n_texts": probe.learned.n_texts,
        },
        "vader": vader(result),
        "replies": [
            {"prompt": one.prompt, "unsteered": one.unsteered, "steered": one.steered}
            for one in result.evidence.first_completions[:SHOWN]
        ],
    }


def estimate(measured: Any) -> list[float]:
    return [measured.low, measured.value, measured.high]


def vader(result: Calibration) -> list[float]:
    """Mean sentiment before and after, the change, its standard error, and how many replies."""
    analyser = SentimentIntensityAnalyzer()
    plain, steered = (
        np.array([analyser.polarity_scores(getattr(one, which))["compound"] for one in completions])
        for which in ("unsteered", "steered")
        for completions in [result.evidence.first_completions]
    )
    change = steered - plain
    error = change.std(ddof=1) / np.sqrt(len(change))
    return [*map(float, (plain.mean(), steered.mean(), change.mean(), error)), len(change)]


def remeasured(result: Calibration) -> list[float]:
    """ΔCE of the kept replies, computed in small and in large batches."""
    return [delta_ce_in(result, batch_tokens) for batch_tokens in BATCH_TOKENS]


def delta_ce_in(result: Calibration, batch_tokens: int) -> float:
    loaded = load_model("smollm2", batch_tokens=batch_tokens)
    sequences = tuple(
        encode_prompt(loaded, one.prompt).followed_by(
            loaded.tokenizer(one.unsteered, add_special_tokens=False)["input_ids"]
        )
        for one in result.evidence.first_completions
        if one.unsteered
    )
    config = result.config
    with preserving_model_state(loaded):
        unsteered = run_unsteered(loaded, Corpus(sequences, self_sampled=True), [config.site.first])
        return delta_ce(loaded, unsteered, config.site, config.intervention.strength).value


def keep_pictures(out: Path) -> None:
    PICTURES.mkdir(exist_ok=True)
    for picture in out.glob("*.png"):
        shutil.copy(picture, PICTURES)


def page(found: dict[str, Any]) -> str:
    runs: dict[str, Any] = found["runs"]
    ships = {name: one for name, one in runs.items() if one["verdict"] == "ships"}
    today = {name: one for name, one in ships.items() if name != EARLIER}
    parts = [
        HEADER.format(machines=sentences({**runs, "teaching": found["teaching"]}, "machine")),
        results(today),
        *refusals(runs),
        "![ΔCE against strength](main-job/delta_ce.png)\n\n![presence](main-job/presence.png)\n",
        independent_reading(today),
        repeatability(ships, found["again"]),
        probes_table(today),
        cost(ships, found.get("earlier")),
        taught(found["teaching"]),
        examples(today["joy"]),
    ]
    return "\n".join(part for part in parts if part)


HEADER = """# The main job on a real model

Written by `scripts/measure_main_job.py`. Model: the embedded `smollm2` (SmolLM2-135M-Instruct,
float32); budget 0.1 nat per token, and default settings but for what a command names.
{machines}

ΔCE and presence are measured on prompts nothing was tuned on; brackets are 95 % intervals, and
"bound" is the one-sided 95 % bound that has to keep to the budget. The first run starts with an
empty cache; what follows finds there what it can use of the earlier ones: unsteered replies,
vectors, probes. `hopeful.jsonl` holds the 244 pairs of `optimistic` by another name, and so without
its graded replies: a teacher grades the model's replies, and the probe learns from these grades. It
shows the teacher's way, not how a dozen texts of one's own fare.
"""


def results(runs: dict[str, Any]) -> str:
    rows = [
        [
            f"`{one['command']}`",
            f"{float(one['strength']):+.4f}",
            one["where"],
            interval(one["delta_ce"], 4),
            f"{one['delta_ce'][3]:.4f}",
            interval(one["baseline"]),
            interval(one["presence"]),
            interval(one["change"]),
            second(one["second"]),
            interval(one["random_vector"]),
            interval(one["prompt_only"]),
            f"{one['seconds'] / 60:.1f}",
        ]
        for one in runs.values()
    ]
    headings = ["command", "α", "steered", "ΔCE", "bound", "presence unsteered", "presence steered",
                "change", "second judge", "random vector", "asked in words", "minutes"]  # fmt: skip
    return "## Results\n\n" + table(headings, rows)


def interval(low_value_high: Sequence[float], digits: int = 3) -> str:
    low, value, high = low_value_high[:3]
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def second(audit: list[Any] | None) -> str:
    return "-" if audit is None else f"{audit[0]}: {interval(audit[1:])}"


def refusals(runs: dict[str, Any]) -> list[str]:
    refused = [one for one in runs.values() if one["verdict"] == "refused"]
    if not refused:
        return []
    lines = [
        f"- `{one['command']}`, after {one['seconds'] / 60:.1f} minutes: {one['reason']}"
        for one in refused
    ]
    return ["Refused, with exit status 3:\n\n" + "\n".join(lines) + "\n"]


def independent_reading(runs: dict[str, Any]) -> str:
    rows = []
    for one in runs.values():
        plain, steered, change, error, replies = one["vader"]
        rows.append([f"`{one['command']}`", f"{plain:+.3f}", f"{steered:+.3f}",
                     f"{change:+.3f} ± {error:.3f}", str(replies)])  # fmt: skip
    headings = ["command", "unsteered", "steered", "change ± standard error", "replies"]
    return (
        "## An independent reading\n\nMean VADER sentiment, in [-1, 1], of the completions; "
        "nothing in the calibration uses it.\n\n" + table(headings, rows)
    )


def repeatability(runs: dict[str, Any], rises: Sequence[float]) -> str:
    strengths = [runs[name]["strength"] for name in ("joy", "joy again")]
    return (
        "## The same again\n\n"
        f"Same seed, same machine, two runs, the second with what the first kept: "
        f"α = {strengths[0]} and {strengths[1]}. "
        f"Mean ΔCE of the verified replies re-measured in batches of {BATCH_TOKENS[0]} and "
        f"{BATCH_TOKENS[1]} tokens: {rises[0]:.8f} and {rises[1]:.8f}, "
        f"{abs(rises[0] - rises[1]):.1e} apart.\n"
    )


def probes_table(runs: dict[str, Any]) -> str:
    rows = []
    for one in (one for name, one in runs.items() if name != "joy again"):
        probe = one["probe"]
        quality = [interval(probe["quality"][at : at + 3]) for at in (0, 3, 6)]
        texts = ", ".join(f"{kind}: {count}" for kind, count in probe["n_texts"].items())
        layers = ", ".join(map(str, probe["layers"]))
        rows.append([probe["concept"], layers, probe["source"], *quality, texts])
    headings = ["concept", "blocks read", "learned from", "AUC", "Brier", "calibration error",
                "texts"]  # fmt: skip
    return "## The probes\n\n" + table(headings, rows)


def cost(runs: dict[str, Any], earlier: str | None) -> str:
    stages = list(dict.fromkeys(stage for one in runs.values() for stage in one["cost"]))
    rows = [[stage, *(spent(one["cost"].get(stage)) for one in runs.values())] for stage in stages]
    totals = (np.sum(list(one["cost"].values()), axis=0) for one in runs.values())
    rows.append(["together", *map(spent, totals)])
    note = f" {EARLIER_TOLD.format(commit=earlier)}\n" if EARLIER in runs else "\n"
    return f"## Cost\n\nToken-forwards and seconds.{note}\n" + table(["stage", *runs], rows)


EARLIER_TOLD = (
    f"`{EARLIER}` is the first run with commit {{commit}}, before a band of blocks was the "
    "default: its verification asked no questions, and tested fewer strengths at length."
)


def spent(token_forwards_seconds: Sequence[float] | None) -> str:
    if token_forwards_seconds is None:
        return "-"
    return f"{token_forwards_seconds[0]:,.0f} in {token_forwards_seconds[1]:.0f} s"


def taught(once: dict[str, Any]) -> str:
    return (
        f"A concept's first time with a teacher: {once['replies']} replies of the model and texts "
        f"were sampled, graded by `{TEACHER}` and learned from in {once['seconds'] / 60:.1f} "
        "minutes, with nothing in the cache. The final replies, which the teacher reads as well, "
        "come on top (`hopeful`, verification; some of its verdicts in `judges` were in the "
        "cache).\n"
    )


def examples(one: dict[str, Any]) -> str:
    rows = [
        [
            reply[key].replace("\n", " ").replace("|", "\\|")
            for key in ("prompt", "unsteered", "steered")
        ]
        for reply in one["replies"]
    ]
    return (
        f"## Replies\n\nThe first {SHOWN} verification prompts under `{one['command']}`, "
        "unpicked.\n\n" + table(["prompt", "unsteered", "steered"], rows)
    )


if __name__ == "__main__":
    main()
