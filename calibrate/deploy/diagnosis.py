"""What the gate found, and which mistake explains a missed reference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import get_args

import numpy as np
import torch
from scipy.optimize import minimize_scalar

from calibrate.artefact.config import SteeringConfig
from calibrate.common.record import Reference
from calibrate.engine.site import Site
from calibrate.models.hooks import Positions
from calibrate.models.model import LoadedModel
from calibrate.search.reference import next_log_probs

SHARES = (1e-2, 10.0)  # range of strengths, as shares of the config's, tried as an explanation
MOST_OFF = 0.5  # how far a shift may be from the recorded one, as a share of it


@dataclass(frozen=True)
class Check:
    """One thing the gate looked at: its name, whether it holds, and what was found."""

    name: str
    passed: bool
    found: str


@dataclass(frozen=True)
class Distance:
    """How far steered log-probabilities are from the reference's.

    gap: the largest, in nats. share: of the recorded shift from unsteered to steered, how much of
    it is found, by least squares over the tokens; 1 where all of it is, 0 where nothing is steered.
    recorded: the length of that shift, nats.
    """

    gap: float
    share: float
    recorded: float

    def within(self, tolerance: float) -> bool:
        """Whether the gap is within a tolerance, and about the recorded shift is found.

        An effect smaller than the tolerance is seen by its share alone, in which the rounding of
        single tokens averages out.
        """
        return self.gap <= tolerance and abs(self.share - 1) <= MOST_OFF

    def why_not(self, tolerance: float) -> str:
        """What must be so, and is not."""
        if not self.gap <= tolerance:
            return (
                f"steered log-probabilities must be as recorded within {tolerance:g}, but differ "
                f"by up to {self.gap:.2g}"
            )
        return (
            f"steering must shift log-probabilities by {1 - MOST_OFF:g} to {1 + MOST_OFF:g} times "
            f"what was recorded, got {self.share:.2g} times"
        )

    def is_hidden(self, tolerance: float) -> bool:
        """Whether the recorded shift is so small that rounding may outdo it."""
        return self.recorded <= 2 * tolerance


def distance(steered: torch.Tensor, unsteered: torch.Tensor, reference: Reference) -> Distance:
    """Hold log-probabilities of the next token, shape (vocabulary,), against the reference's."""
    ids, recorded = reference.token_ids, torch.tensor(reference.log_probs)
    found = (steered - unsteered)[ids]
    expected = recorded - torch.tensor(reference.unsteered_log_probs)
    return Distance(
        float((steered[ids] - recorded).abs().max()),
        float(found @ expected / (expected @ expected)),
        float(expected.norm()),
    )


@dataclass(frozen=True, eq=False)
class ReferenceInput:
    """The config's reference input on a model, under variants of the intervention."""

    config: SteeringConfig
    loaded: LoadedModel

    @cached_property
    def unsteered(self) -> torch.Tensor:
        """The next token's log-probabilities without steering, float32 (vocabulary,)."""
        return next_log_probs(self.loaded, self.config.reference.input_ids)

    def unsteered_gap(self) -> float:
        """Largest gap to the unsteered log-probabilities."""
        reference = self.config.reference
        recorded = torch.tensor(reference.unsteered_log_probs)
        return float((self.unsteered[reference.token_ids] - recorded).abs().max())

    def distance(self, share: float = 1.0, site: Site | None = None) -> Distance:
        """How far it is from the steered log-probabilities, at a share of the strength."""
        reference, site = self.config.reference, site or self.config.site
        with site.apply(self.loaded.blocks, share * self.config.intervention.strength):
            steered = next_log_probs(self.loaded, reference.input_ids)
        return distance(steered, self.unsteered, reference)

    def explanations(self, tolerance: float) -> Iterator[str]:
        """Variants that would have given what was recorded."""
        intervention, site = self.config.intervention, self.config.site
        for offset in (-1, 1):
            moved = [replace(one, layer=one.layer + offset) for one in site.vectors]
            inside = all(0 <= one.layer < self.loaded.num_layers for one in moved)
            elsewhere = replace(site, vectors=tuple(moved))
            if inside and self.distance(site=elsewhere).within(tolerance):
                yield f"it was recorded at {elsewhere.where}, and the config says {site.where}"
        for positions in get_args(Positions):
            other = replace(site, positions=positions)
            if positions != site.positions and self.distance(site=other).within(tolerance):
                yield (
                    f"it was recorded with {positions!r} positions steered, and the config says "
                    f"{intervention.positions!r}"
                )
        yield from self._with_a_block_missing(site, tolerance)
        if self.distance(share=-1.0).within(tolerance):
            yield "it was recorded with the opposite sign: the vector or the strength is negated"
        share = self._best_share()
        if self.distance(share=share).within(tolerance):
            yield (
                f"it was recorded at strength {share * intervention.strength:.4g}, and the config "
                f"says {intervention.strength:.4g}"
            )

    def _with_a_block_missing(self, site: Site, tolerance: float) -> Iterator[str]:
        """Whether one of several blocks was not steered."""
        for missing in site.vectors if len(site.vectors) > 1 else ():
            rest = tuple(one for one in site.vectors if one is not missing)
            if self.distance(site=replace(site, vectors=rest)).within(tolerance):
                yield f"it was recorded without block {missing.layer}, which the config steers too"

    def _best_share(self) -> float:
        """The share of the strength that comes nearest to what was recorded."""
        near = np.geomspace(*SHARES, 13)
        start = int(np.argmin([self.distance(share=float(share)).gap for share in near]))
        bounds = near[max(start - 1, 0)], near[min(start + 1, len(near) - 1)]
        best = minimize_scalar(
            lambda share: self.distance(share=float(share)).gap,
            bounds=bounds,
            method="bounded",
            options={"xatol": 1e-5 * near[start]},
        )
        return float(best.x)
