"""How large a model is, from the headers of its files alone."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

from huggingface_hub import HfApi

from calibrate.models.embedded import embedded_directory
from calibrate.models.wheels import EMBEDDED

BYTES = 4  # of a number in memory, where a CPU computes
BASE = 1 << 30  # bytes of a process with torch, a judge and texts
PASSES = 1.5  # times the weights, for what passes keep


def memory_of(model: str) -> int | None:
    """Bytes that a process takes which calibrates a model on a CPU; None if its size is not known.

    >>> from calibrate.models.size import memory_of
    >>> memory_of("no/such-model") is None
    True
    """
    count = parameter_count(model)
    return None if count is None else BASE + round(PASSES * BYTES * count)


def parameter_count(model: str) -> int | None:
    """How many numbers the weights of a model are; None if that cannot be told."""
    try:
        folder = embedded_directory(model) if model in EMBEDDED else Path(model)
        if folder.is_dir():
            return _in_directory(folder)
        if model.endswith(".gguf"):
            from gguf import GGUFReader

            return sum(int(tensor.n_elements) for tensor in GGUFReader(model).tensors)
        return sum(HfApi().get_safetensors_metadata(model).parameter_count.values())
    except Exception:  # it is an estimate; whoever loads the model says what is wrong with it
        return None


def _in_directory(folder: Path) -> int | None:
    base = folder / "adapter_config.json"
    if base.is_file() and not (folder / "config.json").is_file():
        return parameter_count(json.loads(base.read_text())["base_model_name_or_path"])
    counts = [_in_file(path) for path in folder.glob("*.safetensors")]
    return sum(counts) or None


def _in_file(path: Path) -> int:
    """From the header of a safetensors file: eight bytes of its length, then JSON."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return sum(math.prod(one["shape"]) for name, one in header.items() if name != "__metadata__")
