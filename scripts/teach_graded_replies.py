"""Have the teacher grade the sampled replies, into scripts/graded/taught.jsonl.

    python scripts/teach_graded_replies.py [--concept joy]

Some of every concept and part, chosen by chance, but that in the test part those come first of
which readers say yes: of some concepts there are few. What was graded is kept.
"""

from __future__ import annotations

import json
import random

import click
from graded_replies import FOLDER, Reply, lines, replies

from calibrate.judging.asked import TEACHER
from calibrate.models.embedded import embedded_gguf
from calibrate.texts.concept import built_in_concepts
from probes.gguf_question import GgufQuestion
from probes.verdicts import Remembered

BATCH = 32
PARTS = {"train": 72, "test": 60}  # replies of a concept that are graded, by part


@click.command()
@click.option("--concept", "concepts", multiple=True, default=built_in_concepts())
def main(concepts: tuple[str, ...]) -> None:
    judge = Remembered(GgufQuestion(embedded_gguf(TEACHER)))
    known = {row["id"] for row in lines("taught.jsonl")}
    for concept in concepts:
        for part, count in PARTS.items():
            chosen = replies(part, concept)
            random.Random(f"{concept} {part}").shuffle(chosen)
            if part == "test":
                chosen.sort(key=lambda one: not one.grade)
            missing = [one for one in chosen[:count] if one.id not in known]
            for first in range(0, len(missing), BATCH):
                grade(judge, missing[first : first + BATCH])


def grade(judge: Remembered, some: list[Reply]) -> None:
    """Grade some replies to one concept; an empty one expresses nothing."""
    said = [one for one in some if one.text.strip()]
    scores = dict(
        zip(
            (one.id for one in said),
            judge.score([one.text for one in said], said[0].concept),
            strict=True,
        )
    )
    with (FOLDER / "taught.jsonl").open("a", encoding="utf-8") as file:
        for one in some:
            file.write(
                json.dumps({"id": one.id, "yes": round(float(scores.get(one.id, 0.0)), 4)}) + "\n"
            )


if __name__ == "__main__":
    main()
