"""Write files so that a reader sees all of a result or none of it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from calibrate.errors import ArtefactError


@contextmanager
def replacing(target: str | Path) -> Iterator[Path]:
    """Give a path beside `target` to write a file or a directory to, then put it in its place.

    Raises: ArtefactError if it cannot be written; then nothing is left behind.
    """
    final = Path(target)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=final.parent, prefix=".partial-"))
    except OSError as error:
        raise _unwritable(final, error) from error
    try:
        yield folder / final.name
        if final.is_dir():
            shutil.rmtree(final)
        os.replace(folder / final.name, final)
    except OSError as error:
        raise _unwritable(final, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
        raise _unwritable(target, error) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def _unwritable(target: Path, error: OSError) -> ArtefactError:
    return ArtefactError(
        f"cannot write to {target} ({error.strerror or error}); free some space or choose "
        "another directory"
    )
