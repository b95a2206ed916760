"""Measure what each budget buys, its rivals and the limit, and write docs/frontier.md.

    python scripts/measure_frontier.py [--model smollm2] [--concept joy] [--costs] [--page]

The default band is measured at budgets from .05 to 1.6 nat, whether or not .1 nat would ship there.
Ten minutes a concept on two cores; a frontier that was measured is kept (docs/frontier/).
--costs instead counts what a calibration and a pick after it spend.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import click
import numpy as np
import torch
from default_band import band_of, judges_at
from kept import forget
from markdown_tables import DOCS, table
from records import page_option, read_records, write_records

from calibrate import Calibration, calibrate, load_model
from calibrate.artefact.advice import advice
from calibrate.artefact.assemble_frontier import build_frontier
from calibrate.artefact.frontier import Frontier, PointSection, RivalSection
from calibrate.artefact.report.frontier_pictures import frontier_pictures
from calibrate.common.cost import Ledger
from calibrate.common.errors import Infeasible
from calibrate.common.numbers import in_points
from calibrate.common.settings import Settings
from calibrate.deploy.frontier import nearest_strength
from calibrate.engine.cross_entropy import states_by_sequence
from calibrate.engine.generation import Completion
from calibrate.engine.unsteered import run_unsteered
from calibrate.laws.pilot import run_pilot
from calibrate.laws.presence import fit_presence
from calibrate.models.model import LoadedModel, preserving_model_state
from calibrate.search.frontier import Bench, Point, measure_frontier, stage_of
from calibrate.search.long_run import LOOP_MARGIN
from calibrate.search.rivals import measure_rivals
from calibrate.texts.concept import built_in_concepts, read_prompts
from calibrate.texts.guard import read_guard
from calibrate.texts.replies import build_corpora, sample_unsteered

FOLDER = DOCS / "frontier"
MODELS = ("smollm2",)
BUDGETS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
SETTINGS = Settings()
REUSED = "joy"  # whose replies are weighted to speak for the next budget
COSTS = DOCS / "frontier.json"
MOST_FORGOTTEN = (0.05, 0.1, 0.15)
PICKED = 0.2  # nats a token
WITHIN = 2.0  # standard errors: how near the law of presence has to come to a point left out


@click.command()
@click.option("--model", "models", multiple=True, default=MODELS)
@click.option("--concept", "concepts", multiple=True, default=built_in_concepts())
@click.option("--costs", is_flag=True, help="Only count what a pick spends.")
@page_option
def main(models: tuple[str, ...], concepts: tuple[str, ...], costs: bool, only_page: bool) -> None:
    FOLDER.mkdir(exist_ok=True)
    if costs:
        write_records(COSTS, spent(models[0], concepts[0]))
    for model in () if only_page or costs else models:
        loaded = load_model(model)
        for concept in concepts:
            target = FOLDER / f"{concept}-{model}.json"
            if target.exists():
                continue
            started = time.perf_counter()
            facts = measured(loaded, concept)
            if facts is None:
                click.echo(f"{model} {concept}: no probe can tell it")
                write_records(target, {"model": model, "concept": concept})
                continue
            write_records(target, {**facts, "seconds": time.perf_counter() - started})
            click.echo(f"{model} {concept}: {facts['advice']}")
    facts = {path.stem: read_records(path) for path in sorted(FOLDER.glob("*.json"))}
    found = {
        name: said_today(Frontier.model_validate(each))
        for name, each in facts.items()
        if "points" in each
    }
    for name, frontier in found.items():
        (FOLDER / f"{name}.png").write_bytes(frontier_pictures(frontier)["frontier.png"])
    (DOCS / "frontier.md").write_text(page(found, facts), encoding="utf-8")


def said_today(frontier: Frontier) -> Frontier:
    """A frontier whose refusals for loops say by how much as today's do, to a tenth of a point."""
    points = [
        point.model_copy(
            update={"why_not": f"long replies loop {in_points(point.loop_excess.value)}"}
        )
        if point.loop_excess is not None and "replies loop" in (point.why_not or "")
        else point
        for point in frontier.points
    ]
    return frontier.model_copy(update={"points": points})


def measured(loaded: LoadedModel, concept: str) -> dict[str, Any] | None:
    """The frontier of the default band; None where no probe can tell the concept."""
    with preserving_model_state(loaded):
        replies = sample_unsteered(loaded, read_prompts(), SETTINGS)
        corpora = build_corpora(loaded, replies, None)
        site = band_of(loaded, concept, SETTINGS)
        panel = judges_at(loaded, concept, replies, site, SETTINGS)
        if panel is None:
            return None
        bench = Bench(loaded, site, panel, replies, corpora, SETTINGS, read_guard())
        ledger = Ledger(loaded.meter)
        with ledger.stage("pilot"):
            run = run_unsteered(loaded, corpora["search"], [site.first])
            pilot = run_pilot(loaded, run, site, (), SETTINGS)
        found = measure_frontier(bench, pilot.law, BUDGETS, ledger)
        at = nearest_strength(found.points, SETTINGS.ce_budget)
        with ledger.stage("rivals"):
            rivals = () if at is None else measure_rivals(bench, at)
        frontier = build_frontier("", bench, found, rivals, at, ledger.stages)
        facts = frontier.model_dump()
        return facts | {"reused": reused(bench, found.points)} if concept == REUSED else facts


def reused(bench: Bench, points: Sequence[Point]) -> list[float]:
    """How many of a point's replies its neighbour's are worth, as a share, weighted to be its.

    The effective sample size of importance sampling, (Σw)² / Σw², over the number of replies.
    """
    shares = []
    for before, after in pairwise(points):
        replies = [reply for reply in before.presence.completions if reply.ids]
        own, other = (reply_log_probs(bench, replies, point.strength) for point in (before, after))
        weights = np.exp(other - own - (other - own).max())
        shares.append(float(weights.sum() ** 2 / (weights**2).sum() / len(weights)))
    return shares


def reply_log_probs(bench: Bench, replies: Sequence[Completion], strength: float) -> np.ndarray:
    """Log-probability of replies at a strength, at the temperature they are drawn at, nats."""
    loaded, temperature = bench.loaded, bench.settings.sampling.temperature
    sequences = [reply.sequence for reply in replies]
    (states,) = states_by_sequence(loaded, sequences, [(bench.site, strength)])
    totals = []
    for reply, hidden in zip(replies, states, strict=True):
        predicted = (loaded.logits(hidden).double() / temperature).log_softmax(dim=-1)
        totals.append(float(predicted.gather(1, torch.tensor(reply.ids)[:, None]).sum()))
    return np.array(totals)


def spent(model: str, concept: str) -> dict[str, Any]:
    """Token-forwards of a calibration with nothing kept before it, and of a pick after it."""
    forget()
    loaded, counts = load_model(model), {}

    def counted(what: str, run: Callable[[], Any]) -> Any:
        before = loaded.meter.tokens
        result = run()
        counts[what] = loaded.meter.tokens - before
        return result

    result = counted("calibration", lambda: calibrate(loaded, concept))
    refused = counted("pick", lambda: refusal_of_pick(result, loaded))
    return {"model": model, "concept": concept, **counts, "refused": refused}


def refusal_of_pick(result: Calibration, loaded: LoadedModel) -> str | None:
    """Why the other budget may not be shipped; None where it is."""
    try:
        result.pick(PICKED, loaded)
    except Infeasible as infeasible:
        return str(infeasible)
    return None


def page(found: dict[str, Frontier], facts: dict[str, Any]) -> str:
    parts = [
        HEADER,
        loops_told(found),
        summary(found),
        untold(facts),
        forgotten(found),
        costs_told(found),
        neighbours(facts),
    ]
    for name, frontier in found.items():
        parts += [
            f"## {frontier.concept} on {frontier.model}",
            " ".join([advice(frontier, SETTINGS), *frontier.endings]),
            f"![presence against what it costs](frontier/{name}.png)",
            table(POINT_HEADS, [point_row(frontier, point) for point in frontier.points]),
            table(RIVAL_HEADS, [rival_row(frontier, rival) for rival in frontier.rivals]),
        ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def loops_told(found: dict[str, Frontier]) -> str:
    """How well the one limit that is put on a mean is known."""
    excesses = [p.loop_excess for each in found.values() for p in each.points if p.loop_excess]
    widths = [(excess.high - excess.low) / 2 for excess in excesses if excess.value <= LOOP_MARGIN]
    return (
        "A strength does not ship if the share of the tokens of long replies that lie in loops is "
        f"more than {100 * LOOP_MARGIN:.0f} points above that of unsteered ones, on their mean: "
        f"the 95 % intervals of those that pass are as wide as ±{100 * max(widths):.0f} points, so "
        "that the verdict need not follow the strength. A calibration tests other strengths, and "
        "may ship one between two that do not."
    )


POINT_HEADS = (
    "budget|α|ΔCE|bound|presence|change|second judge|loops|questions right|fluency drop|"
    "nats a reply|limit|efficiency|efficiency back|ships"
).split("|")


def point_row(frontier: Frontier, point: PointSection) -> list[str]:
    guard = point.guard
    return [
        f"{point.budget:g}",
        f"{point.strength:+.3g}",
        f"{point.delta_ce.value:.4f}",
        f"{point.upper:.4f}",
        f"{point.presence.value:.3f}",
        spread(point.change),
        "" if point.audited is None else f"{point.audited.value:+.3f}",
        "" if point.loops is None else f"{point.loops:.1%}",
        ""
        if guard is None
        else f"{guard.accuracy.value:.1%}, {in_points(-guard.drop.value)}, at most "
        f"{100 * guard.drop_upper:.1f} lost",
        f"{point.fluency_drop.value:+.3f}",
        f"{point.cost.value:.2f}",
        f"{frontier.least_cost(point):.3f}",
        f"{frontier.efficiency(point):.1%}",
        f"{frontier.efficiency_back(point):.1%}",
        "yes" if point.ships else str(point.why_not),
    ]


RIVAL_HEADS = (
    "instead|ΔCE|presence|change|second judge|nats a reply|limit|efficiency|back, nats a reply|"
    "limit back|efficiency back"
).split("|")


def rival_row(frontier: Frontier, rival: RivalSection) -> list[str]:
    bound = rival.cost is None
    return [
        rival.name,
        "" if rival.delta_ce is None else f"{rival.delta_ce.value:.4f}",
        f"{rival.presence.value:.3f}",
        spread(rival.change),
        "" if rival.audited is None else f"{rival.audited.value:+.3f}",
        "" if rival.cost is None else f"{rival.cost.value:.2f}",
        "" if bound else f"{frontier.least_cost(rival):.3f}",
        "" if bound else f"{frontier.efficiency(rival):.1%}",
        f"{'at most ' if bound else ''}{rival.cost_back.value:.2f}",
        f"{frontier.least_cost(rival, back=True):.3f}",
        f"{'at least ' if bound else ''}{frontier.efficiency_back(rival):.1%}",
    ]


def spread(interval: Any) -> str:
    return f"{interval.value:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"


def summary(found: dict[str, Frontier]) -> str:
    """What holds over all of them: bounds, the law left out, loops, cost, prompting."""
    tests = [miss for frontier in found.values() for miss in left_out(frontier)]
    near = sum(miss <= WITHIN for miss in tests)
    rows = []
    for frontier in found.values():
        own = next((each for each in frontier.points if each.budget == SETTINGS.ce_budget), None)
        by_name = {rival.name: rival for rival in frontier.rivals}
        if own is None:
            continue
        misses = left_out(frontier)
        points = [frontier.token_forwards.get(stage_of(budget), 0) for budget in BUDGETS]
        rows.append(
            [
                f"{frontier.concept}, {frontier.model}",
                f"{own.change.value:+.3f}",
                f"{by_name['asked in words'].change.value:+.3f}",
                f"{by_name['asked and steered'].change.value:+.3f}",
                f"{by_name['best of 4'].change.value:+.3f}, second judge "
                + seconds(by_name["best of 4"]),
                f"{frontier.efficiency(own):.1%}",
                f"{sum(miss <= WITHIN for miss in misses)} of {len(misses)}",
                f"{sum(points):,}",
            ]
        )
    heads = (
        "concept|steered at .1 nat|asked in words|asked and steered|best of 4|efficiency at .1 nat|"
        "points the law foretells|token-forwards of the points"
    ).split("|")
    return (
        "## Together\n\n"
        + table(heads, rows)
        + f"\nThe law of presence, fitted to all points but one, comes within {WITHIN:g} standard "
        f"errors of that one in {near} of {len(tests)} cases.\n\n{beside_rivals(found)}"
    )


def beside_rivals(found: dict[str, Frontier]) -> str:
    """How often steering at the default budget brings more than asking, and than choosing."""
    asked, chosen, audited = [], [], []
    for frontier in found.values():
        point = next(each for each in frontier.points if each.budget == SETTINGS.ce_budget)
        rivals = {rival.name: rival for rival in frontier.rivals}
        sign, best = frontier.sign, rivals["best of 4"]
        asked.append(sign * (point.change.value - rivals["asked in words"].change.value) > 0)
        chosen.append(sign * (best.change.value - point.change.value) > 0)
        if point.audited is not None and best.audited is not None:
            audited.append(sign * (best.audited.value - point.audited.value) > 0)
    return (
        f"At {SETTINGS.ce_budget:g} nat steering brings more than asking in words for {sum(asked)} "
        f"of {len(asked)} concepts. The best of four plain replies brings more than steering for "
        f"{sum(chosen)} of {len(chosen)} by the judge that chose it, and for {sum(audited)} of "
        f"{len(audited)} by the second judge; it takes four replies for each that is served. A "
        "model of 135 million parameters follows prompts poorly; a larger one may do as asked."
    )


def untold(facts: dict[str, Any]) -> str:
    """Concepts without a frontier."""
    without = [each for each in facts.values() if "points" not in each]
    names = [f"{each['concept']} on {each['model']}" for each in without]
    told = [f"No probe can tell {', '.join(names)}, so there is no frontier."] if names else []
    cells = [(concept, model) for model in MODELS for concept in built_in_concepts()]
    missing = [f"{one} on {model}" for one, model in cells if f"{one}-{model}" not in facts]
    told += [f"Not measured: {', '.join(missing)}."] if missing else []
    return " ".join(told)


def forgotten(found: dict[str, Frontier]) -> str:
    """From which budget on the guard refuses."""
    rows = []
    for name, frontier in found.items():
        firsts = []
        for most in MOST_FORGOTTEN:
            refused = [
                f"{point.budget:g} nat, α = {point.strength:.3g}"
                for point in frontier.points
                if point.guard is not None and point.guard.drop_upper > most
            ]
            firsts.append(refused[0] if refused else "none")
        rows.append([name, *firsts])
    heads = ["frontier", *(f"`--max-guard-drop {most:g}`" for most in MOST_FORGOTTEN)]
    return (
        "### What is forgotten\n\nThe smallest of the measured budgets that would be refused since "
        "the bound on the share of the guard's questions that are no longer answered rightly is "
        "above:\n\n" + table(heads, rows)
    )


def costs_told(found: dict[str, Frontier]) -> str:
    """What a frontier and a pick spend beside a calibration."""
    points = {
        name: sum(spent for stage, spent in frontier.token_forwards.items() if "nat" in stage)
        for name, frontier in found.items()
    }
    counts = read_records(COSTS)
    if not counts:
        return ""
    whole = counts["calibration"]
    rows = [
        [what, f"{tokens:,}", f"{tokens / whole:.2f}"]
        for what, tokens in (
            (f"calibration at {SETTINGS.ce_budget:g} nat, from an empty cache", whole),
            (f"another budget picked after it, {PICKED:g} nat", counts["pick"]),
            *((f"the points of {name}'s frontier", spent) for name, spent in points.items()),
        )
    ]
    return (
        f"### What it spends\n\n{counts['concept']} on {counts['model']}, by `--costs`:\n\n"
        + table(["", "token-forwards", "calibrations"], rows)
        + ("" if counts["refused"] is None else REFUSED.format(counts["refused"]))
        + "\njoy's frontier is from before cost, cost back and fluency shared their passes."
    )


REFUSED = """
The pick was refused before its last replies, controls and questions, which one that ships takes as
well: {}.
"""


def neighbours(facts: dict[str, Any]) -> str:
    """What replies of one budget are worth at the next."""
    steps = [f"{before:g} to {after:g} nat" for before, after in pairwise(BUDGETS)]
    rows = [
        [name, *(f"{share:.0%}" for share in each["reused"]), *[""] * len(steps)][: len(steps) + 1]
        for name, each in facts.items()
        if "reused" in each
    ]
    return (
        "### Can replies be used twice?\n\nReplies drawn at one budget could speak for the next, "
        "weighted by their likelihood ratios (as pymbar does). A reply is then worth this share of "
        "one drawn there (effective sample size):\n\n"
        + table(["frontier", *steps], rows)
        + "\nWeighting them takes a pass of every reply at the other strength, as many "
        "token-forwards as drawing as many, so points are drawn anew."
    )


def seconds(rival: RivalSection) -> str:
    return "none" if rival.audited is None else f"{rival.audited.value:+.3f}"


def left_out(frontier: Frontier) -> list[float]:
    """How far the law, fitted without it, is off each point, in standard errors."""
    misses = []
    points = [(0.0, frontier.baseline)]
    points += [(point.strength, point.presence) for point in frontier.points]
    for place in range(1, len(points)):
        others = points[:place] + points[place + 1 :]
        strengths, presence = zip(*others, strict=True)
        fit = fit_presence(
            strengths,
            [each.value for each in presence],
            [64.0] * len(others),
            rising=frontier.goal == "increase",
        )
        strength, seen = points[place]
        error = np.hypot((seen.high - seen.low) / 4, fit.standard_error(strength))
        misses.append(abs(float(fit.law.predict(strength)) - seen.value) / float(error))
    return misses


HEADER = """# What each nat buys

Written by `scripts/measure_frontier.py`. The default band of blocks, at budgets from 0.05 to 1.6
nat per token, on replies of 32 tokens to 64 prompts that nothing was tuned on, two replies each;
"loops" are those of 24 replies of 192 tokens. Every strength was named by the search corpus, and
its bound holds on the verification's replies ([and on fresh ones](bounds.md)). The second judge
learned from other graded replies.

"Nats a reply" is KL(plain‖steered) at the temperature replies are drawn at; "limit" is the least
that such a change of presence can cost, by data processing (`calibrate/laws/limit.py`), and the
efficiency is their ratio. "Back" is KL(steered‖plain), of which best of n costs at most
ln n - (n - 1)/n, so that its efficiency is at least the one shown. Best of n is chosen by the judge
whose presence is shown, so that the second judge's change is the fairer one. "Questions right" are
the guard's 240.

Each strength is the one that spends its budget. A calibration and `calibrate pick` also step down
from there where long replies loop, so that they may ship a weaker one within a budget whose point
does not ship.
"""


if __name__ == "__main__":
    main()
