"""Load a language model from wherever `--model` names it, and prove that its parts were found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from calibrate.architecture import find_blocks, uncompiled
from calibrate.capabilities import Capabilities
from calibrate.embedded import EMBEDDED, converted_gguf, embedded_directory, quiet_transformers
from calibrate.errors import ModelError, did_you_mean
from calibrate.model import DEFAULT_BATCH_TOKENS, LoadedModel, borrowed
from calibrate.parts import proved
from calibrate.progress import SILENT, Progress

HUB_TIMEOUT = 10  # seconds
BALANCED = "balanced"  # accelerate's name for as many blocks on each GPU as on the others


def load_model(
    model: Any,
    tokenizer: Any = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    blocks: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    progress: Progress = SILENT,
) -> LoadedModel:
    """Load what `--model` accepts, or take an in-memory model as it is.

    model: an embedded model's name, a hub id, a local directory, a `.gguf` file, or a
        transformers model (then `tokenizer` is needed and device and dtype stay as they are).
    device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", "mps", or "balanced", which
        spreads the blocks over all GPUs, for a model larger than one of them.
    dtype: "auto" (float32 on a CPU, the checkpoint's own elsewhere), "float32", "bfloat16",
        "float16".
    blocks: dotted path of the decoder blocks, for an architecture not found by itself.
    batch_tokens: how many positions one forward pass may hold; trades memory for speed.
    Raises: ModelError naming the model, the reason and the way out.
    """
    if isinstance(model, LoadedModel):
        return model
    model = uncompiled(model)
    if isinstance(model, PreTrainedModel) or hasattr(model, "get_base_model"):
        if tokenizer is None:
            raise ModelError("an in-memory model needs its tokenizer; pass tokenizer=…")
        name = str(model.config._name_or_path or type(model).__name__)
        return _with_parts(model, tokenizer, blocks, name, _commit(model), batch_tokens)
    _check_choice("dtype", dtype, ("auto", "float32", "bfloat16", "float16"))
    where = None if device == BALANCED else _resolve_device(device)
    source, name, known_revision = _resolve_source(str(model), progress)
    options = {"trust_remote_code": trust_remote_code, "revision": revision}
    loaded = _from_pretrained(name, source, where, dtype, options)
    own_tokenizer = tokenizer or _tokenizer_from(name, source, options)
    parts = _with_parts(
        loaded, own_tokenizer, blocks, name, known_revision or _commit(loaded), batch_tokens
    )
    return replace(parts, by_name=tokenizer is None)


def _with_parts(
    model: Any, tokenizer: Any, blocks: str | None, name: str, revision: str | None, tokens: int
) -> LoadedModel:
    loaded = LoadedModel(
        model=model,
        tokenizer=tokenizer,
        blocks=find_blocks(model, blocks),
        unembedding=model.get_output_embeddings(),
        name=name,
        revision=revision,
        examine=Capabilities,
        batch_tokens=tokens,
    )
    with borrowed(loaded):
        return proved(loaded)


def _resolve_source(model: str, progress: Progress) -> tuple[str, str, str | None]:
    """Return (what from_pretrained loads, the name to record, the revision if known here)."""
    if model in EMBEDDED:
        return str(embedded_directory(model, progress)), model, EMBEDDED[model].revision
    path = Path(model)
    if model.endswith(".gguf"):
        if not path.is_file():
            raise ModelError(f"a .gguf model must be an existing file, got {model!r}")
        directory, digest = converted_gguf(path, progress)
        return str(directory), model, f"sha256:{digest}"
    if not path.is_dir():
        _require_on_hub(model)
    return model, model, None


def _require_on_hub(name: str) -> None:
    """Raise at once where transformers would retry an unknown or unreachable name for a minute."""
    try:
        if not isinstance(try_to_load_from_cache(name, "config.json"), str):
            HfApi().model_info(name, timeout=HUB_TIMEOUT)
    except Exception as error:  # the hub's own errors, and those of its HTTP library
        raise _unloadable(name, error) from error


def _from_pretrained(
    name: str, source: str, device: torch.device | None, dtype: str, options: dict[str, Any]
) -> PreTrainedModel:
    """Load onto one device, or, if that is None, spread over all there are."""
    on_cpu = not torch.cuda.is_available() if device is None else device.type == "cpu"
    resolved: Any = dtype if dtype != "auto" else ("float32" if on_cpu else "auto")
    spread = {"device_map": BALANCED} if device is None else {}
    try:
        with quiet_transformers():
            model = AutoModelForCausalLM.from_pretrained(
                source, dtype=resolved, **spread, **options
            )
    except (OSError, ValueError, KeyError) as error:
        raise _unloadable(name, error) from error
    return (model if device is None else model.to(device)).eval()


def _tokenizer_from(name: str, source: str, options: dict[str, Any]) -> Any:
    try:
        return AutoTokenizer.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError) as error:
        raise _unloadable(name, error) from error


def _unloadable(name: str, error: Exception) -> ModelError:
    hint = did_you_mean(name, EMBEDDED)
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ModelError(
        f"model must be {', '.join(EMBEDDED)}, a hub id, a local directory or a .gguf file, got "
        f"{name!r}{hint} ({reason})"
    )


def _resolve_device(device: str) -> torch.device:
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"device must be auto, cpu, cuda, mps or {BALANCED}, and present, got {device!r} "
            f"({reason})"
        ) from error
    return resolved


def _check_choice(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ModelError(f"{what} must be one of {', '.join(choices)}, got {value!r}")


def _commit(model: Any) -> str | None:
    return getattr(model.config, "_commit_hash", None)
