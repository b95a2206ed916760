"""Calibrations on the Hugging Face Hub: brought here, and checked.

What loads a calibration or its config, and the gate, take USER/NAME or USER/NAME@REVISION as well.
Only files that a calibration writes are fetched, all of them JSON, safetensors, text or pictures:
nothing is ever unpickled. Each must have the SHA-256 that the repository's own list gives it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from calibrate.common.errors import AlteredError, ArtefactError
from calibrate.common.marks import sha256_of

SUMS_FILE = "SHA256SUMS"  # as `sha256sum --check` reads it
FETCHED = ("steering.*", "evidence.json", "frontier.json", "report.html", "probe/*", SUMS_FILE)
REPOSITORY = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class Origin:
    """Where a config was read; no part of what it says, so that any two are equal.

    place: "memory" where it was made by this process, a "directory", or what was pushed to a
        "repository", wherever it lies by now.
    """

    place: Literal["memory", "directory", "repository"] = field(default="memory", compare=False)


def origin_of(folder: Path) -> Origin:
    """The origin of what is read in a directory: what was pushed has the list of its digests."""
    return Origin("repository" if (folder / SUMS_FILE).is_file() else "directory")


def local_directory(name: str | Path) -> Path:
    """The directory of that name, or that of the repository, fetched.

    Raises: ArtefactError if it is neither; AlteredError for a file that is not as it was pushed.
    """
    path, found = Path(name), REPOSITORY.fullmatch(str(name))
    if found is None or path.exists():
        return path
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
    """Raise AlteredError unless every listed file that is here has its digest.

    Raises: ArtefactError if there is no list.
    """
    try:
        listed = sums_in(folder / SUMS_FILE)
    except (OSError, ValueError) as error:
        raise ArtefactError(
            f"the repository must hold a {SUMS_FILE}, as `calibrate push` writes it ({error})"
        ) from error
    for name, digest in listed.items():
        path = folder / name
        if path.is_file() and sha256_of(path) != digest:
            raise AlteredError(f"{name} must have SHA-256 {digest}: it is not what was pushed")
    for path in folder.rglob("*"):
        inside = path.relative_to(folder).as_posix()
        if path.is_file() and path.name != SUMS_FILE and inside not in listed:
            raise AlteredError(f"{inside} is in the repository, but was not pushed with it")
