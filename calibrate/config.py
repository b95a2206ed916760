"""The steering config: what a calibration found, ready to use, and what it rests on.

A config is `steering.json` and `steering.safetensors` in one directory. The JSON says what is
done to the model (operation, site, block, positions, strength), what was measured about it on
held-out data, and which model, tokenizer and texts that holds for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from calibrate.errors import ArtefactError

if TYPE_CHECKING:
    from calibrate.vector import SteeringVector

CONFIG_FILE = "steering.json"
VECTOR_FILE = "steering.safetensors"
VECTOR_KEY = "vector"
FORMAT, VERSION = "steering-config", 1


class Section(BaseModel):
    """A part of the config; immutable once made."""

    model_config = ConfigDict(frozen=True)


class ModelSection(Section):
    """The model the config was made on."""

    id: str
    revision: str | None
    architecture: str
    num_layers: int
    hidden_size: int
    dtype: str
    tokenizer_sha256: str
    chat_template_sha256: str | None
    adds_bos: bool


class ConceptSection(Section):
    """The concept, the direction steered in, and the texts used."""

    name: str
    goal: Literal["increase", "decrease"]
    n_positive: int
    n_negative: int
    negatives: Literal["contrastive", "random"]
    data_sha256: str


class VectorSection(Section):
    """Where the steering vector is; `norm` is ‖v‖, `sha256` that of the file."""

    file: str
    key: str
    norm: float
    sha256: str


class InterventionSection(Section):
    """What is done: `strength`·v is added to the output of block `layer` (0-based).

    relative_strength: α‖v‖ / median ‖h‖, comparable across blocks and models.
    """

    operation: Literal["add"] = "add"
    site: Literal["block_output"] = "block_output"
    layer: int
    positions: Literal["all", "last"]
    strength: float
    relative_strength: float


class BudgetSection(Section):
    """The largest allowed rise of cross-entropy, and the confidence it holds at."""

    metric: Literal["cross_entropy"] = "cross_entropy"
    limit: float
    unit: Literal["nats/token"] = "nats/token"
    confidence: float


class IntervalSection(Section):
    """A measured value with its two-sided confidence interval."""

    value: float
    low: float
    high: float


class DeltaCESection(IntervalSection):
    """ΔCE on held-out text; `upper` is the one-sided bound that was verified.

    corpus: "own_replies", where the exact KL stands for ΔCE, or "file".
    """

    upper: float
    corpus: Literal["own_replies", "file"]
    n_sequences: int
    n_tokens: int


class PresenceSection(IntervalSection):
    """Presence at the strength, and at α = 0 on the same prompts with the same noise.

    change: the paired difference from the baseline.
    """

    baseline: float
    baseline_interval: tuple[float, float]
    change: IntervalSection
    n_prompts: int
    n_completions: int


class ControlsSection(Section):
    """Presence without the concept's own vector: how much any push, or a request, does.

    random_vector: a random vector of the same norm at the same strength and block.
    prompt_only: unsteered, asked in plain words for the concept (or its absence).
    """

    random_vector: IntervalSection
    prompt_only: IntervalSection


class FluencySection(Section):
    """How the steered replies read to the unsteered model, and how repetitive they are.

    log_prob: mean log-probability per token under the unsteered model, nats.
    distinct_2: distinct word pairs per word pair, in [0, 1].
    """

    log_prob: float
    log_prob_baseline: float
    distinct_2: float
    distinct_2_baseline: float


class MeasuredSection(Section):
    """Everything measured, all of it on held-out data."""

    delta_ce: DeltaCESection
    presence: PresenceSection
    controls: ControlsSection
    fluency: FluencySection


class GoodnessSection(Section):
    """How a law did at a strength it had not been fitted on."""

    strength: float
    predicted: float
    measured: float
    relative_error: float
    good: bool


class CrossEntropyLawSection(Section):
    """ΔCE(α) = (gα + ½cα²) / (1 + b|α| + ½cα²/P): g, c, b and P."""

    slope: float
    curvature: float
    saturation: float
    plateau: float
    goodness: GoodnessSection


class ConceptLawSection(Section):
    """logit F(α) = r + ν·α, F the mass of the concept's tokens: r and ν."""

    log_odds: float
    gain: float


class LawsSection(Section):
    """The laws fitted at the steered block."""

    cross_entropy: CrossEntropyLawSection
    concept: ConceptLawSection


class RangeSection(Section):
    """Which strengths make sense.

    strength_at_budget: α_B, the law's strength that spends the budget.
    sweet_spot: from the strength that doubles the odds of the concept's tokens (or, if that
        is nearer to 0 than half of α_B, half of α_B) to α_B; ordered by size.
    """

    strength_at_budget: IntervalSection
    sweet_spot: tuple[float, float]


class ReferenceSection(Section):
    """For checking another stack: one input, and the next token's log-probabilities after it.

    token_ids: the likeliest next tokens under steering; log_probs: their steered, and
        unsteered_log_probs their unsteered, log-probabilities.
    """

    input_ids: list[int]
    token_ids: list[int]
    log_probs: list[float]
    unsteered_log_probs: list[float]


class CostSection(Section):
    """What one stage spent."""

    token_forwards: int
    seconds: float


class ProvenanceSection(Section):
    """How the config was made, so that it can be made again."""

    versions: dict[str, str]
    seed: int
    created: str
    fingerprint: str
    settings: dict[str, Any]


class SteeringConfig(Section):
    """A calibrated steering config (see the module's docstring)."""

    format: Literal["steering-config"] = "steering-config"
    version: Literal[1] = 1
    model: ModelSection
    concept: ConceptSection
    vector: VectorSection
    intervention: InterventionSection
    budget: BudgetSection
    measured: MeasuredSection
    laws: LawsSection
    range: RangeSection
    reference: ReferenceSection
    cost: dict[str, CostSection]
    provenance: ProvenanceSection

    _vector_file: bytes = PrivateAttr(default=b"")

    @property
    def steering_vector(self) -> SteeringVector:
        """The steering vector itself."""
        import torch

        from calibrate.vector import SteeringVector

        if not self._vector_file:
            raise ArtefactError("this config carries no vector; load it with calibrate.load(DIR)")
        values = torch.from_numpy(load_tensors(self._vector_file)[self.vector.key])
        done = self.intervention
        residual_norm = abs(done.strength) * self.vector.norm / abs(done.relative_strength)
        return SteeringVector(values, done.layer, residual_norm)

    def with_vector(self, vector_file: bytes) -> SteeringConfig:
        """Return this config carrying its vector, the contents of a safetensors file."""
        config = self.model_copy()
        config._vector_file = vector_file
        return config

    @contextmanager
    def steer(self, model: Any, strength: float | None = None) -> Iterator[None]:
        """Steer a model inside the `with`, by the calibrated strength or another one.

        model: a LoadedModel, or a transformers model of the calibrated shape. Nests, and
            leaves no hook behind. Positions "last" need batches padded on the left.
        Raises: ArtefactError if the model has another number of blocks or hidden size.
        """
        from calibrate.model import blocks_of

        blocks, hidden_size = blocks_of(model)
        if (len(blocks), hidden_size) != (self.model.num_layers, self.model.hidden_size):
            raise ArtefactError(
                f"this config is for {self.model.id} ({self.model.num_layers} blocks of size "
                f"{self.model.hidden_size}), got {len(blocks)} blocks of size {hidden_size}"
            )
        chosen = self.intervention.strength if strength is None else strength
        with self.steering_vector.apply(blocks, chosen, self.intervention.positions):
            yield

    def files(self) -> dict[str, bytes]:
        """Return the contents of `steering.json` and `steering.safetensors`."""
        text = self.model_dump_json(indent=2)
        return {CONFIG_FILE: f"{text}\n".encode(), self.vector.file: self._vector_file}


def vector_file(values: np.ndarray) -> bytes:
    """Return the safetensors file of a vector of shape (hidden_size,)."""
    return bytes(save_tensors({VECTOR_KEY: values.astype(np.float32)}))


def load(directory: str | Path) -> SteeringConfig:
    """Load the config in a directory.

    Raises: ArtefactError if it is missing, damaged, or of a version this release cannot read.
    """
    folder = Path(directory)
    try:
        text = (folder / CONFIG_FILE).read_text(encoding="utf-8")
        facts = json.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ArtefactError(
            f"{folder} must hold a {CONFIG_FILE}, but it cannot be read ({error}); "
            "name a directory that calibrate wrote"
        ) from error
    except json.JSONDecodeError as error:
        raise ArtefactError(f"{folder / CONFIG_FILE} must be JSON: {error}") from error
    found = (facts.get("format"), facts.get("version")) if isinstance(facts, dict) else (None, None)
    if found != (FORMAT, VERSION):
        raise ArtefactError(
            f"{folder / CONFIG_FILE} must be a {FORMAT} of version {VERSION}, got {found[0]} "
            f"of version {found[1]}; use the release that wrote it"
        )
    try:
        config = SteeringConfig.model_validate(facts)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtefactError(
            f"{folder / CONFIG_FILE} is damaged: {where}: {first['msg']}"
        ) from error
    return config.with_vector(_checked_vector(folder, config))


def _checked_vector(folder: Path, config: SteeringConfig) -> bytes:
    path = folder / config.vector.file
    try:
        content = path.read_bytes()
        load_tensors(content)[config.vector.key]
    except (OSError, KeyError, SafetensorError) as error:
        raise ArtefactError(f"{path} must hold the steering vector: {error}") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != config.vector.sha256:
        raise ArtefactError(
            f"{path} must have SHA-256 {config.vector.sha256}, got {digest}: it is not the "
            "vector this config was calibrated with"
        )
    return content
