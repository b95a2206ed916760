"""Measure whether presence can be trusted on a real model, and write docs/presence.md.

    python scripts/measure_presence.py [--concept joy --concept lying]

For every built-in concept on smollm2, at the middle block: what the probe says of unsteered
replies, of degenerate text, of a random vector, and of a cheat; how well its probabilities fit
held-out replies; and whether it ranks steered replies as VADER does. Half an hour on two cores;
what was measured is kept, and not measured again.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import click
import numpy as np
from markdown_tables import DOCS, table
from scipy.stats import spearmanr
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from calibrate import load_model
from calibrate.completions import Request, sample_all
from calibrate.concept import Texts, built_in_concepts, read_concept, read_prompts
from calibrate.cross_entropy import run_unsteered
from calibrate.estimate import RatioEstimate
from calibrate.judging import Material, oversteered, train_probe
from calibrate.model import LoadedModel, borrowed
from calibrate.pilot import run_pilot
from calibrate.presence import Presence, measure_presence, read
from calibrate.replies import UnsteeredReplies, build_corpora, sample_unsteered
from calibrate.settings import Settings
from calibrate.vector import SteeringVector, concept_vectors
from probes import Probe, Reader
from probes.examples import WAYS, break_text
from probes.quality import Quality, quality

MODEL = "smollm2"
SHARES = tuple(n / 4 for n in range(-4, 5))  # of α_B of either sign
SENTIMENTS = {"joy": 1, "depression": -1, "optimistic": 1}  # and the sign of VADER's agreement
CHEAT_SHARE = 0.2
SETTINGS = Settings()


@dataclass(frozen=True)
class Bench:
    """What every concept is measured with."""

    loaded: LoadedModel
    replies: UnsteeredReplies
    layer: int


@click.command()
@click.option("--concept", "concepts", multiple=True, default=tuple(built_in_concepts()))
def main(concepts: tuple[str, ...]) -> None:
    target = DOCS / "presence.json"
    found = json.loads(target.read_text()) if target.exists() else {}
    missing = [concept for concept in concepts if concept not in found]
    if missing:
        loaded = load_model(MODEL)
        with borrowed(loaded):
            replies = sample_unsteered(loaded, read_prompts(), SETTINGS)
            bench = Bench(loaded, replies, loaded.num_layers // 2)
            for concept in missing:
                found[concept] = measure(bench, concept)
                target.write_text(json.dumps(found, indent=1) + "\n")
                click.echo(concept)
    (DOCS / "presence.md").write_text(page(found), encoding="utf-8")


def measure(bench: Bench, concept: str) -> dict:
    loaded, replies = bench.loaded, bench.replies
    splits = read_concept(concept).split()
    vectors = concept_vectors(loaded, splits["vector"], SETTINGS)
    vector = vectors[bench.layer]
    probe = train_probe(loaded, Material(concept, splits, replies, vector), SETTINGS)
    reader = Reader(probe.on(loaded), concept, "probe")
    seen = min(bench.layer, max(probe.layers))  # a block whose steering the cheat can read
    run = run_unsteered(loaded, build_corpora(loaded, replies, None)["search"], [seen, bench.layer])
    alpha = {
        sign: run_pilot(loaded, run, vector, (), replace(SETTINGS, goal=goal)).strength_at_budget
        for sign, goal in ((1, "increase"), (-1, "decrease"))
    }
    within_sight = run_pilot(loaded, run, vectors[seen], (), SETTINGS).strength_at_budget.value
    baseline = read(reader, replies.completions["verify"])
    shoved = vector.random_like(SETTINGS.seed)
    return {
        "layers": probe.layers,
        "quality": asdict(probe.quality),
        "held_out_replies": asdict(on_replies(bench, probe, splits)),
        "strength_at_budget": {str(sign): at.value for sign, at in alpha.items()},
        "baseline": interval(baseline.estimate),
        "degenerate": degenerate(bench, reader, vector),
        "random": interval(steered(bench, reader, shoved, alpha[1].value).estimate),
        "cheat": cheat(bench, probe, vectors[seen], CHEAT_SHARE * within_sight),
        "vader": against_vader(bench, reader, vector, alpha) if concept in SENTIMENTS else None,
    }


def interval(estimate: RatioEstimate) -> tuple[float, float, float]:
    return (estimate.value, *estimate.interval(SETTINGS.confidence))


def steered(bench: Bench, reader: Reader, vector: SteeringVector, strength: float) -> Presence:
    """Presence in one reply to each verification prompt."""
    request = Request(bench.replies.prompts["verify"], 1, vector.push(strength))
    (presence,) = measure_presence(
        bench.loaded, reader, [request], SETTINGS.sampling, SETTINGS.seed
    )
    return presence


def on_replies(bench: Bench, probe: Probe, splits: Mapping[str, Texts]) -> Quality:
    """Quality on replies no probe has seen: written ones, and the model's own as negatives.

    Those of the steering vector's texts count as well, since nothing is steered here.
    """
    written = [
        (text.text, positive, text.group or text.text)
        for split in ("held_out", "vector")
        for positive, texts in ((True, splits[split].positives), (False, splits[split].negatives))
        for text in texts
        if text.prompt
    ]
    own = [(one.text, False, one.prompt) for one in bench.replies.first_replies("verify")]
    texts, labels, groups = zip(*written, *own, strict=True)
    counts = {label: labels.count(label) for label in (True, False)}
    weights = np.array([1 / counts[label] for label in labels])
    return quality(probe.score(texts, bench.loaded), labels, groups, weights / weights.mean())


def degenerate(bench: Bench, reader: Reader, vector: SteeringVector) -> dict[str, float]:
    """Mean presence of five kinds of broken text, from replies nobody was fitted on."""
    loaded = bench.loaded
    own = [one.text for one in bench.replies.first_replies("verify")]
    rng = random.Random(1)
    texts = {
        way: [
            broken
            for one in own[index :: len(WAYS)]
            if (broken := break_text(way, one, loaded.tokenizer, rng)) is not None
        ]
        for index, way in enumerate(WAYS)
    }
    prompts = bench.replies.prompts["verify"]
    requests = [oversteered(vector, sign, prompts) for sign in (1, -1)]
    salads = sample_all(loaded, requests, SETTINGS.sampling, seed=1)
    for kind, said in zip(("over-steered", "over-steered, other sign"), salads, strict=True):
        texts[kind] = [one.text for one in said]
    return {kind: float(reader.read(some).mean()) for kind, some in texts.items()}


def cheat(
    bench: Bench, probe: Probe, vector: SteeringVector, strength: float
) -> tuple[float, float, float]:
    """Presence of unchanged text: honestly read, honestly read again, and by a cheat.

    The cheat reads the activations with the steering still in place.
    """
    texts = [one.text for one in bench.replies.first_replies("verify")]
    honest = probe.score(texts, bench.loaded).mean()
    with vector.apply(bench.loaded.blocks, strength):
        cheated = probe.score(texts, bench.loaded).mean()
    return float(honest), float(probe.score(texts, bench.loaded).mean()), float(cheated)


def against_vader(
    bench: Bench, reader: Reader, vector: SteeringVector, alpha: dict
) -> dict[str, list[float]]:
    """Presence and VADER's sentiment of every reply at every strength."""
    analyser = SentimentIntensityAnalyzer()
    found: dict[str, list] = {"shares": [], "presence": [], "vader": []}
    for share in SHARES:
        strength = abs(share) * alpha[1 if share >= 0 else -1].value
        presence = steered(bench, reader, vector, strength)
        found["shares"].append(share)
        found["presence"].append(presence.scores.tolist())
        found["vader"].append(
            [analyser.polarity_scores(one.text)["compound"] for one in presence.completions]
        )
    return found


def page(found: dict[str, dict]) -> str:
    return "\n".join(
        [HEADER, concepts_table(found), degenerate_table(found), vader_table(found), cheats(found)]
    )


HEADER = f"""# Can presence be trusted?

Written by `scripts/measure_presence.py`; every point is in [presence.json](presence.json). Built-in
concepts on {MODEL}, at the middle block, α at a budget of {SETTINGS.ce_budget:g} nat per token.
Everything here is read from prompts and texts that no vector, probe or pilot has seen;
parentheses are {SETTINGS.confidence:.0%} intervals.
"""


def concepts_table(found: dict[str, dict]) -> str:
    rows = []
    for concept, one in found.items():
        held_out = one["held_out_replies"]
        plain, shoved = one["baseline"], one["random"]
        inside = plain[1] <= shoved[0] <= plain[2] or shoved[1] <= plain[0] <= shoved[2]
        rows.append(
            [concept, ", ".join(map(str, one["layers"])), within(held_out["auc"]),
             within(held_out["brier"]), within(held_out["calibration_error"]),
             "{:.2f} ({:.2f} to {:.2f})".format(*one["baseline"]),
             "{:.2f} ({:.2f} to {:.2f})".format(*one["random"]), "yes" if inside else "**no**"]
        )  # fmt: skip
    headings = ["concept", "blocks read", "AUC, held-out replies", "Brier", "calibration error",
                "presence, unsteered", "random vector at α", "alike"]  # fmt: skip
    return (
        "## The probes\n\nHeld-out replies are written ones of either label that no probe was "
        "fitted on, and the model's own as negatives. Alike: one of the two intervals holds the "
        "other's value.\n\n" + table(headings, rows)
    )


def within(measured: dict[str, float]) -> str:
    return "{value:.2f} ({low:.2f} to {high:.2f})".format(**measured)


def degenerate_table(found: dict[str, dict]) -> str:
    kinds = list(next(iter(found.values()))["degenerate"])
    rows = [
        [concept, *(f"{one['degenerate'][kind]:.2f}" for kind in kinds)]
        for concept, one in found.items()
    ]
    means = [np.mean([one["degenerate"][kind] for one in found.values()]) for kind in kinds]
    rows.append(["mean", *(f"{mean:.2f}" for mean in means)])
    return "## Degenerate text\n\nMean presence.\n\n" + table(["concept", *kinds], rows)


def vader_table(found: dict[str, dict]) -> str:
    rows = []
    for concept, sign in SENTIMENTS.items():
        if concept not in found:
            continue
        one = found[concept]["vader"]
        presence, vader = np.array(one["presence"]), sign * np.array(one["vader"])
        rows.append(
            [concept,
             " ".join(f"{value:.2f}" for value in presence.mean(axis=1)),
             " ".join(f"{value:+.2f}" for value in vader.mean(axis=1)),
             f"{spearmanr(presence.mean(axis=1), vader.mean(axis=1)).statistic:.2f}",
             f"{spearmanr(presence.ravel(), vader.ravel()).statistic:.2f}"]
        )  # fmt: skip
    shares = ", ".join(f"{share:g}" for share in SHARES)
    headings = ["concept", "presence", "VADER, turned towards the concept",
                "rank correlation over strengths", "over replies"]  # fmt: skip
    return f"## Against VADER\n\nMeans at {shares} of α at the budget, of either sign.\n\n" + table(
        headings, rows
    )


def cheats(found: dict[str, dict]) -> str:
    rows = [
        [concept, *(f"{value:.3f}" for value in one["cheat"])] for concept, one in found.items()
    ]
    headings = ["concept", "the probe", "again, after the steering", "the cheat"]
    return (
        "## A planted cheat\n\nPresence of the unsteered replies, text that nothing has changed, "
        f"while the model is steered by {CHEAT_SHARE:g} of α at the budget. The cheat reads the "
        "steered activations.\n\n" + table(headings, rows)
    )


if __name__ == "__main__":
    main()
