"""Write docs/cli.md from what `--help` prints."""

from __future__ import annotations

from pathlib import Path

import click

from calibrate.cli.commands import cli

TARGET = Path(__file__).parents[1] / "docs" / "cli.md"
HEADER = """# The command line

Written by `scripts/write_cli_docs.py` from what `--help` prints.

| exit status | meaning |
|---|---|
| 0 | done |
| 1 | unexpected, please report it; of `calibrate sweep`: some cells failed |
| 2 | bad usage or input: one line says what, the value, and the way out |
| 3 | infeasible: no strength does what was asked; why, and what budgets buy, in `DIR/report.html` |
| 4 | a finished config or export does not do what it says (`verify`, `export`, `serve`) |
| 130 | interrupted; the same command resumes a calibration, a sweep and grading |
"""


def cli_docs() -> str:
    """Return the page as it is published."""
    context = click.Context(cli, info_name="calibrate", max_content_width=100, terminal_width=100)
    parts = [HEADER, _section("calibrate", cli, context)]
    for name, command in sorted(cli.commands.items()):
        own = click.Context(command, context, name, max_content_width=100, terminal_width=100)
        parts.append(_section(f"calibrate {name}", command, own))
    return "\n".join(parts)


def _section(title: str, command: click.Command, context: click.Context) -> str:
    return f"## {title}\n\n```text\n{command.get_help(context)}\n```\n"


if __name__ == "__main__":
    TARGET.write_text(cli_docs(), encoding="utf-8")
