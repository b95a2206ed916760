"""Write files so that a reader sees all of a result or none of it, and nobody's work is lost.

What is written is made in a hidden folder first. Then it is moved into place, file by file: a name
that is free is taken only while it still is, a file that stands there only where the caller knows
it for one of ours. Whatever goes wrong on the way, an interrupt too, undoes all moves.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from calibrate.common.errors import ArtefactError

STAGING = ".partial-"  # how the hidden folders' names begin

Ours = Callable[[Path], bool]


def nobodys(_path: Path) -> bool:
    """Know no file for one of ours: nothing is replaced."""
    return False


def write_together(
    directory: str | Path, files: Mapping[str, bytes], last: str, ours: Ours = nobodys
) -> None:
    """Write several files, by relative path, into a directory that may hold others.

    All contents go to a hidden folder beside their destination first, so that a full disk
    leaves nothing behind; then each is moved into place, `last` after all the others.

    ours: tells a file that may be replaced; one that has these very contents may be anyway.
    Raises: ArtefactError naming the file that stands in the way, with nothing touched; or the
        directory and the reason if anything cannot be written, with everything as it was.
    """
    target = Path(directory)

    def replaceable(path: Path) -> bool:
        content = files[path.relative_to(target).as_posix()]
        return ours(path) or path.read_bytes() == content

    with writing_to(target):
        for name in files:
            require_ours(target / name, replaceable)
        with made(target), staging(target) as work:
            for name, content in files.items():
                path = work / "new" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            with moving(work) as moves:
                for name in sorted(files, key=lambda name: name == last):
                    moves.put(work / "new" / name, target / name, replaceable)


def require_ours(path: Path, ours: Ours) -> None:
    """Raise ArtefactError if there is something at a path that is no file of ours."""
    if os.path.lexists(path) and not (is_plain_file(path) and ours(path)):
        raise ArtefactError(
            f"{path} is in the way, and was not written by steering-calibrate or has been changed "
            "since; move it away, or choose another directory"
        )


def is_plain_file(path: Path) -> bool:
    """Whether a path is a file itself: no link to one, no device, no pipe."""
    return path.is_file() and not path.is_symlink()


@contextmanager
def writing_to(target: Path) -> Iterator[None]:
    """Turn what an unwritable place raises into an ArtefactError that names it."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise ArtefactError(
            f"cannot write to {target} ({reason}); free some space or choose another directory"
        ) from error


@contextmanager
def made(directory: Path) -> Iterator[None]:
    """Make a directory, and those above it, if need be; no longer so if the `with` fails."""
    missing = [one for one in (directory, *directory.parents) if not one.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with suppress(OSError):  # somebody else has put something there
            for one in missing:
                one.rmdir()
        raise


@contextmanager
def staging(directory: Path) -> Iterator[Path]:
    """Give a hidden folder in a directory, with a folder `new` in it; gone after the `with`."""
    work: Path | None = None
    try:
        work = Path(tempfile.mkdtemp(dir=directory, prefix=STAGING))
        (work / "new").mkdir()
        yield work
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)


@contextmanager
def moving(work: Path) -> Iterator[Moves]:
    """Give what moves files into place, and undo its moves if the `with` ends in an error.

    work: a folder on the same file system, where what is replaced is kept meanwhile.
    """
    moves = Moves(Path(tempfile.mkdtemp(dir=work, prefix="old-")))
    try:
        yield moves
    except BaseException:
        moves.undo()
        raise


class Moves:
    """Moves files into place, and can take it back."""

    def __init__(self, old: Path) -> None:
        self._old = old
        self._steps: list[Callable[[], None]] = []

    def put(self, source: Path, target: Path, ours: Ours) -> None:
        """Move a file to where nothing stands, or a file of ours.

        Raises: ArtefactError if something else stands there by now.
        """
        self.make(target.parent)
        if not os.path.lexists(target):
            identity = _identity(source)
            self._steps.append(lambda: _unlink_if(target, identity))
            with suppress(OSError):  # taken a moment ago, or a file system without links
                os.link(source, target)
        if os.path.lexists(target) and _identity(target) != _identity(source):
            require_ours(target, ours)
            self._keep(target)
        os.replace(source, target)

    def remove(self, target: Path) -> None:
        """Remove a file that was checked to be ours."""
        self._keep(target)
        target.unlink()

    def make(self, directory: Path) -> None:
        """Make a directory, and those above it, if need be."""
        for one in reversed([one for one in (directory, *directory.parents) if not one.exists()]):
            one.mkdir(exist_ok=True)
            self._steps.append(one.rmdir)

    def unmake(self, directory: Path) -> None:
        """Remove a directory if it is empty."""
        with suppress(OSError):
            directory.rmdir()
            self._steps.append(directory.mkdir)

    def undo(self) -> None:
        """Put everything back, the last move first."""
        while self._steps:
            with suppress(OSError):
                self._steps.pop()()

    def _keep(self, target: Path) -> None:
        """Keep what stands at a path, so that it can be put back, the same file as it was."""
        kept = self._old / str(len(self._steps))
        try:
            os.link(target, kept)
        except OSError:  # a file system without links
            shutil.copy2(target, kept)
        self._steps.append(lambda: os.replace(kept, target))


def _identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


def _unlink_if(target: Path, identity: tuple[int, int]) -> None:
    if _identity(target) == identity:
        target.unlink()
