"""lm-evaluation-harness: a `.pt` file for `--model steered`.

A dict from a module's name, relative to the model's `base_model`, to what is added to its output.
The file holds tensors and plain values only, so that `torch.load(weights_only=True)` reads it.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Any

import torch

from calibrate.artefact.config import SteeringConfig
from calibrate.common.marks import signature
from calibrate.deploy.export.exporter import EveryPosition, NextLogProbs, with_shifts
from calibrate.deploy.export.place import commit_of, to_be_named
from calibrate.models.architecture import base_of
from calibrate.models.model import LoadedModel


class LmEval(EveryPosition):
    """Writes one file with each block's vector, and the strength."""

    name = "lm-eval"
    needs_model = True

    suffix = ".pt"  # by which the harness tells the format

    def wrote(self, path: Path) -> bool:
        """Whether the archive's comment signs what is in it."""
        try:
            with zipfile.ZipFile(path) as archive:
                return archive.comment.decode() == _signature(archive)
        except (OSError, ValueError, zipfile.BadZipFile):
            return False

    def write(
        self, config: SteeringConfig, loaded: LoadedModel | None, path: Path, target: Path
    ) -> None:
        """Write the file, an archive of torch's, and sign it in the archive's comment."""
        assert loaded is not None
        steering = {
            hookpoint(loaded, vector.layer): {
                "steering_vector": vector.values.clone(),
                "steering_coefficient": config.intervention.strength,
                "action": "add",
                "bias": None,
                "head_index": None,
            }
            for vector in config.site.vectors
        }
        content = io.BytesIO()
        torch.save(steering, content)
        with zipfile.ZipFile(content, "a") as archive:
            archive.comment = _signature(archive).encode()
        path.write_bytes(content.getvalue())

    def serve(
        self, config: SteeringConfig, loaded: LoadedModel | None, target: Path
    ) -> tuple[str, ...]:
        """By the harness, from any folder."""
        assert loaded is not None
        place = self.place(config, loaded)
        commit = commit_of(config, place)
        revision = f",revision={commit}" if commit else ""
        model = f"{place or 'MODEL'}{revision},dtype={config.model.dtype}"
        steering = f"pretrained={model},steer_path={target.resolve()}"
        return (
            f"lm_eval --model steered --model_args {quote(steering)}",
            *to_be_named(place, loaded, "MODEL"),
        )

    @contextmanager
    def loaded_back(
        self, config: SteeringConfig, loaded: LoadedModel, path: Path
    ) -> Iterator[NextLogProbs]:
        """Find the named modules as the harness does, and add what the file says."""
        modules, shifts = dict(_base(loaded).named_modules()), {}
        for name, one in torch.load(path, weights_only=True).items():
            layer = next(i for i, block in enumerate(loaded.blocks) if block is modules[name])
            shifts[layer] = (one["steering_vector"] * one["steering_coefficient"]).numpy()
        yield with_shifts(loaded, shifts)


def hookpoint(loaded: LoadedModel, layer: int) -> str:
    """The name of a block relative to the model's `base_model`."""
    named = _base(loaded).named_modules()
    return str(next(name for name, module in named if module is loaded.blocks[layer]))


def _base(loaded: LoadedModel) -> Any:
    """What transformers calls the base model: the model without its head, or PEFT around it."""
    return base_of(loaded.model).base_model


def _signature(archive: zipfile.ZipFile) -> str:
    return signature(repr([(file.filename, file.CRC) for file in archive.infolist()]).encode())
