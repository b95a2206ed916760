"""Read a chat in a file as a prompt and a reply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from calibrate.common.errors import ConceptError
from calibrate.texts.rows import brief

SPEAKERS = {
    **dict.fromkeys(("assistant", "gpt", "model", "bot"), "reply"),
    **dict.fromkeys(("user", "human"), "prompt"),
    **dict.fromkeys(("system", "developer", "tool", "function"), "other"),
}


def read_chat(place: str, name: str, turns: Any, ending: str = "reply") -> tuple[str, str | None]:
    """The text of the last turn of kind `ending`, and of the prompt before it, if there is one."""
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ConceptError(
            f"{place} must have a list of messages, with role and content, in {name!r}, got "
            f"{brief(turns) if not isinstance(turns, list) else 'a list of other things'}"
        )
    speakers = [_speaker(place, name, turn) for turn in turns]
    if ending not in speakers:
        raise ConceptError(
            f"{place} must have a turn of the {'assistant' if ending == 'reply' else 'user'} in "
            f"{name!r}, got {', '.join(map(str, speakers)) or 'no turns'}"
        )
    last = len(speakers) - 1 - speakers[::-1].index(ending)
    before = [at for at in range(last) if speakers[at] == "prompt"] if ending == "reply" else []
    prompt = _content(place, name, turns[before[-1]]) if before else None
    return _content(place, name, turns[last]), prompt


def _speaker(place: str, name: str, turn: Mapping[str, Any]) -> str:
    role = turn.get("role", turn.get("from"))
    speaker = SPEAKERS.get(role) if isinstance(role, str) else None
    if speaker is None:
        raise ConceptError(
            f"{place} must have turns of user, assistant or system in {name!r}, got role "
            f"{brief(role)}"
        )
    return speaker


def _content(place: str, name: str, turn: Mapping[str, Any]) -> str:
    """The text of a turn; a list of text parts is joined, as chat templates do."""
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list):
        content = "".join(_part(place, name, part) for part in content)
    return plain_text(place, content, f"{name} content")


def _part(place: str, name: str, part: Any) -> str:
    text = part.get("text") if isinstance(part, dict) else part
    if isinstance(text, str):
        return text
    raise ConceptError(
        f"{place} must have parts of text alone in '{name} content', got {brief(part)}"
    )


def plain_text(place: str, value: Any, name: str) -> str:
    """Return a value stripped, or raise ConceptError if it is not a usable text."""

    def refused(got: str) -> NoReturn:
        raise ConceptError(f"{place} must have a text in {name!r}, got {got}")

    if not isinstance(value, str):
        refused(brief(value))
    if "\0" in value:
        refused("one with a NUL in it")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        refused(f"half a character ({brief(value[error.start])})")
    if not value.strip():
        refused("an empty one")
    return value.strip()
