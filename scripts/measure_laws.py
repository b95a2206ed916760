"""Measure how well the laws predict a real model, and write docs/laws.md.

    python scripts/measure_laws.py [--model smollm2] [--corpus-file FILE.jsonl] [--page]

For every built-in concept, five blocks and the band: the strength that spends a budget, named by a
pilot, against the truth on its own sequences and on others. The truth costs a pass a budget:
ΔCE is measured at the named strength, and what is missing is made up along the law's own slope
there if it is little, and by the secant method if it is more. Two to five minutes a site on one
core; what was measured is kept, and not measured again.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import token_peaks
from markdown_tables import DOCS, table
from records import page_option, read_records, write_records
from scipy.optimize import newton
from scipy.stats import norm

from calibrate import load_model
from calibrate.common.blocks import site_name
from calibrate.common.estimate import RatioEstimate
from calibrate.common.settings import Sampling, Settings
from calibrate.engine.cross_entropy import measure_steered
from calibrate.engine.generation import sample
from calibrate.engine.site import Site
from calibrate.engine.unsteered import Corpus, UnsteeredRun, joined, run_unsteered
from calibrate.laws.bootstrap import resampled_laws, strength_interval
from calibrate.laws.formulas import CrossEntropyLaw
from calibrate.laws.log_odds import LogOdds, far_logits, measure_log_odds, sampled_contexts
from calibrate.laws.pilot import Pilot, fit_pilot
from calibrate.laws.tokens import judge_peaks
from calibrate.models.model import LoadedModel, preserving_model_state
from calibrate.models.prompts import encode_prompt, encode_text
from calibrate.models.tokens import TokenSequence
from calibrate.search.sites import steered_band
from calibrate.texts.concept import built_in_concepts, read_concept, read_lines, read_prompts
from calibrate.texts.extraction import concept_vectors

TARGET = DOCS / "laws.json"
BUDGETS = (0.05, 0.1, 0.3)
DEPTHS = (0.15, 0.33, 0.5, 0.67, 0.85)
GROUP, GROUPS, OWN_GROUPS = 16, 10, 3  # prompts or texts; the pilot's own are as many as by default
SAMPLING = Sampling(max_new_tokens=24)
TEXT_TOKENS = 64  # of each text of a file
REPLIES = 2  # to each of the other prompts; the pilot has one of them to each of its own
TEXTS = 2  # groups of a file's texts for every group of prompts; the pilot's own is one of them
N_OWN, N_OTHERS = GROUP * OWN_GROUPS, GROUP * (GROUPS - OWN_GROUPS)
LIKELY = 200
PEAK_SHARES = np.linspace(-1, 1, 9)  # of α_B: where peaks are looked for
DEALS = 20  # ways to deal what was measured into the pilot's own and the others
CLOSE = 0.06  # of log α: a step of this size along the law's slope is right to a fiftieth of it
FARTHEST = 2.0  # times the named strength: the longest step


@dataclass(frozen=True)
class Cell:
    """One budget at one site: what the law said and what is true.

    own, others: the strength that spends the budget there. covered: the share of deals in which
    the interval named from a pilot's own sequences holds that of the others.
    """

    budget: float
    named: float
    low: float
    high: float
    passes: int
    own: float
    others: float
    covered: float

    @property
    def own_error(self) -> float:
        return abs(self.named / self.own - 1)

    @property
    def other_error(self) -> float:
        return abs(self.named / self.others - 1)

    @property
    def sampling_error(self) -> float:
        """The median error on the others of a law without any fault, from the interval's width."""
        deviation = np.log(self.high / self.low) / (2 * norm.ppf(0.975))
        return float(norm.ppf(0.75) * deviation * np.sqrt(1 + N_OWN / (TEXTS * N_OTHERS)))


@dataclass(frozen=True)
class Far:
    """The far end at one site: the predicted plateau, and what is measured far out."""

    residual_left: float
    predicted: float
    measured: float


Place = tuple[str, str, tuple[int, ...]]  # model, corpus and steered blocks


@dataclass(frozen=True)
class Steered:
    """What was measured of one concept at one site.

    correlation: median over contexts of the rank correlation of predicted and measured peaks.
    """

    model: str
    corpus: str
    concept: str
    layers: list[int]
    cells: list[Cell]
    correlation: float
    far: Far

    @property
    def place(self) -> Place:
        return self.model, self.corpus, tuple(self.layers)

    @classmethod
    def of(cls, facts: dict[str, Any]) -> Steered:
        cells = [Cell(**cell) for cell in facts["cells"]]
        return cls(**{**facts, "cells": cells, "far": Far(**facts["far"])})


@dataclass(frozen=True, eq=False)
class Dealt:
    """The pilot's own sequences; the others; and one group of those, for what is costly."""

    own: UnsteeredRun
    others: UnsteeredRun
    group: Corpus


@dataclass(frozen=True, eq=False)
class Pool:
    """Unsteered runs of GROUPS groups of sequences: one or more corpora of each group."""

    kind: str
    groups: list[list[UnsteeredRun]]

    def dealt(self, seed: str) -> Dealt:
        """Other groups, and other replies of the pilot's own, for every seed."""
        rng = random.Random(seed)
        order = rng.sample(range(len(self.groups)), len(self.groups))
        own, others = order[:OWN_GROUPS], order[OWN_GROUPS:]
        return Dealt(
            joined([rng.choice(self.groups[index]) for index in own]),
            joined([run for index in others for run in self.groups[index]]),
            self.groups[others[0]][0].corpus,
        )


@click.command()
@click.option("--model", "models", multiple=True, default=("smollm2",), show_default=True)
@click.option("--corpus-file", type=click.Path(exists=True, path_type=Path))
@click.option("--concept", "concepts", multiple=True, default=tuple(built_in_concepts()))
@page_option
def main(
    models: tuple[str, ...], corpus_file: Path | None, concepts: tuple[str, ...], only_page: bool
) -> None:
    for name in () if only_page else models:
        loaded = load_model(name)
        with preserving_model_state(loaded):
            measure_model(loaded, corpus_file, concepts)
    (DOCS / "laws.md").write_text(page(kept()), encoding="utf-8")


def kept() -> list[Steered]:
    return [Steered.of(facts) for facts in read_records(TARGET)]


def measure_model(loaded: LoadedModel, corpus_file: Path | None, concepts: tuple[str, ...]) -> None:
    n = loaded.num_layers
    groups = [*((int(depth * n),) for depth in DEPTHS), steered_band(n)]
    firsts = sorted({layers[0] for layers in groups})
    pool = texts_of(loaded, corpus_file, firsts) if corpus_file else replies_of(loaded, firsts)
    for concept in concepts:
        vectors = concept_vectors(loaded, read_concept(concept).split()["vector"], Settings())
        for layers in groups:
            found, place = kept(), (loaded.name, pool.kind, layers)
            if not any((one.concept, one.place) == (concept, place) for one in found):
                site = Site(tuple(vectors[layer] for layer in layers))
                dealt = pool.dealt(f"{concept} {site.first}")
                facts = measure_site(loaded, pool.kind, concept, site, dealt)
                write_records(TARGET, [asdict(one) for one in [*found, facts]])
                click.echo(f"{concept} {place}")


def replies_of(loaded: LoadedModel, layers: Sequence[int]) -> Pool:
    prompts = list(read_prompts())
    random.Random(0).shuffle(prompts)
    encoded = [encode_prompt(loaded, text) for text in prompts[: GROUP * GROUPS]]
    drawn = [one.sequence for one in sample(loaded, encoded, SAMPLING, 0, per_prompt=REPLIES)]
    groups = [
        [drawn[start + reply : start + GROUP * REPLIES : REPLIES] for reply in range(REPLIES)]
        for start in range(0, len(drawn), GROUP * REPLIES)
    ]
    return Pool("own replies", [run_groups(loaded, group, True, layers) for group in groups])


def texts_of(loaded: LoadedModel, path: Path, layers: Sequence[int]) -> Pool:
    encoded = [encode_text(loaded, text) for text in dict.fromkeys(read_lines(path))]
    cut = [
        replace(one, ids=one.ids[:TEXT_TOKENS]) for one in encoded if len(one.ids) >= TEXT_TOKENS
    ]
    parts = [cut[start : start + GROUP] for start in range(0, TEXTS * GROUPS * GROUP, GROUP)]
    groups = [parts[start : start + TEXTS] for start in range(0, len(parts), TEXTS)]
    return Pool(path.stem, [run_groups(loaded, group, False, layers) for group in groups])


def run_groups(
    loaded: LoadedModel,
    corpora: Sequence[Sequence[TokenSequence]],
    self_sampled: bool,
    layers: Sequence[int],
) -> list[UnsteeredRun]:
    return [
        run_unsteered(
            loaded, Corpus(tuple(one for one in part if one.n_scored), self_sampled), layers
        )
        for part in corpora
    ]


def measure_site(
    loaded: LoadedModel, corpus: str, concept: str, site: Site, dealt: Dealt
) -> Steered:
    odds = measure_log_odds(loaded, dealt.own.first, site, ())
    pilots = {
        budget: fit_pilot(loaded, dealt.own, site, odds, (), Settings(ce_budget=budget))
        for budget in BUDGETS
    }
    cells = [measure_cell(loaded, dealt, odds, pilot, budget) for budget, pilot in pilots.items()]
    few = run_unsteered(loaded, in_contexts(dealt.group), [site.first])
    unseen = measure_log_odds(loaded, few, site, ())
    return Steered(
        loaded.name, corpus, concept, list(site.layers), cells,
        peaks(loaded, few, unseen, pilots[0.1]), far(loaded, few, unseen, site),
    )  # fmt: skip


def in_contexts(corpus: Corpus) -> Corpus:
    """Cut every sequence where one of its tokens is scored, the first, the second, and so on."""
    cut = []
    for index, one in enumerate(corpus.sequences):
        end = one.start + index * one.n_scored // len(corpus.sequences)
        cut.append(replace(one, ids=one.ids[: end + 1], start=end))
    return Corpus(tuple(cut), corpus.self_sampled)


def measure_cell(
    loaded: LoadedModel, dealt: Dealt, odds: LogOdds, pilot: Pilot, budget: float
) -> Cell:
    named = pilot.strength_at_budget
    rises = [
        measure_steered(loaded, run, pilot.site, named.value).rise
        for run in (dealt.own, dealt.others)
    ]
    own, others = (
        truth(loaded, run, pilot, budget, rise)
        for run, rise in zip((dealt.own, dealt.others), rises, strict=True)
    )
    sequences = [*dealt.own.corpus.sequences, *dealt.others.corpus.sequences]
    measured = RatioEstimate.joined(rises)
    prompts = [
        one.ids[: one.start] if dealt.own.corpus.self_sampled else one.ids for one in sequences
    ]
    return Cell(
        budget, named.value, named.low, named.high, len(pilot.points), own, others,
        coverage(pilot, odds, measured, prompts, budget),
    )  # fmt: skip


def truth(
    loaded: LoadedModel, run: UnsteeredRun, pilot: Pilot, budget: float, rise: RatioEstimate
) -> float:
    """The strength that spends the budget on a corpus, from the rise at the named one.

    One step along the law; where that is a long one, the secant method, until its steps are short.
    """
    named = pilot.strength_at_budget.value
    strength = stepped(pilot.law, named, rise, budget)
    if abs(np.log(strength / named)) <= CLOSE:
        return strength

    def missed(at: float) -> float:
        found = rise if at == named else measure_steered(loaded, run, pilot.site, at).rise
        return found.value - budget

    return float(newton(missed, named, x1=strength, tol=CLOSE * named))


def stepped(law: CrossEntropyLaw, strength: float, rise: RatioEstimate, budget: float) -> float:
    """Where the budget is spent by the law's slope in log-log, no further off than FARTHEST.

    On text that the model has not written the rise may be 0 or less; then it says no more.
    """
    share = max(rise.value / budget, 1e-9)
    ratio = share ** (-1 / steepness(law, strength))
    return strength * float(np.clip(ratio, 1 / FARTHEST, FARTHEST))


def coverage(
    pilot: Pilot,
    odds: LogOdds,
    measured: RatioEstimate,
    prompts: Sequence[tuple[int, ...]],
    budget: float,
) -> float:
    """How often the interval holds the strength of the others, over DEALS deals of the prompts.

    measured: the rise of every sequence at the named strength; the first are those of the log-odds,
    which are the pilot's own in every deal. prompts: what each sequence replies to.
    """
    strength, settings = pilot.strength_at_budget.value, Settings(ce_budget=budget)
    rng = random.Random(f"{pilot.site.first} {budget}")
    first = list(range(len(odds.counts)))
    rest: dict[tuple[int, ...], list[int]] = {}
    for index in range(len(first), len(prompts)):
        rest.setdefault(prompts[index], []).append(index)
    for index in first:
        rest.pop(prompts[index], None)
    hits = 0
    for _ in range(DEALS):
        drawn = set(rng.sample(sorted(rest), N_OWN - len(first)))
        own = [*first, *(rng.choice(rest[prompt]) for prompt in sorted(drawn))]
        others = [index for prompt in rest if prompt not in drawn for index in rest[prompt]]
        laws = resampled_laws(odds, [(strength, taken(measured, own))], settings)
        low, high = strength_interval(laws, len(own), settings)
        hits += low <= stepped(pilot.law, strength, taken(measured, others), budget) <= high
    return hits / DEALS


def taken(measured: RatioEstimate, rows: Sequence[int]) -> RatioEstimate:
    return RatioEstimate(measured.sums[rows], measured.counts[rows])


def steepness(law: CrossEntropyLaw, strength: float) -> float:
    """D log ΔCE / d log α."""
    up, down = (float(law.predict(strength * (1 + d))) for d in (1e-4, -1e-4))
    return float(np.log(up / down) / np.log((1 + 1e-4) / (1 - 1e-4)))


def peaks(loaded: LoadedModel, run: UnsteeredRun, odds: LogOdds, pilot: Pilot) -> float:
    """How predicted and measured peaks agree in contexts the pilot has not seen."""
    unit = pilot.strength_at_budget.value
    contexts = sampled_contexts(run)
    strengths = unit * PEAK_SHARES
    curves = np.stack(
        [
            measure_steered(loaded, run, pilot.site, float(at), watched=contexts).watched
            for at in strengths
        ]
    )
    law = odds.tokens.fitted_to(pilot.law, unit)
    likely = np.argsort(-law.log_p, axis=1)[:, :LIKELY]
    measured = strengths[curves.argmax(axis=0)]
    inside = 0.99 * unit  # a token that peaks at either end of the grid may peak beyond it
    found = judge_peaks(
        np.take_along_axis(measured, likely, axis=1),
        np.take_along_axis(token_peaks.peaks(law, 6 * unit), likely, axis=1),
        inside,
    )
    return np.nan if found is None else 1 - found.error


def far(loaded: LoadedModel, run: UnsteeredRun, odds: LogOdds, site: Site) -> Far:
    """Push until the residual stream no longer matters, and compare with the plateau.

    residual_left: the largest total variation between a steered prediction and norm(v)'s own;
    what is left of the input.
    """
    strength = 3e3 * site.residual_norm / site.norm
    contexts = sampled_contexts(run)
    steered = measure_steered(loaded, run, site, strength, watched=contexts)
    limit = far_logits(loaded, site, 1).softmax(dim=-1).cpu().numpy()
    left = 0.5 * np.abs(steered.watched - limit).sum(axis=1).max()
    return Far(float(left), odds.law(1).plateau, steered.rise.value)


def page(found: list[Steered]) -> str:
    return "\n".join(
        [HEADER, accuracy(found), by_site(found), peaks_table(found), far_table(found)]
    )


def perfect(n_others: int) -> float:
    """Coverage of a perfect interval, where the truth comes from so many sequences."""
    return float(2 * norm.cdf(norm.ppf(0.975) / np.sqrt(1 + N_OWN / n_others)) - 1)


HEADER = f"""# How well the laws predict a real model

Written by `scripts/measure_laws.py`; every point is in [laws.json](laws.json). A pilot names the
strength that spends a budget from {N_OWN} own replies of {SAMPLING.max_new_tokens} tokens, each to
a prompt of its own, or from {N_OWN} texts of {TEXT_TOKENS} tokens of a file. "Own" is its error on
those sequences; "others" on {REPLIES * N_OTHERS} replies to the {N_OTHERS} other prompts, or on
{TEXTS * N_OTHERS} other texts; "sampling alone" is the median error there of a law without any
fault, since the pilot's sequences and the others are samples: it is larger on text that the model
has not written, whose tokens are no draws from its predictions, so that ΔCE has a slope at 0 that
only many tokens tell. Prompts and texts are dealt anew for every concept and site:
a block, or the band that is steered by default, with one strength.
"Covered" is how often the 95 % interval holds the strength that spends the budget on the others,
over {DEALS} ways in every cell to deal what was measured into a pilot's {N_OWN} sequences and the
others. That strength is itself known only up to the sampling of the others, so that a perfect
interval would cover {perfect(TEXTS * N_OTHERS):.0%} on texts, and on replies between
{perfect(N_OTHERS):.0%} and {perfect(REPLIES * N_OTHERS):.0%}, since those to one prompt are alike.
"""


def accuracy(found: list[Steered]) -> str:
    rows = []
    for model, corpus in sorted({(one.model, one.corpus) for one in found}):
        for budget in (*BUDGETS, None):
            chosen = [
                cell
                for one in found
                if (one.model, one.corpus) == (model, corpus)
                for cell in one.cells
                if budget in (None, cell.budget)
            ]
            rows.append([model, corpus, f"{budget:g}" if budget else "all", *summary(chosen)])
    headings = ["model", "corpus", "budget", *SUMMARY]
    return "## The strength that spends the budget\n\n" + table(headings, rows)


SUMMARY = ("cells", "own: median", "own: worst", "others: median", "sampling alone",
           "others: worst", "covered", "pilot strengths: mean", "most")  # fmt: skip


def summary(cells: list[Cell]) -> list[str]:
    own = [cell.own_error for cell in cells]
    others = [cell.other_error for cell in cells]
    passes = [cell.passes for cell in cells]
    return [
        str(len(cells)),
        f"{np.median(own):.2%}",
        f"{max(own):.2%}",
        f"{np.median(others):.2%}",
        f"{np.median([cell.sampling_error for cell in cells]):.2%}",
        f"{max(others):.2%}",
        f"{np.mean([cell.covered for cell in cells]):.0%}",
        f"{np.mean(passes):.1f}",
        str(max(passes)),
    ]


def by_site(found: list[Steered]) -> str:
    rows = [
        [*shown(place), *summary([cell for one in there for cell in one.cells])]
        for place, there in placed(found)
    ]
    return "## By site\n\n" + table([*PLACE, *SUMMARY], rows)


PLACE = ("model", "corpus", "site")


def shown(place: Place) -> tuple[str, str, str]:
    model, corpus, layers = place
    return model, corpus, site_name(layers, "all")


def placed(found: list[Steered]) -> list[tuple[Place, list[Steered]]]:
    """Every place, and what was measured there."""
    places = sorted({one.place for one in found})
    return [(place, [one for one in found if one.place == place]) for place in places]


def peaks_table(found: list[Steered]) -> str:
    rows = []
    for place, there in placed(found):
        chosen = [one.correlation for one in there if np.isfinite(one.correlation)]
        rows.append([*shown(place), f"{np.median(chosen):.3f}", f"{min(chosen):.3f}"])
    return (
        "## Where tokens peak\n\n"
        f"Rank correlation of predicted and measured peak strengths of the {LIKELY} likeliest "
        "tokens, over those that peak between ±α at a budget of 0.1 nat; the median over "
        "contexts the pilot has not seen, then over concepts. Peaks are measured at "
        f"{len(PEAK_SHARES)} strengths, and predicted between them too: where several tie as "
        "measured, that alone keeps an exact law below 1.\n\n"
        + table([*PLACE, "median", "worst concept"], rows)
    )


def far_table(found: list[Steered]) -> str:
    rows = []
    for place, there in placed(found):
        chosen = [one.far for one in there]
        errors = [abs(one.predicted / one.measured - 1) for one in chosen]
        left = max(one.residual_left for one in chosen)
        rows.append(
            [*shown(place), f"{np.median(errors):.2%}", f"{max(errors):.2%}", f"{left:.1e}"]
        )
    headings = [*PLACE, "median error", "worst error", "total variation left"]
    return (
        "## The plateau\n\n"
        "ΔCE measured where the steered residual is 3,000 times the unsteered, against the "
        "plateau predicted without a pass. The last column is the largest total variation, over "
        "contexts and concepts, between the steered prediction and norm(v)'s own: what is left "
        "of the input.\n\n" + table(headings, rows)
    )


if __name__ == "__main__":
    main()
