"""Measure what more pairs of texts buy: presence at the budget by their number, in docs/pairs.md.

    python scripts/measure_pairs.py [--concept joy] [--page]

The default band is steered by vectors from the first few, or more, of a concept's pairs, each by
the strength that its pilot names for the budget; replies are read as in `measure_bands.py`. Two
minutes a point on one core; what was measured is kept, and not measured again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import matplotlib.pyplot as plt
import numpy as np
from default_band import judges_at
from markdown_tables import DOCS, table
from measure_bands import JUDGES, SETTINGS, cell, change
from records import page_option, read_records, write_records

from calibrate import load_model
from calibrate.engine.site import Site
from calibrate.engine.unsteered import UnsteeredRun, run_unsteered
from calibrate.models.model import LoadedModel, preserving_model_state
from calibrate.search.sites import steered_band
from calibrate.texts.concept import Concept, Texts, read_concept, read_prompts
from calibrate.texts.extraction import concept_vectors
from calibrate.texts.replies import UnsteeredReplies, build_corpora, sample_unsteered

TARGET = DOCS / "pairs.json"
MODEL = "smollm2"
CONCEPTS = ("joy", "optimistic")
PAIRS = (4, 8, 16, 32, 64, 128, 192)  # each holds the ones before it


@click.command()
@click.option("--concept", "concepts", multiple=True, default=CONCEPTS, show_default=True)
@page_option
def main(concepts: tuple[str, ...], only_page: bool) -> None:
    if not only_page:
        loaded = load_model(MODEL)
        with preserving_model_state(loaded):
            replies = sample_unsteered(loaded, read_prompts(), SETTINGS)
            first = steered_band(loaded.num_layers)[0]
            runs = {
                purpose: run_unsteered(loaded, corpus, [first])
                for purpose, corpus in build_corpora(loaded, replies, None).items()
            }
            for concept in concepts:
                measure(loaded, concept, replies, runs)
    found = read_records(TARGET)
    (DOCS / "pairs").mkdir(exist_ok=True)
    draw(found, DOCS / "pairs" / "presence.png")
    (DOCS / "pairs.md").write_text(page(found), encoding="utf-8")


def measure(
    loaded: LoadedModel, name: str, replies: UnsteeredReplies, runs: dict[str, UnsteeredRun]
) -> None:
    concept, panel = read_concept(name), None
    for n in (0, *PAIRS):
        found: dict[str, Any] = read_records(TARGET)
        points, place = found.setdefault(name, {}), str(n) if n else "unsteered"
        if place in points:
            continue
        site = site_from(loaded, concept, n) if n else None
        if panel is None:
            start = site_from(loaded, concept, PAIRS[-1])
            panel = judges_at(loaded, name, replies, start, SETTINGS)
        facts, scores = cell(loaded, panel, replies, runs, site)
        for judge, values in scores.items():
            error = np.std(values, ddof=1) / np.sqrt(len(values))
            facts[judge] = [float(np.mean(values)), float(error)]
        points[place] = facts
        write_records(TARGET, found)
        click.echo(f"{name} {n}: α = {facts['strength']:.3g}")


def site_from(loaded: LoadedModel, concept: Concept, n: int) -> Site:
    """The default band, with vectors from n pairs that the judges are not asked to tell apart."""
    splits = concept.split()
    texts = [splits["vector"], splits["probe"]]
    keys = sorted({text.key for part in texts for text in part.positives})
    random.Random(0).shuffle(keys)
    chosen = set(keys[:n])
    sides = (
        tuple(one for part in texts for one in getattr(part, side) if one.key in chosen)
        for side in ("positives", "negatives")
    )
    vectors = concept_vectors(loaded, Texts(*sides), SETTINGS)
    return Site(tuple(vectors[layer] for layer in steered_band(loaded.num_layers)))


def changes(concept: str, points: dict[str, Any], judge: str) -> Iterator[tuple[int, float, float]]:
    """Number of pairs, change towards the concept, and standard error of what was read."""
    for n in PAIRS:
        if str(n) in points:
            yield n, change(concept, points, str(n), judge), points[str(n)][judge][1]


def expected(points: dict[str, Any], full: float) -> list[tuple[int, float]]:
    """Change by the signal alone: what is paid for noise buys nothing, so that it goes by √signal.

    full: the change with the most pairs, to which the line is fixed.
    """
    most = str(PAIRS[-1])
    return [
        (n, full * float(np.sqrt(points[str(n)]["signal"] / points[most]["signal"])))
        for n in PAIRS
        if str(n) in points
    ]


def draw(found: dict[str, Any], path: Path) -> None:
    done = {concept: points for concept, points in found.items() if str(PAIRS[-1]) in points}
    columns = max(len(done), 1)
    size = (5 * columns, 4)
    figure, panels = plt.subplots(1, columns, figsize=size, layout="constrained", squeeze=False)
    for axes, (concept, points) in zip(panels[0], done.items(), strict=False):
        for colour, (judge, reader) in enumerate(JUDGES.items()):
            rows = list(changes(concept, points, judge))
            pairs, values, errors = zip(*rows, strict=True)
            axes.errorbar(pairs, values, errors, fmt="o", color=f"C{colour}", label=reader)
            line = expected(points, values[-1])
            axes.plot(*zip(*line, strict=True), "--", color=f"C{colour}", alpha=0.5)
        axes.set(
            xscale="log", xlabel="pairs of texts", title=concept,
            ylabel="change towards the concept at the budget",
        )  # fmt: skip
        axes.set_xticks(PAIRS, [str(n) for n in PAIRS], minor=False)
        axes.minorticks_off()
        axes.axhline(0, color="0.7", linewidth=1)
        axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def page(found: dict[str, Any]) -> str:
    parts = [HEADER]
    heads = ["pairs", "signal", "α", "ΔCE", *(f"by {reader}" for reader in JUDGES.values())]
    for concept, points in found.items():
        read = {
            judge: {n: (value, error) for n, value, error in changes(concept, points, judge)}
            for judge in JUDGES
        }
        rows = [
            [str(n), f"{points[str(n)]['signal']:.2f}", f"{points[str(n)]['strength']:.3g}",
             f"{points[str(n)]['delta_ce']:.3f}",
             *(f"{read[judge][n][0]:+.3f} ± {read[judge][n][1]:.3f}" for judge in JUDGES)]
            for n in PAIRS
            if str(n) in points
        ]  # fmt: skip
        parts.append(f"## {concept}\n\n" + table(heads, rows))
    return "\n".join(parts)


HEADER = f"""# What more pairs of texts buy

Written by `scripts/measure_pairs.py`; every point is in [pairs.json](pairs.json). Model: {MODEL};
the band that is steered by default, by the strength that spends 0.1 nat, with vectors from the
first so many of a concept's pairs. Read in 256 replies to prompts on which nothing was fitted, with
the same noise at every point; change towards the concept against the unsteered, ± one standard
error of what was read. "Signal" is the share of ‖v‖² that is not sampling noise, as the summary of
a calibration says it.

![Change towards the concept by the number of pairs](pairs/presence.png)

Dashed: the change with the most pairs times √signal, which is what would be left if noise cost as
much cross-entropy as signal and bought nothing.
"""


if __name__ == "__main__":
    main()
