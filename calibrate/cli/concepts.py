"""calibrate concepts: list the built-in ones."""

from __future__ import annotations

import click

from calibrate.cli.shared import Command


@click.command(cls=Command)
def concepts() -> None:
    """List the built-in concepts."""
    from rich.markup import escape

    from calibrate.cli.progress_bars import PatientConsole
    from calibrate.cli.rich_tables import headed
    from calibrate.texts.concept import built_in_concepts, read_concept

    table = headed("concept", "texts", "expresses it", "does not")
    for name in built_in_concepts():
        texts = read_concept(name).texts
        count = f"{len(texts.positives)} + {len(texts.negatives)}"
        shortest = min(
            zip(texts.positives, texts.negatives, strict=True),
            key=lambda pair: len(pair[0].text) + len(pair[1].text),
        )
        table.add_row(f"[bold]{name}[/]", count, *(escape(text.text) for text in shortest))
    PatientConsole().print(table)
