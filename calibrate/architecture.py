"""Where architectures keep their parts. The only file that knows them.

The parts are four: the decoder blocks, whose outputs are the residual stream; the final norm;
the unembedding; and what a model does to its logits afterwards (a scale, a soft-cap). Exports need
a fifth: a bias of a block's last projection, into which steering can be folded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from calibrate.errors import ModelError


@dataclass(frozen=True)
class Layout:
    """Where a transformers class keeps its blocks and final norm, as dotted paths."""

    blocks: str
    final_norm: str


LAYOUTS = (
    Layout("model.layers", "model.norm"),  # Llama, Mistral, Qwen 2 and 3, Gemma 1 to 3 (text)
    Layout("model.language_model.layers", "model.language_model.norm"),  # Gemma 3 4B, Mistral 3
    Layout("transformer.h", "transformer.ln_f"),  # GPT-2, GPT-J, Falcon, BLOOM
    Layout("gpt_neox.layers", "gpt_neox.final_layer_norm"),  # GPT-NeoX, Pythia
    Layout("model.decoder.layers", "model.decoder.final_layer_norm"),  # OPT
    Layout("model.layers", "model.final_layernorm"),  # Phi 1 and 2
    Layout("transformer.blocks", "transformer.norm_f"),  # MPT
)

# Config entries that say what is done to the logits after the unembedding.
LOGIT_FACTOR = "logit_scale"  # Cohere
LOGIT_DIVISOR = "logits_scaling"  # Granite
SOFTCAP = "final_logit_softcapping"  # Gemma 2: cap · tanh(logits / cap)

# Config entries that give the projections of a block biases they do not have.
BIAS_FLAGS = ("mlp_bias", "bias", "use_bias")

# Architectures that are Llama but for its bias flags, and can be relabelled as it. With sliding
# windows they are not.
LIKE_LLAMA = ("qwen2", "mistral")


@dataclass(frozen=True)
class LogitRule:
    """What is done to the logits after the unembedding: times `scale`, then soft-capped."""

    scale: float
    softcap: float | None

    @classmethod
    def of(cls, config: Any) -> LogitRule:
        """Read the rule off a text config."""
        factor = getattr(config, LOGIT_FACTOR, None) or 1.0
        divisor = getattr(config, LOGIT_DIVISOR, None) or 1.0
        return cls(factor / divisor, getattr(config, SOFTCAP, None))


def find_layout(model: nn.Module, blocks: str | None = None) -> tuple[nn.ModuleList, nn.Module]:
    """Return a model's decoder blocks and final norm.

    Known layouts are tried first, then the one ModuleList as long as `num_hidden_layers`.

    Raises: ModelError listing the module lists that were found.
    """
    base = base_of(model)
    if blocks is not None:
        return _checked_blocks(base, blocks), _norm_beside(base, blocks)
    for layout in LAYOUTS:
        found, norm = _at(base, layout.blocks), _at(base, layout.final_norm)
        if isinstance(found, nn.ModuleList) and isinstance(norm, nn.Module):
            return found, norm
        if isinstance(found, nn.ModuleList) and _has(base, layout.final_norm):
            return found, nn.Identity()  # OPT with a norm after every block has none at the end
    path = _generic_blocks(base)
    return _checked_blocks(base, path), _norm_beside(base, path)


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
    found: Any = root
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


def _has(root: nn.Module, path: str) -> bool:
    """Whether there is an attribute of that path, be it None."""
    parent, _, name = path.rpartition(".")
    return hasattr(_at(root, parent), name)


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
    found = ", ".join(f"{path} ({length})" for path, length in lists.items()) or "none"
    raise ModelError(
        f"the decoder blocks of {type(base).__name__} must be the one module list of length "
        f"{wanted}, found {found}; name it with --blocks PATH"
    )


def _checked_blocks(base: Any, path: str) -> nn.ModuleList:
    found = _at(base, path)
    if isinstance(found, nn.ModuleList):
        return found
    lists = ", ".join(f"{name} ({n})" for name, n in _module_lists(base).items()) or "none"
    raise ModelError(f"--blocks must name a module list, got {path!r}; there are: {lists}")


def _norm_beside(base: Any, path: str) -> nn.Module:
    """The final norm is the last norm among the siblings of the blocks."""
    parent = _at(base, path.rpartition(".")[0]) if "." in path else base
    norms = [m for m in parent.children() if "norm" in type(m).__name__.lower()]
    if not norms:
        children = ", ".join(name for name, _ in parent.named_children())
        raise ModelError(
            f"the final norm of {type(base).__name__} must stand beside its blocks at {path!r}, "
            f"found only: {children}"
        )
    final_norm: nn.Module = norms[-1]
    return final_norm
