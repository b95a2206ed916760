"""Where an export may be written, and how it gets there.

A file replaces nothing, or an earlier export of its format, which a file shows by its contents. A
directory is new, empty, or holds an earlier export and nothing else: a mark in it names its files
with their digests, so that one that was changed or added is never lost. An export is made in a
hidden folder, proved there, and only then moved into place.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

from filelock import FileLock

from calibrate.common.errors import ArtefactError
from calibrate.common.files import Moves, is_plain_file, made, moving, staging, writing_to
from calibrate.common.marks import TOOL, facts_in, sha256_of
from calibrate.deploy.export.exporter import Exporter
from calibrate.models.converted import cache_directory

MARK_FILE = ".steering-calibrate.json"

Digests = Mapping[str, frozenset[str]]  # by path inside the directory


@dataclass(frozen=True)
class Target:
    """A place that an export may be written to: links in it are resolved.

    given: as the user named it.
    """

    path: Path
    given: Path
    exporter: Exporter

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """Give a path to write the export to, and move it into place if the `with` ends well.

        Raises: ArtefactError if it cannot be written or moved; then all is as it was.
        """
        with writing_to(self.given), made(self.path.parent), staging(self._beside()) as work:
            new = work / "new" / self.path.name
            if self.exporter.directory:
                new.mkdir()
            yield new
            with _locked(self.path), moving(work) as moves:
                require(self, besides=work.name)
                if self.exporter.directory:
                    _place(new, self.path, self.exporter.name, moves)
                else:
                    moves.put(new, self.path, self.exporter.wrote)

    def _beside(self) -> Path:
        """A directory on the target's file system: the one above it if possible."""
        above = self.path.parent
        if not self.path.is_dir():
            return above
        same = above.stat().st_dev == self.path.stat().st_dev and os.access(above, os.W_OK)
        return above if same else self.path


def target_for(exporter: Exporter, to: str | Path, source: str | Path | None = None) -> Target:
    """Return where an export goes, having looked that nothing of anybody else's is there.

    source: the directory the config came from, which is not written over.
    Raises: ArtefactError with the reason and the way out.
    """
    given = Path(to)
    with writing_to(given):
        try:
            path = given.resolve()
        except RuntimeError as error:  # links in a circle, before Python 3.13
            raise ArtefactError(f"--to must be a path, got {given}: {error}") from error
        target = Target(path, given, exporter)
        with _locked(path):  # half of another export is not looked at
            require(target)
        if exporter.suffix is not None and path.suffix != exporter.suffix:
            raise ArtefactError(
                f"the {exporter.name} format is told by its name: --to must end in "
                f"{exporter.suffix}, got {str(given)!r}"
            )
        if source is not None and path == Path(source).resolve():
            raise ArtefactError(
                f"--to must not be the directory that is exported, got {given}; name another"
            )
    return target


def require(target: Target, besides: str | None = None) -> None:
    """Raise ArtefactError unless the target is free, or holds an earlier export of ours.

    besides: a name in the directory that does not count.
    """
    path, given, exporter = target.path, target.given, target.exporter
    if path in _protected():
        raise ArtefactError(
            f"--to must not be the working or home directory, or one above them, got {given}; "
            "name something new in it"
        )
    if not os.path.lexists(path):
        return
    if exporter.directory:
        _require_directory(target, besides)
    elif path.is_dir():
        raise ArtefactError(
            f"--to must be a file for the {exporter.name} format, got the directory {given}; "
            "name a file in it"
        )
    elif not (is_plain_file(path) and exporter.wrote(path)):
        raise ArtefactError(
            f"--to must be new, or an earlier export as {exporter.name}, but {given} is another "
            "file; choose another --to"
        )


def _require_directory(target: Target, besides: str | None) -> None:
    path, given = target.path, target.given
    if not path.is_dir():
        raise ArtefactError(
            f"--to must be a directory for the {target.exporter.name} format, got the file "
            f"{given}; choose another --to"
        )
    listed = _listed(path)
    for name in sorted(_inside(path)):
        if name.split("/")[0] == besides or name == MARK_FILE:
            continue
        if name not in listed:
            raise ArtefactError(
                f"--to must be new, empty or an earlier export, but {given} holds {name!r}, which "
                "is not of one; choose another --to, or move that away"
            )
        if not _as_listed(path / name, listed[name]):
            raise ArtefactError(
                f"--to must be new, empty or an earlier export, but {name!r} in {given} has been "
                "changed since; choose another --to, or move that away"
            )


def _protected() -> set[Path]:
    """Directories that are nobody's export: where the user is or lives, and all above."""
    protected: set[Path] = set()
    for place in (Path.cwd, Path.home):
        with suppress(OSError, RuntimeError):  # a directory that is gone; a user without a home
            here = place().resolve()
            protected |= {here, *here.parents}
    return protected


def _inside(directory: Path) -> Iterator[str]:
    """Paths inside a directory: files, links, and directories with nothing in them."""
    for folder, folders, files in os.walk(directory, onerror=_raise):
        here = Path(folder)
        linked = [name for name in folders if (here / name).is_symlink()]
        if here != directory and not files and not folders:
            yield here.relative_to(directory).as_posix()
        for name in (*files, *linked):
            yield (here / name).relative_to(directory).as_posix()


def _raise(error: OSError) -> None:
    raise error


def _listed(directory: Path) -> Digests:
    """What the mark in a directory lists; nothing if it is not ours."""
    mark = directory / MARK_FILE
    facts = facts_in(mark) if is_plain_file(mark) else {}
    files = facts.get("files")
    if facts.get("written_by") != TOOL or not isinstance(files, dict):
        return {}
    return {
        name: frozenset(digests) for name, digests in files.items() if isinstance(digests, list)
    }


def _as_listed(path: Path, digests: frozenset[str]) -> bool:
    return is_plain_file(path) and sha256_of(path) in digests


def _place(new: Path, final: Path, format_name: str, moves: Moves) -> None:
    """Move a directory's files to where nothing is, or an earlier export, mark and all."""
    files = {name: frozenset({sha256_of(new / name)}) for name in _inside(new)}
    mark = new / MARK_FILE
    mark.write_bytes(_mark(format_name, files))
    if not final.exists():
        with suppress(OSError):  # somebody else's export is there by now
            new.rename(final)
            return
    before = _listed(final)
    both = {
        name: files.get(name, frozenset()) | before.get(name, frozenset())
        for name in {*files, *before}
    }
    during = new.parent / "mark"
    during.write_bytes(_mark(format_name, both))  # so that a kill half-way leaves a known export
    moves.put(during, final / MARK_FILE, lambda path: bool(_listed(path.parent)))
    for name in files:
        moves.put(new / name, final / name, partial(_as_listed, digests=both[name]))
    for name in [name for name in _inside(final) if name in before and name not in files]:
        if _as_listed(final / name, before[name]):
            moves.remove(final / name)
            for folder in (final / name).parents[: name.count("/")]:
                moves.unmake(folder)
    moves.put(mark, final / MARK_FILE, lambda path: bool(_listed(path.parent)))


def _mark(format_name: str, files: Digests) -> bytes:
    facts = {
        "written_by": TOOL,
        "format": format_name,
        "files": {name: sorted(files[name]) for name in sorted(files)},
    }
    return f"{json.dumps(facts, indent=2)}\n".encode()


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Keep other exports to the same place waiting, where there is a place for a lock."""
    locks = cache_directory() / "locks"
    with ExitStack() as held:
        with suppress(OSError):
            locks.mkdir(parents=True, exist_ok=True)
            name = sha256(str(target).encode()).hexdigest()[:32]
            held.enter_context(FileLock(locks / f"{name}.lock"))
        yield
