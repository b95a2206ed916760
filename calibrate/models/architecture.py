"""Where architectures keep their parts, and what their configs call things. The only such file.

The decoder blocks, whose outputs are the residual stream, are all that has to be found: what a
model does to its logits, and what else it can do, is tried on the model (`parts`, `capabilities`).
Exports need a bias of a block's last projection, into which steering can be folded.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from calibrate.common.errors import ModelError

# Where transformers classes keep their decoder blocks, as dotted paths.
BLOCKS = (
    "model.layers",  # Llama, Mistral, Qwen, Gemma, Phi
    "model.language_model.layers",  # Gemma 3 4B, Mistral 3
    "transformer.h",  # GPT-2, GPT-J, Falcon, BLOOM
    "gpt_neox.layers",  # GPT-NeoX, Pythia
    "model.decoder.layers",  # OPT
    "transformer.blocks",  # MPT
)

# Config entries that say how far back attention sees, counting padding.
WINDOWS = (
    "sliding_window",
    "attention_chunk_size",  # Llama 4
    "attention_window_size",  # RecurrentGemma
    "local_attention",  # ModernBERT
    "window_size",  # GPT-Neo
)

# Config entries that say how long a sequence may be, whatever the architecture calls it.
CONTEXT = re.compile(
    r"(max|n)_(position|positions|position_embeddings|seq_len|seq_length|sequence_length|ctx"
    r"|context_len|context_length|target_positions|model_len)|(seq|sequence|context)_len(gth)?|model_max_length"
)
ENDLESS = 1_000_000  # for models that name no length, such as those without positions

# Config entries that give the projections of a block biases they do not have.
BIAS_FLAGS = ("mlp_bias", "bias", "use_bias")

# Architectures that equal Llama except for its bias flags, and can be relabelled as it, unless they
# use sliding windows.
LIKE_LLAMA = ("qwen2", "mistral")


def find_blocks(model: nn.Module, blocks: str | None = None) -> nn.ModuleList:
    """Return a model's decoder blocks.

    Known paths are tried first, then the one ModuleList as long as `num_hidden_layers`.

    blocks: their dotted path, where it is known.
    Raises: ModelError listing the module lists that were found.
    """
    base = base_of(model)
    if blocks is not None:
        return _checked_blocks(base, blocks)
    at_paths = (_at(base, path) for path in BLOCKS)
    known = next((each for each in at_paths if isinstance(each, nn.ModuleList)), None)
    return known or _checked_blocks(base, _generic_blocks(base))


def context_length(config: Any) -> int:
    """Longest sequence a text config allows, in tokens; ENDLESS where it names none."""
    entries = {name: value for name, value in config.to_dict().items() if CONTEXT.fullmatch(name)}
    named = getattr(config, "max_position_embeddings", None)  # the name most others are mapped to
    lengths = [named, *entries.values()]
    return next((each for each in lengths if isinstance(each, int) and each > 0), ENDLESS)


def attention_window(config: Any) -> int | None:
    """How many positions back the narrowest attention of a text config sees; None for all."""
    widths = [getattr(config, name, None) for name in WINDOWS]
    return min((each for each in widths if isinstance(each, int) and each > 0), default=None)


def unwrapped(model: Any) -> Any:
    """The model inside torch.compile's wrapper, DataParallel's, DDP's or an engine's."""
    while not hasattr(type(model), "get_input_embeddings"):
        inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            break
        model = inner
    return model


def base_of(model: Any) -> nn.Module:
    """Look inside wrappers: those of `unwrapped`, and PEFT's, whose base model has the adapters."""
    model = unwrapped(model)
    base: nn.Module = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base


def _at(root: nn.Module, path: str) -> Any:
    part: Any = root
    for name in path.split("."):
        part = getattr(part, name, None)
    return part


def _module_lists(base: Any) -> dict[str, int]:
    return {
        path: len(module)
        for path, module in base.named_modules()
        if isinstance(module, nn.ModuleList)
    }


def _generic_blocks(base: Any) -> str:
    wanted = base.config.get_text_config().num_hidden_layers
    lists = _module_lists(base)
    fitting = [path for path, length in lists.items() if length == wanted]
    if len(fitting) == 1:
        return fitting[0]
    raise ModelError(
        f"the decoder blocks of {type(base).__name__} must be the one module list of length "
        f"{wanted}, found {_listed(lists)}; if one of these holds them, name it with --blocks PATH"
    )


def _checked_blocks(base: Any, path: str) -> nn.ModuleList:
    blocks = _at(base, path)
    if isinstance(blocks, nn.ModuleList):
        return blocks
    lists = _listed(_module_lists(base))
    raise ModelError(f"--blocks must name a module list, got {path!r}; there are: {lists}")


def _listed(lists: dict[str, int]) -> str:
    return ", ".join(f"{path} ({length})" for path, length in lists.items()) or "none"
