"""What an exporter does, and what most of them share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from calibrate.artefact.config import SteeringConfig
from calibrate.common.errors import ExportRefused
from calibrate.deploy.export.place import hub_id_of, place_of
from calibrate.engine.site import Site, SteeringVector
from calibrate.models.model import LoadedModel
from calibrate.search.reference import next_log_probs

NextLogProbs = Callable[[Sequence[int]], torch.Tensor]


@dataclass(frozen=True)
class Exported:
    """What was written, how to serve it, and how well it reproduces the reference.

    path: the file or directory. serve: what to do with it, a line each. gap: largest difference
    of log-probabilities from the reference, and the tolerance it was held to; None if unchecked.
    """

    path: Path
    serve: tuple[str, ...]
    gap: float | None = None
    tolerance: float | None = None


class Exporter(Protocol):
    """Writes a config in one format, and loads it back as the consumer does.

    directory: whether it writes a directory. suffix: how the file's name has to end.
    published: whether what it writes names no place on this machine. renders: whether it brings
    along what the chat template was given.
    """

    name: str
    published: bool
    directory: bool
    suffix: str | None
    needs_model: bool
    renders: bool

    def check_config(self, config: SteeringConfig) -> None:
        """Raise ExportRefused if the format cannot express the config."""
        ...

    def subject(self, loaded: LoadedModel) -> LoadedModel:
        """The model that is exported: this one, or a copy where the format needs it plainer."""
        ...

    def check_model(self, config: SteeringConfig, loaded: LoadedModel) -> None:
        """Raise ExportRefused if the format cannot express it for this model."""
        ...

    def wrote(self, path: Path) -> bool:
        """Whether a file is an export of this format; of no interest for directories."""
        ...

    def write(
        self, config: SteeringConfig, loaded: LoadedModel | None, path: Path, target: Path
    ) -> None:
        """Write it to a path, from where it will be moved to `target`.

        path: of a file that is not there, or of an empty directory. `loaded` is there if
        `needs_model`.
        """
        ...

    def serve(
        self, config: SteeringConfig, loaded: LoadedModel | None, target: Path
    ) -> tuple[str, ...]:
        """What to do with it, a line each."""
        ...

    def loaded_back(
        self, config: SteeringConfig, loaded: LoadedModel, path: Path
    ) -> AbstractContextManager[NextLogProbs]:
        """Give a function from token ids to the next token's log-probabilities, steered."""
        ...


class AnyModel:
    """What most exporters are: one file, for any model."""

    name: str
    directory = False
    suffix: str | None = None
    needs_model = False
    renders = False

    def __init__(self, published: bool = False) -> None:
        self.published = published

    def place(self, config: SteeringConfig, loaded: LoadedModel) -> str | None:
        """What `from_pretrained` finds the model by; None if no name that may be told leads to it.

        That is the name in the config for a published export, if it is a hub id.
        """
        return hub_id_of(config) if self.published else place_of(loaded)

    def subject(self, loaded: LoadedModel) -> LoadedModel:
        """The model as it is."""
        return loaded

    def check_model(self, config: SteeringConfig, loaded: LoadedModel) -> None:
        """Accept any model."""

    def wrote(self, path: Path) -> bool:
        """No file is recognised, so none is replaced."""
        return False


class EveryPosition(AnyModel):
    """For formats that steer every position: refuses other configs."""

    def check_config(self, config: SteeringConfig) -> None:
        """Raise ExportRefused if not all positions are steered."""
        if config.intervention.positions != "all":
            raise ExportRefused(
                f"the {self.name} format steers every position, but this strength was calibrated "
                "for the last one and would over-steer; calibrate with --positions all, or export "
                "a snippet"
            )


def to_be_given(config: SteeringConfig) -> tuple[str, ...]:
    """A line that says what the chat template is to be given, if it was given anything."""
    rendering, given = config.rendering, []
    if rendering is not None and rendering.kwargs:
        variables = json.dumps(rendering.kwargs, ensure_ascii=False)
        given.append(f"chat_template_kwargs {variables}")
    if rendering is not None and rendering.date is not None:
        given.append(f"{rendering.date} as its date of today")
    if not given:
        return ()
    return (f"the chat template must be given {' and '.join(given)}, as for the calibration",)


def baked(config: SteeringConfig) -> dict[int, np.ndarray]:
    """α·v by block, float32 arrays of shape (hidden_size,)."""
    strength = config.intervention.strength
    return {
        vector.layer: (vector.values.numpy() * strength).astype(np.float32)
        for vector in config.site.vectors
    }


def with_shifts(loaded: LoadedModel, shifts: Mapping[int, np.ndarray]) -> NextLogProbs:
    """The next token's log-probabilities with shifts added after blocks, at all positions."""
    vectors = (
        SteeringVector(torch.from_numpy(values), layer, residual_norm=1.0)
        for layer, values in sorted(shifts.items())
    )
    site = Site(tuple(vectors))

    def steered(ids: Sequence[int]) -> torch.Tensor:
        with site.apply(loaded.blocks, 1.0):
            return next_log_probs(loaded, ids)

    return steered


def unsteered(loaded: LoadedModel) -> NextLogProbs:
    """The next token's log-probabilities of a model that is steered by itself."""
    return lambda ids: next_log_probs(loaded, ids)
