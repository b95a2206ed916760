"""ΔCE far out on a million tokens of text, and what the pilot's few had said of it.

    python scripts/measure_large_corpus.py FILE.txt [--tokens 1000000]

One cell, as in the paper's Figure 7: smollm2, joy, a late block, α = ±100. The text is read as a
stream, passage by passage; what was measured is kept, and the same command goes on from there.
An hour on two cores. The text that docs/reproduction.md speaks of is the documentation of Python
(Debian's python3.11-doc): all of its .txt files in the order of their paths, one after the other.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from markdown_tables import DOCS, table
from records import read_records, write_records

from calibrate import load_model
from calibrate.common.estimate import RatioEstimate
from calibrate.common.settings import Settings
from calibrate.engine.cross_entropy import delta_ce
from calibrate.engine.site import Site
from calibrate.engine.unsteered import Corpus, run_unsteered
from calibrate.laws.log_odds import measure_log_odds
from calibrate.models.model import LoadedModel, preserving_model_state
from calibrate.models.prompts import encode_text
from calibrate.models.tokens import TokenSequence
from calibrate.texts.concept import read_concept
from calibrate.texts.extraction import concept_vectors

TARGET = DOCS / "reproduction" / "large-corpus.json"
MODEL, CONCEPT, LAYER, STRENGTHS = "smollm2", "joy", 25, (100.0, -100.0)
PASSAGE = 1500  # characters of a passage, to the end of its line
AT_ONCE = 24  # passages between two records
LEAST_PARTS = 8  # fewer sums say nothing of their spread
PAPERS_TOKENS = 1_000_000
PILOT = 2000  # tokens: as many as a pilot reads


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--tokens", default=PAPERS_TOKENS, show_default=True, help="To be measured in all.")
def main(file: Path, tokens: int) -> None:
    found = read_records(TARGET) or {"passages": 0, "tokens": 0, "rise": {}, "parts": []}
    loaded = load_model(MODEL)
    with preserving_model_state(loaded):
        vectors = concept_vectors(loaded, read_concept(CONCEPT).split()["vector"], Settings())
        site = Site((vectors[LAYER],))
        stream = itertools.islice(passages(file), found["passages"], None)
        if not found["passages"]:
            found["pilot"] = pilot(loaded, site, file)
        while found["tokens"] < tokens and (texts := list(itertools.islice(stream, AT_ONCE))):
            found["parts"] += rises(loaded, site, texts)
            found["passages"] += len(texts)
            found["tokens"] = int(sum(part[0] for part in found["parts"]))
            found = write_records(TARGET, found)
            click.echo(f"{found['tokens']} tokens")


def passages(file: Path) -> Iterator[str]:
    """A file's text, in passages of whole lines."""
    lines: list[str] = []
    with file.open(encoding="utf-8", errors="replace") as stream:
        for line in stream:
            lines.append(line)
            if sum(map(len, lines)) >= PASSAGE:
                yield "".join(lines)
                lines = []


def rises(loaded: LoadedModel, site: Site, texts: list[str]) -> list[list[float]]:
    """Of each passage, its scored tokens and the sum of its ΔCE at each strength."""
    found = measured(loaded, site, [encode_text(loaded, text) for text in texts])
    columns = np.stack([found[0].counts, *(each.sums for each in found)], axis=1)
    rows: list[list[float]] = columns.tolist()
    return rows


def measured(
    loaded: LoadedModel, site: Site, sequences: list[TokenSequence]
) -> list[RatioEstimate]:
    run = run_unsteered(loaded, Corpus(tuple(sequences), self_sampled=False), [LAYER])
    return [delta_ce(loaded, run, site, strength) for strength in STRENGTHS]


def pilot(loaded: LoadedModel, site: Site, file: Path) -> dict[str, Any]:
    """What the first PILOT tokens say: ΔCE there, and the plateaus of the law."""
    taken: list[TokenSequence] = []
    for text in passages(file):
        taken.append(encode_text(loaded, text))
        if sum(one.n_scored for one in taken) >= PILOT:
            break
    run = run_unsteered(loaded, Corpus(tuple(taken), self_sampled=False), [LAYER])
    odds = measure_log_odds(loaded, run, site, ())
    found = [delta_ce(loaded, run, site, strength) for strength in STRENGTHS]
    return {
        "tokens": int(run.corpus.n_scored),
        "rises": [each.value for each in found],
        "errors": [each.standard_error for each in found],
        "plateaus": [odds.law(sign).plateau for sign in (1, -1)],
    }


def section() -> str:
    """The section of docs/reproduction.md; empty where nothing was measured."""
    found = read_records(TARGET)
    if not found:
        return ""
    parts, few = np.array(found["parts"]), found["pilot"]
    rows = []
    for place, strength in enumerate(STRENGTHS):
        every = RatioEstimate(parts[:, place + 1], parts[:, 0])
        error = f" ± {every.standard_error:.3f}" if len(parts) >= LEAST_PARTS else ""
        rows.append(
            [
                f"{strength:+g}",
                f"{every.value:.3f}{error}",
                f"{few['rises'][place]:.3f} ± {few['errors'][place]:.3f}",
                f"{few['plateaus'][place]:.3f}",
            ]
        )
    heads = [
        "α",
        f"ΔCE on {found['tokens']:,} tokens",
        f"on the first {few['tokens']:,}",
        "plateau",
    ]
    share = f"So far {found['tokens'] / PAPERS_TOKENS:.1%} of the million are measured."
    return f"{HEADER}{share} Nats a token.\n\n{table(heads, rows)}"


HEADER = f"""## A large corpus

The paper measures ΔCE on a million tokens of text. {MODEL}, {CONCEPT}, block {LAYER}, on the
documentation of Python as a stream (`scripts/measure_large_corpus.py`), which the model has not
written. The errors are standard errors over passages, or groups of them; the first column has none
below {LEAST_PARTS}. The plateau is Proposition 4.1's, from the same few tokens and no steered pass.
"""


if __name__ == "__main__":
    main()
