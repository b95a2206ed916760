"""Which options a command has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from calibrate.cli.options import OPTIONS

Command = TypeVar("Command", bound=Callable[..., Any])

LAWS = (
    "model",
    "concept",
    "out",
    "ce-budget",
    "positives",
    "negatives",
    "positions",
    "pooling",
    "normalize",
    "corpus",
    "prompts",
    "reply-tokens",
    "chat-template-kwargs",
    "seed",
    "confidence",
    "device",
    "dtype",
    "batch-tokens",
    "blocks",
    "revision",
    "trust-remote-code",
    "json",
    "quiet",
)

# Parameters that say which model, and how to load it: those of `load_model`.
MODEL = (
    "model",
    "device",
    "dtype",
    "batch_tokens",
    "blocks",
    "revision",
    "trust_remote_code",
    "chat_template_kwargs",
)


def options(*names: str) -> Callable[[Command], Command]:
    """Give a command the options of these names, in this order."""

    def give(command: Command) -> Command:
        for name in reversed(names):
            command = OPTIONS[name](command)
        return command

    return give


def apart(given: dict[str, Any], names: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split parameters into those of these names and the rest."""
    chosen = {name: given[name] for name in names}
    return chosen, {name: value for name, value in given.items() if name not in names}
