"""Write `docs/refusals.md` from the tables of the tests: what is refused, and what is said."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "refusals.md"
INTRODUCTION = """# What is refused, and why

Written by `scripts/write_refusals.py` from the tests' own tables: every row is a test that does
what the first column says and reads the message in the second, in which … stands for a name or a
number. On the command line each is one line and exit status 2, unless the row names another.
"""
STATUS = {"Infeasible": 3, "VerificationFailed": 4}


def page() -> str:
    return "\n".join([INTRODUCTION, *_sections()])


def _sections() -> Iterator[str]:
    paths = sorted((ROOT / "tests").rglob("test_*.py"))
    sys.path[:0] = [str(ROOT / "tests"), *sorted({str(path.parent) for path in paths})]
    for path in paths:
        if "REFUSED = " not in path.read_text(encoding="utf-8"):
            continue
        module = importlib.import_module(path.stem)
        title = (module.__doc__ or "").splitlines()[0].rstrip(".")
        yield f"## {title}\n\n| situation | message |\n|---|---|"
        for row in module.REFUSED:
            status = STATUS.get(row.error.__name__)
            left = row.situation + (f" (exit status {status})" if status else "")
            yield f"| {_cell(left)} | {_cell(row.says)} |"
        yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
