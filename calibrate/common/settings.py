"""What a calibration is asked for, checked before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any, Literal

from calibrate.common.errors import InputError

SHORTEST_LONG_RUN = 64  # tokens; two windows, of which the second can differ from the first
SEEDS = 2**32  # seeds below this suit NumPy as well as torch
MOST_TRIALS = 10_000
MOST_NATS = 100.0  # no text is less likely than that, token by token
MOST_TOKENS = 2**31  # more positions than any tensor here may have


def check_whole(rule: str, value: Any, low: int, high: int | None = None) -> int:
    """Return a whole number from `low` to `high`, both included, else raise InputError."""
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not (is_whole and low <= int(value) and (high is None or int(value) <= high)):
        raise InputError(f"{rule}, got {_shown(value)}")
    return int(value)


def check_number(rule: str, value: Any, fits: Callable[[float], bool]) -> float:
    """Return a finite number that fits, else raise InputError."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and fits(float(value))):
        raise InputError(f"{rule}, got {_shown(value)}")
    return float(value)


def check_seed(seed: Any) -> int:
    """Return a seed that NumPy and torch take, or raise InputError."""
    return check_whole("the seed must be 0 or more and below 2**32", seed, 0, SEEDS - 1)


def check_batch_tokens(batch_tokens: Any) -> int:
    """Return how many positions one forward pass may hold, or raise InputError."""
    rule = "--batch-tokens must be a whole number from 1 to 2**31"
    return check_whole(rule, batch_tokens, 1, MOST_TOKENS)


def finite_strength(strength: Any) -> float:
    """Return a strength that can be steered by, or raise InputError."""
    return check_number("the strength must be a finite number", strength, lambda _: True)


def _nats(what: str, value: Any) -> float:
    rule = f"{what} must be a number of at most {MOST_NATS:g} and above 0 nat"
    return check_number(rule, value, lambda nats: 0 < nats <= MOST_NATS)


def _make_plain(settings: Any) -> None:
    for entry in fields(settings):
        value = getattr(settings, entry.name)
        if isinstance(value, Real) and not isinstance(value, bool | int | float):
            plain = int(value) if isinstance(value, Integral) else float(value)
            object.__setattr__(settings, entry.name, plain)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


@dataclass(frozen=True)
class Sampling:
    """How replies are drawn.

    temperature: above 0; top_p: nucleus, in (0, 1]; max_new_tokens: a reply's longest length.
    """

    temperature: float = 0.7
    top_p: float = 0.95
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        """Raise InputError for a value outside its range; NumPy's numbers become plain ones."""
        _make_plain(self)
        rule = "the temperature must be above 0 and at most 100"
        check_number(rule, self.temperature, lambda value: 0 < value <= 100)
        check_number("top_p must be above 0 and at most 1", self.top_p, lambda p: 0 < p <= 1)
        rule = "max_new_tokens must be a whole number from 1 to 2**31"
        check_whole(rule, self.max_new_tokens, 1, MOST_TOKENS)


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
        infeasible. The default is five more replies of a hundred.
    confidence: of every interval and bound, in (0.5, 1).
    long_run: tokens of the replies that verification reads at the length they are served, 0 for
        none; fewer where the model's context is shorter.
    max_fluency_drop: how much less likely steered replies may be to the unsteered model than its
        own, nats per token, above 0; None for no limit.
    judge_question: what judges that are asked are asked, with places for {text} and {concept};
        None for `probes.asking.QUESTION`.
    judge_url: where the server of a judge `openai:MODEL` is; None for OPENAI_BASE_URL.
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
    min_gain: float = 0.05
    seed: int = 0
    confidence: float = 0.95
    long_run: int = 192
    max_fluency_drop: float | None = None
    judge_question: str | None = None
    judge_url: str | None = None
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        """Raise InputError for a value outside its range; NumPy's numbers become plain ones."""
        _make_plain(self)
        _nats("the budget", self.ce_budget)
        if self.max_fluency_drop is not None:
            _nats("the drop of fluency", self.max_fluency_drop)
        rule = "confidence must be between 0.5 and 1"
        check_number(rule, self.confidence, lambda share: 0.5 < share < 1)
        rule = f"there must be at most {MOST_TRIALS:,} and at least 1 trial"
        check_whole(rule, self.trials, 1, MOST_TRIALS)
        rule = "precision must be between 0 and 1"
        check_number(rule, self.precision, lambda width: 0 < width < 1)
        rule = "the wished gain must be from 0 up to 1"
        check_number(rule, self.min_gain, lambda gain: 0 <= gain < 1)
        if self.long_run != 0:
            rule = f"the long run must have {SHORTEST_LONG_RUN} tokens or more, or 0 for none"
            check_whole(rule, self.long_run, SHORTEST_LONG_RUN, MOST_TOKENS)
        check_seed(self.seed)
        if self.layer is not None and not isinstance(self.layer, Integral):
            raise InputError(f"layer must be a block's number or None, got {self.layer!r}")
        if not isinstance(self.sampling, Sampling):
            raise InputError(f"sampling must be a Sampling, got {self.sampling!r}")
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
