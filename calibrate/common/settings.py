"""What a calibration is asked for, checked before anything is loaded.

Each field is its only description: the annotation says which values it takes, the metadata holds
its option's help and error text. `settings_of` reads both, for the checks and the command line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cache
from types import NoneType
from typing import Any, Literal, get_args, get_type_hints

from calibrate.common.blocks import check_blocks
from calibrate.common.errors import InputError
from calibrate.common.numbers import check_number, check_whole

SHORTEST_LONG_RUN = 64  # tokens; two windows, of which the second can differ from the first
SEEDS = 2**32  # seeds below this suit NumPy as well as torch
MAX_TRIALS = 10_000
MAX_NATS = 100.0  # no text is less likely than that, token by token
MAX_TOKENS = 2**31  # more positions than any tensor here may have
NATS_RULE = f"must be a number of at most {MAX_NATS:g} and above 0 nat"


def check_seed(seed: Any) -> int:
    """Return a seed that NumPy and torch take, or raise InputError."""
    return int(settings_of(Settings)["seed"].check(seed))


def check_batch_tokens(batch_tokens: Any) -> int:
    """Return how many positions one forward pass may hold, or raise InputError."""
    rule = "--batch-tokens must be a whole number from 1 to 2**31"
    return check_whole(rule, batch_tokens, _fits_a_tensor)


def finite_strength(strength: Any) -> float:
    """Return a strength that can be steered by, or raise InputError."""
    return check_number("the strength must be a finite number", strength, lambda _: True)


def _fits_a_tensor(tokens: int) -> bool:
    return 1 <= tokens <= MAX_TOKENS


def _are_nats(value: float) -> bool:
    return 0 < value <= MAX_NATS


def _read_layer(rule: str, value: Any) -> Any:
    if isinstance(value, str) and value in ("auto", "search"):
        return value
    return check_blocks(rule, value)


@dataclass(frozen=True)
class Setting:
    """How a field of `Settings` or `Sampling` is checked and described.

    accepts: the words of a Literal, or types, NoneType for None.
    help, metavar: of its option. rule: the error text for what is no number or out of range.
    read: takes the rule and a value that is not of the type it is kept as.
    """

    name: str
    default: Any
    accepts: tuple[Any, ...]
    help: str | None = None
    metavar: str | None = None
    rule: str = ""
    fits: Callable[[Any], bool] = lambda _: True
    read: Callable[[str, Any], Any] | None = None

    @property
    def choices(self) -> tuple[str, ...]:
        """The words of a Literal; empty for other fields."""
        return tuple(word for word in self.accepts if isinstance(word, str))

    def check(self, value: Any) -> Any:
        """Return a value in its range, a number as Python's own, else raise InputError."""
        if value is None and NoneType in self.accepts:
            return None
        if self.read is not None:
            return self.read(self.rule, value)
        if int in self.accepts:
            return check_whole(self.rule, value, self.fits)
        if float in self.accepts:
            return check_number(self.rule, value, self.fits)
        if self.choices and value not in self.choices:
            raise InputError(f"{self.name} must be {' or '.join(self.choices)}, got {value!r}")
        return value


@cache
def settings_of(owner: type) -> dict[str, Setting]:
    """The `Setting` of each field of `Settings` or `Sampling`, by name."""
    hints = {name: get_args(hint) or (hint,) for name, hint in get_type_hints(owner).items()}
    return {
        each.name: Setting(each.name, each.default, hints[each.name], **each.metadata)
        for each in fields(owner)
    }


def _check(given: Sampling | Settings, settings: dict[str, Setting]) -> None:
    for name, setting in settings.items():
        object.__setattr__(given, name, setting.check(getattr(given, name)))


def _field(default: Any, help: str | None = None, metavar: str | None = None, **check: Any) -> Any:
    return field(default=default, metadata={"help": help, "metavar": metavar, **check})


@dataclass(frozen=True)
class Sampling:
    """How replies are drawn.

    temperature: above 0; top_p: nucleus, in (0, 1]; max_new_tokens: a reply's longest length.

    >>> calibrate.Sampling(max_new_tokens=64)
    Sampling(temperature=0.7, top_p=0.95, max_new_tokens=64)
    """

    temperature: float = _field(
        0.7,
        rule="the temperature must be above 0 and at most 100",
        fits=lambda value: 0 < value <= 100,
    )
    top_p: float = _field(
        0.95, rule="top_p must be above 0 and at most 1", fits=lambda share: 0 < share <= 1
    )
    max_new_tokens: int = _field(
        32,
        "Tokens of a reply in the search; more for a model that thinks before it answers.",
        "N",
        rule="max_new_tokens must be a whole number from 1 to 2**31",
        fits=_fits_a_tensor,
    )

    def __post_init__(self) -> None:
        """Raise InputError for a value outside its range; numbers become Python's own."""
        _check(self, settings_of(Sampling))


@dataclass(frozen=True)
class Settings:
    """Everything but the model, the texts and the prompts.

    What the fields below do not say:

    goal: to "decrease" presence, strengths α < 0 are searched.
    layer: 0-based; "8-26" or (8, 12, 20) steers these together, with one strength. "auto" steers
        the band of `calibrate.search.sites`; "search" has the study choose a single block.
    negatives: "contrastive" texts, or "random" own samples.
    positions: "last" of each pass; "auto" has the study try both.
    pooling: average a text's tokens ("mean") or take the "last" one.
    precision: also the half-width of presence's interval below which no more prompts are tried.
    min_gain: towards the goal, in [0, 1). The default is five more replies of a hundred.
    long_run: 0 for none; fewer where the model's context is shorter.
    max_fluency_drop: against its own replies, nats per token; None for no limit.
    max_guard_drop: share of questions, by the one-sided bound; None for no limit.
    judge_question: None for `probes.asking.QUESTION`. judge_url: None for OPENAI_BASE_URL.

    >>> calibrate.Settings(ce_budget=0.2, goal="decrease").sign
    -1
    """

    ce_budget: float = _field(
        0.1,
        "Largest allowed rise of cross-entropy, nats per token.",
        "NATS",
        rule=f"the budget {NATS_RULE}",
        fits=_are_nats,
    )
    goal: Literal["increase", "decrease"] = _field(
        "increase", "Steer towards the concept or away from it."
    )
    layer: int | tuple[int, ...] | Literal["auto", "search"] = _field(
        "auto",
        "Block to steer, or several with one strength, such as 8-26 or 8,12,20; auto steers the "
        "blocks from 27% to 87% of the depth, and search has the study choose one.",
        "AUTO|N|N-M|N,N,…|SEARCH",
        rule="layer must be auto, search, a block's number, or several such as 8-26 or 8,12,20",
        read=_read_layer,
    )
    negatives: Literal["contrastive", "random"] = _field(
        "contrastive", "What v is measured against."
    )
    positions: Literal["all", "last", "auto"] = _field(
        "all", "Steer every position, or the last of each pass; auto tries both."
    )
    pooling: Literal["mean", "last"] = _field(
        "mean", "Make v from token means or from last tokens."
    )
    normalize: bool = _field(False, "Scale v to length 1.")
    trials: int = _field(
        8,
        "Strengths the study tries at most.",
        "N",
        rule=f"there must be at most {MAX_TRIALS:,} and at least 1 trial",
        fits=lambda trials: 1 <= trials <= MAX_TRIALS,
    )
    precision: float = _field(
        0.02,
        "Presence that may be left to gain when the study stops.",
        "P",
        rule="precision must be between 0 and 1",
        fits=lambda width: 0 < width < 1,
    )
    min_gain: float = _field(
        0.05,
        "Smallest change of presence worth having, 0.05 for five more replies of a hundred; "
        "less is infeasible. Lower it to ship weaker effects, to 0 for any that can be measured.",
        "P",
        rule="the wished gain must be from 0 up to 1",
        fits=lambda gain: 0 <= gain < 1,
    )
    seed: int = _field(
        0,
        metavar="N",
        rule="the seed must be 0 or more and below 2**32",
        fits=lambda seed: 0 <= seed < SEEDS,
    )
    confidence: float = _field(
        0.95,
        "Of intervals and of the bound on cross-entropy.",
        rule="confidence must be between 0.5 and 1",
        fits=lambda share: 0.5 < share < 1,
    )
    long_run: int = _field(
        192,
        "Tokens of the replies that verification reads as they are served; 0 for none.",
        "N",
        rule=f"the long run must have {SHORTEST_LONG_RUN} tokens or more, or 0 for none",
        fits=lambda tokens: tokens == 0 or SHORTEST_LONG_RUN <= tokens <= MAX_TOKENS,
    )
    max_fluency_drop: float | None = _field(
        None,
        "Largest allowed drop of the replies' log-probability under the unsteered model.",
        "NATS",
        rule=f"the drop of fluency {NATS_RULE}",
        fits=_are_nats,
    )
    max_guard_drop: float | None = _field(
        None,
        "Largest allowed drop of the guard's accuracy, by its bound, such as 0.05.",
        "P",
        rule="the drop of the guard's accuracy must be from 0 up to 1",
        fits=lambda drop: 0 <= drop < 1,
    )
    judge_question: str | None = _field(
        None,
        "What judges are asked, with {text} and {concept} in it.  [default: built in]",
        "FILE",
    )
    judge_url: str | None = _field(
        None, "Where the server of openai:MODEL is.  [default: OPENAI_BASE_URL]", "URL"
    )
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        """Raise InputError for a value outside its range; numbers become Python's own."""
        _check(self, settings_of(Settings))
        if not isinstance(self.sampling, Sampling):
            raise InputError(f"sampling must be a Sampling, got {self.sampling!r}")

    @property
    def blocks(self) -> tuple[int, ...]:
        """The blocks asked for; none if that is left to us."""
        if isinstance(self.layer, str):
            return ()
        return self.layer if isinstance(self.layer, tuple) else (self.layer,)

    @property
    def position_choices(self) -> tuple[Literal["all", "last"], ...]:
        """Which positions are tried."""
        return ("all", "last") if self.positions == "auto" else (self.positions,)

    @property
    def sign(self) -> int:
        """The sign of the strengths searched: +1 to increase presence, -1 to decrease it."""
        return 1 if self.goal == "increase" else -1
