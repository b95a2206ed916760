"""Load a language model, with its parts in hand (`calibrate.architecture`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel

from calibrate.architecture import LogitRule, base_of, find_layout, uncompiled
from calibrate.cost import Meter
from calibrate.embedded import EMBEDDED, converted_gguf, embedded_directory, quiet_transformers
from calibrate.errors import ModelError, did_you_mean
from calibrate.progress import SILENT, Progress
from calibrate.residual import captured, hidden_of

DEFAULT_BATCH_TOKENS = 2048
HUB_TIMEOUT = 10  # seconds
BALANCED = "balanced"  # accelerate's name for as many blocks on each GPU as on the others


@dataclass(frozen=True)
class ModelIdentity:
    """What a steering config must find again before it may be trusted on a model."""

    id: str
    revision: str | None
    architecture: str
    num_layers: int
    hidden_size: int
    dtype: str
    tokenizer_sha256: str
    chat_template_sha256: str | None
    adds_bos: bool


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A language model with its parts in hand.

    model, tokenizer: the transformers objects, as given or loaded.
    blocks: the decoder blocks; block ℓ's output is the residual stream after it.
    final_norm, unembedding: modules; logits = unembedding(final_norm(residual)), then
        `logit_scale` and `softcap`.
    by_name: whether it was loaded here, so that its weights are all there is to it.
    batch_tokens: how many positions one forward pass may hold.
    meter: counts the tokens pushed through.
    """

    model: PreTrainedModel
    tokenizer: Any
    blocks: nn.ModuleList
    final_norm: nn.Module
    unembedding: nn.Module
    logit_scale: float
    softcap: float | None
    name: str
    revision: str | None
    by_name: bool = False
    batch_tokens: int = DEFAULT_BATCH_TOKENS
    meter: Meter = field(default_factory=Meter)

    @property
    def num_layers(self) -> int:
        """Number of decoder blocks."""
        return len(self.blocks)

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def vocabulary_size(self) -> int:
        """Number of logits."""
        weight: torch.Tensor = self.unembedding.weight  # type: ignore[assignment]
        return len(weight)

    @property
    def device(self) -> torch.device:
        """Where token ids go: the device of the input embedding."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the residual stream."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def context_length(self) -> int:
        """Longest sequence the model takes, in tokens."""
        config = self.model.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", None) or 1_000_000)

    @property
    def is_chat(self) -> bool:
        """Whether the tokenizer brings a chat template."""
        return self.tokenizer.chat_template is not None

    @cached_property
    def identity(self) -> ModelIdentity:
        """Identity recorded in the artefact."""
        return ModelIdentity(
            id=self.name,
            revision=self.revision,
            architecture=type(base_of(self.model)).__name__,
            num_layers=self.num_layers,
            hidden_size=self.hidden_size,
            dtype=str(self.dtype).removeprefix("torch."),
            tokenizer_sha256=_tokenizer_sha256(self.tokenizer),
            chat_template_sha256=_sha256(self.tokenizer.chat_template) if self.is_chat else None,
            adds_bos=self.adds_bos,
        )

    @cached_property
    def adds_bos(self) -> bool:
        """Whether the tokenizer puts a BOS before a plain text by itself."""
        ids = self.tokenizer("a")["input_ids"]
        return bool(ids) and ids[0] == self.tokenizer.bos_token_id

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Turn what the unembedding reads, (..., hidden), into float32 logits (..., vocabulary)."""
        raw: torch.Tensor = self.unembedding(hidden).float()
        if self.logit_scale != 1:
            raw = raw * self.logit_scale
        return raw if self.softcap is None else self.softcap * torch.tanh(raw / self.softcap)

    @property
    def readout(self) -> torch.Tensor | None:
        """The matrix (vocabulary, hidden) with logits = logit_scale · matrix · hidden + constant.

        None where logits are not linear in the hidden state, or the matrix is not at hand in
        float32.
        """
        head = self.unembedding
        if type(head) is not nn.Linear or self.softcap is not None:
            return None
        at_hand = head.weight.dtype == torch.float32 and head.weight.device.type != "meta"
        return head.weight.detach() if at_hand else None

    def empty_cache(self) -> DynamicCache:
        """Room for the keys and values of every block."""
        return DynamicCache(config=self.model.config.get_text_config())

    def check_layer(self, layer: int) -> int:
        """Return `layer` if it names a block, else raise ModelError with the range."""
        if not 0 <= layer < self.num_layers:
            raise ModelError(
                f"layer must be in 0..{self.num_layers - 1} for {self.name}, got {layer}"
            )
        return layer


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


@contextmanager
def borrowed(loaded: LoadedModel) -> Iterator[None]:
    """Use a model in eval mode without gradients, and give it back exactly as it was.

    Restored are every module's train/eval flag and the random states of torch, its devices
    and NumPy. What torch.compile has made of it rests meanwhile: it would take no notice of hooks.
    """
    training = [module for module in loaded.model.modules() if module.training]
    numpy_state = np.random.get_state()
    devices = [loaded.device] if loaded.device.type == "cuda" else []
    eager = torch.compiler.set_stance("force_eager")
    with eager, torch.random.fork_rng(devices=devices), torch.no_grad():
        loaded.model.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True
            np.random.set_state(numpy_state)


def blocks_of(model: Any) -> tuple[nn.ModuleList, int]:
    """Return the decoder blocks and the hidden size of a LoadedModel or a transformers model."""
    if isinstance(model, LoadedModel):
        return model.blocks, model.hidden_size
    return find_layout(model)[0], int(model.config.get_text_config().hidden_size)


def _with_parts(
    model: Any, tokenizer: Any, blocks: str | None, name: str, revision: str | None, tokens: int
) -> LoadedModel:
    found, norm = find_layout(model, blocks)
    rule = LogitRule.of(model.config.get_text_config())
    loaded = LoadedModel(
        model=model,
        tokenizer=tokenizer,
        blocks=found,
        final_norm=norm,
        unembedding=model.get_output_embeddings(),
        logit_scale=rule.scale,
        softcap=rule.softcap,
        name=name,
        revision=revision,
        batch_tokens=tokens,
    )
    _check_logits(loaded)
    return loaded


def _check_logits(loaded: LoadedModel) -> None:
    """Raise unless the parts reproduce the model's own logits on two tokens."""
    outputs: list[torch.Tensor] = []
    ids = torch.tensor([[0, 1]], device=loaded.device)
    with borrowed(loaded), captured(loaded.blocks, lambda _l, out: outputs.append(hidden_of(out))):
        expected = loaded.model(input_ids=ids, use_cache=False).logits.float()
        got = loaded.logits(loaded.final_norm(outputs[-1]))
    gap = (got.to(expected.device) - expected).abs().max().item()
    allowed = 1e-3 if loaded.dtype == torch.float32 else 0.1
    if gap > allowed * max(1.0, expected.abs().max().item()):
        raise ModelError(
            f"the parts found in {loaded.name} must reproduce its logits, but they differ by "
            f"{gap:.3g}; name the right module list with --blocks PATH"
        )


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


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _tokenizer_sha256(tokenizer: Any) -> str:
    """Hash what decides the ids: the vocabulary and the special tokens."""
    parts = [sorted(tokenizer.get_vocab().items()), sorted(tokenizer.special_tokens_map.items())]
    return _sha256(json.dumps(parts, default=str))
