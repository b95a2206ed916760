"""PEFT: an adapter whose only non-zero parts are biases, α·v, at the steered blocks.

LoRA of rank 1 with `lora_bias`, its two matrices zero, on a projection whose output reaches the
residual stream unchanged (`residual_writers` finds one by trying). Where a norm or a
router stands between, as after post-norm and in mixtures of experts, there is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers.pytorch_utils import Conv1D

from calibrate.artefact.config import SteeringConfig
from calibrate.common.errors import ExportRefused, InputError
from calibrate.deploy.export.adapters import carries_adapter, is_quantised
from calibrate.deploy.export.exporter import EveryPosition, NextLogProbs, baked, unsteered
from calibrate.deploy.export.place import commit_of
from calibrate.deploy.export.projections import residual_writers
from calibrate.deploy.export.restored import restored
from calibrate.models.model import LoadedModel


class Adapter(EveryPosition):
    """Writes an adapter directory, with the config beside it."""

    name = "peft"
    directory = True
    needs_model = True

    def check_model(self, config: SteeringConfig, loaded: LoadedModel) -> None:
        """Refuse a block without such a projection."""
        for layer in config.layers:
            residual_writer(loaded, layer, self.name)

    def write(
        self, config: SteeringConfig, loaded: LoadedModel | None, path: Path, target: Path
    ) -> None:
        """Write adapter_config.json, adapter_model.safetensors and the config."""
        assert loaded is not None
        biases, tensors = writer_biases(config, loaded, self.name), {}
        modules = {name: loaded.model.get_submodule(name) for name in biases}
        for name, bias in biases.items():
            key = f"base_model.model.{name}"
            tensors[f"{key}.lora_A.weight"] = torch.zeros(1, _width_in(modules[name]))
            tensors[f"{key}.lora_B.weight"] = torch.zeros(len(bias), 1)
            tensors[f"{key}.lora_B.bias"] = bias.contiguous()
        transposed = any(isinstance(module, Conv1D) for module in modules.values())
        place = self.place(config, loaded)
        commit = commit_of(config, place)
        _lora_config(place, commit, list(biases), transposed).save_pretrained(path)
        save_file(tensors, path / "adapter_model.safetensors")
        for file, content in config.files().items():
            (path / file).write_bytes(content)

    def serve(
        self, config: SteeringConfig, loaded: LoadedModel | None, target: Path
    ) -> tuple[str, ...]:
        """By PEFT."""
        return (f"PeftModel.from_pretrained(model, {str(target)!r})",)

    @contextmanager
    def loaded_back(
        self, config: SteeringConfig, loaded: LoadedModel, path: Path
    ) -> Iterator[NextLogProbs]:
        """Let PEFT put the adapter on the model, and take it off again."""
        with adapted(loaded, path):
            yield unsteered(loaded)


@contextmanager
def adapted(loaded: LoadedModel, path: Path) -> Iterator[None]:
    """Let PEFT put an adapter on a model inside the `with`; whatever happens, it comes off again.

    Raises: ExportRefused with PEFT's reason if it cannot.
    """
    peft = _peft()
    with restored(loaded.model):
        try:
            peft.PeftModel.from_pretrained(loaded.model, path)
        except Exception as error:  # PEFT's own, torch's, and those of quantisation libraries
            reason = " ".join(str(error).split()) or type(error).__name__
            way_out = "load it in full precision, or " if is_quantised(loaded.model) else ""
            raise ExportRefused(
                f"PEFT cannot put the adapter on {loaded.name} ({reason[:300]}); {way_out}export "
                "gguf or a snippet"
            ) from error
        yield


def writer_biases(
    config: SteeringConfig, loaded: LoadedModel, format_name: str
) -> dict[str, torch.Tensor]:
    """What is added to the output of each steered block's `residual_writer`, by its path.

    Raises: ExportRefused as `residual_writer` does.
    """
    biases = {}
    for layer, shift in baked(config).items():
        path, factor = residual_writer(loaded, layer, format_name)
        biases[path] = torch.from_numpy(shift) / factor
    return biases


def residual_writer(loaded: LoadedModel, layer: int, format_name: str) -> tuple[str, float]:
    """The path of a block's last projection into the residual stream, and its factor.

    Raises: ExportRefused if there is none, or the model carries an adapter already.
    """
    if carries_adapter(loaded.model):
        raise ExportRefused(
            f"{loaded.name} carries an adapter already; merge it (merge_and_unload), save the "
            "result and calibrate that, or export folded, which merges both"
        )
    writers = residual_writers(loaded, layer)
    if not writers:
        reason = _why_none(loaded, layer)
        raise ExportRefused(
            f"the {format_name} format needs a projection that writes into the residual stream, "
            f"but block {layer} of {loaded.name} has none: {reason}; export gguf or a snippet"
        )
    names = {id(module): name for name, module in loaded.model.named_modules()}
    inside = list(writers)[-1]
    return f"{names[id(loaded.blocks[layer])]}.{inside}", writers[inside]


def _why_none(loaded: LoadedModel, layer: int) -> str:
    if is_quantised(loaded.model):
        return "it is quantised, and its projections are of a kind that takes no bias"
    if any("expert" in name for name, _ in loaded.blocks[layer].named_modules()):
        return "its experts are chosen token by token, and none of them writes for all"
    return "a norm stands between its projections and the residual stream"


def _width_in(module: Any) -> int:
    width: int = module.nx if isinstance(module, Conv1D) else module.in_features
    return width


def _lora_config(model: str | None, commit: str | None, paths: list[str], transposed: bool) -> Any:
    return _peft().LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=model,
        revision=commit,
        r=1,
        lora_alpha=1,
        target_modules=paths,
        lora_bias=True,
        fan_in_fan_out=transposed,
        inference_mode=True,
    )


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise InputError(
            "the peft format needs PEFT: pip install 'steering-calibrate[peft]'"
        ) from error
    return peft
