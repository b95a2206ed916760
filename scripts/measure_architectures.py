"""Measure every decoder-only architecture of transformers, tiny, against a hand-written oracle.

    python scripts/measure_architectures.py [--page]

Writes docs/architectures.md and docs/architectures.json. Nothing is downloaded; it takes six
minutes on one core. The models, the oracle and what is compared are those of the tests.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import transformers
from markdown_tables import DOCS, table
from records import page_option, read_records, write_records

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from small_architectures import NOT_DECODERS, VARIANTS, NotBuilt, decoders
from sweep import EXACT, Swept, sweep

TARGET = DOCS / "architectures.json"

INTRODUCTION = """# Architectures

Written by `scripts/measure_architectures.py`: every decoder-only architecture that transformers
{version} has a causal language model for, built tiny and at random from its config, and what comes
of steering it, against an oracle that knows nothing of this project: a forward hook of five lines,
and full passes of one row without a cache.

* **exact**: steered logits, ΔCE (on the model's own replies and on other text, at all positions and
  at the last) and replies (greedy and sampled, of several lengths, steered and not, in one batch)
  are the oracle's, with every shortcut taken.
* **fall-back**: they are the oracle's as well, without the shortcuts named, which were tried on the
  model and found not to say the same (the reason stands beside each, and in a config under
  `capabilities`).
* **refused**: in one line, which is the reason given.

Steered logits and ΔCE count as the oracle's within {exact:g} of their size; replies have to be the
same, token by token. The error is the largest of ΔCE, over texts and kinds of text, and "in
batches" how far ΔCE of texts in batches is off that of the same texts one by one.

{counts} A row with a name in brackets is another shape of an architecture, and not counted again.
"""
NOT_BUILT = """
## Not built

These are in the list of causal language models as well, but no tiny model of them could be made
from the config; they do not count.

"""
LEFT_OUT = """
Left out are {n} that are no decoder-only language models: encoders, the decoders of
encoder-decoder models, and models of images and sound (whose language models have rows of their
own).
"""


@click.command()
@page_option
def main(only_page: bool) -> None:
    """Write both documents."""
    if not only_page:
        write_records(TARGET, measured())
    (DOCS / "architectures.md").write_text(page(read_records(TARGET)), encoding="utf-8")


def measured() -> dict[str, Any]:
    """Every architecture, and why some could not be built."""
    found: list[Swept] = []
    missing: dict[str, str] = {}
    for name in [*decoders(), *VARIANTS]:
        try:
            found.append(sweep(name))
            print(name, found[-1].verdict, flush=True)
        except NotBuilt as error:
            missing[name] = str(error)
            print(name, "not built:", error, flush=True)
    return {
        "transformers": transformers.__version__,
        "architectures": [
            {name: value for name, value in asdict(one).items() if name != "hook"} for one in found
        ],
        "not built": sorted(missing.items()),
    }


def page(facts: dict[str, Any]) -> str:
    """The page, from what was measured."""
    rows = facts["architectures"]
    verdicts = Counter(row["verdict"] for row in rows if row["architecture"] not in VARIANTS)
    counted = ", ".join(f"{n} {verdict}" for verdict, n in verdicts.most_common())
    head = INTRODUCTION.format(
        version=facts["transformers"],
        exact=EXACT,
        counts=f"{sum(verdicts.values())} architectures: {counted}.",
    )
    headings = "architecture", "verdict", "ΔCE off by", "in batches", "same replies", "logits"
    body = table((*headings, "goes without, or why refused"), [cells(row) for row in rows])
    lost = table(("architecture", "reason"), facts["not built"])
    return head + "\n" + body + NOT_BUILT + lost + LEFT_OUT.format(n=len(NOT_DECODERS))


def cells(row: dict[str, Any]) -> Sequence[str]:
    """One architecture's row."""
    measured = row["rise"] is not None
    return (
        f"{row['architecture']} ({row['class_name']})",
        row["verdict"],
        f"{row['rise']:.0e}" if measured else "",
        f"{row['alone']:.0e}" if measured else "",
        ("yes" if row["replies"] else "no") if measured else "",
        row["logit_rule"],
        row["reason"] or "; ".join(f"{name} ({why})" for name, why in row["fallbacks"].items()),
    )


if __name__ == "__main__":
    main()
