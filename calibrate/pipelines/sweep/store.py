"""Where a sweep's files are kept: a directory, or an address that fsspec knows, as s3://….

At an address every process works in a temporary directory of its own. A cell's files are put at the
address when it ends, the config last, so that it is there as a whole or not at all. An object store
knows no locks: the ledger names the run that wrote it last, and a run that finds another's name
there stops.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from calibrate.artefact.config import CONFIG_FILE, VECTOR_FILE
from calibrate.artefact.directory import KEPT_FILES
from calibrate.common.errors import ArtefactError, InputError
from calibrate.models.unreadable import first_line

LOCK = ".sweep.lock"  # held by the sweep that runs in a directory
LEFT_BEHIND = ("study.journal", "*.lock")  # of use to nobody once a cell has ended


class Store:
    """The place of a sweep's files, and the directory in which this process works on them.

    place: as it was given. remote: whether it is an address. directory: the place itself, or a
    temporary one. run: a name of this process's own.

    >>> from calibrate.pipelines.sweep.store import Store
    >>> with Store("sweep") as store:
    ...     store.remote, store.directory.name
    (False, 'sweep')
    """

    def __init__(self, place: str | Path) -> None:
        """Open the place.

        Raises: InputError for an address that cannot be used.
        """
        self._closing = ExitStack()
        self.run = uuid.uuid4().hex
        self._files, self._root = _opened(str(place))
        self.remote = not isinstance(self._files, LocalFileSystem)
        self.place = str(place)
        self.directory = Path(self._root)
        if self.remote:
            temporary = tempfile.TemporaryDirectory(prefix="calibrate-sweep-")
            self.directory = Path(self._closing.enter_context(temporary))

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_error: object) -> None:
        self._closing.close()

    def place_of(self, name: str) -> str:
        """The place of a cell, for the process that calibrates it."""
        return f"{self.place}/{name}" if self.remote else str(self.directory.resolve() / name)

    def link(self, name: str) -> str:
        """How people find a file."""
        return f"{self.place}/{name}" if self.remote else str(self.directory / name)

    def has(self, name: str) -> bool:
        """Whether a file is at the place."""
        if not self.remote:
            return (self.directory / name).is_file()
        with self._reaching(name):
            self._files.invalidate_cache()
            return bool(self._files.isfile(self._at(name)))

    def is_free(self) -> bool:
        """Whether nothing is at the place, but for the lock of a sweep that wrote nothing."""
        if not self.remote:
            there = self.directory
            return not there.exists() or (
                there.is_dir() and all(path.name == LOCK for path in there.iterdir())
            )
        with self._reaching(""):
            self._files.invalidate_cache()
            with suppress(FileNotFoundError):
                return not self._files.ls(self._root, detail=False)
            return True

    def fetch(self, *names: str) -> None:
        """Bring files from the address, those that are there."""
        for name in names if self.remote else ():
            with self._reaching(name), suppress(FileNotFoundError):
                content = self._files.cat_file(self._at(name))
                own = self.directory / name
                own.parent.mkdir(parents=True, exist_ok=True)
                own.write_bytes(content)

    def fetch_config(self, name: str) -> None:
        """Bring a cell's config and vector."""
        self.fetch(f"{name}/{CONFIG_FILE}", f"{name}/{VECTOR_FILE}")

    def put(self, names: Iterable[str]) -> None:
        """Send files to the address, in this order; each is there as a whole or not at all."""
        for name in names if self.remote else ():
            with self._reaching(name):
                self._files.pipe_file(self._at(name), (self.directory / name).read_bytes())

    def _at(self, name: str) -> str:
        return str(PurePosixPath(self._root) / name)

    @contextmanager
    def _reaching(self, name: str) -> Iterator[None]:
        """Say which address a failure is about."""
        try:
            yield
        except FileNotFoundError as error:
            raise ArtefactError(f"{self.place} must exist, and does not: {error}") from error
        except Exception as error:  # every store's library has errors of its own
            raise ArtefactError(
                f"{self.place}/{name} cannot be reached: {first_line(error)}; the same command "
                "goes on once it can"
            ) from error


@contextmanager
def working_at(place: str) -> Iterator[Path]:
    """The directory in which to calibrate a cell; what it holds at the end is put at its place."""
    with Store(place) as store:
        if store.has(CONFIG_FILE):
            store.fetch(*KEPT_FILES)
        try:
            yield store.directory
        finally:
            if store.remote:
                store.put(_config_last(store.directory))


def _config_last(folder: Path) -> list[str]:
    names = [
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(path.match(kind) for kind in LEFT_BEHIND)
    ]
    return sorted(names, key=lambda name: name == CONFIG_FILE)


def _opened(place: str) -> tuple[Any, str]:
    try:
        files, root = fsspec.core.url_to_fs(place)
    except Exception as error:  # a library that is missing, a protocol or credentials
        raise InputError(
            f"--out must be a directory or an address that fsspec knows, as s3://BUCKET/PATH, got "
            f"{place}: {first_line(error)}"
        ) from error
    if "memory" in (files.protocol if isinstance(files.protocol, tuple) else (files.protocol,)):
        raise InputError(
            f"--out must be where other processes reach it, and no other sees {place}; give a "
            "directory or the address of a store"
        )
    return files, root if "://" in place else place
