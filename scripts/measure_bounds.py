"""Hold the bounds on ΔCE against fresh replies, and write docs/bounds.md.

    python scripts/measure_bounds.py [--model smollm2] [--concept joy] [--page]

Every prompt of the verification gets FRESH new replies, which no strength was named by. At each
point of a measured frontier (docs/frontier/) ΔCE is measured in all of them: their mean is the
truth, and SAMPLINGS times a verification is played with one of them to each prompt. Half an hour.
"""

from __future__ import annotations

from typing import Any

import click
import numpy as np
from default_band import band_of
from markdown_tables import DOCS, table
from records import page_option, read_records, write_records

from calibrate import load_model
from calibrate.common.estimate import RatioEstimate
from calibrate.common.settings import Settings
from calibrate.engine.cross_entropy import delta_ce
from calibrate.engine.generation import Completion, Request, sample_all
from calibrate.engine.unsteered import Corpus, run_unsteered
from calibrate.models.model import LoadedModel, preserving_model_state
from calibrate.texts.concept import read_prompts
from calibrate.texts.replies import sample_unsteered

TARGET = DOCS / "bounds.json"
FRONTIERS = DOCS / "frontier"
SETTINGS = Settings()
FRESH = 16  # replies to each prompt
SAMPLINGS = 200
SEED = 1_000_000  # of the fresh replies, and of which are drawn


@click.command()
@click.option("--model", default="smollm2")
@click.option("--concept", "concepts", multiple=True, default=("joy", "depression"))
@page_option
def main(model: str, concepts: tuple[str, ...], only_page: bool) -> None:
    if not only_page:
        loaded = load_model(model)
        with preserving_model_state(loaded):
            fresh = fresh_replies(loaded)
            points = {concept: measured(loaded, concept, fresh) for concept in concepts}
        write_records(TARGET, {"model": model, "points": points})
    (DOCS / "bounds.md").write_text(page(read_records(TARGET)), encoding="utf-8")


def fresh_replies(loaded: LoadedModel) -> tuple[Completion, ...]:
    """FRESH replies to each prompt of the verification, in the order of the prompts."""
    asked = sample_unsteered(loaded, read_prompts(), SETTINGS).prompts["verify"]
    (drawn,) = sample_all(loaded, [Request(asked, FRESH)], SETTINGS.sampling, SEED)
    return drawn


def measured(loaded: LoadedModel, concept: str, fresh: tuple[Completion, ...]) -> list[Any]:
    """Each point of a frontier: what was said of it, and what fresh replies say."""
    site = band_of(loaded, concept, SETTINGS)
    corpus = Corpus(tuple(reply.sequence for reply in fresh), self_sampled=True)
    run = run_unsteered(loaded, corpus, [site.first])
    found = []
    for point in read_records(FRONTIERS / f"{concept}-{loaded.name}.json")["points"]:
        rise = delta_ce(loaded, run, site, point["strength"])
        facts = {name: point[name] for name in ("budget", "strength", "upper")}
        found.append({**facts, "said": point["delta_ce"]["value"], **played(rise)})
        click.echo(f"{concept} {point['budget']}: {found[-1]}")
    return found


def played(rise: RatioEstimate) -> dict[str, Any]:
    """How often the bound of one reply to each prompt is not below the mean over all replies.

    `same`: with the same prompts every time; `anew`: with prompts drawn with replacement, too.
    """
    sums, counts = rise.sums.reshape(-1, FRESH), rise.counts.reshape(-1, FRESH)
    n_prompts = len(sums)
    rng = np.random.default_rng(SEED)

    def holds(prompts: np.ndarray) -> bool:
        which = rng.integers(FRESH, size=n_prompts)
        drawn = RatioEstimate(sums[prompts, which], counts[prompts, which])
        return drawn.upper(SETTINGS.confidence) >= rise.value

    every = np.arange(n_prompts)
    return {
        "truth": rise.value,
        "same": sum(holds(every) for _ in range(SAMPLINGS)),
        "anew": sum(holds(rng.choice(every, n_prompts)) for _ in range(SAMPLINGS)),
    }


def page(found: dict[str, Any]) -> str:
    rows = [
        [
            concept,
            f"{point['budget']:g}",
            f"{point['strength']:.3g}",
            f"{point['said']:.4f}",
            f"{point['upper']:.4f}",
            f"{point['truth']:.4f}",
            *(f"{point[kind] / SAMPLINGS:.1%}" for kind in ("same", "anew")),
        ]
        for concept, points in found["points"].items()
        for point in points
    ]
    every = [point for points in found["points"].values() for point in points]
    spends = sum(point["truth"] <= point["budget"] for point in every)
    covered = sum(point["truth"] <= point["upper"] for point in every)
    heads = ["concept", "budget", "α", "ΔCE said", "bound said", "ΔCE, all fresh replies"]
    heads += ["bound holds", "prompts drawn anew"]
    return (
        HEADER.format(model=found["model"])
        + table(heads, rows)
        + f"\nIn the fresh replies {spends} of {len(every)} points keep to their budget, and "
        f"{covered} of {len(every)} to the bound that their own verification had set.\n"
    )


HEADER = f"""# Do the bounds hold?

Written by `scripts/measure_bounds.py`. A budget is kept if the one-sided {SETTINGS.confidence:.0%}
bound on ΔCE, from one plain reply to each of 64 prompts, does not exceed it
(`calibrate/common/estimate.py`). Here {{model}} gave every prompt {FRESH} fresh replies, at the
strengths of a [frontier](frontier.md) that had been verified on others. Their mean is taken for the
truth; "bound holds" is the share of {SAMPLINGS} verifications, with one of these replies to each
prompt, whose bound is not below it, and the last column the same with the prompts drawn anew, with
replacement, as well, as a bound for other prompts should have it. The same are drawn at every point
of a concept, so that the rows stand or fall together; a share of {SAMPLINGS} is known to about 1.5
points.

"""


if __name__ == "__main__":
    main()
