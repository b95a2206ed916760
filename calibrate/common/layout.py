"""The names of the files in an output directory."""

from __future__ import annotations

import json
import re
from pathlib import Path

JOURNAL_FILE = "study.journal"
JOURNAL_LOCK = f"{JOURNAL_FILE}.lock"  # a link that Optuna makes while it writes
LAWS_FILE = "laws.json"
REPORT_FILE = "report.html"
WORKERS_FOLDER = ".workers"  # locks of running workers; gone when the result is written
WRITING_LOCK = "writing.lock"
WORKER_LOCK = re.compile(r"[0-9a-f]{32}\.lock")

FINGERPRINT = "fingerprint"  # study attribute: hash of everything the trials depend on
JOURNAL_START, NEW_STUDY = b'{"op_code":', 0  # how Optuna begins an entry; the kind of the first
LAWS_KEYS = {"model", "concept", "budget", "n_sequences", "settings", "blocks"}

# What `calibrate laws` draws beside `laws.json`.
LAWS_PICTURES = tuple(
    f"{name}.{form}"
    for name in ("tokens", "concept", "delta_ce", "presence", "accuracy", "variants")
    for form in ("png", "svg")
)


def is_journal(path: Path) -> bool:
    """Whether a file is the journal of a study of ours, or the beginning of one.

    A power loss may leave its last line torn, and zeros where more should have been written.
    """
    *lines, torn = path.read_bytes().rstrip(b"\0").split(b"\n")
    if not (torn.startswith(JOURNAL_START) or JOURNAL_START.startswith(torn)):
        return False
    try:
        entries = [json.loads(line) for line in lines]
        attributes = [entry["user_attr"] for entry in entries if "user_attr" in entry]
        begun = all(entry["op_code"] == NEW_STUDY for entry in entries)
    except (ValueError, KeyError, TypeError):
        return False
    return begun or any(FINGERPRINT in attribute for attribute in attributes)


def stem(name: str) -> str:
    """The part of a model's or concept's name that serves as a directory name."""
    return Path(name).name.removesuffix(".jsonl").removesuffix(".gguf") or "model"
