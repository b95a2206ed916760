"""`.svec`, the JSON of IBM's activation-steering and AISteer360: directions by block, α baked in.

activation-steering and the CAST of AISteer360 add a direction to the input of the block that it is
filed under. What is calibrated after a block is therefore filed under the next, and the last block
has none. (The CAA of AISteer360 adds after a block, and after one only: this file is not for it.)

activation-steering insists on explained variances; a difference of means has none to report, so 1
stands for a block's only direction. Both look keys up by name, so that one more, which says who
wrote the file, does no harm.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from calibrate.artefact.config import SteeringConfig
from calibrate.common.errors import ExportRefused
from calibrate.common.marks import facts_in, signature
from calibrate.deploy.export.exporter import EveryPosition, NextLogProbs, baked
from calibrate.models.hooks import entering, recompiling
from calibrate.models.model import LoadedModel
from calibrate.search.reference import next_log_probs

SIGNATURE = "written_by"


class Svec(EveryPosition):
    """Writes one JSON file."""

    name = "svec"
    needs_model = True
    suffix = ".svec"  # which both libraries append where it is missing

    def check_config(self, config: SteeringConfig) -> None:
        """Refuse the last block and the last position."""
        super().check_config(config)
        last = config.model.num_layers - 1
        if last in config.layers:
            raise ExportRefused(
                f"what loads a .svec adds to the input of a block, so that nothing can be added "
                f"after the last, block {last}; calibrate another --layer, or export peft or folded"
            )

    def wrote(self, path: Path) -> bool:
        """Whether the key that signs the rest is there, and right."""
        facts = facts_in(path)
        signed = facts.pop(SIGNATURE, None)
        return signed is not None and signed == signature(json.dumps(facts).encode())

    def write(
        self, config: SteeringConfig, loaded: LoadedModel | None, path: Path, target: Path
    ) -> None:
        """Write the directions of the steered blocks."""
        assert loaded is not None
        shifts = dict(zip(entered(config), baked(config).values(), strict=True))
        facts: dict[str, Any] = {
            "model_type": loaded.model.config.get_text_config().model_type,
            "directions": {str(layer): shift.tolist() for layer, shift in shifts.items()},
            "explained_variances": {str(layer): 1.0 for layer in shifts},
        }
        facts[SIGNATURE] = signature(json.dumps(facts).encode())
        path.write_text(json.dumps(facts), encoding="utf-8")

    def serve(
        self, config: SteeringConfig, loaded: LoadedModel | None, target: Path
    ) -> tuple[str, ...]:
        """By each library, which would take blocks of its own choice where none are named."""
        vector = f"SteeringVector.load({str(target)!r})"
        blocks = f"behavior_layer_ids={entered(config)}"
        return (
            f"activation-steering: MalleableModel.steer({vector}, {blocks}), one prompt at a time",
            f"AISteer360: CAST(behavior_vector={vector}, {blocks})",
        )

    @contextmanager
    def loaded_back(
        self, config: SteeringConfig, loaded: LoadedModel, path: Path
    ) -> Iterator[NextLogProbs]:
        """Add the file's directions to the inputs of their blocks."""
        directions = json.loads(path.read_text(encoding="utf-8"))["directions"]
        shifts = {int(n): torch.tensor(values) for n, values in directions.items()}

        def steered(ids: Sequence[int]) -> torch.Tensor:
            with recompiling(), entering(loaded.blocks, shifts):
                return next_log_probs(loaded, ids)

        yield steered


def entered(config: SteeringConfig) -> list[int]:
    """The blocks that the steered ones lead to, which is what a `.svec` files vectors under."""
    return [layer + 1 for layer in config.layers]
