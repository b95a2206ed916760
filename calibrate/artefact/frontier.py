"""The frontier as it is written: `frontier.json`, beside the config whose site it is of."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, ValidationError

from calibrate.artefact.hub import local_directory
from calibrate.artefact.measured_sections import GuardSection
from calibrate.common.errors import ArtefactError, CalibrateWarning, InputError
from calibrate.common.estimate import Interval
from calibrate.common.record import Section, TestedStrength
from calibrate.common.settings import Settings
from calibrate.laws.limit import coin_divergence

FRONTIER_FILE = "frontier.json"
FRONTIER_FORMAT = "steering-frontier"


class PointSection(Section):
    """What one strength buys, all of it on held-out data.

    budget: that its bound keeps to. strength: α. delta_ce, upper: ΔCE and its one-sided bound, nats
    a token. change: of presence, paired; audited: by the second judge. n_prompts: how many that is
    a mean over. empty: share of replies without text. loops, loop_excess: share of long replies'
    tokens in loops, and how much more than unsteered; None without room for them. fluency_drop:
    nats a token. cost, cost_back: KL(plain‖steered) and KL(steered‖plain), nats a reply, at the
    temperature replies are drawn at. guard: how its questions are answered. ships: whether it may
    be shipped; why_not: if not. example: a reply. n_prompts and empty are None in older frontiers.
    """

    budget: float
    strength: float
    delta_ce: Interval
    upper: float
    tested: list[TestedStrength]
    presence: Interval
    change: Interval
    audited: Interval | None
    n_prompts: int | None = None
    empty: float | None = None
    loops: float | None
    loop_excess: Interval | None
    fluency_drop: Interval
    cost: Interval
    cost_back: Interval
    guard: GuardSection | None
    ships: bool
    why_not: str | None
    example: str


class RivalSection(Section):
    """Another way to the concept, in the same units; None where it has no such cost.

    n_prompts: as of a point. cost_back: for best of n, the most it can be. example: a reply to the
    frontier's prompt; None in older records.
    """

    name: str
    presence: Interval
    change: Interval
    audited: Interval | None
    n_prompts: int | None = None
    delta_ce: Interval | None
    cost: Interval | None
    cost_back: Interval
    example: str | None = None


class MissedSection(Section):
    """A budget that was not measured, and why."""

    budget: float
    why: str


class Frontier(Section):
    """What each budget buys at a calibrated site (`calibrate.search.frontier`).

    fingerprint: of the calibration. baseline: presence unsteered. points: strengths that spend
    their budgets, from small to large. shipped: the calibration's own strength as it was verified,
    less than spends its budget where that has long replies loop; None where there is none. missed:
    budgets that were not measured. ended: why it ends, if anything but the list of budgets, and
    ended_at, at which. law: the law of presence through all of them, r, ν, floor and ceiling.
    fall: the strength from which presence turns back, if it does; the law is of smaller ones.
    rivals: at `rivals_at`, a strength of the frontier. advice: in words. token_forwards: what each
    stage took.

    >>> frontier = calibrate.Calibration.load("joy/").frontier
    >>> frontier is None or frontier.at(0.1).upper <= 0.1
    True
    """

    format: Literal["steering-frontier"] = "steering-frontier"
    version: Literal[1] = 1
    model: str
    concept: str
    goal: Literal["increase", "decrease"]
    where: str
    fingerprint: str
    confidence: float
    temperature: float
    n_tokens: float
    baseline: Interval
    points: list[PointSection]
    shipped: PointSection | None = None
    missed: list[MissedSection] = Field(default_factory=list)
    ended: str | None
    ended_at: float | None = None
    law: tuple[float, float, float, float]
    fall: float | None = None
    rivals: list[RivalSection]
    rivals_at: float | None
    advice: str
    prompt: str
    unsteered: str
    token_forwards: dict[str, int]

    @property
    def sign(self) -> int:
        """+1 where presence is to increase, -1 where it is to decrease."""
        return 1 if self.goal == "increase" else -1

    @property
    def strengths(self) -> list[PointSection]:
        """Every point, the calibration's own among them, from small strengths to large."""
        own = [] if self.shipped is None else [self.shipped]
        return sorted([*self.points, *own], key=lambda point: abs(point.strength))

    @property
    def tried(self) -> list[float]:
        """Every budget that was asked for, measured or not."""
        return [*(point.budget for point in self.points), *(one.budget for one in self.missed)]

    @property
    def endings(self) -> list[str]:
        """What was not measured and why, and why it ends, a sentence each."""
        missed = [f"Not measured at {one.budget:g} nat: {one.why}." for one in self.missed]
        return missed if self.ended is None else [*missed, f"It ends {self.ended}."]

    def change_of(self, point: PointSection) -> float:
        """The change of presence at a point, towards the goal."""
        return self.sign * point.change.value

    def at(self, ce_budget: float | None = None, *, gain: float | None = None) -> PointSection:
        """The point that ships with most change within a budget; or the cheapest with a change.

        Where none ships within the budget, the one of most strength whose bound keeps to it; its
        `why_not` says why. Long replies' loops are judged by a mean over few replies that need not
        grow with the strength, so that a point may ship beyond one that does not.

        ce_budget: nats a token. gain: the least change of presence towards the goal. Give either.
        Raises: InputError if there is no such point.
        """
        if ce_budget is not None and gain is None:
            return self._within(ce_budget)
        if gain is not None and ce_budget is None:
            return self._buying(gain)
        raise InputError(f"give either a budget or a gain, got {ce_budget} and {gain}")

    def _within(self, ce_budget: float) -> PointSection:
        ce_budget = Settings(ce_budget=ce_budget).ce_budget
        within = [point for point in self.strengths if point.upper <= ce_budget]
        if not within:
            known = ", ".join(f"{point.budget:g}" for point in self.points) or "none"
            raise InputError(
                f"the budget must be one the frontier was measured within ({known}), got "
                f"{ce_budget:g}; measure it with calibrate frontier DIR --budgets {ce_budget:g}"
            )
        return max(
            (point for point in within if point.ships), key=self.change_of, default=within[-1]
        )

    def _buying(self, gain: float) -> PointSection:
        gain = Settings(min_gain=gain).min_gain
        shipping = [point for point in self.strengths if point.ships]
        enough = [point for point in shipping if self.change_of(point) >= gain]
        if not enough:
            most = max(map(self.change_of, shipping), default=None)
            raise InputError(
                f"the gain must be one that a point buys and ships with, at most "
                f"{'none' if most is None else f'{most:.3g}'}, got {gain:g}; measure other budgets "
                "with calibrate frontier DIR --budgets"
            )
        return min(enough, key=lambda point: point.upper)

    def least_cost(self, point: PointSection | RivalSection, back: bool = False) -> float:
        """What its presence has to cost at least, nats a reply (`calibrate.laws.limit`)."""
        before, after = (
            float(np.clip(share, 1e-6, 1 - 1e-6))
            for share in (self.baseline.value, self.baseline.value + point.change.value)
        )
        return coin_divergence(after, before) if back else coin_divergence(before, after)

    def efficiency(self, point: PointSection | RivalSection) -> float | None:
        """The least cost over what is spent, in [0, 1]; None where that was not measured."""
        return None if point.cost is None else _share(self.least_cost(point), point.cost)

    def efficiency_back(self, point: PointSection | RivalSection) -> float | None:
        """The same of the cost back; of best of n the least that it can be."""
        return _share(self.least_cost(point, back=True), point.cost_back)

    def to_bytes(self) -> bytes:
        """Return the contents of `frontier.json`."""
        return f"{self.model_dump_json(indent=1)}\n".encode()

    @classmethod
    def load(cls, directory: str | Path, fingerprint: str) -> Frontier | None:
        """Read `frontier.json` in a directory; None if there is none of its calibration.

        fingerprint: of the calibration there. One of another is warned of.
        Raises: ArtefactError if it is damaged.
        """
        path = local_directory(directory) / FRONTIER_FILE
        if not path.exists():
            return None
        try:
            found = cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise ArtefactError(
                f"{path} cannot be read: {error}; remove it, and measure it again with calibrate "
                "frontier DIR"
            ) from error
        if found.fingerprint == fingerprint:
            return found
        warnings.warn(
            f"{path} is of another calibration, and not used; measure this one's with calibrate "
            "frontier DIR",
            CalibrateWarning,
            stacklevel=2,
        )
        return None


def _share(least: float, cost: Interval) -> float | None:
    """What has to be spent over what is; None where nothing is."""
    share = least / cost.value if cost.value > 0 else math.inf
    return share if math.isfinite(share) else None
