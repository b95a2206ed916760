"""Compare the engine's own loop and caches with those of transformers; write docs/engine.md.

    python scripts/measure_engine.py [--page]

Eight minutes on two cores, and nothing else should run meanwhile. Every way is run once to warm up,
and then all of them in turn, ROUNDS times; means count.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import fmean
from typing import Any

import click
import torch
from markdown_tables import DOCS, table
from records import page_option, read_records, write_records

from calibrate import load_model
from calibrate.common.settings import Sampling, Settings
from calibrate.engine.cross_entropy import delta_ce
from calibrate.engine.decoding import Loop, Row, by_generate, by_own_loop, end_ids
from calibrate.engine.generation import sample
from calibrate.engine.sampling import draw, noise_key
from calibrate.engine.site import Site
from calibrate.engine.unsteered import Corpus, UnsteeredRun, run_unsteered
from calibrate.models.model import LoadedModel, preserving_model_state
from calibrate.models.prompts import encode_prompt
from calibrate.texts.concept import read_concept, read_prompts
from calibrate.texts.extraction import concept_vectors

TARGET = DOCS / "engine.json"
MODEL, CONCEPT, LAYER, STRENGTH = "smollm2", "joy", 15, 1.0
SHAPES = {  # prompts, replies to each, tokens
    "one reply a prompt": (24, 1, 32),
    "four replies a prompt": (6, 4, 32),
    "long replies": (6, 1, 96),
}
ROUNDS = 2
N_TEXTS = 64  # replies on which ΔCE is measured
OURS = "this engine"
GENERATE = "`generate` of transformers"


@click.command()
@page_option
def main(only_page: bool) -> None:
    if not only_page:
        write_records(TARGET, measured())
    (DOCS / "engine.md").write_text(page(read_records(TARGET)), encoding="utf-8")


def measured() -> dict[str, Any]:
    loaded = load_model(MODEL)
    with preserving_model_state(loaded):
        texts = read_concept(CONCEPT).split()["vector"]
        site = Site((concept_vectors(loaded, texts, Settings())[LAYER],))
        loaded.capabilities.report()  # tried before anything is timed
        return {
            "torch": torch.__version__,
            "replies": {name: replies(loaded, site, *shape) for name, shape in SHAPES.items()},
            "delta_ce": scoring(loaded, site),
        }


def replies(
    loaded: LoadedModel, site: Site, n_prompts: int, n_replies: int, tokens: int
) -> dict[str, Any]:
    """Seconds and replies of each way, half of them steered, in one batch."""
    prompts = [encode_prompt(loaded, text) for text in read_prompts()[:n_prompts]]
    rows = [
        Row(prompt, noise_key(0, prompt.text, k), steering)
        for steering in (None, site.steering(STRENGTH))
        for prompt in prompts
        for k in range(n_replies)
    ]
    sampling = Sampling(max_new_tokens=tokens)
    loop = Loop(
        lambda scores, keys, step: draw(scores, sampling, keys, step), end_ids(loaded), tokens
    )

    ways: dict[str, Callable[[], list[list[int]]]] = {
        OURS: lambda: by_own_loop(loaded, rows, loop),
        "without a shared prefix": lambda: by_own_loop(loaded, rows, loop, share=False),
        GENERATE: lambda: by_generate(loaded, rows, loop),
    }
    said, seconds = in_turn(ways)
    same = sum(ours == theirs for ours, theirs in zip(said[OURS], said[GENERATE], strict=True))
    n_tokens = sum(map(len, said[OURS]))
    return {"seconds": seconds, "rows": len(rows), "tokens": n_tokens, "same": same}


def scoring(loaded: LoadedModel, site: Site) -> dict[str, Any]:
    """Seconds of one strength's pass over a corpus, and its ΔCE, with less and less shared."""
    prompts = [encode_prompt(loaded, text) for text in read_prompts()[:N_TEXTS]]
    drawn = sample(loaded, prompts, Sampling(), 0)
    corpus = Corpus(tuple(one.sequence for one in drawn), self_sampled=True)
    runs = {
        OURS: run_unsteered(loaded, corpus, [LAYER]),
        "without a shared prefix": run_unsteered(loaded, corpus, [LAYER], lend_prefix=False),
        "all blocks of all tokens": run_unsteered(loaded, corpus, [0], lend_prefix=False),
    }

    def rise(run: UnsteeredRun) -> float:
        return delta_ce(loaded, run, site, STRENGTH).value

    rises, seconds = in_turn({name: partial(rise, run) for name, run in runs.items()})
    return {name: [seconds[name], rises[name]] for name in runs}


def in_turn(ways: dict[str, Callable[[], Any]]) -> tuple[dict[str, Any], dict[str, float]]:
    """What each way gives, and its mean seconds, after once to warm up."""
    found = {name: way() for name, way in ways.items()}
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            spent[name].append(time.perf_counter() - started)
    return found, {name: fmean(seconds) for name, seconds in spent.items()}


def page(found: dict[str, Any]) -> str:
    parts = [HEADER.format(torch=found["torch"])]
    for name, one in found["replies"].items():
        seconds = one["seconds"]
        rows = [
            [way, f"{spent:.1f}", f"{spent / seconds[OURS]:.2f}"] for way, spent in seconds.items()
        ]
        parts.append(
            f"## {name[0].upper()}{name[1:]}\n\n{one['rows']} replies of up to "
            f"{SHAPES[name][2]} tokens in one batch, {one['tokens']:,} tokens together; "
            f"{one['same']} of the {one['rows']} replies are `generate`'s to the last token.\n\n"
            + table(["way", "seconds", "times ours"], rows)
        )
    ours = found["delta_ce"][OURS][0]
    rows = [
        [way, f"{seconds:.1f}", f"{seconds / ours:.2f}", f"{rise:.6f}"]
        for way, (seconds, rise) in found["delta_ce"].items()
    ]
    parts.append(
        f"## ΔCE of one strength\n\nOn {N_TEXTS} replies, after block {LAYER}.\n\n"
        + table(["pass", "seconds", "times ours", "ΔCE"], rows)
    )
    return "\n".join(parts)


HEADER = """# The engine beside transformers

Written by `scripts/measure_engine.py`. Model: `smollm2` in float32 on two cores, torch {torch}.
Half of the rows of a batch are steered. What this engine does itself is taken away part by part.
Its loop is kept for the short replies of which a calibration samples hundreds; replies that have
ended leave it, which the ones here hardly do.
"""


if __name__ == "__main__":
    main()
