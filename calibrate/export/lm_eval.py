"""lm-evaluation-harness: a `.pt` file for `--model steered`.

A dict from a module's name, relative to the model's `base_model`, to what is added to its output.
The file holds tensors and plain values only, so that `torch.load(weights_only=True)` reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from calibrate.config import SteeringConfig
from calibrate.errors import ArtefactError
from calibrate.export.exporter import EveryPosition, Exported, NextLogProbs, with_vector
from calibrate.files import replacing

if TYPE_CHECKING:
    from calibrate.model import LoadedModel


class LmEval(EveryPosition):
    """Writes one file with the vector and its strength."""

    name = "lm-eval"
    needs_model = True

    def write(self, config: SteeringConfig, loaded: LoadedModel | None, target: Path) -> Exported:
        """Write the file; its name has to end in .pt for the harness to take it."""
        assert loaded is not None
        if target.suffix != ".pt":
            raise ArtefactError(
                f"lm-evaluation-harness tells the format by the name: --to must end in .pt, got "
                f"{str(target)!r}"
            )
        steering = {
            "steering_vector": config.steering_vector.values.clone(),
            "steering_coefficient": config.intervention.strength,
            "action": "add",
            "bias": None,
            "head_index": None,
        }
        with replacing(target) as path:
            torch.save({hookpoint(loaded, config.intervention.layer): steering}, path)
        serve = f"lm_eval --model steered --model_args pretrained={loaded.name},steer_path={target}"
        return Exported(target, (serve,))

    @contextmanager
    def loaded_back(
        self, config: SteeringConfig, loaded: LoadedModel, path: Path
    ) -> Iterator[NextLogProbs]:
        """Find the named module as the harness does, and add what the file says."""
        ((name, one),) = torch.load(path, weights_only=True).items()
        module = dict(loaded.model.base_model.named_modules())[name]
        layer = next(i for i, block in enumerate(loaded.blocks) if block is module)
        values = (one["steering_vector"] * one["steering_coefficient"]).numpy()
        yield with_vector(loaded, values, layer)


def hookpoint(loaded: LoadedModel, layer: int) -> str:
    """The name of a block relative to the model's `base_model`."""
    named = loaded.model.base_model.named_modules()
    return str(next(name for name, module in named if module is loaded.blocks[layer]))
