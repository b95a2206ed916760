"""The options of a calibration that pipelines pass on, checked before anything is loaded."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from typing import Any

from calibrate.calibration import calibrate
from calibrate.common.cost import Limits
from calibrate.common.errors import InputError, did_you_mean
from calibrate.common.settings import Settings
from calibrate.deploy.beside import checked_mix
from calibrate.judging.choice import AUTO, check_reading
from calibrate.search.affordable import asked_budgets
from calibrate.texts.concept import Concept, read_corpus, read_prompts
from calibrate.texts.guard_choice import check_guard_choice


def checked_options(
    options: Mapping[str, Any], whose: str, given: Collection[str]
) -> dict[str, Any]:
    """Options of `calibrate.calibrate`, each known and in its range.

    whose: who takes them, for the message. given: arguments that are no options there.
    Raises: InputError.
    """
    names = _names()
    own = {*inspect.signature(calibrate).parameters} - {*given, "options"}
    for name in options:
        if name not in names | own:
            hint = did_you_mean(name, names | own)
            raise InputError(f"{whose} has no option {name!r}{hint}")
    _settings_in(options)
    return dict(options)


def check_inputs(concept: Concept, options: Mapping[str, Any]) -> None:
    """Refuse what a calibration refuses before it looks at its model: files, judges and limits.

    options: as `checked_options` returns them.
    Raises: InputError; ConceptError for prompts or a corpus that cannot be used.
    """
    given, settings = options.get, _settings_in(options)
    if (tokens := given("reply_tokens")) is not None:
        replace(settings.sampling, max_new_tokens=tokens)
    Limits(given("max_tokens"), given("max_minutes"))
    asked_budgets(given("other_budgets", ()), settings)
    checked_mix(given("mix"), given("beside"), given("start"))
    read_prompts(given("prompts"))
    if (corpus := given("corpus")) is not None:
        read_corpus(corpus)
    check_guard_choice(given("guard", AUTO), settings.max_guard_drop, settings.confidence)
    check_reading(concept, given("judge", AUTO), given("teacher"), settings, given("audit", AUTO))


def _names() -> set[str]:
    return {each.name for each in fields(Settings)}


def _settings_in(options: Mapping[str, Any]) -> Settings:
    return Settings(**{name: value for name, value in options.items() if name in _names()})
