"""What the model said unsteered, kept in the user cache for the next concept.

Entries are JSON files of token ids, named by a hash of everything they depend on: the weights
themselves, the tokenizer, the prompts, the sampling and the seed. The least recently used go when
all together exceed MOST_BYTES. Nothing is kept of models that were in memory before, whose hooks
would not show in their weights, nor of those whose weights accelerate holds back.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from calibrate.embedded import cache_directory
from calibrate.errors import ArtefactError
from calibrate.files import replacing

if TYPE_CHECKING:
    from calibrate.model import LoadedModel

VERSION = 1  # part of every entry's name; raise it when a request gets another answer
MOST_BYTES = 256 << 20

Replies = list[list[int]]


def recalled(loaded: LoadedModel, request: Any, sample: Callable[[], Replies]) -> Replies:
    """Return the token ids of replies: kept ones, or sampled now and kept for the next time.

    request: everything beside the model that the replies depend on, as JSON takes it.
    """
    offloaded = any(values.is_meta for values in loaded.model.parameters())
    if offloaded or not loaded.by_name:
        return sample()
    entry = cache_directory() / "replies" / f"{_digest(loaded, request)}.json"
    kept = _read(entry)
    if kept is not None:
        return kept
    replies = sample()
    with suppress(ArtefactError):  # a cache that cannot be written costs time only
        with replacing(entry) as target:
            target.write_text(json.dumps(replies))
        _make_room(entry.parent)
    return replies


def _read(entry: Path) -> Replies | None:
    """What an entry holds; None if it is missing or damaged."""
    try:
        replies = json.loads(entry.read_text())
        os.utime(entry)
    except (OSError, ValueError):
        return None
    whole = isinstance(replies, list) and all(isinstance(ids, list) for ids in replies)
    return replies if whole else None


def _make_room(folder: Path) -> None:
    """Remove the least recently used entries until the others fit."""
    entries = [(path, path.stat()) for path in folder.glob("*.json")]
    entries.sort(key=lambda entry: entry[1].st_mtime)
    excess = sum(facts.st_size for _, facts in entries) - MOST_BYTES
    for path, facts in entries:
        if excess <= 0:
            break
        path.unlink(missing_ok=True)
        excess -= facts.st_size


def _digest(loaded: LoadedModel, request: Any) -> str:
    facts = [
        VERSION,
        torch.__version__,
        transformers.__version__,
        loaded.device.type,
        asdict(loaded.identity),
        request,
    ]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, values in sorted(loaded.model.state_dict().items()):
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.detach().contiguous().cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
