"""calibrate generate and calibrate chat: replies of the steered model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from calibrate.cli.console import say, say_json
from calibrate.cli.option_groups import HELD, SHARED, options
from calibrate.cli.option_types import PLACE, PROMPT, utf8
from calibrate.cli.shared import (
    Command,
    as_json_text,
    only_first_speaks,
    say_origin,
    working,
)

if TYPE_CHECKING:
    from calibrate.engine.generation import Completion
    from calibrate.models.model import LoadedModel
    from calibrate.models.tokens import Prompt


@click.command(cls=Command)
@click.argument("directory", type=PLACE, metavar="DIR")
@click.option("--prompt", required=True, type=PROMPT, metavar="TEXT", help="What to reply to.")
@click.option("--strength", type=float, metavar="X", help="Another strength than the calibrated.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@options("elsewhere", *SHARED)
@click.option("--json", "as_json", is_flag=True, help="Print both replies as JSON.")
def generate(
    directory: str | Path,
    prompt: str,
    strength: float | None,
    max_tokens: int,
    seed: int,
    as_json: bool,
    **loading: Any,
) -> None:
    """Reply to a prompt unsteered and steered, side by side, with the same noise.

    DIR is a calibration's directory, or an adapter or folded checkpoint exported from one.
    """
    from dataclasses import replace

    from calibrate.common.settings import check_seed, finite_strength
    from calibrate.deploy.chat import open_steered
    from calibrate.engine.generation import sample
    from calibrate.models.model import preserving_model_state
    from calibrate.models.prompts import encode_prompt

    only_first_speaks(loading["tensor_parallel"])
    check_seed(seed)
    if strength is not None:
        finite_strength(strength)
    with (
        working(as_json) as progress,
        open_steered(directory, progress=progress, **loading) as opened,
        preserving_model_state(opened.loaded),
    ):
        sampling = replace(opened.config.settings.sampling, max_new_tokens=max_tokens)
        encoded = [encode_prompt(opened.loaded, prompt)]
        _require_reply(opened.loaded, encoded[0], max_tokens)
        unsteered, steered = (
            sample(opened.loaded, encoded, sampling, seed, within=opened.at(at))[0]
            for at in (0.0, strength)
        )
    say_origin(opened.config.origin)
    used = opened.config.intervention.strength if strength is None else strength
    _print_replies(prompt, unsteered, steered, used, as_json)


@click.command(cls=Command)
@click.argument("directory", type=PLACE, metavar="DIR")
@click.option("--max-tokens", type=click.IntRange(min=1), default=256, show_default=True)
@options("elsewhere", *HELD)
def chat(directory: str | Path, max_tokens: int, **loading: Any) -> None:
    """Talk to the steered model.

    /strength X steers by X, /budget NATS by what may cost that much, and /off not at all; /concept
    says what was calibrated, and /quit ends it. A budget that was not measured is spent by the law
    of ΔCE.

    DIR is a calibration's directory, or an adapter or folded checkpoint exported from one.
    """
    from dataclasses import replace

    from calibrate.common.errors import InputError
    from calibrate.deploy.chat import HELP, Chat, open_steered
    from calibrate.models.model import preserving_model_state

    with (
        working() as progress,
        open_steered(directory, progress=progress, **loading) as opened,
        preserving_model_state(opened.loaded),
    ):
        _require_reply(opened.loaded, None, max_tokens)
        progress.close()
        say_origin(opened.config.origin)
        talk = Chat(
            opened,
            replace(opened.config.settings.sampling, max_new_tokens=max_tokens),
            opened.config.intervention.strength,
        )
        say(f"{talk.command('/concept')}\n{HELP}")
        while (line := _line(f"[{talk.strength:+.4g}] ")) not in (None, "/quit"):
            assert line is not None
            try:
                if line.startswith("/"):
                    say(talk.command(line))
                elif line:
                    talk.reply(utf8("what you type", line), lambda piece: say(piece, nl=False))
                    say()
            except InputError as error:
                say(error)


def _require_reply(loaded: LoadedModel, prompt: Prompt | None, max_tokens: int) -> None:
    """Refuse a prompt that cannot be continued, and a reply longer than the context allows."""
    from calibrate.common.errors import InputError

    if prompt is not None and not (loaded.is_chat or (prompt.text.strip() and prompt.ids)):
        raise InputError(
            f"--prompt must be a text that a base model can go on from, got {prompt.text!r}"
        )
    used = 1 if prompt is None else len(prompt.ids)
    if used + max_tokens > loaded.context_length:
        raise InputError(
            f"--max-tokens must leave room in the context of {loaded.context_length} tokens for "
            f"the prompt's {used}, got {max_tokens}; give at most {loaded.context_length - used}"
        )


def _line(prompt: str) -> str | None:
    """A line the user types; None at the end of input."""
    try:
        return input(prompt).strip()
    except EOFError:
        return None


def _print_replies(
    prompt: str, unsteered: Completion, steered: Completion, strength: float, as_json: bool
) -> None:
    replies = {"unsteered": unsteered, "steered": steered}
    if as_json:
        texts = {which: reply.text for which, reply in replies.items()}
        answered = {which: reply.answered for which, reply in replies.items()}
        say_json(
            as_json_text({"prompt": prompt, "strength": strength, **texts, "answered": answered})
        )
        return
    from rich.columns import Columns
    from rich.panel import Panel
    from rich.text import Text

    from calibrate.cli.progress_bars import PatientConsole

    titles = ("unsteered", f"α = {strength:+.4g}")
    panels = [
        Panel(Text(_shown(reply)), title=title, width=48)
        for title, reply in zip(titles, replies.values(), strict=True)
    ]
    PatientConsole().print(Columns(panels))


def _shown(reply: Completion) -> str:
    if reply.answered:
        return reply.text
    return f"(still thinking after {reply.sequence.n_scored} tokens; --max-tokens allows more)"
