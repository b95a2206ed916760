"""Measure the law of the bounded remainder on a real model, and write docs/remainder.md.

    python scripts/measure_remainder.py [--model smollm2] [--concept joy] [--page]

At five blocks and the band, next-token distributions at strengths up to three times the one that
spends .1 nat, by the law and by the paper's tilt, against passes at those strengths. The scale of
the law is fitted on every second position and judged on the others. A minute a site on one core;
what was measured is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click
import numpy as np
from markdown_tables import DOCS, table
from records import page_option, read_records, write_records

from calibrate import load_model
from calibrate.common.settings import Settings
from calibrate.engine.last_residual import last_residuals
from calibrate.engine.site import Site
from calibrate.engine.unsteered import Corpus, UnsteeredRun, run_unsteered
from calibrate.laws.formulas import CrossEntropyLaw, Goodness
from calibrate.laws.log_odds import measure_log_odds
from calibrate.laws.remainder import FITTED_AT, MOST_SCALE, ReadOut, RemainderLaw, divergences
from calibrate.laws.remainder_passes import measure_remainder, reader_of
from calibrate.laws.tokens import ProbabilityCurves, TokenLaw, judge_peaks, judge_shapes
from calibrate.models.model import LoadedModel, preserving_model_state
from calibrate.search.budget import spending_strength
from calibrate.search.sites import steered_band
from calibrate.texts.concept import built_in_concepts, read_concept, read_prompts
from calibrate.texts.extraction import concept_vectors
from calibrate.texts.replies import build_corpora, sample_unsteered

TARGET = DOCS / "remainder.json"
SETTINGS = Settings()
DEPTHS = (0.08, 0.28, 0.5, 0.67, 0.83)
SHARES = (0.5, 1.0, 1.5, 3.0)  # of the strength that spends the budget
SEQUENCES, POSITIONS = 12, 192
CONTEXTS, LIKELY = 16, 200  # whose tokens' peaks are compared
CURVE = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)  # shares at which they are looked for
REACHES = (1.0, 3.0)
STEP = 0.01  # of the unit: the tilt's log-odds are a difference over it
TINY = 1e-300
SAME = "peaks at the same strengths"  # in a cell: predicted ones were looked for as measured ones

Cell = dict[str, Any]


class Hyperbolic(RemainderLaw):
    """The same with u = κ·tanh(t/κ), which reaches its bound sooner."""

    def _bounded(self, t: float) -> float:
        return float(self.scale * np.tanh(t / self.scale))


class Rational(RemainderLaw):
    """The same with u = t/(1 + |t|/κ), which reaches its bound later."""

    def _bounded(self, t: float) -> float:
        return float(t / (1 + abs(t) / self.scale))


# What the law could be instead: of fewer passes, or bounded by another function.
FORMS: dict[str, Callable[[RemainderLaw], RemainderLaw]] = {
    "five passes": lambda law: law,
    "three passes": lambda law: replace(law, slope=None),
    "five passes, tanh": lambda law: Hyperbolic(**vars(law)),
    "five passes, rational": lambda law: Rational(**vars(law)),
}


@click.command()
@click.option("--model", "models", multiple=True, default=("smollm2",))
@click.option("--concept", "concepts", multiple=True, default=built_in_concepts())
@page_option
def main(models: tuple[str, ...], concepts: tuple[str, ...], only_page: bool) -> None:
    cells: list[Cell] = read_records(TARGET) or []
    done = {(cell["model"], cell["concept"], cell["site"]) for cell in cells}
    for model in () if only_page else models:
        loaded = load_model(model)
        with preserving_model_state(loaded):
            replies = sample_unsteered(loaded, read_prompts(), SETTINGS)
            corpus = build_corpora(loaded, replies, None)["search"]
            few = Corpus(corpus.sequences[:SEQUENCES], self_sampled=True)
            for concept in concepts:
                splits = read_concept(concept).split()
                vectors = concept_vectors(loaded, splits["vector"], SETTINGS)
                for layers in sites(loaded):
                    site = Site(tuple(vectors[layer] for layer in layers))
                    if (model, concept, site.name) in done:
                        continue
                    facts = measured(loaded, few, site)
                    cells.append({"model": model, "concept": concept, "site": site.name, **facts})
                    write_records(TARGET, cells)
                    click.echo(f"{model} {concept} {site.name}")
    (DOCS / "remainder.md").write_text(page(read_records(TARGET)), encoding="utf-8")


def sites(loaded: LoadedModel) -> list[tuple[int, ...]]:
    """Single blocks from early to late, and the band."""
    singles = [(round(depth * (loaded.num_layers - 1)),) for depth in DEPTHS]
    return [*singles, tuple(steered_band(loaded.num_layers))]


def measured(loaded: LoadedModel, corpus: Corpus, site: Site) -> Cell:
    """How far either law is off at each share, on the positions its scale was not fitted on."""
    run, read_out = run_unsteered(loaded, corpus, [site.first]), reader_of(loaded)
    odds = measure_log_odds(loaded, run, site, [0])
    unit, rise = spending_strength(loaded, run, site, odds.law(1), SETTINGS.ce_budget, sign=1)
    rows = np.linspace(0, corpus.n_scored - 1, POSITIONS).astype(int).tolist()

    def truth(share: float) -> np.ndarray:
        return read_out(last_residuals(loaded, run, site, share * unit, rows))

    before, far = truth(0.0), truth(FITTED_AT)
    passes = measure_remainder(loaded, run, site, unit, rows)
    asked = mean_divergence(before[::2], far[::2])
    forms = {name: fitted_on_half(form(passes), asked, read_out) for name, form in FORMS.items()}
    law = forms["five passes"]
    tilt = tilted(law, rise, unit, before, read_out)
    facts: Cell = {"unit": unit, "scale": law.scale, **peaks(loaded, run, site, law, tilt, rows)}
    facts["forms"] = {name: {} for name in forms}
    for share in SHARES:
        after = truth(share)[1::2]
        cost = mean_divergence(before[1::2], after)
        guesses = {
            "tilt": np.log(tilt.predict(share * unit) + TINY)[1::2],
            "law": law.log_probabilities(share * unit, read_out)[1::2],
        }
        for name, form in forms.items():
            guess = form.log_probabilities(share * unit, read_out)[1::2]
            facts["forms"][name][f"{share:g}"] = [
                float(total_variation(guess, after).mean()),
                mean_divergence(before[1::2], guess) / cost - 1,
            ]
        facts[f"{share:g}"] = [
            cost,
            *(float(total_variation(guess, after).mean()) for guess in guesses.values()),
            *(mean_divergence(before[1::2], guess) / cost - 1 for guess in guesses.values()),
            float(rise.predict(share * unit)) / cost - 1,
        ]
    return facts


def peaks(
    loaded: LoadedModel,
    run: UnsteeredRun,
    site: Site,
    law: RemainderLaw,
    tilt: TokenLaw,
    rows: list[int],
) -> Cell:
    """Where tokens peak and how often they rise twice, by either law, up to each reach."""
    few = slice(None, None, len(rows) // CONTEXTS)
    law, read_out = law.taken(few), reader_of(loaded)
    ids = np.argsort(-tilt.log_p[few], axis=1)[:, :LIKELY]
    tilt = TokenLaw(tilt.log_p[few], tilt.log_odds[few], tilt.saturation)
    strengths = law.unit * np.array([*(-share for share in reversed(CURVE)), 0.0, *CURVE])

    def curves(probabilities: Callable[[float], np.ndarray]) -> ProbabilityCurves:
        """Of the likely tokens; all laws at the strengths measured, so that peaks compare."""
        at = [np.take_along_axis(probabilities(each), ids, axis=1) for each in strengths.tolist()]
        return ProbabilityCurves(strengths, np.stack(at, axis=2))

    every = (
        curves(lambda at: np.exp(read_out(last_residuals(loaded, run, site, at, rows[few])))),
        curves(tilt.predict),
        curves(lambda at: np.exp(law.log_probabilities(at, read_out))),
    )
    facts: Cell = {SAME: True}
    for reach in REACHES:
        seen, by_tilt, by_law = (each.up_to(reach * law.unit) for each in every)
        end = float(seen.strengths[-1])
        facts[f"up to {reach:g}"] = [
            *(error_of(judge_peaks(seen.peaks(), one.peaks(), end)) for one in (by_tilt, by_law)),
            *(
                judge_shapes(one.probabilities.reshape(-1, len(one.strengths))).error
                for one in (seen, by_law)
            ),
        ]
    return facts


def mean_divergence(before: np.ndarray, after: np.ndarray) -> float:
    """Mean KL of distributions, nats; both arrays of ln p, (n_contexts, n_tokens)."""
    return float(divergences(before, after).mean())


def total_variation(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Total variation between distributions, in [0, 1], (n_contexts,); both arrays of ln p."""
    distance: np.ndarray = 0.5 * np.abs(np.exp(before) - np.exp(after)).sum(axis=1)
    return distance


def error_of(judged: Goodness | None) -> float | None:
    return None if judged is None else judged.error


def fitted_on_half(law: RemainderLaw, rise: float, read_out: ReadOut) -> RemainderLaw:
    """The law with the scale that every second position asks for."""
    scale = law.taken(slice(None, None, 2)).fitted_to(rise, read_out).scale
    return replace(law, scale=scale)


def tilted(
    law: RemainderLaw,
    rise: CrossEntropyLaw,
    unit: float,
    before: np.ndarray,
    read_out: ReadOut,
) -> TokenLaw:
    """The paper's tilt at the same positions, its dose fitted to what the unit costs."""
    above, below = (law.log_probabilities(sign * STEP * unit, read_out) for sign in (1, -1))
    return TokenLaw(before, (above - below) / (2 * STEP * unit)).fitted_to(rise, unit)


def page(cells: list[Cell]) -> str:
    every = table(HEADS, [row(cell) for cell in cells])
    finer = [FINER] if any(SAME not in cell for cell in cells) else []
    peaked = [PEAKS, *finer, peaks_table(cells)]
    parts = [
        HEADER, together(cells), scales(cells), forms_table(cells), *peaked, EVERY, every,
    ]  # fmt: skip
    return "\n\n".join(part.strip() for part in parts) + "\n"


HEADS = ["model", "concept", "site", "κ", *(f"{share:g} α_B" for share in SHARES)]


def row(cell: Cell) -> list[str]:
    values = [cell[f"{share:g}"] for share in SHARES]
    return [
        cell["model"],
        cell["concept"],
        cell["site"],
        f"{cell['scale']:.2g}",
        *(f"{tilt:.3f}, {law:.3f}; {cost:+.0%}" for _, tilt, law, _, cost, _ in values),
    ]


def together(cells: list[Cell]) -> str:
    """Median and worst over all cells, at each share."""
    rows = []
    for share in SHARES:
        values = np.abs(np.array([cell[f"{share:g}"][1:] for cell in cells]))
        middle, worst = np.median(values, axis=0), values.max(axis=0)
        rows.append(
            [
                f"{share:g}",
                *(f"{middle[each]:.3f}, {worst[each]:.3f}" for each in (0, 1)),
                *(f"{middle[each]:.1%}, {worst[each]:.1%}" for each in (2, 3, 4)),
            ]
        )
    heads = (
        "α/α_B|total variation, tilt|total variation, remainder|ΔCE, tilt|ΔCE, remainder|"
        "ΔCE, its own law"
    ).split("|")
    return (
        f"## Together\n\nMedian and worst of {len(cells)} cells; errors of ΔCE in either "
        f"direction.\n\n{table(heads, rows)}"
    )


def scales(cells: list[Cell]) -> str:
    """In how many cells κ is at the end of its range."""
    largest = sum(cell["scale"] >= MOST_SCALE for cell in cells)
    return (
        f"κ = {MOST_SCALE:g} is the largest allowed; it is reached in {largest} of {len(cells)} "
        "cells, where the remainder levels off later than any κ allowed says, or not at all."
    )


def forms_table(cells: list[Cell]) -> str:
    """What other passes and other bounds would foretell, median and worst over the cells."""
    rows, tried = [], [cell for cell in cells if "forms" in cell]
    for name in FORMS:
        shown = []
        for share in SHARES:
            values = np.abs(np.array([cell["forms"][name][f"{share:g}"] for cell in tried]))
            middle, worst = np.median(values, axis=0), values.max(axis=0)
            shown.append(f"{middle[0]:.3f}, {worst[0]:.3f}; {middle[1]:.1%}, {worst[1]:.1%}")
        rows.append([name, *shown])
    return FORMS_TOLD.format(n=len(tried)) + table(
        ["form", *(f"{share:g} α_B" for share in SHARES)], rows
    )


def peaks_table(cells: list[Cell]) -> str:
    heads = (
        "model|concept|site|up to α_B: tilt|remainder|rise twice: measured|remainder|"
        "up to 3 α_B: tilt|remainder|rise twice: measured|remainder"
    ).split("|")
    rows = []
    for cell in cells:
        shown = []
        for reach in REACHES:
            tilt, law, seen, by_law = cell[f"up to {reach:g}"]
            found = ("–" if error is None else f"{error:.3f}" for error in (tilt, law))
            shown += [*found, f"{seen:.1%}", f"{by_law:.1%}"]
        rows.append([cell["model"], cell["concept"], cell["site"], *shown])
    return table(heads, rows)


PEAKS = """## Peaks and bumps

Of the 200 likeliest tokens in 16 contexts: 1 - rank correlation of the strengths at which they
peak, measured and by each law, the median over contexts; tokens still rising at either end are left
out. Then the share whose probability rises twice, which Theorem 3.3 forbids.
"""

FINER = """The peaks of these cells were measured at 15 strengths up to 3 α_B, and predicted between
them too. Where several tie as measured, that alone costs a law rank correlation.
"""

FORMS_TOLD = """## Other forms of it

Total variation, then the error of ΔCE, median and worst of {n} cells; each form has its own κ,
fitted on every second position as well. Three passes, at -α_B, 0 and α_B, know no slope at 0.
Instead of t/√(1 + (t/κ)²), "tanh" is bounded by κ·tanh(t/κ) and "rational" by t/(1 + |t|/κ). Within
α_B the slope is worth its two passes; far out no form is the best in all columns.

"""

EVERY = """## Every cell

Total variation by the tilt and by the remainder; then the error of the remainder's ΔCE.
"""

HEADER = """# The law of the bounded remainder

Written by `scripts/measure_remainder.py`. α_B is the strength that spends 0.1 nat per token.
The law (`calibrate/laws/remainder.py`) reads the last residual in passes at -α_B, 0, α_B and ±ε,
at all positions, and its scale κ from what 2 α_B costs on every second one. So only κ is held out
from the other positions, 96 in each cell, on which the law is judged, by the total variation
between its next-token distribution and the one a pass measures there. At 1 α_B the law goes through
its own pass: what the remainder shows in that row is exact by construction, and only the other rows
are foretold. "Tilt" is the paper's Theorem 3.3 with a dose fitted to ΔCE, and "its own law" of ΔCE
the saturating quadratic (`calibrate/laws/formulas.py`), which is fitted on all positions, so that
part of its error here is that of the 96.

Why it works: what a vector does to the last residual is itself, αv, and what the blocks make of it;
as these read a normalised stream, that part is smooth and bounded, and three points and a slope
pin it down. A tilt fixes the direction in which logits move; this lets it turn. It stops where the
strength is far outside of the passes: there only the bound and κ speak, one number for all
components.
"""


if __name__ == "__main__":
    main()
