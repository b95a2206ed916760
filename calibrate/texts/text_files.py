"""Read the rows of a file as texts, with their labels, prompts and groups.

A row gives its text in exactly one of these ways:

    text                         with label, in a file of both labels
    positive and negative        a matched pair; so do chosen and rejected
    response                     or completion, output, answer: a reply, which is the text
    messages                     or conversations: a chat, whose last reply is the text

and optionally

    prompt                       or question, instruction: what the text replies to
    group                        a name or number: texts of one group share a split

Replies and prompts may be chats too. Labels are positive, pos, 1, true or yes, and negative, neg,
0, false or no, in any case. Other fields are ignored, and so are null and empty cells.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibrate.common.errors import ConceptError
from calibrate.texts.chat_entries import plain_text, read_chat
from calibrate.texts.rows import STRUCTURED, Row, brief, read_plain, read_rows, shown

PAIRS = (("positive", "negative"), ("chosen", "rejected"))
REPLIES = ("response", "completion", "output", "answer")
CHATS = ("messages", "conversations")
ALONE = ("text", *REPLIES, *CHATS)
PROMPTS = ("prompt", "question", "instruction")
NAMES = (*ALONE, *PAIRS[0], *PAIRS[1], *PROMPTS, "label", "group")
SHAPES = (
    "text and label, positive and negative, prompt and response and label, or messages and label"
)

LABELS = {
    **dict.fromkeys(("positive", "pos", "1", "true", "yes"), True),
    **dict.fromkeys(("negative", "neg", "0", "false", "no"), False),
}


@dataclass(frozen=True)
class Entry:
    """One text of a file.

    text: never empty. prompt: what it replies to, if known. positive: whether it expresses the
    concept, or None if the file does not say. group, pair: the name of its group and the texts of
    its matched pair, or "" without one.
    """

    text: str
    prompt: str | None = None
    positive: bool | None = None
    group: str = ""
    pair: str = ""


def read_labelled(path: str | Path) -> list[Entry]:
    """Read a concept file, whose every text has a label.

    Raises: ConceptError with the file, line and field that cannot be used.
    """
    if Path(path).suffix.lower() == ".txt":
        raise ConceptError(
            f"a concept file must be .jsonl, .json, .csv or .tsv, got {shown(path)}; texts one a "
            "line go into two files, --positives and --negatives"
        )
    entries = [entry for row in read_rows(path, NAMES) for entry in _labelled(row)]
    return _some(path, entries)


def read_unlabelled(path: str | Path, positive: bool | None = None) -> list[Entry]:
    """Read a file of texts of one kind.

    positive: their label, which labels in the file must agree with; None for a corpus, where labels
        are ignored and empty texts skipped like blank lines.
    Raises: ConceptError with the file, line and field that cannot be used.
    """
    rows = [row for row in _rows(path) if positive is not None or not _blank(row)]
    return _some(path, [_unlabelled(row, positive) for row in rows])


def read_beside(path: str | Path, names: Collection[str]) -> list[tuple[Row, Entry]]:
    """Read a file of one text a row, with the rows, since the caller reads more of their fields.

    names: those other fields; each row is an object.
    Raises: ConceptError with the file, line and field that cannot be used.
    """
    rows = read_rows(path, (*NAMES, *names))
    return _some(path, [(row, _beside(row)) for row in rows])


def read_asked(path: str | Path) -> list[str]:
    """Read a file of prompts: of each row the prompt, or the text of a row without one.

    Raises: ConceptError with the file, line and field that cannot be used.
    """
    return _some(path, [_asked(row) for row in _rows(path)])


def _rows(path: str | Path) -> list[Row]:
    if Path(path).suffix.lower() in STRUCTURED:
        return read_rows(path, NAMES)
    return read_plain(path)


def _blank(row: Row) -> bool:
    text = row.value.get("text") if isinstance(row.value, dict) else row.value
    return isinstance(text, str) and not text.strip()


def _some(path: str | Path, items: list[Any]) -> list[Any]:
    if not items:
        raise ConceptError(f"{shown(path)} must hold at least one text, got an empty file")
    return items


def _labelled(row: Row) -> list[Entry]:
    fields = _fields(row, f"an object with {SHAPES}")
    given = _given(row.place, fields)
    if isinstance(given, tuple):
        return _pair(row.place, fields, given)
    if fields.get("label") is None:
        raise ConceptError(f"{row.place} must have a label beside {given}, got {_names(fields)}")
    return [_entry(row.place, fields, given)]


def _unlabelled(row: Row, positive: bool | None) -> Entry:
    if isinstance(row.value, str):
        return Entry(plain_text(row.place, row.value, "line"))
    fields = _fields(row, "a text, or an object with text, or prompt and response, or messages")
    given = _given(row.place, fields)
    if isinstance(given, tuple):
        raise ConceptError(
            f"{row.place} must have texts of one kind, got {given[0]} and {given[1]}; such a file "
            "is a whole concept: --concept FILE"
        )
    entry = _entry(row.place, fields, given)
    if positive is not None and entry.positive not in (None, positive):
        raise ConceptError(
            f"{row.place} must have a {'positive' if positive else 'negative'} text, as the whole "
            f"file, got label {brief(fields['label'])}; a file of both labels is a whole concept: "
            "--concept FILE"
        )
    return entry


def _beside(row: Row) -> Entry:
    fields = _fields(row, "an object with fields")
    given = _given(row.place, fields)
    if isinstance(given, tuple):
        raise ConceptError(f"{row.place} must have one text, got {given[0]} and {given[1]}")
    return _entry(row.place, fields, given)


def _asked(row: Row) -> str:
    if isinstance(row.value, str):
        return plain_text(row.place, row.value, "line")
    fields = _fields(row, "a text, or an object with prompt, text or messages")
    prompt = _prompt(row.place, fields)
    if prompt is not None:
        return prompt
    chat = next((name for name in CHATS if fields.get(name) is not None), None)
    if chat is not None:
        return read_chat(row.place, chat, fields[chat], ending="prompt")[0]
    if fields.get("text") is None:
        raise ConceptError(f"{row.place} must have prompt, text or messages, got {_names(fields)}")
    return plain_text(row.place, fields["text"], "text")


def _fields(row: Row, wanted: str) -> Mapping[str, Any]:
    if not isinstance(row.value, dict):
        raise ConceptError(f"{row.place} must be {wanted}, got {brief(row.value)}")
    return row.value


def _given(place: str, fields: Mapping[str, Any]) -> str | tuple[str, str]:
    """The one field, or pair of fields, that holds a row's text."""
    pairs = [pair for pair in PAIRS if any(fields.get(name) is not None for name in pair)]
    alone = [name for name in ALONE if fields.get(name) is not None]
    ways = [" and ".join(pair) for pair in pairs] + alone
    if pairs and fields.get("label") is not None:
        ways.append("label")
    if len(ways) > 1:
        raise ConceptError(
            f"{place} must give its text in one way ({SHAPES}), got {', '.join(ways)}"
        )
    if not ways:
        null = next((name for name in (*ALONE, *PAIRS[0], *PAIRS[1]) if name in fields), None)
        if null is not None:
            raise ConceptError(f"{place} must have a text in {null!r}, got null or an empty cell")
        raise ConceptError(f"{place} must have {SHAPES}, got {_names(fields)}")
    return pairs[0] if pairs else alone[0]


def _pair(place: str, fields: Mapping[str, Any], names: tuple[str, str]) -> list[Entry]:
    replies = [_reply(place, name, fields.get(name)) for name in names]
    prompt, group = _prompt(place, fields), _group(place, fields)
    pair = "\n".join(text for text, _ in replies)
    return [
        Entry(text, asked if prompt is None else prompt, positive, group, pair)
        for (text, asked), positive in zip(replies, (True, False), strict=True)
    ]


def _entry(place: str, fields: Mapping[str, Any], name: str) -> Entry:
    if name in CHATS:
        text, asked = read_chat(place, name, fields[name])
    elif name in REPLIES:
        text, asked = _reply(place, name, fields[name])
    else:
        text, asked = plain_text(place, fields[name], name), None
    prompt = _prompt(place, fields)
    label = None if fields.get("label") is None else read_label(place, fields["label"])
    return Entry(text, asked if prompt is None else prompt, label, _group(place, fields))


def _reply(place: str, name: str, value: Any) -> tuple[str, str | None]:
    """A reply and, if it is a chat, the prompt before it."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return read_chat(place, name, value)
    return plain_text(place, value, name), None


def _prompt(place: str, fields: Mapping[str, Any]) -> str | None:
    named = [name for name in PROMPTS if fields.get(name) not in (None, "")]
    if len(named) > 1:
        raise ConceptError(f"{place} must have one prompt, got {' and '.join(named)}")
    if not named:
        return None
    (name,) = named
    if isinstance(fields[name], list) and fields[name] and isinstance(fields[name][0], dict):
        return read_chat(place, name, fields[name], ending="prompt")[0]
    return plain_text(place, fields[name], name)


def _group(place: str, fields: Mapping[str, Any]) -> str:
    value = fields.get("group")
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ConceptError(f"{place} must have a name or number in 'group', got {brief(value)}")
    return plain_text(place, str(value), "group")


def read_label(place: str, value: Any) -> bool:
    """Whether a label says that a text expresses the concept.

    Raises: ConceptError if it says neither.
    """
    label = (
        None if isinstance(value, (float, list, dict)) else LABELS.get(str(value).strip().lower())
    )
    if label is None:
        raise ConceptError(
            f"{place} must have a label that is positive or negative (or 1 or 0, true or false, "
            f"yes or no), got {brief(value)}"
        )
    return label


def _names(fields: Mapping[str, Any]) -> str:
    return f"fields {', '.join(map(brief, list(fields)[:6]))}" if fields else "no fields"
