"""Calibrate smollm2 for every built-in concept at .1 nat, and write docs/concepts.md.

    python scripts/measure_concepts.py [--concept joy]       calibrates, and keeps fresh replies
    python scripts/measure_concepts.py --layer search [...]  the same with another --layer
    python scripts/measure_concepts.py --reread              has today's probe read what was kept
    python scripts/measure_concepts.py --page                writes the page, with readers' grades

Half of the replies are plain, half steered as shipped; where nothing ships, by α at the budget at
the default band. Readers grade them blind (`grades` in docs/concepts/*.json: one a reply, in its
order) to see whether the verdict was right. The probe reads them too (`said`): it must not have
learned from them. Ten minutes a concept on two cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
from default_band import band_of
from graded_replies import prompts_by_part
from graded_replies import replies as graded
from markdown_tables import DOCS, table
from records import page_option, read_records, write_records
from sklearn.metrics import roc_auc_score

from calibrate import calibrate, load_model
from calibrate.common.errors import Infeasible
from calibrate.common.estimate import RatioEstimate
from calibrate.common.settings import Settings
from calibrate.engine.generation import Request, sample_all
from calibrate.engine.unsteered import run_unsteered
from calibrate.judging.graded_replies import graded_replies
from calibrate.laws.pilot import run_pilot
from calibrate.models.model import LoadedModel, preserving_model_state
from calibrate.models.prompts import encode_prompt
from calibrate.models.steering import Steering
from calibrate.search.long_run import LOOP_MARGIN
from calibrate.texts.concept import built_in_concepts, read_prompts
from calibrate.texts.replies import build_corpora, sample_unsteered
from probes import GradedText, learn_probe

MODEL = "smollm2"
SETTINGS = Settings()
FRESH, FRESH_SEED = 30, 4711  # prompts of the test part of scripts/graded
REPLIES = 4  # to each of them, plain, and as many steered
FOLDER = DOCS / "concepts"
HEADS = ["concept", "verdict", "steered", "α", "ΔCE", "presence", "change", "clearly"]
FRESH_HEADS = ["concept", "readers", "readers' change", "probe", "probe's change", "AUC"]


@click.command()
@click.option("--concept", "concepts", multiple=True, default=built_in_concepts())
@click.option("--layer", default="auto")
@click.option("--reread", is_flag=True)
@page_option
def main(concepts: tuple[str, ...], layer: str, reread: bool, only_page: bool) -> None:
    FOLDER.mkdir(exist_ok=True)
    if not only_page:
        loaded = load_model(MODEL)
        for concept in concepts:
            at = "" if layer == "auto" else f"-{layer}"
            target = FOLDER / f"{concept}{at}.json"
            found = read_records(target) if reread else measured(loaded, concept, layer)
            found |= said(loaded, concept, found["replies"])
            write_records(target, found)
            click.echo(f"{concept}: {found['verdict']}")
    (DOCS / "concepts.md").write_text(page(), encoding="utf-8")


def measured(loaded: LoadedModel, concept: str, layer: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        with TemporaryDirectory() as out:
            result = calibrate(loaded, concept, out=Path(out) / "result", layer=layer)
            config = result.config
    except Infeasible as infeasible:
        found |= {"verdict": "refused", "reasons": infeasible.reasons}
        steering = at_budget(loaded, concept)
    else:
        presence, done = config.measured.presence, config.intervention
        found |= {
            "verdict": "ships",
            "where": config.where,
            "strength": done.strength,
            "delta_ce": config.measured.delta_ce.value,
            "presence": presence.value,
            "baseline": presence.baseline,
            "change": [presence.change.value, presence.change.low, presence.change.high],
            "clear": [presence.clear_baseline, presence.clear],
            "tested": [
                [rung.strength, rung.delta_ce, rung.loop_excess]
                for rung in result.evidence.tested
                if rung.loop_excess is not None
            ],
            "seconds": {stage: round(cost.seconds) for stage, cost in config.cost.items()},
        }
        steering = config.site.steering(done.strength)
    return {**found, "replies": fresh(loaded, steering)}


def at_budget(loaded: LoadedModel, concept: str) -> Steering:
    """What steers the default band by α at the budget."""
    with preserving_model_state(loaded):
        site = band_of(loaded, concept, SETTINGS)
        replies = sample_unsteered(loaded, read_prompts(), SETTINGS)
        run = run_unsteered(loaded, build_corpora(loaded, replies, None)["search"], [site.first])
        return site.steering(run_pilot(loaded, run, site, (), SETTINGS).strength_at_budget.value)


def fresh(loaded: LoadedModel, steering: Steering) -> list[dict[str, Any]]:
    """Plain and steered replies to the same prompts, with the same noise."""
    texts = prompts_by_part()["test"][-FRESH:]
    with preserving_model_state(loaded):
        prompts = [encode_prompt(loaded, text) for text in texts]
        requests = [Request(prompts, REPLIES), Request(prompts, REPLIES, steering)]
        drawn = sample_all(loaded, requests, SETTINGS.sampling, FRESH_SEED)
    return [
        {"prompt": one.prompt, "steered": bool(steered), "text": one.text}
        for steered, replies in enumerate(drawn)
        for one in replies
    ]


def said(
    loaded: LoadedModel, concept: str, replies: list[dict[str, Any]]
) -> dict[str, list[float]]:
    """What the concept's probe says of each reply, a probability.

    Where it learns from replies that were steered at the band, also what it says without them.
    """
    texts = [one["text"] for one in replies]
    at_band = {one.text for one in graded("train", concept) if one.at_band}
    all_of_them = graded_replies(concept)
    lessons: dict[str, Sequence[GradedText]] = {"said": all_of_them}
    if at_band:
        lessons["said without"] = [one for one in all_of_them if one.text not in at_band]
    with preserving_model_state(loaded):
        return {
            name: [
                round(float(score), 3)
                for score in learn_probe(concept, lesson, loaded).score(texts, loaded)
            ]
            for name, lesson in lessons.items()
        }


def page() -> str:
    return PAGE.format(
        rows=table(HEADS, [row(*one) for one in results()]),
        fresh=table(FRESH_HEADS, [fresh_row(*one) for one in results()]),
        without=table(
            ["concept", "probe", "probe's change"],
            [
                [concept, *told(found["replies"], found["said without"])]
                for concept, found in results()
                if "said without" in found
            ],
        ),
        apart=apart(),
        humorous=held_back("humorous"),
        n_band=sum(one.at_band for one in graded("train")),
        reasons="\n".join(reasons()),
        missing=missing(),
        others=table(
            [*HEADS, *FRESH_HEADS[1:3]], [[*row(*one), *read(one[1])] for one in others()]
        ),
        loops="\n".join(loops()),
    )


def row(concept: str, found: dict[str, Any]) -> list[str]:
    if found["verdict"] == "refused":
        cells = ["**refused**", *["-"] * 6]
    else:
        low, high = found["change"][1:]
        clear = ["-" if one is None else f"{one:.2f}" for one in found["clear"]]
        cells = [
            "ships",
            found["where"],
            f"{found['strength']:.3g}",
            f"{found['delta_ce']:.3f}",
            f"{found['baseline']:.2f} → {found['presence']:.2f}",
            f"{found['change'][0]:+.2f} ({low:+.2f} to {high:+.2f})",
            " → ".join(clear),
        ]
    return [concept, *cells]


def fresh_row(concept: str, found: dict[str, Any]) -> list[str]:
    """What readers and probe say of the fresh replies."""
    probe = told(found["replies"], found["said"])
    if "grades" not in found:
        return [concept, "-", "-", *probe, "-"]
    yes = [grade >= 1 for grade in found["grades"]]
    return [concept, *read(found), *probe, f"{roc_auc_score(yes, found['said']):.2f}"]


def read(found: dict[str, Any]) -> list[str]:
    """What readers say of the fresh replies."""
    if "grades" not in found:
        return ["-", "-"]
    return told(found["replies"], [float(grade >= 1) for grade in found["grades"]])


def change(replies: list[dict[str, Any]], yes: list[float]) -> float:
    """The mean of steered replies less that of plain ones."""
    steered = np.array([one["steered"] for one in replies])
    return float(np.mean(np.array(yes)[steered]) - np.mean(np.array(yes)[~steered]))


def apart() -> str:
    """How far the probe's change is off the readers', and what moves most of what is refused."""
    by_readers = {
        concept: change(one["replies"], [float(grade >= 1) for grade in one["grades"]])
        for concept, one in results()
        if "grades" in one
    }
    off = {
        concept: abs(change(one["replies"], one["said"]) - by_readers[concept])
        for concept, one in results()
        if concept in by_readers
    }
    most = max(off, key=lambda concept: off[concept])
    refused = [
        one for one, facts in results() if facts["verdict"] == "refused" and one in by_readers
    ]
    moved = max(refused, key=lambda concept: by_readers[concept])
    return (
        f"Of the {len(off)}, the probe's change is farthest off the readers' for {most}, by "
        f"{off[most]:.3f}.\nOf what is refused, {moved} moves most by readers, by "
        f"{by_readers[moved]:+.2f}; what verification saw of it, on\nother prompts, is below."
    )


def held_back(concept: str) -> str:
    """By how much less than the largest strength that was tried a concept is steered, and why."""
    found = dict(results())[concept]
    tried = [strength for strength, _, _ in found["tested"]]
    looped = sum(excess > LOOP_MARGIN for _, _, excess in found["tested"])
    return (
        f"{concept.capitalize()} is steered by {found['strength'] / tried[-1]:.0%} of the largest "
        f"strength that was tried: of {len(tried)},\nlong replies loop too much at {looped}."
    )


def told(replies: list[dict[str, Any]], yes: list[float]) -> list[str]:
    """The means of plain and steered replies, and the change."""
    by_prompt: dict[bool, dict[str, list[float]]] = {False: {}, True: {}}
    for reply, one in zip(replies, yes, strict=True):
        by_prompt[reply["steered"]].setdefault(reply["prompt"], []).append(one)
    plain, steered = (
        np.array([np.mean(ones) for ones in of_prompt.values()]) for of_prompt in by_prompt.values()
    )
    change = RatioEstimate(steered - plain, np.ones(len(plain)))
    low, high = change.interval(SETTINGS.confidence)
    return [
        f"{plain.mean():.2f} → {steered.mean():.2f}",
        f"{change.value:+.2f} ({low:+.2f} to {high:+.2f})",
    ]


def results() -> list[tuple[str, dict[str, Any]]]:
    """What was measured, by concept."""
    paths = [(concept, FOLDER / f"{concept}.json") for concept in built_in_concepts()]
    return [(concept, read_records(path)) for concept, path in paths if path.exists()]


def others() -> list[tuple[str, dict[str, Any]]]:
    """What was measured with another --layer, by concept and option."""
    paths = sorted(FOLDER.glob("*-*.json"))
    return [(path.stem.replace("-", " --layer "), read_records(path)) for path in paths]


def loops() -> list[str]:
    """How much more of long replies lay in loops, by the strengths that were tested there."""
    return [
        f"- {name}: "
        + ", ".join(f"{excess:+.1%} at α = {at:.3g}" for at, _, excess in found["tested"])
        for name, found in [*results(), *others()]
        if len(found.get("tested", ())) > 1
    ]


def missing() -> str:
    names = sorted(set(built_in_concepts()) - {concept for concept, _ in results()})
    return f"Not run: {', '.join(names)}.\n" if names else ""


def reasons() -> list[str]:
    return [
        f"- {concept}: {' '.join(one['reasons'])}"
        for concept, one in [*results(), *others()]
        if one["verdict"] == "refused"
    ]


PAGE = """# Built-in concepts on smollm2

Written by `scripts/measure_concepts.py`; everything is in [concepts/](concepts). Every built-in
concept with all defaults, at a budget of 0.1 nat; presence is the probe's, on the held-out prompts
of the verification. Parentheses are 95 % intervals.

{rows}
{missing}
## The same replies, by readers and by the probe

Readers graded 240 fresh replies each, blind and in random order: four plain ones and four steered
as shipped to each of 30 prompts that no calibration and no probe has seen. Where nothing ships, the
steered ones are by α at the budget. The readers are a large language model, not people. The probe
read the same replies, of which it has learned none.

{fresh}
**Of humorous and impolite the agreement is no test.** Earlier readings of replies to these prompts
first showed that the probe sees too little of both, and with them in view it was chosen which
replies to add to what it learns from: {n_band}, steered at the default band
([judges.md](judges.md)); its other graded replies were steered at the middle block. The agreement
is of the same prompts, and for impolite of the same replies; the steered ones of humorous have been
drawn and read anew since. The probes of the other six learned nothing new after the readings.

{apart}
Of lying, the probe sees neither level nor change rightly: almost no reply lies, so that it had
hardly any to learn from, and its calibration refuses it for that.

Without the replies that were added it reads the same ones of humorous and impolite as follows,
humorous was refused, and impolite could not be told apart.

{without}
{humorous} [The frontier](frontier.md#humorous-on-smollm2) has one
between them that does not.

## A single block

`--layer search` was the default before the band was. Its runs are older than the second judge's own
graded replies, and depression, humorous and optimistic were run while it still tried a block of the
first third of the depth as well. Now it tries none there (`--layer 9` does): the probe chose one
for joy, and readers saw no more joy there. Where nothing shipped, the middle block was steered. One
plain and one steered reply to each prompt were read.

{others}
## Where long replies looped

Verification took a smaller strength there; more of their tokens in loops than without steering, by
what was tested:

{loops}

## What was refused, and why

{reasons}
"""


if __name__ == "__main__":
    main()
