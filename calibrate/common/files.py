"""Write files so that a reader sees all of a result or none of it, and nobody's work is lost.

Files are written to a hidden folder first, then moved into place one by one. A file that is there
already, or appears meanwhile, is replaced only if the caller recognises it as ours. Any failure on
the way, an interrupt too, undoes all moves.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from calibrate.common.errors import ArtefactError

STAGING = ".partial-"  # how the hidden folders' names begin

Ours = Callable[[Path], bool]


def never_ours(_path: Path) -> bool:
    """Recognise no file as ours: nothing is replaced."""
    return False


def write_together(
    directory: str | Path, files: Mapping[str, bytes], last: str, ours: Ours = never_ours
) -> None:
    """Write several files, by relative path, into a directory that may hold others.

    All contents go to a hidden folder beside their destination first, so that a full disk
    leaves nothing behind; then each is moved into place, `last` after all the others.

    ours: whether a file may be replaced; one with the same contents always may.
    Raises: ArtefactError naming the file in the way, with nothing touched; or the
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


def remove_ours(directory: str | Path, names: Iterable[str], ours: Ours) -> None:
    """Remove files of these names that we wrote, which an earlier result had and this has not."""
    for path in (Path(directory) / name for name in names):
        if is_plain_file(path) and ours(path):
            path.unlink()


def require_ours(path: Path, ours: Ours) -> None:
    """Raise ArtefactError if anything but a file of ours is at a path."""
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
    """Turn the errors of an unwritable place into an ArtefactError that names it."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise ArtefactError(
            f"cannot write to {target} ({reason}); free some space or choose another directory"
        ) from error


@contextmanager
def made(directory: Path) -> Iterator[None]:
    """Make a directory and its missing parents; remove them again if the `with` fails."""
    missing = _missing(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with suppress(OSError):  # somebody else has put something there
            for folder in missing:
                folder.rmdir()
        raise


@contextmanager
def making(directory: Path) -> Iterator[Path]:
    """Yield a hidden folder that becomes a directory, not there yet, if the `with` ends well.

    Raises: ArtefactError if anything cannot be written, or something else is there by then. A
        failure leaves nothing behind.
    """
    with writing_to(directory), made(directory.parent), staging(directory.parent) as work:
        yield work / "new"
        (work / "new").rename(directory)


@contextmanager
def staging(directory: Path) -> Iterator[Path]:
    """Yield a hidden folder in a directory, with a folder `new` in it; removed after the `with`."""
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
    """Yield a `Moves`, and undo its moves if the `with` ends in an error.

    work: a folder on the same file system, where replaced files are kept meanwhile.
    """
    moves = Moves(Path(tempfile.mkdtemp(dir=work, prefix="old-")))
    try:
        yield moves
    except BaseException:
        moves.undo()
        raise


class Moves:
    """Moves files into place, and can undo it."""

    def __init__(self, old: Path) -> None:
        self._old = old
        self._steps: list[Callable[[], None]] = []

    def put(self, source: Path, target: Path, ours: Ours) -> None:
        """Move a file to a free path, or onto a file of ours.

        Raises: ArtefactError if something else is there by now.
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
        """Make a directory and its missing parents."""
        for folder in reversed(_missing(directory)):
            folder.mkdir(exist_ok=True)
            self._steps.append(folder.rmdir)

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
        """Keep the file at a path, so that the very same file can be put back."""
        kept = self._old / str(len(self._steps))
        try:
            os.link(target, kept)
        except OSError:  # a file system without links
            shutil.copy2(target, kept)
        self._steps.append(lambda: os.replace(kept, target))


def _missing(directory: Path) -> list[Path]:
    """The directory and its parents that do not exist, innermost first."""
    return [folder for folder in (directory, *directory.parents) if not folder.exists()]


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino


def _unlink_if(target: Path, identity: tuple[int, int]) -> None:
    if _identity(target) == identity:
        target.unlink()
