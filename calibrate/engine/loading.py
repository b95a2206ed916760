"""Load a language model from wherever `--model` names it, and check its parts."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from calibrate.common.errors import CalibrateError, ModelError, did_you_mean
from calibrate.common.progress import SILENT, Progress
from calibrate.common.settings import check_batch_tokens
from calibrate.engine.capabilities import TriedCapabilities
from calibrate.models.architecture import find_blocks
from calibrate.models.checkpoint import require_whole
from calibrate.models.converted import converted_gguf
from calibrate.models.embedded import embedded_directory
from calibrate.models.given import given_model, given_tokenizer, require_next_token_model
from calibrate.models.model import DEFAULT_BATCH_TOKENS, LoadedModel, preserving_model_state
from calibrate.models.parts import proved
from calibrate.models.placement import Placement, place, require_divisible, warn_if_offloaded
from calibrate.models.quiet import load_report, quiet_transformers
from calibrate.models.ranks import Ranks
from calibrate.models.rendering import settle
from calibrate.models.unreadable import first_line, unmergeable, why_no_tokenizer, why_unloadable
from calibrate.models.wheels import EMBEDDED

HUB_TIMEOUT = 10  # seconds
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")


def load_model(
    model: Any,
    tokenizer: Any = None,
    *,
    device: str = "auto",
    device_map: str | Mapping[str, Any] | None = None,
    tensor_parallel: bool = False,
    dtype: str = "auto",
    blocks: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    template_date: str | None = None,
    progress: Progress = SILENT,
) -> LoadedModel:
    """Load what `--model` accepts, or take an in-memory model as it is.

    model: an embedded model's name, a hub id, a local directory, a `.gguf` file, or a
        transformers model (then `tokenizer` is needed and device and dtype stay as they are).
    tokenizer: one that is in memory, a processor that has one, or the name of a model that has.
    device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1" or "mps".
    device_map: how to spread a model over several devices: "auto", "balanced", "balanced_low_0",
        "sequential", or accelerate's own map of parts to devices.
    tensor_parallel: whether the processes that torchrun started share the model, each holding a
        part of every block; then all of them make the same calls, and the first one writes.
    dtype: "auto" (float32 on a CPU, the checkpoint's own elsewhere), "float32", "bfloat16",
        "float16", "float64".
    blocks: dotted path of the decoder blocks, for an architecture not found by itself.
    batch_tokens: how many positions one forward pass may hold; trades memory for speed.
    chat_template_kwargs: variables for the chat template, such as {"enable_thinking": False};
        template_date: what it takes for today, YYYY-MM-DD (default: today).
    Raises: ModelError naming the model, the reason and the way out; InputError for variables the
        template cannot be given.

    >>> loaded = calibrate.load_model(model, tokenizer, batch_tokens=1024)
    >>> loaded.num_layers
    3
    """
    check_batch_tokens(batch_tokens)
    if isinstance(model, LoadedModel):
        return rendered_with(model, chat_template_kwargs, template_date)
    if not isinstance(model, str | Path):
        parts = _from_memory(model, tokenizer, blocks, batch_tokens, progress)
        return _settled(parts, chat_template_kwargs, template_date)
    _check_choice("dtype", str(dtype).removeprefix("torch."), DTYPES)
    where = place(str(device), device_map, tensor_parallel)
    source, name, known_revision = _resolve_source(str(model), progress)
    options = {"trust_remote_code": trust_remote_code, "revision": revision}
    with torch.inference_mode(False):  # what is loaded in it could never have gradients
        loaded = _from_pretrained(name, source, where, str(dtype).removeprefix("torch."), options)
    own_tokenizer = _tokenizer_for(name, source, tokenizer, options, progress)
    require_next_token_model(loaded, name)
    parts = _with_parts(
        loaded,
        own_tokenizer,
        blocks,
        name,
        known_revision or _commit(source, revision),
        batch_tokens,
    )
    shared_out = device_map if device_map is None or isinstance(device_map, str) else "auto"
    beside: dict[str, Any] = {"device": str(device), "device_map": shared_out, "dtype": dtype}
    beside["trust_remote_code"] = trust_remote_code
    parts = replace(parts, by_name=tokenizer is None, place=beside)
    return _settled(parts, chat_template_kwargs, template_date)


def rendered_with(
    loaded: LoadedModel, kwargs: Mapping[str, Any] | None, date: str | None
) -> LoadedModel:
    """The same model, its prompts rendered with these variables and this date; None: as it is."""
    before = loaded.rendering
    if (kwargs is None or kwargs == before.kwargs) and (date is None or date == before.date):
        return loaded
    chosen = before.kwargs if kwargs is None else kwargs
    return _settled(loaded, chosen, date or before.date)


def _settled(
    loaded: LoadedModel, kwargs: Mapping[str, Any] | None, date: str | None
) -> LoadedModel:
    return replace(loaded, rendering=settle(loaded.tokenizer, kwargs, date))


def _from_memory(
    model: Any, tokenizer: Any, blocks: str | None, batch_tokens: int, progress: Progress
) -> LoadedModel:
    inner = given_model(model)
    name = str(inner.config._name_or_path or type(inner).__name__)
    if tokenizer is None:
        raise ModelError("an in-memory model needs its tokenizer; pass tokenizer=…")
    own_tokenizer = _tokenizer_for(name, name, tokenizer, {}, progress)
    require_next_token_model(inner, name)
    commit = getattr(inner.config, "_commit_hash", None)  # which older transformers set
    parts = _with_parts(inner, own_tokenizer, blocks, name, commit, batch_tokens)
    return replace(parts, place={} if parts.device.type == "meta" else {"device": parts.device})


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
        examine=TriedCapabilities,
        batch_tokens=tokens,
        ranks=Ranks.of(model),
    )
    with preserving_model_state(loaded):
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
    if not os.path.isdir(model):
        _require_on_hub(model)
    return model, model, None


def is_hub_id(name: str) -> bool:
    """Whether a model of that name is looked for on the Hub, and nowhere on this machine."""
    here = name in EMBEDDED or name.endswith(".gguf") or os.path.exists(name)
    return not here and HUB_ID.fullmatch(name) is not None


def _require_on_hub(name: str) -> None:
    """Raise at once where transformers would retry an unknown or unreachable name for a minute."""
    if os.path.exists(name):
        raise ModelError(f"a model that is a file must be a .gguf, got {name!r}")
    try:
        if not isinstance(try_to_load_from_cache(name, "config.json"), str):
            HfApi().model_info(name, timeout=HUB_TIMEOUT)
    except Exception as error:  # the hub's own errors, and those of its HTTP library
        raise ModelError(
            f"model must be {', '.join(EMBEDDED)}, a hub id, a local directory or a .gguf file, "
            f"got {name!r}{did_you_mean(name, EMBEDDED)} ({first_line(error)})"
        ) from error


def _from_pretrained(
    name: str, source: str, where: Placement, dtype: str, options: dict[str, Any]
) -> PreTrainedModel:
    resolved: Any = dtype if dtype != "auto" else ("float32" if where.on_cpu else "auto")
    base = _adapted_base(source)
    with _loading(name, source):
        if where.shared:
            config = AutoConfig.from_pretrained(base or source, **options)
            require_divisible(config.get_text_config())
        model = _whole(name, base or source, {"dtype": resolved, **where.arguments, **options})
        if base is not None:
            require_whole(name, model, model.load_adapter(source).to_dict())
    warn_if_offloaded(model, name)
    return (model if where.device is None else model.to(where.device)).eval()


def _whole(name: str, source: str, options: dict[str, Any]) -> PreTrainedModel:
    """Load a checkpoint, and require that it holds all of a model."""
    with load_report() as report:
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                source,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported in info instead
                **options,
            )
        except RuntimeError as error:
            raise unmergeable(name, report) or error from error
    require_whole(name, model, info)
    return model  # type: ignore[no-any-return]


def _adapted_base(source: str) -> str | None:
    """The base model of the adapter in a directory; None if that holds a model."""
    path = Path(source) / "adapter_config.json"
    if not path.is_file() or path.with_name("config.json").is_file():
        return None
    try:
        base = json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
        return _resolve_source(str(base), SILENT)[0]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} must name its base model, and does not; save it again") from error
    except ModelError as error:
        raise ModelError(
            f"the adapter {source} needs the model it was trained on: {error}"
        ) from error


def _tokenizer_for(
    name: str, source: str, given: Any, options: dict[str, Any], progress: Progress
) -> Any:
    """The tokenizer that was given, or named; the model's own if None."""
    if given is not None and not isinstance(given, str | Path):
        return given_tokenizer(given)
    if given is not None:
        if str(given) != name:
            options = {**options, "revision": None}  # the one that is named is of the model
        source, name, _ = _resolve_source(str(given), progress)
    elif not (Path(source) / "tokenizer_config.json").is_file():
        source = _adapted_base(source) or source
    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(source, **options)
    except Exception as error:  # any kind, since the files can be wrong in any way
        raise ModelError(why_no_tokenizer(name, Path(source), error)) from error


@contextmanager
def _loading(name: str, source: str) -> Iterator[None]:
    """Turn what transformers raises over a checkpoint into a ModelError that says why."""
    try:
        with quiet_transformers():
            yield
    except CalibrateError:
        raise
    except Exception as error:  # any kind, since the checkpoint can be wrong in any way
        raise ModelError(why_unloadable(name, _folder_of(source), error)) from error


def _folder_of(source: str, revision: str | None = None) -> Path | None:
    """Where the files of a model lie: its directory, or its place in the hub's cache."""
    if os.path.isdir(source):
        return Path(source)
    config = try_to_load_from_cache(source, "config.json", revision=revision)
    return Path(config).parent if isinstance(config, str) else None


def _check_choice(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ModelError(f"{what} must be one of {', '.join(choices)}, got {value!r}")


def _commit(source: str, revision: str | None) -> str | None:
    """The commit that a model of the Hub was loaded at; None for others, and for adapters."""
    folder = _folder_of(source, revision) if is_hub_id(source) else None
    return None if folder is None else folder.name
