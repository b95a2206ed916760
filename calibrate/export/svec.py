"""`.svec`, the JSON of AISteer360 and IBM's activation-steering: directions by block, α baked in.

The second of the two insists on explained variances; a difference of means has none to report, so
1 stands for its only direction.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from calibrate.config import SteeringConfig
from calibrate.export.exporter import EveryPosition, Exported, NextLogProbs, baked, with_vector
from calibrate.files import replacing

if TYPE_CHECKING:
    from calibrate.model import LoadedModel


class Svec(EveryPosition):
    """Writes one JSON file."""

    name = "svec"
    needs_model = True

    def write(self, config: SteeringConfig, loaded: LoadedModel | None, target: Path) -> Exported:
        """Write the direction of the steered block."""
        assert loaded is not None
        layer = str(config.intervention.layer)
        facts = {
            "model_type": loaded.model.config.get_text_config().model_type,
            "directions": {layer: baked(config).tolist()},
            "explained_variances": {layer: 1.0},
        }
        with replacing(target) as path:
            path.write_text(json.dumps(facts), encoding="utf-8")
        return Exported(target, (f"SteeringVector.load('{target}'), multiplier 1.0",))

    @contextmanager
    def loaded_back(
        self, config: SteeringConfig, loaded: LoadedModel, path: Path
    ) -> Iterator[NextLogProbs]:
        """Apply the file's direction to its block."""
        facts = json.loads(path.read_text(encoding="utf-8"))
        ((layer, values),) = facts["directions"].items()
        yield with_vector(loaded, np.array(values, dtype=np.float32), int(layer))
