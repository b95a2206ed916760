"""What a calibration is asked for, checked before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from calibrate.errors import InputError

SHORTEST_LONG_RUN = 64  # tokens; two windows, of which the second can differ from the first


@dataclass(frozen=True)
class Sampling:
    """How replies are drawn.

    temperature: above 0; top_p: nucleus, in (0, 1]; max_new_tokens: a reply's longest length.
    """

    temperature: float = 0.7
    top_p: float = 0.95
    max_new_tokens: int = 32


def site_name(layer: int, positions: str) -> str:
    """What a block, and which positions are steered there, are called in a study."""
    return f"block {layer}" if positions == "all" else f"block {layer}, last position"


@dataclass(frozen=True)
class Settings:
    """Everything but the model, the texts and the prompts.

    ce_budget: largest allowed rise of cross-entropy, nats per token, above 0.
    goal: "increase" or "decrease" the concept's presence; the latter searches α < 0.
    layer: 0-based block to steer, or None to search several.
    negatives: what v is measured against: "contrastive" texts, or "random" own samples.
    positions: steer "all" positions, or the "last" of each pass; "auto" has the study try both.
    pooling: average a text's tokens ("mean") or take the "last" one.
    normalize: scale v to length 1.
    trials: how many the study finishes at most, at least 1.
    precision: how much presence may be left to gain when the study stops, and how wide half of
        its interval may be when no more prompts are tried, in (0, 1).
    min_gain: change of presence towards the goal that is wanted at least, in [0, 1); less is
        infeasible.
    confidence: of every interval and bound, in (0.5, 1).
    long_run: tokens of the replies that verification reads at the length they are served, 0 for
        none; fewer where the model's context is shorter.
    max_fluency_drop: how much less likely steered replies may be to the unsteered model than its
        own, nats per token, above 0; None for no limit.
    """

    ce_budget: float = 0.1
    goal: Literal["increase", "decrease"] = "increase"
    layer: int | None = None
    negatives: Literal["contrastive", "random"] = "contrastive"
    positions: Literal["all", "last", "auto"] = "all"
    pooling: Literal["mean", "last"] = "mean"
    normalize: bool = False
    trials: int = 8
    precision: float = 0.02
    min_gain: float = 0.0
    seed: int = 0
    confidence: float = 0.95
    long_run: int = 192
    max_fluency_drop: float | None = None
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        """Raise InputError for a value outside its range."""
        if not (math.isfinite(self.ce_budget) and self.ce_budget > 0):
            raise InputError(f"the budget must be a number above 0 nat, got {self.ce_budget:g}")
        if not 0.5 < self.confidence < 1:
            raise InputError(f"confidence must be between 0.5 and 1, got {self.confidence:g}")
        drop = self.max_fluency_drop
        if drop is not None and not (math.isfinite(drop) and drop > 0):
            raise InputError(f"the drop of fluency must be a number above 0 nat, got {drop:g}")
        if self.trials < 1:
            raise InputError(f"there must be at least 1 trial, got {self.trials}")
        if not 0 < self.precision < 1:
            raise InputError(f"precision must be between 0 and 1, got {self.precision:g}")
        if not 0 <= self.min_gain < 1:
            raise InputError(f"the wished gain must be from 0 up to 1, got {self.min_gain:g}")
        if self.long_run != 0 and self.long_run < SHORTEST_LONG_RUN:
            raise InputError(
                f"the long run must have {SHORTEST_LONG_RUN} tokens or more, or 0 for none, got "
                f"{self.long_run}"
            )
        if self.seed < 0:
            raise InputError(f"the seed must be 0 or more, got {self.seed}")
        for name, choices in (
            ("goal", ("increase", "decrease")),
            ("negatives", ("contrastive", "random")),
            ("positions", ("all", "last", "auto")),
            ("pooling", ("mean", "last")),
        ):
            if getattr(self, name) not in choices:
                raise InputError(
                    f"{name} must be {' or '.join(choices)}, got {getattr(self, name)!r}"
                )

    @property
    def position_choices(self) -> tuple[Literal["all", "last"], ...]:
        """Which positions are tried."""
        return ("all", "last") if self.positions == "auto" else (self.positions,)

    @property
    def sign(self) -> int:
        """The sign of the strengths searched: +1 to increase presence, -1 to decrease it."""
        return 1 if self.goal == "increase" else -1
