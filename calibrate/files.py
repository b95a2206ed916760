"""Write files so that a reader sees all of a result or none of it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from calibrate.errors import ArtefactError


def write_together(directory: str | Path, files: Mapping[str, bytes], last: str) -> None:
    """Write several files, by relative path, into a directory that may hold others.

    All contents go to a hidden folder beside their destination first, so that a full disk
    leaves nothing behind; then each is renamed into place, `last` after all the others.

    Raises: ArtefactError naming the directory and the reason if anything cannot be written.
    """
    target = Path(directory)
    staging: Path | None = None
    try:
        target.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=target, prefix=".partial-"))
        for name, content in files.items():
            path = staging / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        for name in sorted(files, key=lambda name: name == last):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(staging / name, target / name)
    except OSError as error:
        raise ArtefactError(
            f"cannot write to {target} ({error.strerror or error}); free some space or choose "
            "another directory"
        ) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
