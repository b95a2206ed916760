"""A chat template that nothing needs to be given: the variables and the date stand in it.

For tokenizers that others use, whose programs know nothing of what a template was given here.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

from calibrate.models.rendering import Rendering, frozen_template, name_in_use, templates_of


def with_settled_template(tokenizer: Any, rendering: Rendering) -> Any:
    """A copy of a tokenizer, with `settled_template` for the template in use; others stay."""
    again, templates = copy.copy(tokenizer), templates_of(tokenizer)
    settled = settled_template(tokenizer, rendering)
    is_alone = isinstance(tokenizer.chat_template, str)
    again.chat_template = settled if is_alone else {**templates, name_in_use(templates): settled}
    return again


def settled_template(tokenizer: Any, rendering: Rendering) -> str:
    """The chat template in use, with its variables set at its head and its date written in.

    What is set there goes before what a request gives. A name that is no identifier is left out,
    since no template can ask for it.
    """
    head = (
        f"{{%- set {name} = {_literal(value)} %}}\n"  # a template is rendered without that newline
        for name, value in rendering.kwargs.items()
        if name.isidentifier()
    )
    return "".join(head) + frozen_template(tokenizer, rendering)


def _literal(value: Any) -> str:
    """A JSON value as Jinja writes it, whose escapes are Python's."""
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        pairs = (f"{_literal(key)}: {_literal(each)}" for key, each in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    return json.dumps(value, ensure_ascii=False)
