"""The options of a calibration that pipelines pass on, checked before anything is loaded."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

from calibrate.calibration import calibrate
from calibrate.common.errors import InputError, did_you_mean
from calibrate.common.settings import Settings


def checked_options(
    options: Mapping[str, Any], whose: str, given: Collection[str]
) -> dict[str, Any]:
    """Options of `calibrate.calibrate`, each known and in its range.

    whose: who takes them, for the message. given: arguments that are no options there.
    Raises: InputError.
    """
    names = {each.name for each in fields(Settings)}
    own = {*inspect.signature(calibrate).parameters} - {*given, "options"}
    for name in options:
        if name not in names | own:
            hint = did_you_mean(name, names | own)
            raise InputError(f"{whose} has no option {name!r}{hint}")
    Settings(**{name: value for name, value in options.items() if name in names})
    return dict(options)
