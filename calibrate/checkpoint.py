"""Whether a checkpoint is all of a model; and, where it cannot be loaded, which file is the reason.

transformers starts whatever it does not find at random, and throws away what it has no place for.
Here both are errors, unless the model says itself that they do not matter, or what is left over
belongs to parts that text does not run through (a vision tower, heads for several tokens ahead).
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open

from calibrate.errors import CalibrateWarning, ModelError

WRAPPERS = {
    "_orig_mod.": "torch.compile's; save model._orig_mod instead",
    "module.": "DataParallel's, DDP's or DeepSpeed's; save model.module instead",
    "_fsdp_wrapped_module.": "FSDP's; save its full state dict instead",
    "base_model.model.": "PEFT's; save model.merge_and_unload() instead",
}
ADAPTER = re.compile(r"\.(lora_|base_layer\.|ia3_|modules_to_save\.|original_module\.)")
# Buffers that older releases saved, and scales that only other engines use.
NO_WEIGHTS = re.compile(
    r"rotary_emb\.inv_freq$|(^|\.)(attn|attention|self_attention)\.(masked_)?bias$"
    r"|_scale$|(^|\.)position_ids$"
)
BLOCK = re.compile(r"\.(\d+)\.")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
INDEX = "model.safetensors.index.json"
SHOWN = 3  # names of weights in a message


def require_whole(name: str, model: Any, info: Mapping[str, Any]) -> None:
    """Raise unless a checkpoint gave a model all its weights, and the model took all of them.

    info: what `from_pretrained(…, output_loading_info=True)` returns beside the model.
    Raises: ModelError that lists what is missing, left over or misshapen, and the likely cause.
    """
    missing, misshapen = sorted(info["missing_keys"]), sorted(info["mismatched_keys"])
    left = sorted(info["unexpected_keys"])
    wanted = _TextParts(model).want if left else None
    foreign = [key for key in left if wanted is not None and not wanted(key)]
    if missing or misshapen or len(foreign) < len(left):
        over = left if missing else [key for key in left if key not in foreign]
        raise ModelError(
            f"the weights of {name} must be those of its {type(model).__name__}, but "
            f"{_listed(missing, over, misshapen)}: {_cause(model, missing, over, misshapen)}"
        )
    said = [key for key in foreign if not NO_WEIGHTS.search(key)]
    if said:
        warnings.warn(
            f"{type(model).__name__} has no use for {_named(said)} of {name}, which text does not "
            "run through",
            CalibrateWarning,
            stacklevel=2,
        )


class _TextParts:
    """Which of a model's modules text runs through: those beside its embeddings, and the head."""

    def __init__(self, model: Any) -> None:
        self._paths = {path for path, _ in model.named_modules()}
        self._text = _path_of(model, model.get_input_embeddings()).rpartition(".")[0]
        self._head = _path_of(model, model.get_output_embeddings())
        config = model.config.get_text_config()
        first = getattr(config, "num_hidden_layers", 0)
        self._ahead = range(first, first + (getattr(config, "num_nextn_predict_layers", 0) or 0))

    def want(self, key: str) -> bool:
        """Whether a weight that is left over belongs into one of them."""
        if NO_WEIGHTS.search(key) or any(int(i) in self._ahead for i in BLOCK.findall(key)):
            return False
        place = key
        while place not in self._paths:  # the whole model's path is ""
            place = place.rpartition(".")[0]
        beside = place.startswith(f"{self._text}.") if self._text else place != ""
        return beside or place == self._head != ""


def _path_of(model: Any, part: Any) -> str:
    return next((path for path, module in model.named_modules() if module is part), "")


def _listed(
    missing: Sequence[str], left: Sequence[str], misshapen: Sequence[tuple[str, Any, Any]]
) -> str:
    found = []
    if missing:
        found.append(f"{_count(missing)} missing ({_named(missing)})")
    if left:
        found.append(f"{_count(left)} left over ({_named(left)})")
    if misshapen:
        shapes = [
            f"{key}: {tuple(there)} instead of {tuple(here)}" for key, there, here in misshapen
        ]
        found.append(f"{_count(shapes)} misshapen ({_named(shapes)})")
    return " and ".join(found)


def _cause(
    model: Any, missing: Sequence[str], left: Sequence[str], misshapen: Sequence[Any]
) -> str:
    prefix = _wrapper_prefix(missing, left)
    if prefix is not None:
        whose = WRAPPERS.get(prefix, "a wrapper's; save the model inside it instead")
        return f"the names in the file begin with {prefix!r}, which is {whose}"
    if any(ADAPTER.search(key) for key in left):
        return "an adapter's weights are among the model's; save model.merge_and_unload() instead"
    if missing == [f"{_path_of(model, model.get_output_embeddings())}.weight"]:
        return (
            "it was saved without its unembedding, as AutoModel or a classifier is; save the "
            "AutoModelForCausalLM it belongs to"
        )
    if misshapen or left:
        return "correct its config.json, or fetch or save the checkpoint again"
    return "transformers would start them at random; fetch or save the checkpoint again"


def _wrapper_prefix(missing: Sequence[str], left: Sequence[str]) -> str | None:
    """What stands before the names of the weights in the file, if that alone makes them strange."""
    for key in left:
        for wanted in missing:
            if key.endswith(f".{wanted}"):
                prefix = key.removesuffix(wanted)
                known = [name for name in WRAPPERS if prefix.startswith(name)]
                return known[0] if known else prefix
    clean = next((name for name in WRAPPERS if left and left[0].startswith(name)), None)
    return clean if missing else None


def _named(keys: Sequence[str]) -> str:
    more = f", … {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(keys[:SHOWN]) + more


def _count(keys: Sequence[Any]) -> str:
    return f"{len(keys)} {'is' if len(keys) == 1 else 'are'}"


def why_unloadable(name: str, folder: Path | None, error: Exception) -> str:
    """Say in one line why a model cannot be loaded, and the way out.

    folder: where its files lie, if that is known. error: what transformers raised.
    """
    said = first_line(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in said:
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
    if "does not recognize this architecture" in said:
        kind = (re.findall(r"model type `(.+?)`", said) or ["unknown"])[0]
        return (
            f"{name} is of model type {kind!r}, which transformers {transformers.__version__} does "
            "not know; correct its config.json, or update transformers"
        )
    quantised = _quantisation(folder)
    if quantised is not None:
        return f"{name} is quantised by {quantised}, which cannot be used here: {said}"
    if isinstance(error, ImportError):
        return f"{name} needs a package that is not there: {said}"
    if "Unrecognized configuration class" in said:
        kind = (re.findall(r"models\.(\w+)\.", said) or ["another kind"])[0]
        return (
            f"{name} must be a decoder-only language model, got {kind}, which transformers has no "
            "AutoModelForCausalLM for"
        )
    return f"transformers cannot load {name}: {said}"


def _quantisation(folder: Path | None) -> str | None:
    """How a checkpoint is quantised, as its config says; None if it is not."""
    if folder is None or not (folder / "config.json").is_file():
        return None
    facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    how = facts.get("quantization_config")
    return str(how.get("quant_method", "an unnamed method")) if isinstance(how, dict) else None


def first_line(error: BaseException) -> str:
    """What an error says in its first line, and of which kind it is where that is not plain."""
    lines = str(error).strip().splitlines() or [""]
    plain = isinstance(error, OSError | ValueError | ImportError | RuntimeError) and lines[0]
    return lines[0] if plain else f"{type(error).__name__}: {lines[0]}".removesuffix(": ")


def _faults(folder: Path, name: str) -> Iterator[str]:
    """What is wrong with the files of a checkpoint, the plainest first."""
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
    named = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    return [index.parent / str(file) for file in sorted(set(named.values()))]


def _without_weights(folder: Path, name: str, wanted: str) -> str:
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        return (
            f"the weights of {name} must be safetensors, since nothing is unpickled here, got "
            f"{_named(pickles)}; where you trust them, load them with transformers once and "
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

    report: what it logged while it loaded. None if it says nothing of that kind.
    """
    found = re.findall(r"^(\S+)\s*\|\s*CONVERSION", "\n".join(report), flags=re.MULTILINE)
    if not found:
        return None
    keys = sorted(set(found))
    return ModelError(
        f"the weights of {name} must be whole, but the parts of {len(keys)} are missing or "
        f"misshapen ({_named(keys)}): fetch or save the checkpoint again"
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
