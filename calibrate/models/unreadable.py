"""Why a checkpoint cannot be loaded, in words that name the file and the way out."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import transformers
from safetensors import SafetensorError, safe_open

from calibrate.common.errors import ModelError, ran_out_of_memory
from calibrate.models.checkpoint import named

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
INDEX = "model.safetensors.index.json"


def why_unloadable(name: str, folder: Path | None, error: Exception) -> str:
    """Say in one line why a model cannot be loaded, and the way out.

    folder: where its files lie, if that is known. error: what transformers raised.
    """
    message = first_line(error)
    if ran_out_of_memory(error):
        return (
            f"{name} must fit in memory, and it does not; load it with --dtype bfloat16, on "
            "another --device, or take a smaller model"
        )
    if "trust_remote_code" in str(error):
        return (
            f"{name} brings code of its own, which must be allowed: read it, then give "
            "--trust-remote-code"
        )
    reason = None if folder is None else next(_faults(folder, name), None)
    if reason is not None:
        return reason
    if "does not recognize this architecture" in message:
        kind = (re.findall(r"model type `(.+?)`", message) or ["unknown"])[0]
        return (
            f"{name} is of model type {kind!r}, which transformers {transformers.__version__} does "
            "not know; correct its config.json, or update transformers"
        )
    quantised = _quantisation(folder)
    if quantised is not None:
        return f"{name} is quantised by {quantised}, which cannot be used here: {message}"
    if "tp_plan" in message:
        return (
            f"--tensor-parallel needs a plan of how to share {name}, and transformers has none for "
            "its architecture; give --device-map auto"
        )
    if isinstance(error, ImportError):
        return f"{name} needs a package that is not there: {message}"
    if "Unrecognized configuration class" in message:
        kind = (re.findall(r"models\.(\w+)\.", message) or ["another kind"])[0]
        return (
            f"{name} must be a decoder-only language model, got {kind}, which transformers has no "
            "AutoModelForCausalLM for"
        )
    return f"transformers cannot load {name}: {message}"


def _quantisation(folder: Path | None) -> str | None:
    """How a checkpoint is quantised, as its config says; None if it is not."""
    if folder is None or not (folder / "config.json").is_file():
        return None
    facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    how = facts.get("quantization_config")
    return str(how.get("quant_method", "an unnamed method")) if isinstance(how, dict) else None


def first_line(error: BaseException) -> str:
    """An error's first line, with its type where the line alone is unclear."""
    lines = str(error).strip().splitlines() or [""]
    plain = isinstance(error, OSError | ValueError | ImportError | RuntimeError) and lines[0]
    return lines[0] if plain else f"{type(error).__name__}: {lines[0]}".removesuffix(": ")


def _faults(folder: Path, name: str) -> Iterator[str]:
    """What is wrong with the files of a checkpoint, the most obvious first."""
    adapter = (folder / "adapter_config.json").is_file()
    if adapter:
        yield from _json_faults(folder / "adapter_config.json", "base_model_name_or_path")
    else:
        yield from _json_faults(folder / "config.json", "model_type")
    stem = "adapter_model" if adapter else "model"
    shards = [folder / f"{stem}.safetensors"]
    if not shards[0].is_file():
        if (folder / INDEX).is_file():
            yield from _json_faults(folder / INDEX, "weight_map")
            shards = _shards(folder / INDEX)
        else:
            yield _without_weights(folder, name, shards[0].name)
    for shard in shards:
        yield from _weight_faults(shard)


def _json_faults(path: Path, key: str) -> Iterator[str]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        yield (
            f"model must be a directory that one was saved to, got {path.parent}, where "
            f"{path.name} cannot be read ({error.strerror})"
        )
        return
    except ValueError as error:
        yield f"{path} must be JSON ({error}); fetch or save the checkpoint again"
        return
    if not isinstance(facts, dict) or not facts.get(key):
        yield f"{path} must name its {key}, and it does not; fetch or save the checkpoint again"


def _shards(index: Path) -> list[Path]:
    weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    return [index.parent / str(file) for file in sorted(set(weight_map.values()))]


def _without_weights(folder: Path, name: str, wanted: str) -> str:
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        return (
            f"the weights of {name} must be safetensors, since nothing is unpickled here, got "
            f"{named(pickles)}; where you trust them, load them with transformers once and "
            "save_pretrained the model, which writes safetensors"
        )
    return f"{folder / wanted} must hold the weights, and there is no such file"


def _weight_faults(path: Path) -> Iterator[str]:
    if not path.is_file():
        yield f"{path} must be there, since the checkpoint names it; fetch the missing file"
        return
    try:
        with safe_open(path, framework="pt") as opened:
            opened.keys()
    except (SafetensorError, OSError, ValueError) as error:
        size = os.path.getsize(path)
        if path.open("rb").read(24).startswith(b"version https://git-lfs"):
            yield f"{path} is a git-lfs pointer of {size} bytes, not the weights; git lfs pull"
        yield (
            f"{path} must be a whole safetensors file, got {size:,} bytes that are not "
            f"({first_line(error)}); fetch it again"
        )


def why_no_tokenizer(name: str, folder: Path, error: Exception) -> str:
    """Say in one line why a model has no tokenizer that can be loaded, and the way out."""
    for path in (folder / "tokenizer_config.json", folder / "tokenizer.json"):
        if path.is_file():
            try:
                json.loads(path.read_text(encoding="utf-8"))
            except ValueError as reason:
                return f"{path} must be JSON ({reason}); fetch or save the tokenizer again"
    way_out = "save the tokenizer beside the model, or pass tokenizer=…"
    if folder.is_dir() and not any(folder.glob("*token*")) and not any(folder.glob("vocab*")):
        return f"{name} must come with its tokenizer, and {folder} holds none; {way_out}"
    return f"transformers cannot load the tokenizer of {name}: {first_line(error)}; {way_out}"


def unmergeable(name: str, report: Sequence[str]) -> ModelError | None:
    """The error for weights that transformers could not put together, such as those of experts.

    report: what it logged while loading. None if no such weights are in it.
    """
    rows = re.findall(r"^(\S+)\s*\|\s*CONVERSION", "\n".join(report), flags=re.MULTILINE)
    if not rows:
        return None
    keys = sorted(set(rows))
    return ModelError(
        f"the weights of {name} must be whole, but the parts of {len(keys)} are missing or "
        f"misshapen ({named(keys)}): fetch or save the checkpoint again"
    )


def why_unreadable(gguf: Path, error: Exception) -> str:
    """Say in one line why a GGUF cannot be read."""
    size = gguf.stat().st_size
    with gguf.open("rb") as opened:
        genuine = opened.read(4) == b"GGUF"
    if not genuine:
        return f"transformers cannot read {gguf}: a GGUF begins otherwise than these {size:,} bytes"
    return (
        f"transformers cannot read {gguf} ({size:,} bytes): {first_line(error)}; fetch it again if "
        "it is not whole"
    )
