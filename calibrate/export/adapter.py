"""PEFT: an adapter whose only non-zero part is a bias, α·v, at the steered block.

LoRA of rank 1 with `lora_bias`, its two matrices zero, on a projection whose output reaches the
residual stream unchanged (`calibrate.residual.residual_writers` finds one by trying). Where a norm
or a router stands between, as after post-norm and in mixtures of experts, there is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from calibrate.config import SteeringConfig
from calibrate.errors import ExportRefused, InputError
from calibrate.export.exporter import EveryPosition, Exported, NextLogProbs, baked, unsteered
from calibrate.files import replacing
from calibrate.residual import residual_writers

if TYPE_CHECKING:
    from calibrate.model import LoadedModel


class Adapter(EveryPosition):
    """Writes an adapter directory, with the config beside it."""

    name = "peft"
    needs_model = True

    def check_model(self, config: SteeringConfig, loaded: LoadedModel) -> None:
        """Refuse a block without such a projection."""
        residual_writer(loaded, config.intervention.layer, self.name)

    def write(self, config: SteeringConfig, loaded: LoadedModel | None, target: Path) -> Exported:
        """Write adapter_config.json, adapter_model.safetensors and the config."""
        assert loaded is not None
        path, factor = residual_writer(loaded, config.intervention.layer, self.name)
        module = loaded.model.get_submodule(path)
        transposed = not isinstance(module, torch.nn.Linear)  # GPT-2's Conv1D
        n_in = module.weight.shape[0 if transposed else 1]
        bias = torch.from_numpy(baked(config)) / factor
        key = f"base_model.model.{path}"
        tensors = {
            f"{key}.lora_A.weight": torch.zeros(1, n_in),
            f"{key}.lora_B.weight": torch.zeros(len(bias), 1),
            f"{key}.lora_B.bias": bias.contiguous(),
        }
        with replacing(target) as folder:
            folder.mkdir()
            _lora_config(loaded.name, path, transposed).save_pretrained(folder)
            save_file(tensors, folder / "adapter_model.safetensors")
            for name, content in config.files().items():
                (folder / name).write_bytes(content)
        return Exported(target, (f"PeftModel.from_pretrained(model, '{target}')",))

    @contextmanager
    def loaded_back(
        self, config: SteeringConfig, loaded: LoadedModel, path: Path
    ) -> Iterator[NextLogProbs]:
        """Let PEFT put the adapter on the model, and take it off again."""
        with adapted(loaded, path):
            yield unsteered(loaded)


@contextmanager
def adapted(loaded: LoadedModel, path: Path) -> Iterator[None]:
    """Let PEFT put an adapter on a model inside the `with`."""
    wrapped = _peft().PeftModel.from_pretrained(loaded.model, path)
    try:
        yield
    finally:
        wrapped.unload()
        loaded.model.__dict__.pop("peft_config", None)


def residual_writer(loaded: LoadedModel, layer: int, format_name: str) -> tuple[str, float]:
    """The path of a block's last projection into the residual stream, and its factor.

    Raises: ExportRefused if there is none, or the model is wrapped by PEFT already.
    """
    if hasattr(loaded.model, "get_base_model"):
        raise ExportRefused(
            f"{loaded.name} carries an adapter already; merge it (merge_and_unload) and calibrate "
            "the result"
        )
    writers = residual_writers(loaded, layer)
    if not writers:
        experts = any("expert" in name for name, _ in loaded.blocks[layer].named_modules())
        reason = (
            "its experts are chosen token by token, and none of them writes for all"
            if experts
            else "a norm stands between its projections and the residual stream"
        )
        raise ExportRefused(
            f"the {format_name} format needs a projection that writes into the residual stream, "
            f"but block {layer} of {loaded.name} has none: {reason}; export gguf or a snippet"
        )
    names = {id(module): name for name, module in loaded.model.named_modules()}
    inside = list(writers)[-1]
    return f"{names[id(loaded.blocks[layer])]}.{inside}", writers[inside]


def _lora_config(model: str, path: str, transposed: bool) -> Any:
    return _peft().LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=model,
        r=1,
        lora_alpha=1,
        target_modules=[path],
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
