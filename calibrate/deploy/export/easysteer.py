"""EasySteer, a vLLM fork: the control vector, and a steering spec that says how to apply it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shlex import quote

from calibrate.artefact.config import SteeringConfig
from calibrate.deploy.export.control_vector import read_directions, write_directions
from calibrate.deploy.export.exporter import EveryPosition, NextLogProbs, with_shifts
from calibrate.models.model import LoadedModel

VECTOR_NAME, SPEC_NAME = "vector.gguf", "steering.json"


class EasySteer(EveryPosition):
    """Writes a directory with both files; blocks are named as the model's modules are, from 0."""

    name = "easysteer"

    directory = True

    def write(
        self, config: SteeringConfig, loaded: LoadedModel | None, path: Path, target: Path
    ) -> None:
        """Write the vector and the spec, which names the vector by its full path.

        A published spec names it from its own directory, where EasySteer has to be started then.
        """
        write_directions(path / VECTOR_NAME, config)
        vector = VECTOR_NAME if self.published else str(target.resolve() / VECTOR_NAME)
        spec = steering_spec(vector, config.layers)
        (path / SPEC_NAME).write_text(f"{json.dumps(spec, indent=2)}\n", encoding="utf-8")

    def serve(
        self, config: SteeringConfig, loaded: LoadedModel | None, target: Path
    ) -> tuple[str, ...]:
        """By the fork of vLLM."""
        spec = quote(str(target / SPEC_NAME))
        return (f"vllm serve MODEL --enable-steer-vector --steering-config {spec}",)

    @contextmanager
    def loaded_back(
        self, config: SteeringConfig, loaded: LoadedModel, path: Path
    ) -> Iterator[NextLogProbs]:
        """Follow the spec: the file it names, at the blocks it names, at its scale."""
        (entry,) = json.loads((path / SPEC_NAME).read_text(encoding="utf-8"))["vectors"]
        directions = read_directions(path / Path(entry["source"]).name)
        yield with_shifts(
            loaded, {layer: entry["scale"] * directions[layer] for layer in entry["layers"]}
        )


def steering_spec(source: str, layers: Sequence[int]) -> dict[str, object]:
    """The spec of vectors whose strength is baked in, added as they are at every position."""
    return {
        "vectors": [
            {
                "source": source,
                "algorithm": "direct",
                "scale": 1.0,
                "layers": list(layers),
                "normalize": False,
                "apply": {"prompt": "all", "generation": "all"},
            }
        ]
    }
