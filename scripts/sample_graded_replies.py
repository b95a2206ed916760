"""Sample the replies that readers and a teacher grade, into scripts/graded/replies-MODEL.jsonl.

    python scripts/sample_graded_replies.py

Two models, plain and steered at their middle block towards each built-in concept, at several
shares of α at a budget of 0.1 nat, and so far that the text breaks; those of BAND also at the
default band. The prompts are none that a calibration uses; they are split once into train, tune and
test, and others are for the second judge. What was sampled before is kept. Two hours on two cores.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import click
from graded_replies import FOLDER, MODELS, lines, prompts_by_part

from calibrate import load_model
from calibrate.common.settings import Sampling, Settings
from calibrate.engine.generation import Completion, Request, sample_all
from calibrate.engine.site import Site
from calibrate.engine.unsteered import UnsteeredRun, run_unsteered
from calibrate.judging.teaching import asked_prompts, oversteered
from calibrate.laws.pilot import run_pilot
from calibrate.models.model import LoadedModel, preserving_model_state
from calibrate.models.prompts import encode_prompt
from calibrate.models.steering import Steering
from calibrate.models.tokens import Prompt
from calibrate.search.sites import steered_band
from calibrate.texts.concept import built_in_concepts, read_concept, read_prompts
from calibrate.texts.extraction import concept_vectors
from calibrate.texts.replies import build_corpora, sample_unsteered

SETTINGS = Settings()
SHOTS, LONGEST_SHOT = 2, 30  # replies of the pack, and words of one
SEQUENCES = 16  # of own replies, on which α at the budget is found
LONG_EVERY, LENGTHS = 6, (32, 128)  # every sixth reply is long

# Replies that are read twice, by part and condition, and once, for each concept. A condition is a
# share of α at the budget; "broken", half of it with either sign; "primed", unsteered after SHOTS
# replies that express the concept, since steering makes some concepts rarely clear; or "asked",
# unsteered and told in words to express it, for the same reason. With the
# 262,000 tokens of gemma3-270m sampling takes eight times as long, so it has fewer.
TWICE = {
    "smollm2": {
        "train": {"0": 16, "-1.5": 8, "1": 14, "2": 14, "broken": 6, "primed": 8},
        "tune": {"0": 6, "-1.5": 2, "1": 4, "2": 4, "broken": 2, "primed": 2},
        "test": {"0": 36, "-1.5": 16, "1": 32, "2": 26, "broken": 12, "primed": 16},
    },
    "gemma3-270m": {
        "train": {"0": 8, "-1.5": 3, "1": 8, "2": 8, "broken": 3, "primed": 8},
        "tune": {"0": 2, "1": 2, "2": 2, "primed": 2},
        "test": {"0": 24, "-1.5": 8, "1": 18, "2": 18, "broken": 8, "primed": 16},
    },
}
ONCE: dict[str, list[tuple[str, dict[str, int]]]] = {
    "smollm2": [
        ("train", {"0": 8, "-1": 8, "0.6": 12, "1": 8, "1.5": 10, "3": 10}),
        (
            "second",
            {
                "0": 16,
                "-1": 6,
                "0.6": 8,
                "1": 14,
                "1.5": 10,
                "2": 14,
                "3": 6,
                "broken": 6,
                "primed": 14,
                "asked": 20,
            },
        ),
    ],
    "gemma3-270m": [("train", {"0.6": 4, "3": 6})],
}
# Steered at the default band and read twice, where the probe saw too little of it (docs/judges.md).
BAND = {
    "smollm2": {
        "humorous": {"band -1": 16, "band 0.6": 24, "band 1": 56, "band 1.5": 48, "band 2": 48},
        "impolite": {"band -1": 16, "band 1": 48, "band 2": 72, "band 3": 56},
    },
    "gemma3-270m": {},
}


@dataclass(frozen=True)
class Wanted:
    """One reply: its part and condition, its prompt, how often it is read, and what steers it."""

    part: str
    condition: str
    prompt: Prompt
    grader: str
    steering: Steering | None
    tokens: int


@dataclass(frozen=True)
class Dose:
    """A site, and the sizes of α at the budget there, towards the concept and away from it."""

    site: Site
    up: float
    down: float

    def steering(self, share: float) -> Steering | None:
        """What steers by a share of α at the budget; None for 0."""
        return self.site.steering(share * (self.up if share > 0 else self.down)) if share else None


@click.command()
@click.option("--model", "models", multiple=True, default=MODELS)
@click.option("--concept", "concepts", multiple=True, default=built_in_concepts())
def main(models: tuple[str, ...], concepts: tuple[str, ...]) -> None:
    for name in models:
        loaded, known = load_model(name), {row["id"] for row in lines(f"replies-{name}.jsonl")}
        with preserving_model_state(loaded):
            for rows in of_model(loaded, concepts, known):
                with (FOLDER / f"replies-{name}.jsonl").open("a", encoding="utf-8") as file:
                    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def of_model(
    loaded: LoadedModel, concepts: tuple[str, ...], known: set[str]
) -> Iterator[list[dict[str, Any]]]:
    """The replies to each concept, without those of known ids."""
    prompts = split(loaded)
    replies = sample_unsteered(loaded, read_prompts(), SETTINGS, ("search",))
    corpus = build_corpora(loaded, replies, None)["search"]
    middle, band = (loaded.num_layers // 2,), steered_band(loaded.num_layers)
    some = replace(corpus, sequences=corpus.sequences[:SEQUENCES])
    run = run_unsteered(loaded, some, [middle[0], band[0]])
    plain: dict[tuple[Any, ...], Completion] = {}
    for concept in concepts:
        place = built_in_concepts().index(concept)
        vectors = concept_vectors(loaded, read_concept(concept).split()["vector"], SETTINGS)
        places = {"": middle} | ({"band": band} if concept in BAND[loaded.name] else {})
        doses = {
            name: dose_at(loaded, run, Site(tuple(vectors[layer] for layer in layers)))
            for name, layers in places.items()
        }
        wishes_by_id = {
            f"{loaded.name}-{concept}-{n}": one
            for n, one in enumerate(wishes(loaded, prompts, doses, place))
        }
        wanted = {name: one for name, one in wishes_by_id.items() if name not in known}
        said = answered(loaded, list(wanted.values()), place, plain)
        yield [
            {
                "id": name,
                "model": loaded.name,
                "concept": concept,
                "part": one.part,
                "grader": one.grader,
                "condition": one.condition,
                "tokens": one.tokens,
                "prompt": one.prompt.text,
                "text": completion.text,
            }
            for (name, one), completion in zip(wanted.items(), said, strict=True)
        ]
        click.echo(f"{loaded.name} {concept}: {len(wanted)} replies")


def dose_at(loaded: LoadedModel, run: UnsteeredRun, site: Site) -> Dose:
    goals = (replace(SETTINGS, goal=goal) for goal in ("increase", "decrease"))
    up, down = (run_pilot(loaded, run, site, (), goal).strength_at_budget.value for goal in goals)
    return Dose(site, abs(up), abs(down))


def split(loaded: LoadedModel) -> dict[str, list[Prompt]]:
    return {
        part: [encode_prompt(loaded, text) for text in texts]
        for part, texts in prompts_by_part().items()
    }


def wishes(
    loaded: LoadedModel, prompts: dict[str, list[Prompt]], doses: dict[str, Dose], place: int
) -> Iterator[Wanted]:
    """What is wanted of one concept, each concept beginning with another prompt.

    Plain replies are the same for every concept, so that each is read for all of them.
    """
    concept = built_in_concepts()[place]
    primed = primer(loaded, concept)
    for grader, part, counts in [
        *(("twice", part, counts) for part, counts in TWICE[loaded.name].items()),
        *(("once", part, counts) for part, counts in ONCE[loaded.name]),
        ("twice", "train", BAND[loaded.name].get(concept, {})),
    ]:
        for row, (condition, count) in enumerate(counts.items()):
            plain = condition == "0"
            first = 0 if plain else 7 * place + 11 * row
            if plain and grader == "once" and part in TWICE[loaded.name]:
                first = TWICE[loaded.name][part]["0"]
            for n in range(count):
                prompt = prompts[part][(first + n) % len(prompts[part])]
                if condition == "primed":
                    yield Wanted(part, condition, primed(prompt), grader, None, LENGTHS[0])
                    continue
                if condition == "asked":
                    (asked,) = asked_prompts(loaded, [prompt], concept, positive=True)
                    yield Wanted(part, condition, asked, grader, None, LENGTHS[0])
                    continue
                steering = steered_by(doses, condition, n)
                long = n % LONG_EVERY == LONG_EVERY - 1
                yield Wanted(part, condition, prompt, grader, steering, LENGTHS[long])


def primer(loaded: LoadedModel, concept: str) -> Callable[[Prompt], Prompt]:
    """What puts SHOTS short replies that express the concept before a prompt."""
    rng = random.Random(concept)
    shots = [
        (text.prompt, text.text)
        for text in read_concept(concept).texts.positives
        if text.prompt and len(text.text.split()) <= LONGEST_SHOT
    ]
    return lambda prompt: encode_prompt(loaded, prompt.text, history=rng.sample(shots, SHOTS))


def steered_by(doses: dict[str, Dose], condition: str, n: int) -> Steering | None:
    if condition == "broken":
        return oversteered(doses[""].site, 1 if n % 2 else -1, []).steering
    where, _, share = condition.rpartition(" ")
    return doses[where].steering(float(share))


def answered(
    loaded: LoadedModel, wanted: list[Wanted], place: int, plain: dict[tuple[Any, ...], Completion]
) -> list[Completion]:
    """Replies in the order of what is wanted; noise differs between concepts.

    plain: unsteered replies sampled before, which grows.
    """
    replies: dict[int, Completion] = {}
    for tokens in LENGTHS:
        steered = [n for n, one in enumerate(wanted) if one.tokens == tokens and one.steering]
        new = [
            n
            for n, one in enumerate(wanted)
            if one.tokens == tokens and not one.steering and _key(one) not in plain
        ]
        for rows, seed in ((steered, 100 + place), (new, 7)):
            requests = [
                Request([wanted[row].prompt], steering=wanted[row].steering) for row in rows
            ]
            drawn = sample_all(loaded, requests, Sampling(max_new_tokens=tokens), seed)
            replies.update(zip(rows, (one for (one,) in drawn), strict=True))
        plain.update({_key(wanted[row]): replies[row] for row in new})
    return [replies.get(row) or plain[_key(one)] for row, one in enumerate(wanted)]


def _key(wanted: Wanted) -> tuple[Any, ...]:
    return wanted.prompt.ids, wanted.tokens


if __name__ == "__main__":
    main()
