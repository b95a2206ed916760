"""From a conversation to token ids: the one place where prompts are rendered.

A chat model sees its own template, a base model one turn a line. Templates differ in what they
take: content as text or as a list of parts, a system role or none, earlier turns or none. What a
template takes is tried once, when a model is loaded (`settle`), with sentences that must appear in
the result; every later prompt must appear in its rendering too. A template's other inputs, its
variables and today's date, are part of a calibration: the config records them, and every later use
of the config takes them from there.
"""

from __future__ import annotations

import inspect
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date as day_of
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from calibrate.common.errors import CalibrateWarning, InputError, ModelError

Message = dict[str, Any]

DEFAULT = "default"  # of several chat templates, the one in use

# Sentences no template contains, for trying one out.
ASKED, ASKED_OTHERWISE = "Which seven herons nest there?", "Do grey owls ever sing at noon?"
SAID, SYSTEM = "Nine of them, by the old weir.", "Always name the colour of the boat."

TODAY = re.compile(r"strftime_now\(\s*(?P<quote>['\"])(?P<form>.*?)(?P=quote)\s*\)")
RESERVED = frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)
DAYS_APART = ("2001-02-03", "2014-11-28")  # two dates that no date format renders alike


@dataclass(frozen=True)
class Rendering:
    """How a tokenizer's conversations become text.

    kwargs: variables of the chat template, JSON values by name.
    date: the template's date of today, as YYYY-MM-DD; None if it does not ask.
    content: whether a message's content is text or a list of parts.
    system: whether there is a system role, or its message leads the first prompt.
    history: whether earlier turns are turns, or stand in the prompt's text.
    trailing: how many end tokens the tokenizer puts after a plain text, and after a rendered
        one; they are left out, since the text is to be continued or averaged.
    """

    kwargs: Mapping[str, Any] = field(default_factory=dict)
    date: str | None = None
    content: Literal["text", "parts"] = "text"
    system: Literal["role", "folded"] = "folded"
    history: Literal["turns", "folded"] = "turns"
    trailing: tuple[int, int] = (0, 0)


def template_of(tokenizer: Any) -> str | None:
    """The chat template in use; None for a base model.

    Raises: ModelError if there are several, and none is called default.
    """
    templates = templates_of(tokenizer)
    if len(templates) > 1 and DEFAULT not in templates:
        raise ModelError(
            "a tokenizer with several chat templates must call one of them default, got "
            f"{', '.join(sorted(templates))}; set tokenizer.chat_template to the one that is "
            "served"
        )
    return templates[name_in_use(templates)] or None if templates else None


def names_variable(tokenizer: Any, name: str) -> bool:
    """Whether the chat template in use names a variable."""
    return re.search(rf"\b{re.escape(name)}\b", template_of(tokenizer) or "") is not None


def templates_of(tokenizer: Any) -> dict[str, Any]:
    """Every chat template, by its name; one without a name is the default. Empty without any."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, list):
        return {each["name"]: each["template"] for each in template}
    if isinstance(template, dict):
        return template
    return {DEFAULT: template} if template else {}


def name_in_use(templates: Mapping[str, Any]) -> str:
    """The name of the default template, or else of the first."""
    return DEFAULT if templates.get(DEFAULT) else next(iter(templates))


def settle(
    tokenizer: Any, kwargs: Mapping[str, Any] | None = None, date: str | None = None
) -> Rendering:
    """Find out which conversations a tokenizer's template takes, and check that it renders them.

    kwargs: variables for the template. date: its date of today (default: today).

    Raises: InputError for variables that are not JSON, or where there is no template; ModelError
        if the template fails, or user messages do not come out of it.
    """
    kwargs, template = _checked_kwargs(kwargs or {}), template_of(tokenizer)
    trailing = _trailing(tokenizer)
    if any(trailing):
        _note("the tokenizer puts an end token after every text; it is left out of prompts and v")
    if template is None:
        if kwargs:
            raise InputError(
                f"--chat-template-kwargs needs a chat template, and this tokenizer has none, got "
                f"{json.dumps(kwargs)}; leave the option out"
            )
        return Rendering(trailing=trailing)
    for name in kwargs:
        if not names_variable(tokenizer, name):
            _note(f"the chat template knows nothing of {name!r}, which changes nothing")
    form = Rendering(kwargs, _date(template, date), trailing=trailing)
    form = replace(form, content=_content(tokenizer, form))
    asks = len({_trial(tokenizer, replace(form, date=day)) for day in DAYS_APART}) > 1
    form = replace(form, date=form.date if asks else None)
    return replace(form, system=_system_role(tokenizer, form), history=_history(tokenizer, form))


def render(
    tokenizer: Any,
    rendering: Rendering,
    prompt: str,
    *,
    system: str | None = None,
    history: Sequence[tuple[str, str]] = (),
) -> str:
    """The text of a conversation after which the model's reply begins.

    Raises: InputError if the template refuses the conversation, or drops the prompt.
    """
    if template_of(tokenizer) is None:
        lead = f"{system}\n" if system else ""
        return lead + "".join(_line(turn) for turn in [*history, (prompt, "")])
    asked = prompt
    if history and rendering.history == "folded":
        _note("the chat template has no place for earlier turns; they stand in the prompt's text")
        asked, history = "".join(_line(turn) for turn in history) + prompt, ()
    messages = [message for turn in [*history, (asked, "")] for message in _messages(turn)]
    if system and rendering.system == "role":
        messages.insert(0, {"role": "system", "content": system})
    elif system:
        _note("the chat template has no system role; its message leads the first prompt")
        messages[0]["content"] = f"{system}\n\n{messages[0]['content']}"
    return _rendered(tokenizer, rendering, messages)


def frozen_template(tokenizer: Any, rendering: Rendering) -> str:
    """The chat template, with its date of today written into it."""
    template = template_of(tokenizer)
    assert template is not None
    if rendering.date is None:
        return template
    day = day_of.fromisoformat(rendering.date)
    return TODAY.sub(lambda match: json.dumps(day.strftime(match["form"])), template)


def _messages(turn: tuple[str, str]) -> list[Message]:
    asked, said = turn
    user = {"role": "user", "content": asked}
    return [user, {"role": "assistant", "content": said}] if said else [user]


def _line(turn: tuple[str, str]) -> str:
    return "".join(f"{part}\n" for part in turn if part) or "\n"


def _trailing(tokenizer: Any) -> tuple[int, int]:
    """How many end tokens a tokenizer puts after a text, with special tokens and without."""
    ends = {tokenizer.eos_token_id, getattr(tokenizer, "sep_token_id", None)}

    def after(special: bool) -> int:
        ids = tokenizer("a", add_special_tokens=special)["input_ids"]
        others = [place for place, token in enumerate(ids) if token not in ends]
        return len(ids) - 1 - others[-1] if others else 0

    return after(True), after(False)


def _checked_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse variables that the config could not keep, or that are not the template's."""
    try:
        checked: dict[str, Any] = json.loads(json.dumps(dict(kwargs), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"--chat-template-kwargs must be a JSON object, got {kwargs!r} ({error})"
        ) from error
    taken = sorted(set(checked) & RESERVED)
    if taken:
        raise InputError(
            f"--chat-template-kwargs takes the template's own variables, got {', '.join(taken)}, "
            "which rendering sets by itself; leave that out"
        )
    return checked


def _date(template: str, date: str | None) -> str | None:
    """A template's date of today; None if it does not ask for one."""
    if "strftime_now(" not in template:
        return None
    if "strftime_now(" in TODAY.sub("", template):
        _note(
            "the chat template asks for today's date in a way that cannot be frozen, so that "
            "prompts change from day to day"
        )
    return date or day_of.today().isoformat()


def _content(tokenizer: Any, rendering: Rendering) -> Literal["text", "parts"]:
    """Whether messages come out of the template as text or as parts.

    Raises: InputError if in neither way.
    """
    try:
        for asked in (ASKED, ASKED_OTHERWISE):
            _rendered(tokenizer, rendering, _messages((asked, "")))
        return "text"
    except InputError as error:
        try:
            _trial(tokenizer, replace(rendering, content="parts"))
        except InputError:
            raise error from None
    _note("the chat template takes a message's content as a list of parts; it is given that")
    return "parts"


def _system_role(tokenizer: Any, rendering: Rendering) -> Literal["role", "folded"]:
    system = {"role": "system", "content": SYSTEM}
    try:
        _rendered(tokenizer, rendering, [system, *_messages((ASKED, ""))])
    except InputError:  # Gemma's template, for one, refuses the system role; others drop it
        return "folded"
    return "role"


def _history(tokenizer: Any, rendering: Rendering) -> Literal["turns", "folded"]:
    turns = [*_messages((ASKED_OTHERWISE, SAID)), *_messages((ASKED, ""))]
    try:
        return "turns" if _holds(_rendered(tokenizer, rendering, turns), SAID) else "folded"
    except InputError:
        return "folded"


def _trial(tokenizer: Any, rendering: Rendering) -> str:
    return _rendered(tokenizer, rendering, _messages((ASKED, "")))


def _rendered(tokenizer: Any, rendering: Rendering, messages: Sequence[Message]) -> str:
    """Render messages, and check that each but the replies is in the result."""
    name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    as_parts = [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        for message in messages
    ]
    try:
        text = str(
            tokenizer.apply_chat_template(
                messages if rendering.content == "text" else as_parts,
                chat_template=frozen_template(tokenizer, rendering),
                tokenize=False,
                add_generation_prompt=True,
                **rendering.kwargs,
            )
        )
    except Exception as error:  # a template, and a tokenizer's own code, may raise anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"the chat template of {name} must render a conversation, but fails ({reason}); give "
            "the variables it needs with --chat-template-kwargs, or mend the template"
        ) from error
    for message in messages:
        if message["role"] != "assistant" and not _holds(text, message["content"]):
            raise InputError(
                f"the chat template of {name} must put the {message['role']} message into the "
                f"prompt, but {message['content'][:60]!r} is not in what it makes; mend the "
                "template, or remove it to use the model as a base model"
            )
    return text


def _holds(text: str, content: str) -> bool:
    """Whether a text contains a message, as it is or escaped, ignoring white space."""
    packed = "".join(text.split())
    forms = (content, json.dumps(content)[1:-1], json.dumps(content, ensure_ascii=False)[1:-1])
    return any("".join(form.split()) in packed for form in forms)


def _note(message: str) -> None:
    warnings.warn(message, CalibrateWarning, stacklevel=3)
