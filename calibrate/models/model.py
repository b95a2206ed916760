"""A loaded language model, with its parts in hand (`calibrate.models.architecture`)."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import Cache, DynamicCache, PreTrainedModel

from calibrate.common.cost import Meter
from calibrate.common.errors import ModelError
from calibrate.common.record import ModelIdentity
from calibrate.models.architecture import base_of, context_length, find_blocks, unwrapped
from calibrate.models.capabilities import Capabilities
from calibrate.models.devices import computes_on, random_states_kept
from calibrate.models.ranks import Ranks, sharding
from calibrate.models.rendering import Rendering, template_of

DEFAULT_BATCH_TOKENS = 2048
TOKENIZED = "Hello,  World!\n\tIt's 12,345.67 % of naïve cafés: ΩΜΕΓΑ, Привет, 東京 🙂"
AS_BEFORE_AUTOCAST = "_original_forward"  # where accelerate keeps a model's own forward


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A language model with its parts in hand.

    model, tokenizer: the transformers objects, as given or loaded.
    blocks: the decoder blocks; block ℓ's output is the residual stream after it.
    unembedding: the output embedding; its output times `logit_scale`, soft-capped at `softcap`,
        is the logits.
    examine: tries which shortcuts the model's passes may take.
    rendering: how conversations become prompts.
    by_name: whether it was loaded here by name, so that its weights determine it.
    batch_tokens: how many positions one forward pass may hold.
    meter: counts the tokens pushed through.
    ranks: the processes that hold it together.
    place: arguments of `load_model` that put another model beside it: where, and how loaded.

    >>> loaded = calibrate.load_model(model, tokenizer)
    >>> loaded.num_layers, loaded.hidden_size
    (3, 32)
    """

    model: PreTrainedModel
    tokenizer: Any
    blocks: nn.ModuleList
    unembedding: nn.Module
    name: str
    revision: str | None
    examine: Callable[[LoadedModel], Capabilities]
    rendering: Rendering = field(default_factory=Rendering)
    logit_scale: float = 1.0
    softcap: float | None = None
    by_name: bool = False
    batch_tokens: int = DEFAULT_BATCH_TOKENS
    meter: Meter = field(default_factory=Meter)
    ranks: Ranks = field(default_factory=Ranks)
    place: Mapping[str, Any] = field(default_factory=dict)

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
        return computes_on(self.model.get_input_embeddings())

    @property
    def logits_device(self) -> torch.device:
        """Where logits are made: the device of the unembedding."""
        return computes_on(self.unembedding)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the residual stream."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    @cached_property
    def context_length(self) -> int:
        """Longest sequence the model takes, in tokens."""
        return context_length(self.model.config.get_text_config())

    @property
    def embedding_rows(self) -> int:
        """Number of token ids that the input embedding knows."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def is_chat(self) -> bool:
        """Whether the tokenizer brings a chat template."""
        return template_of(self.tokenizer) is not None

    @cached_property
    def identity(self) -> ModelIdentity:
        """Identity recorded in the artefact."""
        template = template_of(self.tokenizer)
        return ModelIdentity(
            id=self.name,
            revision=self.revision,
            architecture=type(base_of(self.model)).__name__,
            num_layers=self.num_layers,
            hidden_size=self.hidden_size,
            dtype=str(self.dtype).removeprefix("torch."),
            tokenizer_sha256=_tokenizer_sha256(self.tokenizer),
            chat_template_sha256=template and _sha256(template),
            adds_bos=self.adds_bos,
            tokenization_sha256=_tokenization_sha256(self.tokenizer),
        )

    @cached_property
    def adds_bos(self) -> bool:
        """Whether the tokenizer puts a BOS before a plain text by itself."""
        ids = self.tokenizer("a")["input_ids"]
        return bool(ids) and ids[0] == self.tokenizer.bos_token_id

    @cached_property
    def capabilities(self) -> Capabilities:
        """Which shortcuts the model's passes may take, each tried when first needed."""
        return self.examine(self)

    @property
    def scoring_tokens(self) -> int:
        """How many positions a pass over texts may hold; 1, so one text, where batching fails."""
        return self.batch_tokens if self.capabilities.batching.works else 1

    def check_ids(self, ids: Sequence[int], text: str) -> None:
        """Raise ModelError if a text has a token that the model has no embedding for."""
        largest = max(ids, default=0)
        if largest >= self.embedding_rows:
            token = self.tokenizer.convert_ids_to_tokens(largest)
            raise ModelError(
                f"token ids must be below {self.embedding_rows}, the rows of {self.name}'s "
                f"embedding, got {largest} ({token!r}) in {text[:60]!r}; its tokenizer knows more "
                "tokens than it does: give the tokenizer that it was trained with"
            )

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Turn what the unembedding reads, (..., hidden), into float32 logits (..., vocabulary)."""
        if self._sharding is not None:
            self._sharding.unshard()
        raw: torch.Tensor = self.unembedding(hidden).float()
        return LogitRule(self.logit_scale, self.softcap).of(raw)

    @cached_property
    def _sharding(self) -> FSDPModule | None:
        return sharding(self.model, self.unembedding)

    @property
    def readout(self) -> torch.Tensor | None:
        """The matrix (vocabulary, hidden) with logits = logit_scale · matrix · hidden + constant.

        None where logits are not linear in the hidden state, or the matrix is not at hand in
        float32, whole.
        """
        head = self.unembedding
        if type(head) is not nn.Linear or self.softcap is not None:
            return None
        at_hand = head.weight.dtype == torch.float32 and head.weight.device.type != "meta"
        return head.weight.detach() if at_hand and self.ranks.alone else None

    def empty_cache(self) -> DynamicCache:
        """Room for the keys and values of every block."""
        return DynamicCache(config=self.model.config.get_text_config())

    @cached_property
    def forward_parameters(self) -> frozenset[str]:
        """Names of what the model's own forward pass takes."""
        return frozenset(inspect.signature(type(base_of(self.model)).forward).parameters)

    def using(self, cache: Cache) -> dict[str, Any]:
        """Arguments of a pass that reads and fills a cache; transformers 5.24 renamed the first."""
        name = "cache" if "cache" in self.forward_parameters else "past_key_values"
        return {name: cache, "use_cache": True}

    def check_layer(self, layer: int) -> int:
        """Return `layer` if it names a block, else raise ModelError with the range."""
        if not 0 <= layer < self.num_layers:
            raise ModelError(
                f"layer must be in 0..{self.num_layers - 1} for {self.name}, got {layer}"
            )
        return layer


@contextmanager
def preserving_model_state(loaded: LoadedModel) -> Iterator[None]:
    """Use a model in eval mode without gradients, and give it back exactly as it was."""
    with preserving_module_state(loaded.model, loaded.device):
        yield


@contextmanager
def preserving_module_state(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Use a module in eval mode without gradients, and give it back exactly as it was.

    device: where its embedding computes.

    Restored are every module's train/eval flag and the random states of torch, its devices
    and NumPy. Compiled code is not used meanwhile, since it ignores hooks. Inference mode is left,
    since tensors made in it can never have gradients. Autocast is off, also accelerate's, so that
    weights are measured in the precision they are kept in. cuDNN's attention is off, since it plans
    anew for every width that it has not met, which is every token of a reply.
    """
    training = [module for module in model.modules() if module.training]
    numpy_state = np.random.get_state()
    autocast = [module for module in model.modules() if _is_autocast(module)]
    forwards = [vars(module)["forward"] for module in autocast]
    cudnn_attention = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    with ExitStack() as stack:
        stack.callback(torch.backends.cuda.enable_cudnn_sdp, cudnn_attention)
        torch.backends.cuda.enable_cudnn_sdp(False)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        if torch.amp.is_autocast_available(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(random_states_kept(model, device))
        stack.enter_context(torch.no_grad())
        for module in autocast:
            module.forward = vars(module)[AS_BEFORE_AUTOCAST]
        model.eval()
        try:
            yield
        finally:
            for module, forward in zip(autocast, forwards, strict=True):
                module.forward = forward
            for module in training:
                module.training = True
            for module in model.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()
            np.random.set_state(numpy_state)


def _is_autocast(module: nn.Module) -> bool:
    """Whether accelerate put autocast around it; it keeps the pipelined ones' forward as well."""
    both = {AS_BEFORE_AUTOCAST, "forward"} <= vars(module).keys()
    return both and not hasattr(module, "pippy_stage")


def blocks_of(model: Any) -> tuple[nn.ModuleList, int]:
    """Return the decoder blocks and the hidden size of a LoadedModel or a transformers model."""
    if isinstance(model, LoadedModel):
        return model.blocks, model.hidden_size
    return find_blocks(model), int(unwrapped(model).config.get_text_config().hidden_size)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _tokenizer_sha256(tokenizer: Any) -> str:
    """Hash the vocabulary and the special tokens."""
    parts = [sorted(tokenizer.get_vocab().items()), sorted(tokenizer.special_tokens_map.items())]
    return _sha256(json.dumps(parts, default=str))


def _tokenization_sha256(tokenizer: Any) -> str:
    """Hash the ids of a text, since merges and normalisation are no part of the vocabulary."""
    return _sha256(json.dumps(tokenizer(TOKENIZED, add_special_tokens=False)["input_ids"]))


@dataclass(frozen=True)
class LogitRule:
    """What is done to the logits after the unembedding: times `scale`, then soft-capped."""

    scale: float = 1.0
    softcap: float | None = None

    def of(self, raw: torch.Tensor) -> torch.Tensor:
        """The logits for an output of the unembedding."""
        scaled = raw if self.scale == 1 else raw * self.scale
        return scaled if self.softcap is None else self.softcap * torch.tanh(scaled / self.softcap)
