"""Steer two concepts at once, hold the joint law against it, and write docs/joint.md.

    python scripts/measure_joint.py [--page] [--calibrated JOY OPTIMISTIC PAIR]

Each concept's law is fitted alone, on replies to the search prompts; a third derivative gives the
cross term. Then both are steered together at five mixing ratios, at the strengths that should spend
the budget, and ΔCE is measured on the same replies and on the verification's, which nothing has
seen. Fifteen minutes on one core.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import click
import numpy as np
from joint_law import JointLaw, joint_law
from markdown_tables import DOCS, table
from records import page_option, read_records, write_records

from calibrate import SteeringConfig, load, load_model
from calibrate.common.settings import Settings
from calibrate.engine.cross_entropy import delta_ce
from calibrate.engine.unsteered import UnsteeredRun, run_unsteered
from calibrate.laws.pilot import Pilot, run_pilot
from calibrate.models.model import preserving_model_state
from calibrate.search.joint import mixed
from calibrate.search.objective import FIRST_PART, rung_sizes
from calibrate.search.sites import choose_sites
from calibrate.texts.concept import read_concept, read_prompts
from calibrate.texts.extraction import concept_vectors
from calibrate.texts.replies import build_corpora, sample_unsteered

TARGET, CALIBRATED = DOCS / "joint.json", DOCS / "joint-pair.json"
CONCEPTS = ("joy", "depression", "humorous")
SETTINGS = Settings()
SHARES = (0.15, 0.35, 0.5, 0.65, 0.85)  # of the second concept, in units of α_B


@click.command()
@click.option(
    "--calibrated",
    nargs=3,
    type=click.Path(path_type=Path),
    help="Calibrations of two concepts, and of the first --beside the second; measure nothing.",
)
@page_option
def main(calibrated: tuple[Path, ...] | None, only_page: bool) -> None:
    if calibrated:
        write_records(CALIBRATED, shipped(*map(load, calibrated)))
    elif not only_page:
        write_records(TARGET, measured())
    text = page(read_records(TARGET), read_records(CALIBRATED))
    (DOCS / "joint.md").write_text(text, encoding="utf-8")


def shipped(
    first: SteeringConfig, second: SteeringConfig, both: SteeringConfig
) -> list[dict[str, Any]]:
    """What each calibration ships, the two concepts side by side."""
    assert both.beside is not None
    names = first.concept.name, second.concept.name
    rows = [
        ("alone", first, {names[0]: first.measured.presence.change}),
        ("alone", second, {names[1]: second.measured.presence.change}),
        (
            "both",
            both,
            {names[0]: both.measured.presence.change, names[1]: both.beside.change},
        ),
    ]
    return [
        {
            "how": " + ".join(changes) if how == "both" else f"{next(iter(changes))} alone",
            "upper": config.measured.delta_ce.upper,
            "budget": config.budget.limit,
            "changes": {name: [c.value, c.low, c.high] for name, c in changes.items()},
        }
        for how, config, changes in rows
    ]


def measured() -> list[dict[str, Any]]:
    """Every pair at every ratio."""
    loaded = load_model("smollm2")
    rows = []
    with preserving_model_state(loaded):
        replies = sample_unsteered(loaded, read_prompts(None), SETTINGS, ("search", "verify"))
        corpora = build_corpora(loaded, replies, None)
        pilots: dict[str, Pilot] = {}
        for name in CONCEPTS:
            splits = read_concept(name).split()
            vectors = concept_vectors(loaded, splits["vector"], SETTINGS)
            _, (site,) = choose_sites(
                loaded, corpora["search"], splits["probe"], vectors, 1, SETTINGS
            )
            if not pilots:
                parts = rung_sizes(len(corpora["search"].sequences), FIRST_PART)
                runs = {
                    "search": run_unsteered(loaded, corpora["search"], [site.first], parts),
                    "verify": run_unsteered(loaded, corpora["verify"], [site.first]),
                }
            pilots[name] = run_pilot(loaded, runs["search"], site, (), SETTINGS)
        for names in combinations(CONCEPTS, 2):
            first, second = (pilots[name] for name in names)
            law = joint_law(loaded, runs["search"].first, first, second)
            for share in SHARES:
                rows.append({"pair": list(names), **point(loaded, runs, first, second, law, share)})
                click.echo(str(rows[-1]))
    return rows


def point(
    loaded: Any,
    runs: dict[str, UnsteeredRun],
    first: Pilot,
    second: Pilot,
    law: JointLaw,
    share: float,
) -> dict[str, Any]:
    """One mixing ratio, at the strengths that should spend the budget."""
    a = (1 - share) * first.strength_at_budget.value
    b = share * second.strength_at_budget.value
    times = law.invert(SETTINGS.ce_budget, a, b)
    site = mixed(first.site, times * a, second.site, times * b)
    rises = {name: delta_ce(loaded, run, site, 1.0) for name, run in runs.items()}
    alone = first.law.predict(times * a) + second.law.predict(times * b)
    return {
        "share": share,
        "correlation": law.correlation,
        "cosine": law.cosine,
        "strengths": [times * a, times * b],
        "predicted": law.predict(times * a, times * b),
        "added": float(alone),
        "search": rises["search"].value,
        "verify": [rises["verify"].value, rises["verify"].standard_error],
    }


def page(rows: list[dict[str, Any]], calibrated: list[dict[str, Any]]) -> str:
    """docs/joint.md."""
    lines = []
    off: dict[str, list[float]] = {"search": [], "verify": [], "added": []}
    for row in rows:
        predicted, (held, error) = row["predicted"], row["verify"]
        off["search"].append(abs(predicted / row["search"] - 1))
        off["verify"].append(abs(predicted / held - 1))
        off["added"].append(abs(row["added"] / row["search"] - 1))
        lines.append(
            [
                " + ".join(row["pair"]),
                f"{row['correlation']:+.2f}",
                f"{row['cosine']:+.2f}",
                f"{1 - row['share']:.0%} : {row['share']:.0%}",
                f"{predicted:.4f}",
                f"{row['search']:.4f} ({predicted / row['search'] - 1:+.1%})",
                f"{held:.4f} ± {error:.4f} ({predicted / held - 1:+.1%})",
                f"{row['added']:.4f} ({row['added'] / row['search'] - 1:+.0%})",
            ]
        )
    headings = [
        "pair", "r", "cosine", "share of each", "predicted", "measured, search replies",
        "measured, held-out replies", "sum of both alone",
    ]  # fmt: skip
    worst = {name: f"{max(found):.1%}" for name, found in off.items()}
    middle = {name: f"{np.median(found):.1%}" for name, found in off.items()}
    names = list(calibrated[-1]["changes"])
    found = [
        [
            each["how"],
            *(_change(each["changes"].get(name)) for name in names),
            f"{each['upper']:.4f} of {each['budget']:g}",
        ]
        for each in calibrated
    ]
    return PAGE.format(
        pair=table(["steered", *(f"change of {name}" for name in names), "ΔCE at most"], found),
        table=table(headings, lines),
        worst=worst["search"],
        middle=middle["search"],
        worst_held=worst["verify"],
        middle_held=middle["verify"],
        worst_added=worst["added"],
    )


def _change(change: list[float] | None) -> str:
    return "–" if change is None else f"{change[0]:+.3f} ({change[1]:+.3f} to {change[2]:+.3f})"


PAGE = """# Two concepts under one budget

Written by `scripts/measure_joint.py`: SmolLM2-135M-Instruct, the default band of blocks, a budget
of 0.1 nat. Each concept's law of ΔCE is fitted alone. One further derivative, of both together,
gives the correlation r of their log-odds, and with it the joint law (`scripts/joint_law.py`)
foretells what any two strengths cost together. Here along five rays, each of a share of the one's
α_B and a share of the other's, as far out as the law says that the budget is spent. No strength
above 0 of both was measured before.

{table}
On the replies that the single laws were fitted on, the joint law is off by {middle} in the median
and {worst} at worst; on held-out replies by {middle_held} and {worst_held}, where the replies
themselves differ. Adding up what each costs alone is off by up to {worst_added}.

`calibrate --concept joy --beside DIR` needs no joint law: it finds α_B of each concept alone, adds
both vectors at the ratio of these that `--mix` names, and calibrates the sum like any other vector.
Its cost is measured, so that the budget holds whatever r is, and both are steered by one strength.
What full calibrations ship, half of each in the pair, on held-out prompts:

{pair}
The gain of both together is bought by one budget, and the vectors of both lie in one file, so that
every export takes the pair.
"""

if __name__ == "__main__":
    main()
