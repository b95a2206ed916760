"""Repeat the paper's experiments on small models, and write docs/reproduction.md.

    python scripts/reproduce_paper.py [--model smollm2 --model gemma3-270m]

For every built-in concept an early, a middle and a late block, and the small trained GPT-2s of
the tests with uppercase words: does each law hold, and where not, by how much does it miss?
About twenty minutes on two cores for the default.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
from markdown_tables import DOCS, table

from calibrate import Concept, LawCurves, Sampling, measure_laws
from calibrate.concept import Text, Texts, built_in_concepts, read_concept, read_prompts
from calibrate.report.curves import law_pictures

PICTURES = DOCS / "reproduction"
TRAINED = Path(__file__).parents[1] / "tests" / "models"
SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=16)
PROMPTS = 80  # of the built-in ones; three tenths of them give the corpus
SHOWN = ("smollm2", "joy")  # whose pictures are kept
LAWS = {
    "cross_entropy": "ΔCE: worst relative error",
    "concept": "concept: worst log-odds error",
    "bumps": "tokens with two bumps",
    "peaks": "peaks: 1 - rank correlation",
}


@click.command()
@click.option("--model", "models", multiple=True, default=("smollm2",), show_default=True)
@click.option("--concept", "concepts", multiple=True, default=tuple(built_in_concepts()))
def main(models: tuple[str, ...], concepts: tuple[str, ...]) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    prompts = read_prompts()[:PROMPTS]
    for directory in sorted(TRAINED.glob("gpt2-*")):
        measure(str(directory), shouting(), [one.lower() for one in prompts])
    for name in models:
        for concept in concepts:
            measure(name, concept, prompts)
    found = [
        LawCurves.model_validate(json.loads(path.read_text()))
        for path in sorted(PICTURES.glob("*.json"))
    ]
    (DOCS / "reproduction.md").write_text(page(found), encoding="utf-8")


def measure(model: str, concept: str | Concept, prompts: Sequence[str]) -> None:
    """Measure the curves and keep their points, unless an earlier run has."""
    name = concept if isinstance(concept, str) else concept.name
    path = PICTURES / f"{Path(model).name}-{name.replace(' ', '-')}.json"
    if path.exists():
        return
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(prompts))
        file.flush()
        curves = measure_laws(model, concept, prompts=file.name, sampling=SAMPLING)
    named = curves.model_copy(
        update={"model": curves.model.model_copy(update={"id": Path(model).name})}
    )
    path.write_bytes(named.to_bytes())
    click.echo(path.name)
    if (model, name) == SHOWN:
        for file, content in law_pictures(named).items():
            if file.endswith(".png"):
                (PICTURES / file).write_bytes(content)


def shouting() -> Concept:
    """Uppercase words: the written negatives of joy, in capitals or not."""
    passages = [
        " ".join(text.text.lower().encode("ascii", "ignore").decode().split())[:100]
        for text in read_concept("joy").texts.negatives
    ]
    return Concept(
        "uppercase words",
        Texts(tuple(Text(one.upper()) for one in passages), tuple(Text(one) for one in passages)),
    )


def page(found: list[LawCurves]) -> str:
    return "\n".join([HEADER, tallies(found), PICTURED, every_block(found)])


HEADER = f"""# The paper's laws on small models

Written by `scripts/reproduce_paper.py`. Laws are fitted near α = 0 and judged at strengths up to
three times the one that spends 0.1 nat per token, of both signs; the pictures go up to thirty
times. Texts: the built-in concepts, contrastive negatives; contexts: the model's own replies to
neutral prompts, {SAMPLING.max_new_tokens} tokens at temperature {SAMPLING.temperature:g}. A law
"holds" where its worst misfit is within the tolerance in the headings.

- **ΔCE**: relative error of the law's prediction, at most 5 %.
- **Concept**: error of the log-odds of the concept's tokens, from their derivative at 0 alone; at
  most 0.35, a factor of √2 of the odds.
- **Bumps**: share of the 200 likeliest tokens in 16 contexts whose probability rises twice, which
  Theorem 3.3 forbids; at most 10 %.
- **Peaks**: 1 - rank correlation of predicted and measured peaks within ±α at the budget, the
  median over contexts; at most 0.1.
"""

PICTURED = """## Pictures

smollm2 and joy, early, middle and late block.

![tokens](reproduction/tokens.png)

![concept](reproduction/concept.png)

![ΔCE](reproduction/delta_ce.png)
"""


def tallies(found: list[LawCurves]) -> str:
    rows = []
    for model in sorted({one.model.id for one in found}):
        for place in ("early", "middle", "late"):
            blocks = [
                one.blocks[index]
                for one in found
                if one.model.id == model
                for index in [position(place, len(one.blocks))]
                if index is not None
            ]
            if blocks:
                held = [sum(block.goodness[law].good for block in blocks) for law in LAWS]
                rows.append([model, place, *(f"{count} of {len(blocks)}" for count in held)])
    return "## Where the laws hold\n\nConcepts for which each law holds.\n\n" + table(
        ["model", "block", "ΔCE", "concept", "bumps", "peaks"], rows
    )


def position(place: str, n_blocks: int) -> int | None:
    """Which of a model's measured blocks is the early, the middle or the late one."""
    places = {1: ("late",), 2: ("early", "late"), 3: ("early", "middle", "late")}[n_blocks]
    return places.index(place) if place in places else None


def every_block(found: list[LawCurves]) -> str:
    rows = []
    for one in found:
        for block in one.blocks:
            at = block.strength_at_budget
            rows.append(
                [one.model.id, one.concept, str(block.layer),
                 f"{at['negative'].value:.3g}, {at['positive'].value:.3g}",
                 *(verdict(block.goodness[law].error, block.goodness[law].good) for law in LAWS)]
            )  # fmt: skip
    headings = ["model", "concept", "block", "α at budget, both signs", *LAWS.values()]
    return "## Every block\n\nMisfits beyond the tolerance are in bold.\n\n" + table(headings, rows)


def verdict(error: float, good: bool) -> str:
    return f"{error:.3f}" if good else f"**{error:.3f}**"


if __name__ == "__main__":
    main()
