"""Calibrations on the Hugging Face Hub: brought here, and checked.

What loads a calibration or its config takes USER/NAME or USER/NAME@REVISION as well, where there is
no such directory, and hub:USER/NAME wherever it stands. A `Path`, and a text that begins with ./,
../, / or ~ or ends with a slash, always names a directory. The gate asks for `hub:`.
Only files that a calibration writes are fetched, all of them JSON, safetensors, text or pictures:
nothing is ever unpickled. Each must have the SHA-256 that the repository's own list gives it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from calibrate.common.errors import AlteredError, ArtefactError
from calibrate.common.marks import sha256_of

SUMS_FILE = "SHA256SUMS"  # as `sha256sum --check` reads it
FETCHED = ("steering.*", "evidence.json", "frontier.json", "report.html", "probe/*", SUMS_FILE)
HUB = "hub:"  # before a repository's name, so that it is no directory's
REPOSITORY = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?")
SNAPSHOT = re.compile(r"models--(?P<user>.+?)--(?P<name>.+)/snapshots/(?P<commit>[0-9a-f]{40})")
UNKNOWN = "unknown"  # the repository of a copy that does not say


@dataclass(frozen=True)
class Origin:
    """Where a config was read; no part of what it says, so that any two are equal.

    place: "memory" where it was made by this process, a "directory", or what was pushed to a
        "repository", wherever it lies by now. repository: USER/NAME@COMMIT, UNKNOWN where a copy
        does not say, None for the other places.
    """

    place: Literal["memory", "directory", "repository"] = field(default="memory", compare=False)
    repository: str | None = field(default=None, compare=False)

    @property
    def says(self) -> str:
        """From which repository it is, in words; empty where it is from none."""
        if self.repository is None:
            return ""
        if self.repository == UNKNOWN:
            return "a copy of what was pushed to a repository"
        return f"read from the Hub, {self.repository.replace('@', ' at ')}"


def is_origin(recorded: str | None) -> bool:
    """Whether a config may say that it is from there: from nowhere, or UNKNOWN, or a repository."""
    return recorded in (None, UNKNOWN) or REPOSITORY.fullmatch(str(recorded)) is not None


def origin_of(folder: Path, recorded: str | None = None) -> Origin:
    """The origin of what is read in a directory.

    recorded: what the config there says of its repository, which stays with what is saved of it.
    """
    found = SNAPSHOT.fullmatch("/".join(folder.resolve().parts[-3:]))
    if found is not None:
        return Origin("repository", f"{found['user']}/{found['name']}@{found['commit']}")
    if recorded is None and not _was_pushed(folder):
        return Origin("directory")
    return Origin("repository", recorded or UNKNOWN)


def _was_pushed(folder: Path) -> bool:
    """Whether the list of a push lies in it, or with a config above it, as for its exports."""
    return (folder / SUMS_FILE).is_file() or any(
        (above / SUMS_FILE).is_file() and (above / "steering.json").is_file()
        for above in folder.resolve().parents
    )


def named_repository(name: str | Path) -> re.Match[str] | None:
    """The parts of a repository's name, if it is one (the module's docstring says when).

    Raises: ArtefactError for no such name after HUB.
    """
    if isinstance(name, Path):
        return None
    found = REPOSITORY.fullmatch(name.removeprefix(HUB))
    if not name.startswith(HUB):
        return None if os.path.exists(name) else found
    if found is None:
        raise ArtefactError(
            f"{HUB} must stand before USER/NAME or USER/NAME@REVISION, got {name}; write ./{name} "
            "for a directory"
        )
    return found


def gate_directory(name: str | Path) -> Path:
    """What `local_directory` returns, for the gate, which has to be told that the Hub is meant.

    Else a directory that is missing would be replaced by what the owner of its name has there.
    Raises: as `local_directory`; ArtefactError for a repository without HUB.
    """
    if named_repository(name) is not None and not str(name).startswith(HUB):
        raise ArtefactError(
            f"{name} must be a directory for the gate, and there is none; name one, or write "
            f"{HUB}{name} for the repository on the Hub"
        )
    return local_directory(name)


def own_directory(name: str | Path, into: str) -> Path:
    """The directory of that name, where something will be written.

    into: what.
    Raises: ArtefactError for a repository, which is only read.
    """
    found = named_repository(name)
    if found is not None:
        raise ArtefactError(
            f"{name} must be a directory, since {into} written into it, and there is none; bring "
            f"the repository here with hf download {found['name']} --local-dir DIR"
        )
    return Path(name)


def local_directory(name: str | Path) -> Path:
    """The directory of that name, or that of the repository, fetched.

    Raises: ArtefactError if it is neither; AlteredError for a file that is not as it was pushed.
    """
    found = named_repository(name)
    if found is None:
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    from calibrate.models.unreadable import first_line

    try:
        fetched = snapshot_download(
            found["name"], revision=found["revision"], allow_patterns=list(FETCHED)
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ArtefactError(
            f"{name} must be a directory that calibrate wrote, or a repository on the Hub that "
            f"can be read: {first_line(error)}"
        ) from error
    folder = Path(fetched)
    require_sums(folder)
    return folder


def sums_of(folder: Path) -> bytes:
    """The list of the files' digests."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [
        f"{sha256_of(path)}  {path.relative_to(folder).as_posix()}\n"
        for path in files
        if path.name != SUMS_FILE
    ]
    return "".join(lines).encode()


def sums_in(path: Path) -> dict[str, str]:
    """The digests that a list gives, by the file's name.

    Raises: OSError if it cannot be read; ValueError if it is no such list.
    """
    entries = [line.split("  ", 1) for line in path.read_text(encoding="utf-8").splitlines()]
    return {name: digest for digest, name in entries}


def require_sums(folder: Path) -> None:
    """Raise AlteredError unless every file of FETCHED that is here is listed, with its digest.

    Others may lie there, such as a licence that the Hub added, and are never read.
    Raises: ArtefactError if there is no list.
    """
    try:
        listed = sums_in(folder / SUMS_FILE)
    except (OSError, ValueError) as error:
        raise ArtefactError(
            f"the repository must hold a {SUMS_FILE}, as `calibrate push` writes it ({error})"
        ) from error
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        fetched = any(fnmatchcase(name, pattern) for pattern in FETCHED)
        if not fetched or not path.is_file() or name == SUMS_FILE:
            continue
        if name not in listed:
            raise AlteredError(f"{name} is in the repository, but was not pushed with it")
        if sha256_of(path) != listed[name]:
            raise AlteredError(
                f"{name} must have SHA-256 {listed[name]}: it is not what was pushed"
            )
