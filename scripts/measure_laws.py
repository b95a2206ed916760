"""Measure how well the laws predict a real model, and write docs/laws.md.

    python scripts/measure_laws.py [--model smollm2] [--corpus-file FILE.jsonl]

For every built-in concept and five blocks: the strength that spends a budget, named by a pilot,
against the truth on the pilot's own sequences and on others. The truth costs one pass a budget:
ΔCE is measured at the named strength, and the little that is missing is made up along the law's
own slope there. About an hour on two cores.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import numpy as np
from markdown_tables import DOCS, table
from scipy.stats import spearmanr

from calibrate import load_model
from calibrate.completions import sample
from calibrate.concept import built_in_concepts, read_concept, read_corpus, read_prompts
from calibrate.cross_entropy import Corpus, UnsteeredRun, measure_steered, run_unsteered
from calibrate.laws import CrossEntropyLaw
from calibrate.log_odds import LogOdds, far_logits, measure_log_odds, sampled_contexts
from calibrate.model import LoadedModel, borrowed
from calibrate.pilot import Pilot, fit_pilot
from calibrate.settings import Sampling, Settings
from calibrate.tokens import encode_prompt, encode_text
from calibrate.vector import SteeringVector, concept_vectors

BUDGETS = (0.05, 0.1, 0.3)
DEPTHS = (0.15, 0.33, 0.5, 0.67, 0.85)
PILOT_SEQUENCES = 24
SAMPLING = Sampling(max_new_tokens=16)
LIKELY = 200
PEAK_SHARES = np.linspace(-1, 1, 9)  # of α_B: where peaks are looked for
CLOSE = 0.03  # of log α: a step of this size along the law's slope is right to a hundredth of it


@dataclass(frozen=True)
class Cell:
    """One concept, block and budget: what the law said and what is true."""

    model: str
    corpus: str
    concept: str
    layer: int
    budget: float
    named: float
    low: float
    high: float
    passes: int
    own: float
    others: float

    @property
    def own_error(self) -> float:
        return abs(self.named / self.own - 1)

    @property
    def other_error(self) -> float:
        return abs(self.named / self.others - 1)

    @property
    def covered(self) -> bool:
        return self.low <= self.others <= self.high


@dataclass(frozen=True)
class Far:
    """The far end at one block: the predicted plateau, and what is measured far out."""

    model: str
    concept: str
    layer: int
    strength: float
    residual_left: float
    predicted: float
    measured: float


@dataclass(frozen=True)
class Peaks:
    """Median over contexts of the rank correlation of predicted and measured peaks."""

    model: str
    concept: str
    layer: int
    correlation: float
    n_contexts: int


@click.command()
@click.option("--model", "models", multiple=True, default=("smollm2",), show_default=True)
@click.option("--corpus-file", type=click.Path(exists=True, path_type=Path))
@click.option("--concepts", multiple=True, default=tuple(built_in_concepts()))
@click.option("--points", type=click.Path(path_type=Path), help="JSON of every point; resumes.")
def main(
    models: tuple[str, ...],
    corpus_file: Path | None,
    concepts: tuple[str, ...],
    points: Path | None,
) -> None:
    target = points or DOCS / "laws.json"
    found = json.loads(target.read_text()) if target.exists() else {}
    for name in models:
        loaded = load_model(name)
        with borrowed(loaded):
            for source in ("own replies", "file") if corpus_file else ("own replies",):
                measure_model(loaded, source, corpus_file, concepts, found, target)
    (DOCS / "laws.md").write_text(page(found), encoding="utf-8")


def measure_model(
    loaded: LoadedModel,
    source: str,
    corpus_file: Path | None,
    concepts: tuple[str, ...],
    found: dict[str, dict],
    target: Path,
) -> None:
    layers = [int(depth * loaded.num_layers) for depth in DEPTHS]
    own, others = corpora(loaded, source, corpus_file)
    runs = [run_unsteered(loaded, corpus, layers) for corpus in (own, others)]
    for concept in concepts:
        vectors = concept_vectors(loaded, read_concept(concept).split()["vector"], Settings())
        for layer in layers:
            key = f"{loaded.name} {source} {concept} {layer}"
            if key not in found:
                found[key] = measure_block(
                    loaded, source, concept, vectors[layer], runs[0], runs[1]
                )
                target.write_text(json.dumps(found, indent=1))
                click.echo(key)


def corpora(loaded: LoadedModel, source: str, corpus_file: Path | None) -> tuple[Corpus, Corpus]:
    """The sequences the pilot uses, and others: three times as many."""
    if source == "file":
        assert corpus_file is not None
        parts = read_corpus(corpus_file)
        own = [encode_text(loaded, text) for text in parts["search"][:PILOT_SEQUENCES]]
        rest = [encode_text(loaded, text) for text in parts["verify"][: 3 * PILOT_SEQUENCES]]
        shortened = [
            tuple(replace(one, ids=one.ids[:64]) for one in part if one.n_scored)
            for part in (own, rest)
        ]
        return Corpus(shortened[0], False), Corpus(shortened[1], False)
    prompts = [encode_prompt(loaded, text) for text in read_prompts()]
    replies = [one.sequence for one in sample(loaded, prompts, SAMPLING, seed=0)]
    return (
        Corpus(tuple(replies[:PILOT_SEQUENCES]), True),
        Corpus(tuple(replies[PILOT_SEQUENCES : 4 * PILOT_SEQUENCES]), True),
    )


def measure_block(
    loaded: LoadedModel,
    source: str,
    concept: str,
    vector: SteeringVector,
    own: UnsteeredRun,
    others: UnsteeredRun,
) -> dict:
    odds = measure_log_odds(loaded, own, vector, ())
    cells = []
    for budget in BUDGETS:
        pilot = fit_pilot(loaded, own, vector, odds, (), Settings(ce_budget=budget))
        at = pilot.strength_at_budget
        cells.append(
            Cell(
                loaded.name, source, concept, vector.layer, budget, at.value, at.low, at.high,
                len(pilot.points), truth(loaded, own, pilot, budget),
                truth(loaded, others, pilot, budget),
            )
        )  # fmt: skip
        if budget == 0.1:
            middle = pilot
    return {
        "cells": [asdict(cell) for cell in cells],
        "peaks": asdict(peaks(loaded, concept, own, odds, middle)),
        "far": asdict(far(loaded, concept, own, middle)),
    }


def truth(loaded: LoadedModel, run: UnsteeredRun, pilot: Pilot, budget: float) -> float:
    """The strength that spends the budget on a corpus: two secant steps in log-log."""
    vector, strength = pilot.vector, pilot.strength_at_budget.value
    for _ in range(2):
        rise = measure_steered(loaded, run, vector.values, vector.layer, strength).rise.value
        step = np.log(budget / rise) / steepness(pilot.law, strength)
        strength *= float(np.exp(step))
        if abs(step) < CLOSE:
            break
    return strength


def steepness(law: CrossEntropyLaw, strength: float) -> float:
    """D log ΔCE / d log α."""
    up, down = (float(law.predict(strength * (1 + d))) for d in (1e-4, -1e-4))
    return float(np.log(up / down) / np.log((1 + 1e-4) / (1 - 1e-4)))


def peaks(
    loaded: LoadedModel, concept: str, run: UnsteeredRun, odds: LogOdds, pilot: Pilot
) -> Peaks:
    vector, unit = pilot.vector, pilot.strength_at_budget.value
    contexts = sampled_contexts(run)
    strengths = unit * PEAK_SHARES
    curves = np.stack(
        [
            measure_steered(
                loaded, run, vector.values, vector.layer, float(at), watched=contexts
            ).watched
            for at in strengths
        ]
    )
    predicted = pilot.tokens.peaks(reach=6 * unit)
    correlations = []
    for index in range(len(contexts)):
        likely = np.argsort(-odds.tokens.log_p[index])[:LIKELY]
        best = curves[:, index, likely].argmax(axis=0)
        inside = (best > 0) & (best < len(strengths) - 1)
        if inside.sum() >= 8 and len(set(best[inside])) > 1:
            found = spearmanr(best[inside], predicted[index, likely][inside]).statistic
            correlations.append(float(found))
    return Peaks(
        loaded.name, concept, vector.layer,
        float(np.median(correlations)) if correlations else float("nan"), len(correlations),
    )  # fmt: skip


def far(loaded: LoadedModel, concept: str, run: UnsteeredRun, pilot: Pilot) -> Far:
    """Push until the residual stream no longer matters, and compare with the plateau.

    residual_left: the largest total variation between a steered prediction and norm(v)'s own;
    what is left of the input.
    """
    vector = pilot.vector
    strength = 3e3 * vector.residual_norm / vector.norm
    contexts = sampled_contexts(run)
    steered = measure_steered(loaded, run, vector.values, vector.layer, strength, watched=contexts)
    limit = far_logits(loaded, vector, 1).softmax(dim=-1).cpu().numpy()
    left = 0.5 * np.abs(steered.watched - limit).sum(axis=1).max()
    return Far(
        loaded.name, concept, vector.layer, strength, float(left), pilot.law.plateau,
        steered.rise.value,
    )  # fmt: skip


def page(found: dict[str, dict]) -> str:
    cells = [Cell(**cell) for one in found.values() for cell in one["cells"]]
    ranks = [Peaks(**one["peaks"]) for one in found.values()]
    ends = [Far(**one["far"]) for one in found.values()]
    measured = sorted({f"{cell.concept} on {cell.model}, {cell.corpus}" for cell in cells})
    return "\n".join(
        [
            HEADER,
            f"Measured so far: {'; '.join(measured)}.\n",
            accuracy(cells),
            by_block(cells),
            peaks_table(ranks),
            far_table(ends),
        ]
    )


HEADER = f"""# How well the laws predict a real model

Written by `scripts/measure_laws.py`; every point is in [laws.json](laws.json). A pilot on
{PILOT_SEQUENCES} own replies of {SAMPLING.max_new_tokens} tokens, or as many texts of a file, names
the strength that spends a budget; "own" is its error on those sequences, "others" on three times
as many the pilot has not seen. "Covered" is the share of cells whose 95 % interval holds the
strength that spends the budget on the others; that strength is itself known only up to the
sampling of the others, so a perfect interval would cover 91 %.
"""


def accuracy(cells: list[Cell]) -> str:
    rows = []
    for model, corpus in sorted({(cell.model, cell.corpus) for cell in cells}):
        for budget in (*BUDGETS, None):
            chosen = [
                cell
                for cell in cells
                if (cell.model, cell.corpus) == (model, corpus) and budget in (None, cell.budget)
            ]
            rows.append([model, corpus, f"{budget:g}" if budget else "all", *summary(chosen)])
    headings = ["model", "corpus", "budget", *SUMMARY]
    return "## The strength that spends the budget\n\n" + table(headings, rows)


SUMMARY = ("cells", "own: median", "own: worst", "others: median", "others: worst", "covered",
           "pilot strengths: mean", "most")  # fmt: skip


def summary(cells: list[Cell]) -> list[str]:
    own = [cell.own_error for cell in cells]
    others = [cell.other_error for cell in cells]
    passes = [cell.passes for cell in cells]
    return [
        str(len(cells)),
        f"{np.median(own):.2%}",
        f"{max(own):.2%}",
        f"{np.median(others):.2%}",
        f"{max(others):.2%}",
        f"{np.mean([cell.covered for cell in cells]):.0%}",
        f"{np.mean(passes):.1f}",
        str(max(passes)),
    ]


def by_block(cells: list[Cell]) -> str:
    rows = []
    for model, corpus, layer in sorted({(c.model, c.corpus, c.layer) for c in cells}):
        chosen = [c for c in cells if (c.model, c.corpus, c.layer) == (model, corpus, layer)]
        rows.append([model, corpus, str(layer), *summary(chosen)])
    return "## By block\n\n" + table(["model", "corpus", "block", *SUMMARY], rows)


def peaks_table(ranks: list[Peaks]) -> str:
    rows = []
    for model, layer in sorted({(one.model, one.layer) for one in ranks}):
        chosen = [
            one.correlation
            for one in ranks
            if (one.model, one.layer) == (model, layer) and np.isfinite(one.correlation)
        ]
        rows.append([model, str(layer), f"{np.median(chosen):.3f}", f"{min(chosen):.3f}"])
    return (
        "## Where tokens peak\n\n"
        f"Rank correlation of predicted and measured peak strengths of the {LIKELY} likeliest "
        "tokens, over those that peak between ±α at a budget of 0.1 nat; the median over "
        "contexts, then over concepts.\n\n"
        + table(["model", "block", "median", "worst concept"], rows)
    )


def far_table(ends: list[Far]) -> str:
    rows = []
    for model, layer in sorted({(one.model, one.layer) for one in ends}):
        chosen = [one for one in ends if (one.model, one.layer) == (model, layer)]
        errors = [abs(one.predicted / one.measured - 1) for one in chosen]
        left = max(one.residual_left for one in chosen)
        rows.append(
            [model, str(layer), f"{np.median(errors):.2%}", f"{max(errors):.2%}", f"{left:.1e}"]
        )
    headings = ["model", "block", "median error", "worst error", "total variation left"]
    return (
        "## The plateau\n\n"
        "ΔCE measured where the steered residual is 3,000 times the unsteered, against the "
        "plateau predicted without a pass. The last column is the largest total variation, over "
        "contexts and concepts, between the steered prediction and norm(v)'s own: what is left "
        "of the input.\n\n" + table(headings, rows)
    )


if __name__ == "__main__":
    main()
