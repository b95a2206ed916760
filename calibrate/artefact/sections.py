"""The sections of the steering config, the parts of `steering.json`."""

from __future__ import annotations

import math
from typing import Any, Literal

from calibrate.common.estimate import Interval
from calibrate.common.record import Section


class RenderingSection(Section):
    """How conversations become prompts; every user of the config renders them the same way.

    kwargs: variables of the chat template. date: its date of today, None if it uses none. content:
    whether a message's content is text or a list of parts. system: its own role, or "folded" into
    the first prompt. history: earlier turns as turns, or "folded" into the prompt's text.
    strips_end: whether end tokens that the tokenizer appends are removed.
    """

    kwargs: dict[str, Any]
    date: str | None
    content: Literal["text", "parts"]
    system: Literal["role", "folded"]
    history: Literal["turns", "folded"]
    strips_end: bool


class ConceptSection(Section):
    """The concept, the direction steered in, and the texts used."""

    name: str
    goal: Literal["increase", "decrease"]
    n_positive: int
    n_negative: int
    negatives: Literal["contrastive", "random"]
    data_sha256: str

    @property
    def direction(self) -> str:
        """Where the model is steered: towards the concept, or away from it."""
        return "towards" if self.goal == "increase" else "away from"


class VectorSection(Section):
    """Where the steering vector is.

    norm: ‖v‖; of several blocks, that of the vectors' sum. key: of v; of several blocks, of the
    first one's. sha256: of the file. signal: share of ‖v‖² that is not sampling noise, in [0, 1];
    None in older configs.
    """

    file: str
    key: str
    norm: float
    sha256: str
    signal: float | None = None

    @property
    def says(self) -> str:
        """How much of it is noise, in words; empty where unknown."""
        if self.signal is None:
            return ""
        off = math.degrees(math.acos(math.sqrt(self.signal)))
        return (
            f"{self.signal:.0%} of ‖v‖² is signal, the rest sampling noise of few texts: about "
            f"{off:.0f}° off what endless texts would give"
        )


class InterventionSection(Section):
    """The intervention: `strength`·v is added to the output of block `layer` (0-based).

    layer: of several steered blocks, which `SteeringConfig.interventions` lists, the first.
    relative_strength: α‖v‖ / median ‖h‖, comparable across blocks and models; of several blocks,
    with the sum of their vectors, after the last.
    """

    operation: Literal["add"] = "add"
    site: Literal["block_output"] = "block_output"
    layer: int
    positions: Literal["all", "last"]
    strength: float
    relative_strength: float


class SteeredBlockSection(Section):
    """One steered block: `strength`·`weight`·v is added to the output of block `layer` (0-based).

    key: of v in the vector file. norm: ‖v‖. residual_norm: median ‖h‖ after the block.
    signal: share of ‖v‖² that is not sampling noise, in [0, 1].
    """

    layer: int
    key: str
    weight: float = 1.0
    norm: float
    residual_norm: float
    signal: float | None = None

    @property
    def noise(self) -> float | None:
        """Expected squared distance of `weight`·v from what endless texts would give."""
        return None if self.signal is None else (1 - self.signal) * (self.weight * self.norm) ** 2


class BudgetSection(Section):
    """The largest allowed rise of cross-entropy, and the confidence it holds at."""

    metric: Literal["cross_entropy"] = "cross_entropy"
    limit: float
    unit: Literal["nats/token"] = "nats/token"
    confidence: float


class RangeSection(Section):
    """Which strengths make sense.

    strength_at_budget: α_B, the law's strength that spends the budget.
    sweet_spot: from the strength that doubles the odds of the concept's tokens (halves them,
        steering away), or half of the far end if smaller, to α_B, or the peak of those tokens' mass
        if smaller; beyond that peak, more strength costs more and brings less (Theorem 3.3).
        Ordered by size.
    """

    strength_at_budget: Interval
    sweet_spot: tuple[float, float]


def sweet_spot(start: float, at_budget: float, mass_peak: float) -> tuple[float, float]:
    """From a size of strength, or half of the end, to α_B or the peak of the tokens' mass.

    Steered away from the concept, or where steering towards it lowers it at once, their mass has no
    peak but its beginning.
    """
    end = min(at_budget, mass_peak) if at_budget > 0 and mass_peak > 0 else abs(at_budget)
    sign = 1 if at_budget > 0 else -1
    low, high = sorted((float(sign * min(start, end / 2)), float(sign * end)))
    return low, high


class CostSection(Section):
    """What one stage spent.

    token_forwards: tokens through the model, padding included; a pass over some of the blocks
        counts as their share. token_block_forwards: the same, tokens through one block.
    """

    token_forwards: int
    token_block_forwards: int
    seconds: float


class StartSection(Section):
    """The earlier calibration that one began with (`calibrate.search.confirmation`).

    fingerprint: its own. strength: what it shipped. strength_at_budget: its α_B. confirmed: whether
    α_B, measured anew, may be as it was.
    """

    fingerprint: str
    strength: float
    strength_at_budget: Interval
    confirmed: bool

    @property
    def says(self) -> str:
        """What came of it, in words."""
        before = self.strength_at_budget
        verdict = "confirmed" if self.confirmed else "corrected"
        return (
            f"an earlier calibration, whose α_B of {before.value:.4g} ({before.low:.4g} to "
            f"{before.high:.4g}) was {verdict}"
        )


class ProvenanceSection(Section):
    """How the config was made, so that it can be made again.

    start: the earlier calibration it began with; None for one from nothing. repository: of the Hub,
    from which it was read before it was written here, USER/NAME@COMMIT or "unknown"; None for
    one's own.
    """

    versions: dict[str, str]
    seed: int
    created: str
    fingerprint: str
    settings: dict[str, Any]
    start: StartSection | None = None
    repository: str | None = None
