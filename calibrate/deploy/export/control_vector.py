"""llama.cpp control vectors: GGUF files with one `direction.N` a block, α baked in.

`direction.N` is added to the output of 0-based block N, at every position; block 0 has none, as
N counts from 1. The recommended scale is therefore 1.0, which is what --control-vector applies.
Read by llama.cpp and repeng (vgel's control vectors); keys under `glp.` describe the file to
whoever knows them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote

import gguf
import numpy as np

from calibrate.artefact.config import SteeringConfig
from calibrate.common.errors import ArtefactError, ExportRefused
from calibrate.common.marks import signature
from calibrate.deploy.export.exporter import EveryPosition, NextLogProbs, baked, with_shifts
from calibrate.models.model import LoadedModel

ARCHITECTURE = "controlvector"
SIGNATURE = "glp.written_by"


class ControlVector(EveryPosition):
    """Writes a direction for each steered block, F32."""

    name = "gguf"

    def check_config(self, config: SteeringConfig) -> None:
        """Refuse block 0 and the last position."""
        super().check_config(config)
        if 0 in config.layers:
            raise ExportRefused(
                "a llama.cpp control vector counts blocks from 1, so block 0 has no direction in "
                "it; calibrate another --layer, or export peft or folded"
            )

    def wrote(self, path: Path) -> bool:
        """Whether the key that signs the directions is there, and right."""
        try:
            reader = gguf.GGUFReader(path)
            content = b"".join(tensor.data.tobytes() for tensor in reader.tensors)
            return bool(reader.fields[SIGNATURE].contents() == signature(content))
        except (OSError, ValueError, KeyError, IndexError):
            return False

    def write(
        self, config: SteeringConfig, loaded: LoadedModel | None, path: Path, target: Path
    ) -> None:
        """Write the GGUF file."""
        write_directions(path, config)

    def serve(
        self, config: SteeringConfig, loaded: LoadedModel | None, target: Path
    ) -> tuple[str, ...]:
        """By llama.cpp, with the GGUF file it came from if there was one, and repeng."""
        model = config.model.id
        file = Path(model).resolve() if model.endswith(".gguf") else "MODEL.gguf"
        return (
            f"llama-cli -m {quote(str(file))} --control-vector {quote(str(target))}",
            f"repeng: ControlVector.import_gguf({str(target)!r}), coefficient 1.0",
        )

    @contextmanager
    def loaded_back(
        self, config: SteeringConfig, loaded: LoadedModel, path: Path
    ) -> Iterator[NextLogProbs]:
        """Apply the file's directions by llama.cpp's rule."""
        yield with_shifts(loaded, read_directions(path))


def write_directions(path: Path, config: SteeringConfig) -> None:
    """Write α·v as the direction of each block, with what describes it."""
    intervention, directions = config.intervention, baked(config)
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    hint = config.model.architecture.removesuffix("ForCausalLM").lower()
    writer.add_string(f"{ARCHITECTURE}.model_hint", hint)
    writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(directions))
    for key, fact in {
        "operation": intervention.operation,
        "site": intervention.site,
        "positions": intervention.positions,
        "concept": config.concept.name,
        "model": config.model.id,
        "recommended_scale": "1.0",
    }.items():
        writer.add_string(f"glp.{key}", fact)
    writer.add_float32("glp.baked_strength", intervention.strength)
    writer.add_array("glp.layers", list(directions))
    content = b"".join(direction.tobytes() for direction in directions.values())
    writer.add_string(SIGNATURE, signature(content))
    for layer, direction in directions.items():
        writer.add_tensor(f"direction.{layer}", direction)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_directions(path: Path) -> dict[int, np.ndarray]:
    """Read a control vector as llama.cpp does: by block, F32 arrays of shape (hidden_size,).

    Raises: ArtefactError if it is not one.
    """
    try:
        reader = gguf.GGUFReader(path)
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{path} must be a GGUF file: {error}") from error
    directions = {
        int(tensor.name.removeprefix("direction.")): np.array(tensor.data, dtype=np.float32)
        for tensor in reader.tensors
        if tensor.name.startswith("direction.")
        and tensor.tensor_type == gguf.GGMLQuantizationType.F32
    }
    if not directions:
        raise ArtefactError(f"{path} must hold a tensor direction.N of type F32, got none")
    return directions
