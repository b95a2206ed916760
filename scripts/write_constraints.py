"""Write constraints.txt: the exact versions installed here, which the tests have passed with.

A version that needs a newer Python than the project does is marked with it, so that the file
serves every Python the project runs on.
"""

from __future__ import annotations

import re
from importlib.metadata import distribution, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
OLDEST_MINOR = 10  # of Python 3
HEADER = "# Versions the tests passed with; written by scripts/write_constraints.py.\n"


def closure(name: str, extras: frozenset[str], seen: dict[str, str]) -> None:
    """Collect `name==version` lines of everything a distribution needs here."""
    for line in requires(name) or ():
        requirement = Requirement(line)
        wanted = requirement.marker is None or any(
            requirement.marker.evaluate({"extra": extra}) for extra in (*extras, "")
        )
        name = canonicalize_name(requirement.name)
        if wanted and name not in seen:
            found = distribution(name)
            seen[name] = _line(name, found.version, found.metadata["Requires-Python"] or "")
            closure(name, frozenset(requirement.extras), seen)


def _line(name: str, version: str, requires_python: str) -> str:
    least = re.search(r">=\s*3\.(\d+)", requires_python)
    minor = int(least.group(1)) if least else 0
    marker = f'; python_version >= "3.{minor}"' if minor > OLDEST_MINOR else ""
    return f"{name}=={version.split('+')[0]}{marker}"


if __name__ == "__main__":
    lines: dict[str, str] = {}
    closure("steering-calibrate", frozenset({"test"}), lines)
    text = HEADER + "\n".join(sorted(lines.values(), key=str.lower)) + "\n"
    (ROOT / "constraints.txt").write_text(text, encoding="utf-8")
