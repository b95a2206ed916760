"""What a calibration made on the way, kept in the user cache for the next one.

Kept are unsteered replies, for other concepts on the same model, and steering vectors and probes,
for other budgets or blocks. Each is a folder, named by a hash of all it depends on: the weights
themselves, the tokenizer, and what was asked for. The least recently used go when all together
exceed MAX_BYTES. Nothing is kept of models that were in memory before, whose hooks would not show
in their weights, nor of those whose weights accelerate holds back.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import transformers
from safetensors import SafetensorError

from calibrate.common.errors import ArtefactError
from calibrate.common.files import STAGING, is_plain_file, write_together
from calibrate.models.converted import cache_directory
from calibrate.models.model import LoadedModel

VERSION = 3  # part of every entry's name; raise it when a request gets another answer
MAX_BYTES = 256 << 20
ENTRY = re.compile(r"[0-9a-f]{64}")
KEPT = (".json", ".safetensors")

Kept = TypeVar("Kept")


@dataclass(frozen=True)
class CacheFormat(Generic[Kept]):
    """How a kind of thing is kept.

    kind: its name. files: its contents by file name, of which `last` is written last. load: reads
    it from its folder; what it raises for missing or damaged files counts as nothing kept.
    """

    kind: str
    files: Callable[[Kept], Mapping[str, bytes]]
    last: str
    load: Callable[[Path], Kept]


def load_or_compute(
    loaded: LoadedModel, form: CacheFormat[Kept], request: Any, make: Callable[[], Kept]
) -> Kept:
    """Return what was kept for a request, or make it now and keep it for the next time.

    request: everything beside the model that it depends on, as JSON takes it.
    """
    if not is_settled(loaded):
        return make()
    folder = cache_directory() / "kept"
    entry = folder / _digest(loaded, [form.kind, request])
    kept = _load(form, entry)
    if kept is not None:
        return kept
    made = make()
    # A cache that cannot be written, or that another process clears meanwhile, costs time only.
    with suppress(ArtefactError, OSError):
        write_together(entry, form.files(made), last=form.last, ours=_is_kept)
        _make_room(folder)
    return made


def is_settled(loaded: LoadedModel) -> bool:
    """Whether a model's weights say all about it, so that something can be kept of it."""
    offloaded = any(values.is_meta for values in loaded.model.parameters())
    return loaded.by_name and not offloaded


def model_digest(loaded: LoadedModel) -> str:
    """A hash of all that a model's answers depend on, beside what it is asked."""
    return _digest(loaded, None)


def _load(form: CacheFormat[Kept], entry: Path) -> Kept | None:
    """What an entry holds; None if it is missing or damaged."""
    try:
        kept = form.load(entry)
        os.utime(entry)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, ArtefactError):
        return None
    return kept


@contextmanager
def weights_hashed_once(loaded: LoadedModel) -> Iterator[None]:
    """Hash the weights once: inside the `with` they stay as they are."""
    _hashed[id(loaded)] = None
    try:
        yield
    finally:
        _hashed.pop(id(loaded), None)  # gone already where the same model is in use elsewhere


_hashed: dict[int, str | None] = {}


def _make_room(folder: Path) -> None:
    """Remove the least recently used entries until the others fit."""
    sizes = {
        entry: sum(path.stat().st_size for path in entry.iterdir() if _is_kept(path))
        for entry in folder.iterdir()
        if ENTRY.fullmatch(entry.name) and entry.is_dir() and not entry.is_symlink()
    }
    excess = sum(sizes.values()) - MAX_BYTES
    for entry in sorted(sizes, key=lambda entry: entry.stat().st_mtime):
        if excess <= 0:
            break
        _remove(entry)
        excess -= sizes[entry]


def _remove(entry: Path) -> None:
    """Remove what is kept in an entry, and its folder if that is all there is in it."""
    for path in entry.iterdir():
        if _is_kept(path):
            path.unlink(missing_ok=True)
        elif path.name.startswith(STAGING):  # of a process that was killed
            shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        entry.rmdir()


def _is_kept(path: Path) -> bool:
    """Whether a file in an entry is what entries hold; their names, hashes, are nobody else's."""
    return is_plain_file(path) and path.suffix in KEPT


def _digest(loaded: LoadedModel, request: Any) -> str:
    facts = [
        VERSION,
        torch.__version__,
        transformers.__version__,
        loaded.device.type,
        asdict(loaded.identity),
        _weights_digest(loaded),
        request,
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _weights_digest(loaded: LoadedModel) -> str:
    known = _hashed.get(id(loaded))
    if known is not None:
        return known
    digest = hashlib.sha256()
    for name, values in sorted(loaded.model.state_dict().items()):
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.detach().contiguous().cpu().flatten().view(torch.uint8).numpy())
    if id(loaded) in _hashed:
        _hashed[id(loaded)] = digest.hexdigest()
    return digest.hexdigest()
