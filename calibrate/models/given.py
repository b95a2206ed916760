"""Models and tokenizers given in memory: unwrapped and checked."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from calibrate.common.errors import ModelError, NumericalError
from calibrate.models.architecture import unwrapped
from calibrate.models.devices import computes_on
from calibrate.models.model import preserving_module_state
from calibrate.models.unreadable import first_line

ROUNDING = 64  # rounding errors by which a sum in another order may differ


def is_in_memory(model: Any) -> bool:
    """Whether this is a transformers model (or PEFT's around one), rather than the name of one."""
    return isinstance(model, PreTrainedModel) or hasattr(model, "get_base_model")


def given_model(model: Any) -> Any:
    """Return the transformers model that was given, without wrappers that train or compile it.

    Raises: ModelError if it is not a decoder-only language model whose weights are at hand.
    """
    inner = unwrapped(model)
    _require_whole_or_sharded_in_place(model)
    if not is_in_memory(inner):
        raise ModelError(
            "model must be a name, a path or a transformers model with a language model's head, "
            f"got {_kind(model)}"
        )
    kind = type(inner).__name__
    if getattr(inner.config, "is_encoder_decoder", False):
        raise ModelError(
            f"model must be a decoder-only language model, got the encoder-decoder {kind}"
        )
    if inner.get_output_embeddings() is None:
        raise ModelError(
            f"model must have an unembedding, and {kind} has none; load it with "
            "AutoModelForCausalLM"
        )
    _require_weights(inner, kind)
    return inner


def _require_whole_or_sharded_in_place(model: Any) -> None:
    """Refuse shards that only the wrapper's own forward pass brings together.

    FSDP 2 (`fully_shard`) and tensor parallelism leave every module callable, as ours need to be.
    """
    if not isinstance(model, nn.Module):
        return
    saved = "calibrate the saved checkpoint, with --tensor-parallel if it does not fit one device"
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        raise ModelError(
            "the blocks of a model must be callable one by one, and FullyShardedDataParallel "
            f"shards their weights as one; shard it with fully_shard instead (FSDP 2), or {saved}"
        )
    if any(hasattr(weight, "ds_id") for weight in model.parameters()):
        raise ModelError(
            "the weights of a model must be at hand, and DeepSpeed's ZeRO-3 keeps each only while "
            f"it is used; train with ZeRO-1 or 2, or {saved}"
        )


def _require_weights(model: Any, kind: str) -> None:
    moved = any(hasattr(module, "_hf_hook") for module in model.modules())  # accelerate's
    if not moved and any(weight.is_meta for weight in model.parameters()):
        raise ModelError(
            f"the weights of {kind} must be at hand, and some are on the meta device; load them, "
            "or move the model with to_empty and load_state_dict"
        )
    if any(weight.is_inference() for weight in model.parameters()):
        raise ModelError(
            f"the weights of {kind} were made under torch.inference_mode, which rules out the "
            "gradients that rank blocks; load the model outside of it"
        )


def given_tokenizer(tokenizer: Any) -> Any:
    """Return the tokenizer that was given, or that of a processor.

    Raises: ModelError if it is neither.
    """
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        return tokenizer
    inner = getattr(tokenizer, "tokenizer", None)
    if not isinstance(inner, PreTrainedTokenizerBase):
        raise ModelError(
            "tokenizer must be a transformers tokenizer, a processor, or the name of a model that "
            f"has one, got {_kind(tokenizer)}"
        )
    template = getattr(tokenizer, "chat_template", None)
    if inner.chat_template is None and template is not None:
        inner = copy.copy(inner)  # a processor may keep the template to itself
        inner.chat_template = template
    return inner


def require_next_token_model(model: Any, name: str) -> None:
    """Raise unless a model predicts each token from those before it, without NaN.

    Runs two pairs of tokens that differ in the second only: the first prediction must not change.

    Raises: ModelError, or NumericalError naming the weights that are not finite.
    """
    device = computes_on(model.get_input_embeddings())
    pairs = torch.tensor([[[0, 1]], [[0, 2]]], device=device)
    try:
        with preserving_module_state(model, device):
            first, second = (model(input_ids=ids, use_cache=False).logits.float() for ids in pairs)
    except (TypeError, ValueError, AttributeError, NotImplementedError, IndexError) as error:
        raise ModelError(
            f"model must predict a next token from input_ids, and {name} ({type(model).__name__}) "
            f"does not: {first_line(error)}"
        ) from error
    if first.isnan().any():
        raise _not_numbers(model, name)
    gap = (first - second)[0, 0].abs().max().item()
    if gap > ROUNDING * torch.finfo(model.dtype).eps * first.abs().max().item():
        raise ModelError(
            f"model must predict each token from those before it, and {name} "
            f"({type(model).__name__}) looks ahead, as encoders do; take a decoder"
        )


def _not_numbers(model: Any, name: str) -> NumericalError:
    broken = [key for key, weight in model.named_parameters() if not weight.isfinite().all()]
    if broken:
        return NumericalError(
            f"the weights of {name} must be finite, and {len(broken)} are not "
            f"({', '.join(broken[:3])}); fetch or save the checkpoint again"
        )
    dtype = str(model.dtype).removeprefix("torch.")
    return NumericalError(
        f"the logits of {name} must be numbers, and in {dtype} they are not; load it with --dtype "
        "float32 or bfloat16"
    )


def _kind(value: Any) -> str:
    if value is None:
        return "None"
    kind = type(value).__name__
    return f"{kind} {value!r}"[:80] if isinstance(value, str | int | float) else kind
