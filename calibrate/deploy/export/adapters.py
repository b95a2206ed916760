"""Adapters that the model carries already: put on in memory, or loaded with it by transformers."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from torch import nn

from calibrate.common.errors import ExportRefused
from calibrate.engine.loading import load_model
from calibrate.models.architecture import base_of
from calibrate.models.model import LoadedModel


def carries_adapter(model: Any) -> bool:
    """Whether PEFT has wrapped a model, or modules in it."""
    return hasattr(model, "get_base_model") or any(_wraps(module) for module in model.modules())


def is_quantised(model: Any) -> bool:
    """Whether some weights are not the numbers they stand for, or are held back by accelerate."""
    named = getattr(model, "is_quantized", False) or getattr(
        model.config, "quantization_config", None
    )
    narrow = any(weight.element_size() == 1 for weight in model.parameters())
    packed = any("quantized" in type(module).__module__ for module in model.modules())
    return bool(named) or narrow or packed or any(weight.is_meta for weight in model.parameters())


def merged(loaded: LoadedModel) -> LoadedModel:
    """The model itself, or a copy whose adapters are merged into its weights.

    Raises: ExportRefused for adapters that cannot be merged, as those that prepend to the prompt.
    """
    if not carries_adapter(loaded.model):
        return loaded
    try:
        plain = _without_wrappers(copy.deepcopy(loaded.model))
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        raise ExportRefused(
            f"the adapter that {loaded.name} carries cannot be merged into its weights "
            f"({' '.join(str(error).split())}); export gguf or a snippet"
        ) from error
    return replace(load_model(plain, loaded.tokenizer), name=loaded.name)


def _without_wrappers(model: Any) -> Any:
    if hasattr(model, "get_base_model"):
        if not hasattr(model, "merge_and_unload"):
            raise TypeError("it changes what the model reads, not its weights")
        return model.merge_and_unload()
    base = base_of(model)
    for path, module in list(base.named_modules()):
        if _wraps(module):
            parent, _, name = path.rpartition(".")
            module.merge()
            setattr(base.get_submodule(parent), name, module.get_base_layer())
    if any(hasattr(module, "modules_to_save") for module in base.modules()):
        raise TypeError("it takes the place of whole modules")
    for left in ("peft_config", "_hf_peft_config_loaded"):
        vars(base).pop(left, None)
    return base


def _wraps(module: nn.Module) -> bool:
    return hasattr(module, "base_layer") and hasattr(module, "merge")
