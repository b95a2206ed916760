"""Compare a band of blocks with single blocks, and write docs/bands.md.

    python scripts/measure_bands.py [--model smollm2] [--concept joy] [--page]

Every site is steered by α at the budget, on the verification's prompts, which fit no law. Replies
share their noise, and two judges read them; VADER does where it speaks of the concept. Twenty
minutes a concept on two cores; what was measured is kept, and not measured again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
import numpy as np
from markdown_tables import DOCS, table
from records import page_option, read_records, write_records
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from calibrate import load_model
from calibrate.common.errors import Infeasible
from calibrate.common.settings import Settings
from calibrate.engine.cross_entropy import delta_ce
from calibrate.engine.generation import Completion, Request, sample_all
from calibrate.engine.site import Site
from calibrate.engine.unsteered import Corpus, run_unsteered
from calibrate.judging.choice import Lesson
from calibrate.judging.panel import Panel, make_judges
from calibrate.judging.presence import read
from calibrate.judging.teaching import JudgeInputs
from calibrate.laws.pilot import run_pilot
from calibrate.models.model import LoadedModel, preserving_model_state
from calibrate.texts.concept import built_in_concepts, read_concept, read_prompts
from calibrate.texts.extraction import concept_vectors
from calibrate.texts.replies import UnsteeredReplies, build_corpora, sample_unsteered

TARGET = DOCS / "bands.json"
MODELS = ("smollm2", "gemma3-270m")
SETTINGS = Settings()
REPLIES = 4  # to each prompt, 256 in all
BAND, MIDDLE = (0.27, 0.87), (0.4, 0.7)  # shares of the depth, every block between them
FOUR = (0.33, 0.5, 0.67, 0.83)
SINGLE = 9  # blocks, evenly spread over the band
VADER = {"joy": 1, "optimistic": 1, "depression": -1, "evil": -1, "impolite": -1}
JUDGES = {"probe": "the probe", "second": "the second judge", "vader": "VADER"}
GROUPS = ("band", "middle", "four")
LEAD = "band less best"


@click.command()
@click.option("--model", "models", multiple=True, default=MODELS)
@click.option("--concept", "concepts", multiple=True, default=built_in_concepts())
@page_option
def main(models: tuple[str, ...], concepts: tuple[str, ...], only_page: bool) -> None:
    for model in () if only_page else models:
        loaded = load_model(model)
        with preserving_model_state(loaded):
            replies = sample_unsteered(loaded, read_prompts(), SETTINGS)
            for concept in concepts:
                measure(loaded, concept, replies)
    (DOCS / "bands.md").write_text(page(read_records(TARGET)), encoding="utf-8")


def sites_of(loaded: LoadedModel, concept: str) -> dict[str, Site]:
    """The bands, and single blocks, by name."""
    vectors = concept_vectors(loaded, read_concept(concept).split()["vector"], SETTINGS)
    n = loaded.num_layers
    (first, last), middle = ([round(share * n) for share in ends] for ends in (BAND, MIDDLE))
    groups: dict[str, Sequence[int]] = {
        "band": range(first, last + 1),
        "middle": range(middle[0], middle[1] + 1),
        "four": [round(share * n) for share in FOUR],
    }
    singles = np.linspace(first, last, SINGLE).round().astype(int).tolist()
    groups |= {f"block {layer}": [layer] for layer in singles}
    return {name: Site(tuple(vectors[i] for i in layers)) for name, layers in groups.items()}


def measure(loaded: LoadedModel, concept: str, replies: UnsteeredReplies) -> None:
    """Measure what is not kept yet of one concept."""
    found: dict[str, Any] = read_records(TARGET)
    cells = found.setdefault(loaded.name, {}).setdefault(concept, {})
    corpora = build_corpora(loaded, replies, None)
    sites = sites_of(loaded, concept)
    missing = [name for name in ("unsteered", *sites) if name not in cells]
    if not missing:
        return
    panel = judges(loaded, concept, replies, sites)
    for name in missing:
        site = sites.get(name)
        strength = 0.0
        if site is not None:
            run = run_unsteered(loaded, corpora["search"], [site.first])
            pilot = run_pilot(loaded, run, site, (), SETTINGS)
            strength = pilot.strength_at_budget.value
        cells[name] = cell(loaded, panel, replies, corpora["verify"], site, strength)
        cells[name] |= {"strength": strength, "signal": None if site is None else site.signal}
        write_records(TARGET, found)
        click.echo(f"{loaded.name} {concept} {name}: α = {strength:.3g}")


def judges(
    loaded: LoadedModel, concept: str, replies: UnsteeredReplies, sites: dict[str, Site]
) -> Panel | None:
    """The judges of a calibration; None where the probe cannot tell the concept."""
    splits = read_concept(concept).split()
    inputs = JudgeInputs(concept, splits, replies, Site(sites["middle"].vectors[:1]))
    try:
        return make_judges(loaded, inputs, "auto", "embedding", Lesson("graded"), SETTINGS)
    except Infeasible:
        return None


def cell(
    loaded: LoadedModel,
    panel: Panel | None,
    replies: UnsteeredReplies,
    corpus: Corpus,
    site: Site | None,
    strength: float,
) -> dict[str, Any]:
    """ΔCE on held-out replies, and what the judges read in fresh ones, prompt by prompt."""
    steering = None if site is None else site.steering(strength)
    request = Request(replies.prompts["verify"], REPLIES, steering)
    (drawn,) = sample_all(loaded, [request], SETTINGS.sampling, SETTINGS.seed)
    rise = 0.0
    if site is not None:
        run = run_unsteered(loaded, corpus, [site.first])
        rise = delta_ce(loaded, run, site, strength).value
    scores = {}
    readers = {} if panel is None else {"probe": panel.reader, "second": panel.auditor}
    for name, reader in readers.items():
        if reader is not None:
            scores[name] = by_prompt(drawn, read(reader, drawn).scores)
    analyser = SentimentIntensityAnalyzer()
    compound = [analyser.polarity_scores(one.text)["compound"] for one in drawn]
    return {"delta_ce": rise, **scores, "vader": by_prompt(drawn, compound)}


def by_prompt(drawn: Sequence[Completion], scores: Sequence[float]) -> list[float]:
    """Mean score of each prompt's replies, in the order of the prompts."""
    places: dict[int, list[float]] = {}
    for one, score in zip(drawn, scores, strict=True):
        places.setdefault(one.prompt_index, []).append(float(score))
    return [float(np.mean(places[index])) for index in sorted(places)]


def page(found: dict[str, Any]) -> str:
    parts = [HEADER]
    for model, concepts in found.items():
        for judge, name in JUDGES.items():
            rows = [
                row(concept, cells, judge)
                for concept, cells in concepts.items()
                if has_enough(cells) and judge in cells["unsteered"] and speaks(judge, concept)
            ]
            if rows:
                heads = [
                    "concept",
                    "unsteered",
                    *GROUPS,
                    "best single block",
                    "worst",
                    "band - best",
                ]
                parts.append(f"## {model}, by {name}\n\n" + table(heads, rows))
        parts.append(costs(model, concepts))
    return "\n".join(parts)


def has_enough(cells: dict[str, Any]) -> bool:
    """Whether the bands are measured, and more than half of the single blocks."""
    return {"unsteered", *GROUPS} <= {*cells} and len(cells) > 1 + len(GROUPS) + SINGLE / 2


def speaks(judge: str, concept: str) -> bool:
    return judge != "vader" or concept in VADER


def row(concept: str, cells: dict[str, Any], judge: str) -> list[str]:
    """Changes towards the concept, in the judge's units, and the band's lead, paired by prompt."""
    sign = VADER[concept] if judge == "vader" else 1
    plain = np.array(cells["unsteered"][judge])
    changes = {
        name: sign * (np.array(one[judge]) - plain)
        for name, one in cells.items()
        if name != "unsteered"
    }
    singles = {name: one for name, one in changes.items() if name not in GROUPS}
    best = max(singles, key=lambda name: singles[name].mean())
    worst = min(singles, key=lambda name: singles[name].mean())
    lead = changes["band"] - singles[best]
    error = lead.std(ddof=1) / np.sqrt(len(lead))
    return [
        concept,
        f"{plain.mean():.3f}",
        *(f"{changes[name].mean():+.3f}" for name in GROUPS),
        f"{singles[best].mean():+.3f} ({best}, of {len(singles)})",
        f"{singles[worst].mean():+.3f} ({worst})",
        f"{lead.mean():+.3f} ± {error:.3f}",
    ]


def costs(model: str, concepts: dict[str, Any]) -> str:
    """Held-out ΔCE at every site, and how much of the vectors is signal."""
    rows = []
    for concept, cells in concepts.items():
        steered = {name: one for name, one in cells.items() if name != "unsteered"}
        singles = [one for name, one in steered.items() if name not in GROUPS]
        if not has_enough(cells):
            continue
        spread = [one["delta_ce"] for one in singles]
        noise = [1 - one["signal"] for one in singles]
        rows.append(
            [
                concept,
                *(f"{steered[name]['delta_ce']:.3f}" for name in GROUPS),
                f"{min(spread):.3f} to {max(spread):.3f}",
                f"{1 - steered['band']['signal']:.2f}",
                f"{min(noise):.2f} to {max(noise):.2f}",
            ]
        )
    if not rows:
        return ""
    heads = ["concept", *(f"ΔCE, {name}" for name in GROUPS), "single blocks", "noise, band",
             "single blocks"]  # fmt: skip
    return f"## {model}: held-out ΔCE at α of 0.1 nat, and share of ‖v‖² that is noise\n\n" + table(
        heads, rows
    )


HEADER = f"""# A band of blocks beside single blocks

Written by `scripts/measure_bands.py`; every point is in [bands.json](bands.json). Every site is
steered by the strength that its pilot names for 0.1 nat; what it does is read in {64 * REPLIES}
replies to prompts on which nothing was fitted, with the same noise at every site. "Band" steers
every block from {BAND[0]:.0%} to {BAND[1]:.0%} of the depth with one strength, "middle" from
{MIDDLE[0]:.0%} to {MIDDLE[1]:.0%}, "four" those at {", ".join(f"{share:.0%}" for share in FOUR)};
{SINGLE} single blocks are spread over the band. The best of nine noisy values is flattered; ± is
one standard error of the difference, paired by prompt. The judges read presence, VADER sentiment in
[-1, 1]; all changes are towards the concept.
"""


if __name__ == "__main__":
    main()
