"""Which options a command has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from calibrate.cli.options import OPTIONS

Command = TypeVar("Command", bound=Callable[..., Any])

LAWS = (
    "model concept laws-out one-budget positives negatives laws-positions pooling normalize corpus "
    "prompts reply-tokens chat-template-kwargs teacher judge-question judge-url seed confidence "
    "device device-map dtype batch-tokens blocks revision trust-remote-code json quiet"
).split()

# How the model of a config is loaded, in one process or in several that share it.
HELD = "device device-map one-process dtype blocks revision trust-remote-code".split()
SHARED = ["tensor-parallel" if name == "one-process" else name for name in HELD]

# Parameters of `load_model`, and those of `calibrate` that the main job hands on as they are.
MODEL = (
    "model device device_map dtype batch_tokens blocks revision trust_remote_code "
    "chat_template_kwargs"
).split()
CALIBRATION = (
    "start beside mix corpus prompts judge audit guard teacher storage study max_tokens max_minutes"
).split()


def options(*names: str) -> Callable[[Command], Command]:
    """Give a command the options of these names, in this order."""

    def give(command: Command) -> Command:
        for name in reversed(names):
            command = OPTIONS[name](command)
        return command

    return give


def split_off(given: dict[str, Any], names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split parameters into those of these names and the rest."""
    chosen = {name: given[name] for name in names}
    return chosen, {name: value for name, value in given.items() if name not in names}
