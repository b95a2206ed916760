"""The command line: parse, make one library call, print.

Whatever needs torch is imported inside the commands, so that --help answers at once.
"""

from __future__ import annotations

import sys
from typing import Any

import click
from click.core import ParameterSource

from calibrate.cli.concepts import concepts
from calibrate.cli.console import Readable, printing, warnings_as_notes
from calibrate.cli.exit_status import run_to_status
from calibrate.cli.export import export_config
from calibrate.cli.frontier import frontier, pick
from calibrate.cli.grade import grade
from calibrate.cli.judge import judge
from calibrate.cli.laws import laws
from calibrate.cli.main_job import run_main_job, show
from calibrate.cli.option_groups import options
from calibrate.cli.options import MAIN_JOB
from calibrate.cli.push import push
from calibrate.cli.serve import serve
from calibrate.cli.shared import Command
from calibrate.cli.sweep import sweep
from calibrate.cli.talk import chat, generate
from calibrate.cli.verify import verify


class _Group(Readable, click.Group):
    command_class = Command


@click.group(cls=_Group, invoke_without_command=True, context_settings={"max_content_width": 100})
@click.version_option(package_name="steering-calibrate")
@options(*MAIN_JOB)
@click.pass_context
def cli(ctx: click.Context, /, **given: Any) -> None:
    """Choose the strength of an activation-steering vector, with evidence.

    \b
    calibrate --model smollm2 --concept joy      find the strength
    calibrate show joy-smollm2                   the summary again
    calibrate frontier joy-smollm2               what other budgets buy, and what prompting does
    calibrate pick optimistic-smollm2 --ce-budget 0.2 --out stronger
    calibrate verify joy-smollm2                 does it still hold? for deployment pipelines
    calibrate judge joy-smollm2 --texts FILE     does its judge read as people do?
    calibrate generate joy-smollm2 --prompt "…"  unsteered and steered, side by side
    calibrate chat joy-smollm2                   talk to it
    calibrate serve joy-smollm2                  over HTTP, with a page to try it on
    calibrate grade joy-smollm2                  read replies blind: is it there to you?
    calibrate export joy-smollm2 --format gguf --to joy.gguf
    calibrate push joy-smollm2 USER/NAME         to the Hub, with a model card
    calibrate sweep --model A --model B --concept joy --concept evil --out DIR
    """  # noqa: D301 - \b keeps click from joining the lines
    if ctx.invoked_subcommand is not None:
        _refuse_options_before(ctx.invoked_subcommand, ctx)
        return
    run_main_job(**given)


def _refuse_options_before(command: str, ctx: click.Context) -> None:
    """Raise UsageError for options of the main job before a command, which does not heed them."""
    given = [
        option.opts[0]
        for option in ctx.command.params
        if option.name and ctx.get_parameter_source(option.name) is ParameterSource.COMMANDLINE
    ]
    if given:
        raise click.UsageError(
            f"options of a command go after it, got {', '.join(given)} before {command}; write "
            f"calibrate {command} … {given[0]} …, or leave out what it has no use for"
        )


COMMANDS = (
    show, frontier, pick, verify, generate, chat, serve, grade, export_config, push, laws, judge,
    sweep, concepts,
)  # fmt: skip
for command in COMMANDS:
    cli.add_command(command)


def main() -> None:
    """Run the command line and exit with the status the contract names."""
    with printing(), warnings_as_notes():
        status = run_to_status(cli)
    sys.exit(status)
