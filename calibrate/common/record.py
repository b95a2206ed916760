"""Results that the artefact stores unchanged; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a file that is written as JSON; immutable once made."""

    model_config = ConfigDict(frozen=True)


@dataclass(frozen=True)
class ModelIdentity:
    """The model the config was made on.

    revision: None for files without one. tokenizer_sha256: of the vocabulary and the special
    tokens; tokenization_sha256: of the ids of a text, None where it was not recorded.
    """

    id: str
    revision: str | None
    architecture: str
    num_layers: int
    hidden_size: int
    dtype: str
    tokenizer_sha256: str
    chat_template_sha256: str | None
    adds_bos: bool
    tokenization_sha256: str | None = None


@dataclass(frozen=True)
class Capability:
    """Whether a shortcut was found to give the same results as the plain way.

    works: whether it is taken. reason: why not. fallback: what is done instead.
    """

    works: bool
    reason: str | None
    fallback: str | None


@dataclass(frozen=True)
class CapabilityReport:
    """Which shortcuts work for the model, each tried on it once.

    logit_scale, softcap: its logits are those of its unembedding times `logit_scale`, soft-capped.
    suffix_passes: running only the blocks after the steered one. prefix_sharing: running the texts'
    common prefix once. batching: scoring several texts in one pass. fast_decoding: replies by our
    own loop; decoding_prefix: with the prompts' common prefix run once. batched_generation: several
    prompts in one `generate`; null where fast decoding works. token_forwards: cost of the tries.
    """

    logit_scale: float
    softcap: float | None
    suffix_passes: Capability
    prefix_sharing: Capability
    batching: Capability
    fast_decoding: Capability
    decoding_prefix: Capability
    batched_generation: Capability | None
    token_forwards: int


@dataclass(frozen=True)
class BlockRank:
    """What steering one block is worth, estimated by derivatives: α_B, and nats per token.

    gain: by how much the budget moves the concept's replies ahead of their opposites.
    """

    layer: int
    strength_at_budget: float
    gain: float


@dataclass(frozen=True)
class TestedStrength:
    """One strength tested on held-out text: its ΔCE, the upper bound, and whether it held.

    loop_excess: by how much its long replies loop more than unsteered ones, if measured.
    """

    strength: float
    delta_ce: float
    upper: float
    within: bool
    loop_excess: float | None = None


@dataclass(frozen=True)
class Reference:
    """For checking another runtime: one input, and the next token's log-probabilities after it.

    token_ids: the likeliest next tokens under steering; log_probs: their steered, and
        unsteered_log_probs their unsteered, log-probabilities.
    """

    input_ids: list[int]
    token_ids: list[int]
    log_probs: list[float]
    unsteered_log_probs: list[float]
