"""What earlier runs left in the user cache."""

from __future__ import annotations

import shutil

from calibrate.models.converted import cache_directory


def forget() -> None:
    """Remove what earlier runs left in the cache, and a teacher's verdicts."""
    shutil.rmtree(cache_directory() / "kept", ignore_errors=True)
    for verdicts in cache_directory().glob("verdicts.sqlite3*"):
        verdicts.unlink()
