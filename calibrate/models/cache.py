"""Intermediate results of a calibration, kept in the user cache for the next one.

These are unsteered replies, for other concepts on the same model, steering vectors and probes, for
other budgets or blocks, and what `calibrate laws` has measured at a site. Each is a folder, named
by a hash of all it depends on: the weights themselves, the model's configuration, the tokenizer,
how prompts are rendered, and the request. The least recently used are removed when all together
exceed MAX_BYTES. Nothing is kept for models given in memory, nor while steering or hooks of others
may change what a model does, nor for those whose weights accelerate offloads or several processes
share.
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
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from calibrate.common.errors import ArtefactError
from calibrate.common.files import STAGING, is_plain_file, write_together
from calibrate.models.configuration import configuration
from calibrate.models.converted import cache_directory
from calibrate.models.hooks import hooks_of_others, is_steered
from calibrate.models.model import LoadedModel

VERSION = 7  # part of every entry's name; raise it when the result for a request changes
MAX_BYTES = 256 << 20
ENTRY = re.compile(r"[0-9a-f]{64}")
SUFFIXES = (".json", ".safetensors")
WHOLE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes
AT_ONCE = 1 << 18  # numbers summed at a time: what a cache holds, and few enough launches on a GPU
MIXED = 0x1E3779B97F4A7C15  # odd, so that no two places have one weight

Kept = TypeVar("Kept")


@dataclass(frozen=True)
class CacheFormat(Generic[Kept]):
    """How one kind of result is stored.

    kind: its name. files: its contents by file name, of which `last` is written last. load: reads
    it from its folder; an error for missing or damaged files counts as nothing stored.
    """

    kind: str
    files: Callable[[Kept], Mapping[str, bytes]]
    last: str
    load: Callable[[Path], Kept]


def load_or_compute(
    loaded: LoadedModel, form: CacheFormat[Kept], request: Any, make: Callable[[], Kept]
) -> Kept:
    """Return the stored result for a request, or make it now and store it.

    request: everything beside the model that the result depends on, as JSON values.
    """
    if not is_settled(loaded):
        return make()
    folder = cache_directory() / "kept"
    entry = folder / _digest(loaded, [form.kind, request])
    stored = _load(form, entry)
    if stored is not None:
        return stored
    result = make()
    # A cache that cannot be written, or that another process clears meanwhile, costs time only.
    with suppress(ArtefactError, OSError):
        write_together(entry, form.files(result), last=form.last, ours=_is_kept)
        _make_room(folder)
    return result


def is_settled(loaded: LoadedModel) -> bool:
    """Whether weights and configuration determine results, so that these can be stored."""
    as_loaded = loaded.by_name and not any(hooks_of_others(loaded.model))
    return as_loaded and not is_steered(loaded.model) and _has_all_weights(loaded)


def weights_digest(loaded: LoadedModel) -> str | None:
    """A hash of the weights; None where they are offloaded, or several processes share them."""
    return _weights_digest(loaded) if _has_all_weights(loaded) else None


def model_digest(loaded: LoadedModel) -> str:
    """A hash of everything about a model that its results depend on."""
    return _digest(loaded, None)


def _has_all_weights(loaded: LoadedModel) -> bool:
    elsewhere = any(
        values.is_meta or is_traceable_wrapper_subclass(values)  # offloaded; sharded, or quantised
        for values in loaded.model.parameters()
    )
    return loaded.ranks.alone and not elsewhere


def _load(form: CacheFormat[Kept], entry: Path) -> Kept | None:
    """What an entry holds; None if it is missing or damaged."""
    try:
        stored = form.load(entry)
        os.utime(entry)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, ArtefactError):
        return None
    return stored


@contextmanager
def weights_hashed_once(loaded: LoadedModel, known: str | None = None) -> Iterator[None]:
    """Hash the weights only once: inside the `with` they must not change.

    known: their hash, where it is.
    """
    _hashed[id(loaded)] = known
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
    """Remove an entry's files, and its folder if there is nothing else in it."""
    for path in entry.iterdir():
        if _is_kept(path):
            path.unlink(missing_ok=True)
        elif path.name.startswith(STAGING):  # of a process that was killed
            shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        entry.rmdir()


def _is_kept(path: Path) -> bool:
    """Whether a file in an entry is ours, which the folder's name, a hash, and its suffix tell."""
    return is_plain_file(path) and path.suffix in SUFFIXES


def _digest(loaded: LoadedModel, request: Any) -> str:
    facts = [
        VERSION,
        torch.__version__,
        transformers.__version__,
        loaded.device.type,
        asdict(loaded.identity),
        asdict(loaded.rendering),
        configuration(loaded),
        _weights_digest(loaded),
        request,
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _weights_digest(loaded: LoadedModel) -> str:
    known = _hashed.get(id(loaded))
    if known is not None:
        return known
    facts = [
        [name, str(values.dtype), tuple(values.shape), _sums(values)]
        for name, values in sorted(loaded.model.state_dict().items())
        if isinstance(values, torch.Tensor)
    ]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    if id(loaded) in _hashed:
        _hashed[id(loaded)] = digest
    return digest


def _sums(values: torch.Tensor) -> tuple[int, int]:
    """The sum of a tensor's bits as whole numbers, and that weighted by their places.

    Exact modulo 2⁶⁴, so the same on every device, and taken where the weights are: bringing those
    of a large model to the CPU takes longer than the pilot.
    """
    flat = values.detach().contiguous().flatten()
    numbers = flat.view(WHOLE.get(flat.element_size(), torch.int64))
    plain = placed = torch.zeros((), dtype=torch.int64, device=flat.device)
    weights = torch.arange(1, 1 + min(AT_ONCE, len(numbers)), device=flat.device) * MIXED
    for first in range(0, len(numbers), AT_ONCE):
        part = numbers[first : first + AT_ONCE].to(torch.int64)
        total = part.sum()
        plain = plain + total
        placed = placed + (part * weights[: len(part)]).sum() + total * first * MIXED
    return int(plain), int(placed)
