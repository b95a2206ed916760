"""The file of the steering vectors: whether it is the one that a config was written with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from calibrate.common.errors import AlteredError, ArtefactError


def read_vectors(
    path: Path, keys: Sequence[str], sha256: str, size: int
) -> tuple[bytes, list[str]]:
    """Read a file of vectors, and check it.

    keys: of the vectors it must have, each of `size` finite numbers. sha256: of its contents.
    Returns: its contents, and what other tensors are in it.
    Raises: AlteredError if it is another file; ArtefactError if it cannot be read, lacks a vector,
        or has something else in its place.
    """
    try:
        content = path.read_bytes()
        tensors = load(content)
        vectors = [tensors[key] for key in keys]
    except (OSError, KeyError, SafetensorError) as error:
        raise ArtefactError(f"{path} must hold the steering vector: {error}") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise AlteredError(
            f"{path} must have SHA-256 {sha256}, got {digest}: it is not the vector this config "
            "was calibrated with"
        )
    if not all(each.shape == (size,) and np.isfinite(each).all() for each in vectors):
        raise ArtefactError(
            f"{path} is damaged: each vector must be {size} finite numbers; calibrate again"
        )
    return content, sorted({*tensors} - {*keys})
