"""This project at other commits, beside the one at hand."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def commit_of(checkout: Path) -> str:
    """The short hash of the commit that is checked out."""
    asked = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()


def command_of(options: Sequence[str]) -> list[str]:
    """The command line of the checkout that it is run in: `-c` imports from that directory."""
    return [sys.executable, "-c", "from calibrate.cli import main; main()", *options]
