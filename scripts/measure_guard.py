"""Put the guard's questions to models at strengths of both signs, and write docs/guard.md.

    python scripts/measure_guard.py [--model gemma3-270m] [--concept joy] [--page]
    python scripts/measure_guard.py --harness

Strengths are what the pilot's law names for the budgets; nothing is verified but the answers. A
quarter of an hour a model on one core; what was measured is kept (docs/guard.json). With --harness
the same questions are a task of lm-evaluation-harness, which has to be installed, and are put to
the models by it as well.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
from default_band import band_of
from markdown_tables import DOCS, table
from records import page_option, read_records, write_records

from calibrate import load_model
from calibrate.common.errors import Infeasible
from calibrate.common.settings import Settings
from calibrate.engine.site import Site
from calibrate.engine.unsteered import run_unsteered
from calibrate.judging.guard import Guarded, answered, guarded
from calibrate.laws.pilot import run_pilot
from calibrate.models.model import LoadedModel, preserving_model_state
from calibrate.search.harm import require_guard
from calibrate.texts.concept import read_prompts
from calibrate.texts.guard import read_guard
from calibrate.texts.harness import harness_guard
from calibrate.texts.replies import build_corpora, sample_unsteered

TARGET = DOCS / "guard.json"
MODELS = ("gemma3-270m",)
HARNESS = "harness"  # the key of what the harness finds
COMPARED = ("smollm2", "gemma3-270m")  # with it
BUDGETS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
TOO_LARGE = 4  # times the strength of the last budget
MOST = 0.05  # as --max-guard-drop
SETTINGS = Settings(max_guard_drop=MOST)


@click.command()
@click.option("--model", "models", multiple=True, default=MODELS)
@click.option("--concept", "concepts", multiple=True, default=("joy",))
@click.option("--harness", is_flag=True, help="Only compare with lm-evaluation-harness.")
@page_option
def main(
    models: tuple[str, ...], concepts: tuple[str, ...], harness: bool, only_page: bool
) -> None:
    if harness:
        compared = {model: by_harness(load_model(model)) for model in COMPARED}
        write_records(TARGET, {**read_records(TARGET), HARNESS: compared})
    for model in () if only_page or harness else models:
        loaded = load_model(model)
        for concept in concepts:
            found, name = read_records(TARGET), f"{concept} on {model}"
            if name not in found:
                write_records(TARGET, {**found, name: measured(loaded, concept)})
    (DOCS / "guard.md").write_text(page(read_records(TARGET)), encoding="utf-8")


def measured(loaded: LoadedModel, concept: str) -> list[dict[str, Any]]:
    """The answers at each strength of either sign, and at one far too large."""
    points = []
    with preserving_model_state(loaded):
        replies = sample_unsteered(loaded, read_prompts(), SETTINGS)
        site = band_of(loaded, concept, SETTINGS)
        run = run_unsteered(loaded, build_corpora(loaded, replies, None)["search"], [site.first])
        law = run_pilot(loaded, run, site, (), SETTINGS).law
        for sign in (1, -1):
            for budget in BUDGETS:
                points.append(at(loaded, site, law.invert(budget, sign), budget))
        points.append(at(loaded, site, TOO_LARGE * law.invert(BUDGETS[-1], 1), None))
    return points


def at(loaded: LoadedModel, site: Site, strength: float, budget: float | None) -> dict[str, Any]:
    """What is still answered at a strength, and whether it would be refused for what is not."""
    answers = guarded(loaded, read_guard(), site, strength)
    click.echo(f"{loaded.name}: {budget} nat, {answers.accuracy.value:.3f}")
    return {
        "budget": budget,
        "strength": strength,
        "accuracy": answers.accuracy.value,
        "baseline": answers.baseline.value,
        "drop": vars(answers.drop.with_interval(SETTINGS.confidence)),
        "upper": answers.drop_upper(SETTINGS.confidence),
        "refused": refusal(answers),
    }


def refusal(answers: Guarded) -> str | None:
    """Why a calibration refuses these answers; None where it takes them."""
    try:
        require_guard(answers, SETTINGS)
    except Infeasible as infeasible:
        return str(infeasible)
    return None


def by_harness(loaded: LoadedModel) -> dict[str, float]:
    """How many questions we and the harness find to be answered rightly, and alike."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    with tempfile.TemporaryDirectory() as folder:
        task = task_of_built_in(Path(folder))
        ours = answered(loaded, harness_guard(f"lm-eval:{task}").items)
        scored = simple_evaluate(
            HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=8),
            tasks=[str(task)],
            task_manager=TaskManager(include_defaults=False),
            bootstrap_iters=0,
        )
    theirs = np.array([bool(sample["acc"]) for sample in scored["samples"]["built_in"]])
    return {
        "questions": len(theirs),
        "ours": int(ours.sum()),
        "theirs": int(theirs.sum()),
        "alike": int((ours == theirs).sum()),
    }


def task_of_built_in(folder: Path) -> Path:
    """The built-in questions as a task of the harness."""
    rows = [
        {"question": item.question, "choices": item.choices, "answer": item.answer}
        for item in read_guard().items
    ]
    data, task = folder / "built_in.jsonl", folder / "built_in.yaml"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    task.write_text(TASK.format(data=data), encoding="utf-8")
    return task


TASK = """task: built_in
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""


def page(found: dict[str, Any]) -> str:
    parts = [HEADER]
    compared = found.pop(HARNESS, {})
    for name, points in found.items():
        refused = max(points, key=lambda point: abs(by_strength(point)))["refused"]
        parts += [
            f"## {name}",
            f"Unsteered, {points[0]['baseline']:.1%} are answered rightly.",
            table(HEADS, [row(point) for point in sorted(points, key=by_strength)]),
            "" if refused is None else f"The largest strength is refused: {refused}.",
        ]
    parts.append(compared_with_harness(compared))
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def compared_with_harness(compared: dict[str, dict[str, int]]) -> str:
    """The same questions put by the harness itself."""
    if not compared:
        return ""
    keys = ("questions", "ours", "theirs", "alike")
    rows = [[model, *(str(facts[key]) for key in keys)] for model, facts in compared.items()]
    heads = ["model", "questions", "answered rightly", "by the harness", "found alike"]
    return (
        "## Against lm-evaluation-harness\n\nThe built-in questions as a task of the harness, put "
        "to the unsteered model by `--guard lm-eval:…` and by the harness itself "
        "(`--harness`):\n\n"
        + table(heads, rows)
        + "\nThe harness puts a question as a line of text, and a calibration puts it to a chat "
        "model as a message: what [the frontier](frontier.md) finds of smollm2 is another figure."
    )


def by_strength(point: dict[str, Any]) -> float:
    return float(point["strength"])


HEADS = f"budget|α|answered rightly|drop|bound of the drop|with `--max-guard-drop {MOST:g}`".split(
    "|"
)


def row(point: dict[str, Any]) -> list[str]:
    drop = point["drop"]
    return [
        "far beyond" if point["budget"] is None else f"{point['budget']:g} nat",
        f"{point['strength']:+.3g}",
        f"{point['accuracy']:.1%}",
        f"{drop['value']:+.1%} ({drop['low']:+.1%} to {drop['high']:+.1%})",
        f"{point['upper']:.1%}",
        "refused" if point["refused"] else "passes",
    ]


HEADER = f"""# What is forgotten along the strength

Written by `scripts/measure_guard.py`. The guard's {len(read_guard().items)} questions, put to each
model with the default band of blocks steered at the strengths that its pilot's law names for the
budgets, in both directions, and at {TOO_LARGE} times the last of them. Drops are paired by
question, in brackets their 95 % intervals; the bound is the one-sided 95 % one that
`--max-guard-drop` is held against. A question of several choices is answered by the one whose
tokens are likeliest together. [The frontier](frontier.md) has smollm2's answers for seven concepts.
"""


if __name__ == "__main__":
    main()
