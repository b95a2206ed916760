"""Read files as rows of named fields, each with its file and line for messages.

    .jsonl, .ndjson    one JSON value a line
    .json              a list of JSON values, or one a line
    .csv, .tsv         a header that names the columns, then one row each
    anything else      one text a line

Only a line feed, perhaps after a carriage return, ends a line: other Unicode line separators are
part of the text. Files are UTF-8, or UTF-16 or UTF-32 with a byte order mark.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibrate.common.errors import ConceptError

JSON_LINES, JSON, TABLES = (".jsonl", ".ndjson"), (".json",), (".csv", ".tsv")
STRUCTURED = (*JSON_LINES, *JSON, *TABLES)
UNREAD = (".yaml", ".yml", ".toml", ".xml", ".html")  # a line of these is not a text
DELIMITERS = (",", ";", "\t")
SHOWN = 60  # characters of a value that a message repeats

# The marks of UTF-32 begin with those of UTF-16.
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@dataclass(frozen=True)
class Row:
    """One row of a file.

    place: file and line (or row), for messages. value: named fields, or whatever else the row
    holds.
    """

    place: str
    value: Any


def read_rows(path: str | Path, names: Collection[str]) -> list[Row]:
    """Read a file with fields, without blank lines.

    names: known fields; a table's header must have one of them.
    Raises: ConceptError if it cannot be read, with the line at fault if there is one.
    """
    file, text = Path(path), decoded(path)
    suffix = file.suffix.lower()
    if suffix in TABLES:
        return list(_table(shown(path), text, names))
    if suffix in JSON:
        return list(_json_rows(shown(path), text))
    return list(_json_lines(shown(path), text))


def read_plain(path: str | Path) -> list[Row]:
    """Read a file of one text a line, without blank lines.

    Raises: ConceptError if it cannot be read.
    """
    if Path(path).suffix.lower() in UNREAD:
        raise ConceptError(
            f"{shown(path)} must hold one text a line, or be .jsonl, .json, .csv or .tsv; convert "
            f"it from {Path(path).suffix}"
        )
    return [Row(place, line) for place, line in _lines(shown(path), decoded(path))]


def decoded(path: str | Path) -> str:
    """Return a file's characters, without a byte order mark.

    Raises: ConceptError if it cannot be read, or is no text.
    """
    try:
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConceptError(f"cannot read {shown(path)}: {reason}") from error
    marked = next((name for mark, name in MARKS.items() if content.startswith(mark)), None)
    try:
        text = content.decode(marked or "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConceptError(
            f"{shown(path)} must be {(marked or 'utf-8').upper()}, got byte "
            f"0x{error.object[error.start]:02x} at offset {error.start}; convert it "
            "(iconv -t UTF-8)"
        ) from error
    if "\0" in text:
        raise ConceptError(
            f"{shown(path)} must be text, got a NUL as character {text.index(chr(0))}; if it is "
            "UTF-16 without a byte order mark, convert it (iconv -f UTF-16LE -t UTF-8)"
        )
    return text


def shown(path: str | Path) -> str:
    """A path for a message, on one line."""
    return str(path) if str(path).isprintable() else repr(str(path))


def brief(value: Any) -> str:
    """A short form of a value for a message, on one line."""
    if value is None:
        return "null"
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "an object"
    whole = repr(value) if isinstance(value, str) else json.dumps(value, default=str)
    return whole if len(whole) <= SHOWN else f"{whole[:SHOWN]}…"


def _lines(name: str, text: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{name} line {number}", line.removesuffix("\r")


def _json_lines(name: str, text: str) -> Iterator[Row]:
    for place, line in _lines(name, text):
        yield Row(place, _parsed(place, line))


def _json_rows(name: str, text: str) -> Iterator[Row]:
    """A list of rows, or JSON lines, which often have the suffix .json too."""
    if not text.lstrip().startswith("["):
        yield from _json_lines(name, text)
        return
    for number, value in enumerate(_parsed(name, text), start=1):
        yield Row(f"{name} row {number}", value)


def _parsed(place: str, text: str) -> Any:
    """Parse JSON, with control characters allowed in strings, since texts have them."""
    try:
        return json.loads(
            text, strict=False, object_pairs_hook=_fields_once, parse_constant=_no_number
        )
    except RecursionError:
        raise ConceptError(f"{place} must be JSON, got too many levels of brackets") from None
    except ValueError as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise ConceptError(f"{place} must be JSON, got {brief(text)} ({reason})") from error


def _fields_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if twice:
        raise ValueError(f"{twice[0][:SHOWN]!r} stands in one object twice")
    return dict(pairs)


def _no_number(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _table(name: str, text: str, names: Collection[str]) -> Iterator[Row]:
    rows = _cells(name, text, _delimiter(name, text, names))
    _, first = next(rows)
    header = _columns(first)
    repeated = next((column for column in names if header.count(column) > 1), None)
    if repeated is not None:
        raise ConceptError(f"{name} must have one column {repeated!r}, got several; rename one")
    for place, cells in rows:
        if len(cells) != len(header):
            raise ConceptError(
                f"{place} must have {len(header)} columns, as the header has, got {len(cells)}; "
                "put texts that hold a delimiter in quotes"
            )
        yield Row(place, {column: cell or None for column, cell in zip(header, cells, strict=True)})


def _delimiter(name: str, text: str, names: Collection[str]) -> str:
    """The delimiter with which the header has a known field."""
    seen: list[str] = []
    for delimiter in DELIMITERS:
        _, first = next(_cells(name, text, delimiter), ("", []))
        if set(names) & set(_columns(first)):
            return delimiter
        seen = max(seen, first, key=len)
    if not seen:
        raise ConceptError(f"{name} must hold at least one text, got an empty file")
    raise ConceptError(
        f"{name} must begin with a header that names its columns (text and label, say), got "
        f"{', '.join(map(brief, seen[:5]))}"
    )


def _columns(cells: Sequence[str]) -> list[str]:
    return [cell.strip().lower() for cell in cells]


def _cells(name: str, text: str, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    """The rows of a table that are not blank, with the lines they begin at."""
    reader = csv.reader(
        (f"{line}\n" for line in text.split("\n")), delimiter=delimiter, strict=True
    )
    while True:
        place = f"{name} line {reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            alone = "new-line" in str(error)
            reason = "a carriage return stands alone outside quotes" if alone else error
            raise ConceptError(
                f"{place} must be rows of columns, with quotes around texts that hold quotes or "
                f"line ends, got something else ({reason})"
            ) from error
        if any(cell.strip() for cell in cells):
            yield place, cells
