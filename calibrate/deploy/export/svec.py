"""`.svec`, the JSON of AISteer360 and IBM's activation-steering: directions by block, α baked in.

The second of the two insists on explained variances; a difference of means has none to report, so
1 stands for a block's only direction. Both look keys up by name, so that one more, which says who
wrote the file, does no harm.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from calibrate.artefact.config import SteeringConfig
from calibrate.common.marks import facts_in, signature
from calibrate.deploy.export.exporter import EveryPosition, NextLogProbs, baked, with_shifts
from calibrate.models.model import LoadedModel

SIGNATURE = "written_by"


class Svec(EveryPosition):
    """Writes one JSON file."""

    name = "svec"
    needs_model = True

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
        shifts = baked(config)
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
        """By both libraries, in the same words."""
        return (f"SteeringVector.load({str(target)!r}), multiplier 1.0",)

    @contextmanager
    def loaded_back(
        self, config: SteeringConfig, loaded: LoadedModel, path: Path
    ) -> Iterator[NextLogProbs]:
        """Apply the file's directions to their blocks."""
        directions = json.loads(path.read_text(encoding="utf-8"))["directions"]
        yield with_shifts(
            loaded, {int(n): np.array(values, dtype=np.float32) for n, values in directions.items()}
        )
