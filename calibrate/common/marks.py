"""How a file shows that this tool wrote it, so that nothing else is ever replaced."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from pathlib import Path
from typing import Any

TOOL = "steering-calibrate"
HEAD = 4096  # bytes of a page or picture within which it says who made it


def _chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG, as it stands in the file."""
    check = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


MADE_BY = {  # what a page or a picture of ours has in its head, by the end of its name
    ".html": f'<meta name="generator" content="{TOOL}">'.encode(),
    ".md": f"<!-- {TOOL} -->".encode(),
    ".png": _chunk(b"tEXt", f"Software\0{TOOL}".encode()),
    ".svg": f"<dc:title>{TOOL}</dc:title>".encode(),
}


def facts_in(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is none."""
    try:
        facts = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def signature(content: bytes) -> str:
    """The line by which a file shows that we wrote the rest of it, unchanged since."""
    return f"{TOOL} {hashlib.sha256(content).hexdigest()}"


def names_us(path: Path) -> bool:
    """Whether a page or a picture names this tool as its maker; to mention it does not do."""
    mark = MADE_BY.get(path.suffix)
    try:
        with path.open("rb") as opened:
            return mark is not None and mark in opened.read(HEAD)
    except OSError:
        return False


def sha256_of(path: Path) -> str:
    """The digest of a file's contents."""
    digest = hashlib.sha256()
    with path.open("rb") as opened:
        while chunk := opened.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
