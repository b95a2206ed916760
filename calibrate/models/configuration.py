"""What decides, beside its weights, what a model computes.

An adapter's weights are among the model's, but not by how much they count, nor which adapter is
on. A checkpoint may bring code of its own, which can be edited while the weights stay. And anybody
may hang hooks into a model.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from torch import nn

from calibrate.common.marks import sha256_of
from calibrate.models.architecture import base_of
from calibrate.models.hooks import hooks_of_others
from calibrate.models.model import LoadedModel

NOT_OF_RESULTS = {"_name_or_path", "transformers_version", "architectures"}  # entries of a config
NOT_OF_ADAPTERS = {"base_model_name_or_path", "revision", "peft_version", "inference_mode"}
BROUGHT = "transformers_modules."  # how the modules' names begin that came with a checkpoint


def configuration(loaded: LoadedModel) -> Any:
    """What a model computes with beside its weights, as JSON values.

    It is how the blocks compute, such as rotary angles and windows, and which tokens end a reply;
    where the blocks are; its adapters; code that came with it; and hooks that others put there.
    """
    model, base = loaded.model, base_of(loaded.model)
    config: dict[str, Any] = model.config.to_dict()
    facts = [
        {name: value for name, value in config.items() if name not in NOT_OF_RESULTS},
        model.generation_config.eos_token_id,
        next((path for path, part in base.named_modules() if part is loaded.blocks), None),
        _adapters(model),
        _code(model),
        list(hooks_of_others(model)),
    ]
    return json.loads(json.dumps(facts, sort_keys=True, default=_plain))


def _adapters(model: nn.Module) -> list[Any]:
    """The adapters' configs by name, and by layer which are active, merged or off, and how scaled.

    A layer's scale can be set without its config.
    """
    configs = {
        name: {key: value for key, value in config.to_dict().items() if key not in NOT_OF_ADAPTERS}
        for name, config in (getattr(model, "peft_config", None) or {}).items()
    }
    layers = {
        path: [
            layer.active_adapters,
            getattr(layer, "merged_adapters", None),
            getattr(layer, "disable_adapters", None),
            getattr(layer, "scaling", None),
        ]
        for path, layer in model.named_modules()
        if hasattr(layer, "_active_adapter")
    }
    return [configs, layers]


def _code(model: nn.Module) -> dict[str, str]:
    """The digest of every Python file that came with a checkpoint and is in use, by its name."""
    names = {type(part).__module__ for part in model.modules()}
    packages = {name.rpartition(".")[0] for name in names if name.startswith(BROUGHT)}
    files = {
        name.rpartition(".")[2]: getattr(module, "__file__", None)
        for name, module in list(sys.modules.items())
        if name.rpartition(".")[0] in packages
    }
    return {name: sha256_of(Path(file)) for name, file in files.items() if file is not None}


def _plain(value: Any) -> Any:
    """A value of a config that JSON does not know; a set is in no order of its own."""
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)
