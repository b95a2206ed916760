"""One strength for all prompts against one for each, and write docs/prompt-strength.md.

    python scripts/measure_prompt_strength.py [--model smollm2] [--concept joy] [--page]

The paper leaves open whether the strength should depend on the prompt. Here each rule names the
strengths from one plain reply to every prompt; what they cost is measured on another plain reply,
all scaled to the same mean there, and what they bring in fresh replies, with the same noise. Ten
minutes a concept and core; what was measured is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import click
import numpy as np
from default_band import band_of, judges_at
from markdown_tables import DOCS, table
from records import page_option, read_records, write_records
from scipy.interpolate import PchipInterpolator
from scipy.optimize import brentq

from calibrate import load_model
from calibrate.common.settings import Settings
from calibrate.engine.cross_entropy import delta_ce
from calibrate.engine.generation import Completion, Request, sample_all
from calibrate.engine.site import Site
from calibrate.engine.unsteered import Corpus, UnsteeredRun, run_unsteered
from calibrate.judging.presence import Presence, read
from calibrate.laws.pilot import run_pilot
from calibrate.laws.remainder_passes import measure_remainder, reader_of
from calibrate.models.model import LoadedModel, preserving_model_state
from calibrate.search.budget import spending_strength
from calibrate.texts.concept import read_concept, read_prompts
from calibrate.texts.concept_tokens import concept_tokens
from calibrate.texts.replies import UnsteeredReplies, build_corpora, sample_unsteered
from probes import Reader

TARGET = DOCS / "prompt-strength.json"
CONCEPTS = ("joy", "depression", "evil", "optimistic")
SETTINGS = Settings()
SHARES = np.array([0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0])  # of the one strength: the grid
CLEAR = 2.0  # standard errors by which a lead is clear
FINE = 401  # strengths between them
LOG_PRICES = (-12.0, 8.0)  # of λ, mass a nat, between which it is sought
REPLIES = 4  # fresh ones to each prompt, under each rule
POSITIONS = 6  # of each reply, at which the law is asked for the concept's mass
RULES = {
    "one": "one strength for all",
    "cost": "each prompt spends the same",
    "mass": "each prompt's next nat buys the same mass, by the law of the bounded remainder",
}

Strengths = np.ndarray  # one a prompt


@dataclass(frozen=True, eq=False)
class Scene:
    """The prompts that two plain replies were given to, and how each reply is measured.

    first, second: the unsteered pass over each prompt's reply, one by one.
    """

    loaded: LoadedModel
    site: Site
    replies: UnsteeredReplies
    prompts: list[int]
    first: list[UnsteeredRun]
    second: list[UnsteeredRun]

    def costs(self, runs: Sequence[UnsteeredRun], strengths: Strengths) -> np.ndarray:
        """ΔCE of each reply at its own strength, nats per token."""
        return np.array(
            [
                delta_ce(self.loaded, run, self.site, float(strength)).value
                for run, strength in zip(runs, strengths, strict=True)
            ]
        )

    def scaled(self, strengths: Strengths) -> tuple[Strengths, np.ndarray]:
        """The same strengths times a factor with which the second replies cost the budget.

        Returns: those, and what each prompt's second reply costs.
        """
        for _ in range(3):
            costs = self.costs(self.second, strengths)
            if abs(costs.mean() / SETTINGS.ce_budget - 1) < 0.01:
                break
            strengths = strengths * np.sqrt(SETTINGS.ce_budget / costs.mean())
        return strengths, costs


@click.command()
@click.option("--model", "models", multiple=True, default=("smollm2",))
@click.option("--concept", "concepts", multiple=True, default=CONCEPTS)
@page_option
def main(models: tuple[str, ...], concepts: tuple[str, ...], only_page: bool) -> None:
    found: dict[str, Any] = read_records(TARGET)
    for model in () if only_page else models:
        loaded = load_model(model)
        for concept in concepts:
            if concept not in found.setdefault(model, {}):
                with preserving_model_state(loaded):
                    found[model][concept] = measured(loaded, concept)
                found = write_records(TARGET, found)
                click.echo(f"{model} {concept}")
    (DOCS / "prompt-strength.md").write_text(page(read_records(TARGET)), encoding="utf-8")


def measured(loaded: LoadedModel, concept: str) -> dict[str, Any]:
    """Every rule's strengths, costs and presence."""
    replies = sample_unsteered(loaded, read_prompts(), SETTINGS)
    site = band_of(loaded, concept, SETTINGS)
    panel = judges_at(loaded, concept, replies, site, SETTINGS, second=None)
    assert panel is not None, f"no probe can tell {concept}"
    scene = staged(loaded, site, replies)
    run = run_unsteered(loaded, build_corpora(loaded, replies, None)["search"], [site.first])
    law = run_pilot(loaded, run, site, (), SETTINGS).law
    one, _ = spending_strength(loaded, run, site, law, SETTINGS.ce_budget, sign=1)
    grid = one * SHARES
    costs = np.stack([scene.costs(scene.first, np.full(len(scene.first), at)) for at in grid])
    texts = read_concept(concept).split()["vector"]
    tokens = concept_tokens(loaded, texts, replies)
    masses = masses_by_law(scene, tokens, one, grid)
    wanted = {
        "one": np.full(len(scene.first), one),
        "cost": same_cost(grid, costs),
        "mass": same_worth(grid, costs, masses),
    }
    facts, baseline = {}, None
    for rule, strengths in wanted.items():
        strengths, spent = scene.scaled(strengths)
        presence = replied(scene, strengths, panel.reader)
        baseline = baseline or presence
        lead = presence.change_from(baseline)
        facts[rule] = {
            "presence": presence.estimate.value,
            "lead": [lead.value, lead.standard_error if presence is not baseline else 0.0],
            "spread": float(strengths.std() / strengths.mean()),
            "mean": float(spent.mean()),
            "worst": float(spent.max()),
            "top tenth": float(np.quantile(spent, 0.9)),
        }
    return {"prompts": len(scene.first), "rules": facts}


def staged(loaded: LoadedModel, site: Site, replies: UnsteeredReplies) -> Scene:
    """The prompts of the verification with two replies that say something."""
    by_prompt: dict[int, list[Completion]] = {}
    for reply in replies.completions["verify"]:
        if reply.sequence.n_scored > 1:
            by_prompt.setdefault(reply.prompt_index, []).append(reply)
    prompts = [index for index, drawn in sorted(by_prompt.items()) if len(drawn) > 1]
    first, second = (
        [
            run_unsteered(loaded, Corpus((by_prompt[index][place].sequence,), True), [site.first])
            for index in prompts
        ]
        for place in (0, 1)
    )
    return Scene(loaded, site, replies, prompts, first, second)


def masses_by_law(scene: Scene, tokens: Sequence[int], unit: float, grid: np.ndarray) -> np.ndarray:
    """Mass of the concept's tokens in each first reply, by the law of the bounded remainder.

    Returns: (n_strengths, n_prompts).
    """
    read_out, columns = reader_of(scene.loaded), []
    for run in scene.first:
        rows = np.linspace(0, run.corpus.n_scored - 1, POSITIONS).astype(int)
        law = measure_remainder(scene.loaded, run, scene.site, unit, np.unique(rows).tolist())
        log_p = [law.log_probabilities(float(at), read_out)[:, list(tokens)] for at in grid]
        columns.append([np.exp(each).sum(axis=1).mean() for each in log_p])
    masses: np.ndarray = np.array(columns).T
    return masses


def same_cost(grid: np.ndarray, costs: np.ndarray) -> Strengths:
    """The strengths at which every prompt spends the budget, within the grid.

    costs: (n_strengths, n_prompts), at the strengths of the grid, of which the first is 0.
    """
    wanted = np.log(SETTINGS.ce_budget)
    return np.array(
        [
            np.exp(np.interp(wanted, np.log(np.maximum.accumulate(column)), np.log(grid[1:])))
            for column in np.maximum(costs[1:], 1e-9).T
        ]
    )


def same_worth(grid: np.ndarray, costs: np.ndarray, masses: np.ndarray) -> Strengths:
    """The strengths of the largest mean mass among those whose mean cost is the budget.

    Where a nat more buys the same mass in every prompt: λ, its price, is sought.
    """
    fine = np.linspace(0, grid[-1], FINE)
    cost, mass = (PchipInterpolator(grid, values)(fine) for values in (costs, masses))
    rows = np.arange(costs.shape[1])

    def best(log_price: float) -> np.ndarray:
        found: np.ndarray = (mass - np.exp(log_price) * cost).argmax(axis=0)
        return found

    def excess(log_price: float) -> float:
        return float(cost[best(log_price), rows].mean()) - SETTINGS.ce_budget

    price = brentq(excess, *LOG_PRICES, xtol=1e-3)
    strengths: Strengths = fine[best(float(price))]
    return strengths


def replied(scene: Scene, strengths: Strengths, reader: Reader) -> Presence:
    """Fresh replies, each prompt's at its own strength, read together."""
    prompts = scene.replies.prompts["verify"]
    requests = [
        Request((prompts[index],), REPLIES, scene.site.steering(float(strength)))
        for index, strength in zip(scene.prompts, strengths, strict=True)
    ]
    drawn = sample_all(scene.loaded, requests, SETTINGS.sampling, SETTINGS.seed)
    together = [
        replace(reply, prompt_index=index)
        for index, replies in zip(scene.prompts, drawn, strict=True)
        for reply in replies
    ]
    return read(reader, together)


def page(found: dict[str, Any]) -> str:
    rows = []
    for model, concepts in found.items():
        for concept, facts in concepts.items():
            for rule, of in facts["rules"].items():
                lead, error = of["lead"]
                rows.append(
                    [
                        model,
                        concept,
                        RULES[rule],
                        f"{of['spread']:.2f}",
                        f"{of['mean']:.3f}",
                        f"{of['worst']:.2f}",
                        f"{of['top tenth']:.2f}",
                        f"{of['presence']:.3f}",
                        "" if rule == "one" else f"{lead:+.3f} ± {error:.3f}",
                    ]
                )
    heads = (
        "model|concept|rule|sd/mean of α|mean ΔCE|worst prompt|a tenth spends over|presence|"
        "more than one strength"
    ).split("|")
    return f"{HEADER}\n{table(heads, rows)}\n{summary(found)}\n"


def summary(found: dict[str, Any]) -> str:
    """What the table says, over all cells."""
    cells = [facts["rules"] for concepts in found.values() for facts in concepts.values()]
    lines = []
    for rule in ("cost", "mass"):
        leads = [cell[rule]["lead"] for cell in cells]
        clear = sum(lead > CLEAR * error for lead, error in leads)
        worst = [cell[rule]["worst"] / cell["one"]["worst"] for cell in cells]
        lines.append(
            f"- **{RULES[rule].capitalize()}**: {np.mean([lead for lead, _ in leads]):+.3f} of "
            f"presence in the mean, clearly more (by {CLEAR:g} standard errors) in {clear} of "
            f"{len(cells)}; the worst prompt costs {np.mean(worst):.2f} times what it does with "
            "one strength."
        )
    return "## What it shows\n\nBeside one strength for all:\n\n" + "\n".join(lines)


HEADER = f"""# A strength for each prompt?

Written by `scripts/measure_prompt_strength.py`. The paper leaves it open whether α should depend on
the prompt. One band of blocks is steered; each rule names strengths from a plain reply to every
prompt of the verification. ΔCE is measured on another plain reply to each, and all strengths of a
rule are scaled so that its mean there is {SETTINGS.ce_budget:g} nat; presence in {REPLIES} fresh
replies to each prompt, with the same noise under all rules, read by the probe. Errors are standard
errors over prompts.
"""


if __name__ == "__main__":
    main()
