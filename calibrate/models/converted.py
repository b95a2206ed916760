"""The model cache, and GGUF files converted into it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock

from calibrate.common.errors import ModelError
from calibrate.common.marks import sha256_of
from calibrate.common.progress import SILENT, Progress, stage
from calibrate.models.checkpoint import require_whole
from calibrate.models.quiet import quiet_transformers
from calibrate.models.unreadable import why_unreadable

CONVERSION_VERSION = 1  # part of every cache entry's name; raise it when the conversion changes


def cache_directory() -> Path:
    """Return the cache's root: `$STEERING_CALIBRATE_CACHE`, or the platform's user cache."""
    chosen = os.environ.get("STEERING_CALIBRATE_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("steering-calibrate"))


def converted_gguf(gguf: Path, progress: Progress = SILENT) -> tuple[Path, str]:
    """Return the safetensors directory of a GGUF file, and the file's SHA-256.

    Raises: ModelError if transformers cannot read the file.
    """
    digest = sha256_of(gguf)

    def build(_staging: Path, target: Path) -> None:
        convert_gguf(gguf, target, progress)

    return cache_entry(f"gguf-{digest[:16]}-{CONVERSION_VERSION}-whole", build), digest


def cache_entry(entry: str, build: Callable[[Path, Path], None]) -> Path:
    """Return the cache entry, which `build` makes if it is missing.

    build: makes the directory that is its second argument; the first is for temporary files.
    """
    root = cache_directory() / "models"
    target = root / entry
    if target.is_dir():
        return target
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (
            FileLock(root / f"{entry}.lock"),
            tempfile.TemporaryDirectory(dir=root, prefix=f"{entry}-") as staging,
        ):
            if not target.is_dir():
                build(Path(staging), Path(staging) / "model")
                os.replace(Path(staging) / "model", target)
    except OSError as error:
        raise ModelError(
            f"cannot write the model cache {root} ({error.strerror or error}); free space there "
            "or set STEERING_CALIBRATE_CACHE to another directory"
        ) from error
    return target


def convert_gguf(gguf: Path, target: Path, progress: Progress) -> None:
    """Write a GGUF's weights, dequantised, and its tokenizer as a transformers directory."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, file = str(gguf.parent), gguf.name
    with stage(progress, f"converting {gguf.name} to safetensors"), quiet_transformers():
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                folder,
                gguf_file=file,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
        except Exception as error:  # any kind, since the file can be wrong in any way
            raise ModelError(why_unreadable(gguf, error)) from error
        # transformers refuses to save what it read from a GGUF, as if it were still quantised;
        # a fresh model of the same config and weights lacks that mark.
        config = model.config.to_dict()
        config.pop("quantization_config", None)
        config.pop("_name_or_path", None)
        fresh = AutoModelForCausalLM.from_config(type(model.config).from_dict(config))
        # Some releases take a tensor of another shape from a GGUF and do not say so.
        info["mismatched_keys"] = {*info["mismatched_keys"], *_misshapen(model, fresh)}
        require_whole(str(gguf), model, info)
        fresh.load_state_dict(model.state_dict())
        fresh.generation_config = model.generation_config
        fresh.save_pretrained(target)
        tokenizer.save_pretrained(target)


def _misshapen(model: Any, fresh: Any) -> Iterator[tuple[str, Any, Any]]:
    """Weights of a model whose shape is not that of a fresh one: name, shape, and right shape."""
    right = fresh.state_dict()
    for name, weight in model.state_dict().items():
        if name in right and weight.shape != right[name].shape:
            yield name, weight.shape, right[name].shape
