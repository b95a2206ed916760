"""The steering config: what a calibration found, ready to use, and what it rests on.

A config is `steering.json` and `steering.safetensors` in one directory. The JSON gives the
intervention (operation, site, block, positions, strength), what was measured on held-out data,
and the model, tokenizer and texts it holds for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import PrivateAttr, ValidationError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from calibrate.artefact.beside_section import BesideSection
from calibrate.artefact.hub import Origin, is_origin, local_directory, origin_of
from calibrate.artefact.law_sections import LawsSection
from calibrate.artefact.measured_sections import MeasuredSection
from calibrate.artefact.missing import no_config
from calibrate.artefact.ranges import (
    wrong_blocks,
    wrong_budget,
    wrong_intervention,
    wrong_names,
    wrong_reference,
    wrong_vector,
)
from calibrate.artefact.sections import (
    BudgetSection,
    ConceptSection,
    CostSection,
    InterventionSection,
    ProvenanceSection,
    RangeSection,
    RenderingSection,
    SteeredBlockSection,
    VectorSection,
)
from calibrate.artefact.vectors import read_vectors
from calibrate.common.blocks import site_name
from calibrate.common.errors import AlteredError, ArtefactError, InputError
from calibrate.common.record import CapabilityReport, ModelIdentity, Reference, Section
from calibrate.common.settings import Sampling, Settings, check_seed, finite_strength

if TYPE_CHECKING:
    from calibrate.engine.site import Site, SteeringVector

CONFIG_FILE = "steering.json"
VECTOR_FILE = "steering.safetensors"
VECTOR_KEY = "vector"
FORMAT, VERSION = "steering-config", 2
READABLE = (1, 2)  # version 1 has neither rendering nor long run


class SteeringConfig(Section):
    """A calibrated steering config (see the module's docstring).

    >>> config = calibrate.load("joy/")
    >>> prompt = tokenizer("the house by the river", return_tensors="pt")
    >>> with config.steer(model):
    ...     reply = model.generate(**prompt, max_new_tokens=8, pad_token_id=2)
    """

    format: Literal["steering-config"] = "steering-config"
    version: Literal[1, 2] = 2
    model: ModelIdentity
    rendering: RenderingSection | None = None
    concept: ConceptSection
    vector: VectorSection
    intervention: InterventionSection
    interventions: list[SteeredBlockSection] | None = None
    budget: BudgetSection
    measured: MeasuredSection
    laws: LawsSection
    range: RangeSection
    reference: Reference
    cost: dict[str, CostSection]
    capabilities: CapabilityReport | None = None
    provenance: ProvenanceSection
    beside: BesideSection | None = None

    _vector_file: bytes = PrivateAttr(default=b"")
    _origin: Origin = PrivateAttr(default=Origin())

    @property
    def origin(self) -> Origin:
        """Where it was read."""
        return self._origin

    @property
    def steered_blocks(self) -> list[SteeredBlockSection]:
        """The steered blocks; an earlier config of one block lists none."""
        if self.interventions is not None:
            return self.interventions
        done, norm = self.intervention, self.vector.norm
        residual_norm = abs(done.strength) * norm / abs(done.relative_strength)
        return [
            SteeredBlockSection(
                layer=done.layer,
                key=self.vector.key,
                norm=norm,
                residual_norm=residual_norm,
                signal=self.vector.signal,
            )
        ]

    @property
    def layers(self) -> tuple[int, ...]:
        """The steered blocks' numbers."""
        if self.interventions is None:
            return (self.intervention.layer,)
        return tuple(block.layer for block in self.interventions)

    @property
    def where(self) -> str:
        """The steered blocks in words, such as "block 15" or "blocks 8-26"."""
        return site_name(self.layers, "all")

    @property
    def settings(self) -> Settings:
        """The settings of its calibration, but for `layer`: it steers `layers`.

        What this release does not know is left out, and what an older one did not, at its default.
        """
        recorded = _known(Settings, self.provenance.settings)
        recorded.pop("layer", None)
        recorded["sampling"] = Sampling(**_known(Sampling, recorded["sampling"]))
        return Settings(**recorded)

    @property
    def site(self) -> Site:
        """Where it steers, and along what."""
        import torch

        from calibrate.engine.site import Site, SteeringVector

        if not self._vector_file:
            raise ArtefactError("this config carries no vector; load it with calibrate.load(DIR)")
        tensors = load_tensors(self._vector_file)
        vectors = (
            SteeringVector(
                block.weight * torch.from_numpy(tensors[block.key]),
                block.layer,
                block.residual_norm,
                noise=block.noise,
            )
            for block in self.steered_blocks
        )
        return Site(tuple(vectors), self.intervention.positions)

    @property
    def steering_vector(self) -> SteeringVector:
        """The steering vector itself.

        Raises: ArtefactError if several blocks are steered, each along its own (`site`).
        """
        vectors = self.site.vectors
        if len(vectors) > 1:
            raise ArtefactError(f"this config steers {self.where}; use config.site.vectors")
        return vectors[0]

    def with_vector(self, vector_file: bytes, origin: Origin | None = None) -> SteeringConfig:
        """Return this config carrying its vector, the contents of a safetensors file."""
        config = self.model_copy()
        config._vector_file, config._origin = vector_file, origin or self._origin
        return config

    @contextmanager
    def steer(self, model: Any, strength: float | None = None) -> Iterator[None]:
        """Steer a model inside the `with`, by the calibrated strength or another one.

        model: a LoadedModel, or a transformers model of the calibrated shape. Nests, and
            leaves no hook behind. Positions "last" need batches padded on the left.
        Raises: ArtefactError if the model has another number of blocks or hidden size; InputError
            for a strength that is not finite.
        """
        from calibrate.models.model import blocks_of

        blocks, hidden_size = blocks_of(model)
        if (len(blocks), hidden_size) != (self.model.num_layers, self.model.hidden_size):
            raise ArtefactError(
                f"this config is for {self.model.id} ({self.model.num_layers} blocks of size "
                f"{self.model.hidden_size}), got {len(blocks)} blocks of size {hidden_size}"
            )
        chosen = self.intervention.strength if strength is None else finite_strength(strength)
        with self.site.apply(blocks, chosen):
            yield

    def files(self) -> dict[str, bytes]:
        """Return the contents of `steering.json` and `steering.safetensors`.

        The repository it was read from is named in it, so that its copies are nobody's own.
        """
        origin = {"repository": self.origin.repository}
        provenance = self.provenance.model_copy(update=origin)
        text = self.model_copy(update={"provenance": provenance}).model_dump_json(indent=2)
        return {CONFIG_FILE: f"{text}\n".encode(), self.vector.file: self._vector_file}


def _known(owner: type[Settings | Sampling], recorded: dict[str, Any]) -> dict[str, Any]:
    """What was recorded of the fields that this release has."""
    known = {each.name for each in fields(owner)}
    return {name: value for name, value in recorded.items() if name in known}


def vector_file(vectors: Mapping[int, np.ndarray]) -> tuple[bytes, dict[int, str]]:
    """Return the safetensors file of vectors of shape (hidden_size,) by block, and their keys."""
    several = len(vectors) > 1
    keys = {layer: f"{VECTOR_KEY}.{layer}" if several else VECTOR_KEY for layer in vectors}
    tensors = {keys[layer]: values.astype(np.float32) for layer, values in vectors.items()}
    return bytes(save_tensors(tensors)), keys


def load(directory: str | Path) -> SteeringConfig:
    """Load the config in a directory, or in a repository of the Hub (`calibrate.artefact.hub`).

    Raises: ArtefactError if it is missing, damaged, or of a version this release cannot read.

    >>> config = calibrate.load("joy/")
    >>> config.measured.presence.value > config.measured.presence.baseline
    True
    """
    folder = local_directory(directory)
    try:
        text = (folder / CONFIG_FILE).read_text(encoding="utf-8")
        facts = json.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ArtefactError(no_config(folder / CONFIG_FILE, error)) from error
    except (ValueError, RecursionError) as error:  # of numbers too long and lists too deep as well
        raise ArtefactError(f"{folder / CONFIG_FILE} must be JSON: {error}") from error
    header = facts if isinstance(facts, dict) else {}
    form, version = header.get("format"), header.get("version")
    if form != FORMAT or version not in READABLE:
        raise ArtefactError(
            f"{folder / CONFIG_FILE} must be a {FORMAT} of version 1 or {VERSION}, got {form} "
            f"of version {version}; use the release that wrote it"
        )
    try:
        config = SteeringConfig.model_validate(facts)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtefactError(
            f"{folder / CONFIG_FILE} is damaged: {where}: {first['msg']}"
        ) from error
    _require_in_range(folder / CONFIG_FILE, config)
    origin = origin_of(folder, config.provenance.repository)
    return config.with_vector(_vector_of(folder, config), origin)


def _require_in_range(path: Path, config: SteeringConfig) -> None:
    """Raise ArtefactError for values of the right type that no calibration writes."""
    try:
        check_seed(config.provenance.settings["seed"])
        _ = config.settings
    except (KeyError, TypeError, AttributeError, OverflowError, InputError) as error:
        raise ArtefactError(f"{path} is damaged: provenance.settings: {error}") from error
    first, num_layers = config.intervention.layer, config.model.num_layers
    wrong = {
        **wrong_names(config.model, config.concept, config.measured, config.beside),
        **wrong_intervention(config.intervention, num_layers),
        **wrong_blocks(config.layers, first, config.interventions or [], num_layers),
        **wrong_vector(config.vector, VECTOR_FILE),
        **wrong_budget(config.budget),
        **wrong_reference(config.reference),
        "provenance.repository": not is_origin(config.provenance.repository),
    }
    for field, is_wrong in wrong.items():
        if is_wrong:
            raise ArtefactError(f"{path} is damaged: {field} is out of range; calibrate again")


def _vector_of(folder: Path, config: SteeringConfig) -> bytes:
    keys, section = [block.key for block in config.steered_blocks], config.vector
    path, size = folder / section.file, config.model.hidden_size
    content, unused = read_vectors(path, keys, section.sha256, size)
    if unused:
        raise AlteredError(
            f"{folder / CONFIG_FILE} must list a block in interventions for every vector in "
            f"{path.name}, got none for {', '.join(unused)}; put it back, or calibrate again"
        )
    return content
