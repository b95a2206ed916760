"""What the gate found, and which mistake explains a missed reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import torch
from scipy.optimize import minimize_scalar

from calibrate.artefact.config import SteeringConfig
from calibrate.engine.site import Site
from calibrate.models.hooks import Positions
from calibrate.models.model import LoadedModel
from calibrate.search.reference import next_log_probs

SHARES = (1e-2, 10.0)  # range of strengths, as shares of the config's, tried as an explanation


@dataclass(frozen=True)
class Check:
    """One thing the gate looked at: its name, whether it holds, and what was found."""

    name: str
    passed: bool
    found: str


@dataclass(frozen=True, eq=False)
class ReferenceInput:
    """The config's reference input on a model, under variants of the intervention."""

    config: SteeringConfig
    loaded: LoadedModel

    def unsteered_gap(self) -> float:
        """Largest gap to the unsteered log-probabilities."""
        return self._gap_to(0.0, self.config.reference.unsteered_log_probs)

    def gap(self, share: float = 1.0, site: Site | None = None) -> float:
        """Largest gap to the steered log-probabilities, at a share of the strength."""
        return self._gap_to(share, self.config.reference.log_probs, site)

    def explanations(self, tolerance: float) -> Iterator[str]:
        """Variants that would have given what was recorded."""
        intervention, site = self.config.intervention, self.config.site
        for offset in (-1, 1):
            moved = [replace(one, layer=one.layer + offset) for one in site.vectors]
            inside = all(0 <= one.layer < self.loaded.num_layers for one in moved)
            elsewhere = replace(site, vectors=tuple(moved))
            if inside and self.gap(site=elsewhere) <= tolerance:
                yield f"it was recorded at {elsewhere.where}, and the config says {site.where}"
        for positions in get_args(Positions):
            other = replace(site, positions=positions)
            if positions != site.positions and self.gap(site=other) <= tolerance:
                yield (
                    f"it was recorded with {positions!r} positions steered, and the config says "
                    f"{intervention.positions!r}"
                )
        yield from self._with_a_block_missing(site, tolerance)
        if self.gap(share=-1.0) <= tolerance:
            yield "it was recorded with the opposite sign: the vector or the strength is negated"
        share = self._best_share()
        if self.gap(share=share) <= tolerance:
            yield (
                f"it was recorded at strength {share * intervention.strength:.4g}, and the config "
                f"says {intervention.strength:.4g}"
            )

    def _with_a_block_missing(self, site: Site, tolerance: float) -> Iterator[str]:
        """Whether one of several blocks was not steered."""
        for missing in site.vectors if len(site.vectors) > 1 else ():
            rest = tuple(one for one in site.vectors if one is not missing)
            if self.gap(site=replace(site, vectors=rest)) <= tolerance:
                yield f"it was recorded without block {missing.layer}, which the config steers too"

    def _best_share(self) -> float:
        """The share of the strength that comes nearest to what was recorded."""
        near = np.geomspace(*SHARES, 13)
        start = int(np.argmin([self.gap(share=float(share)) for share in near]))
        bounds = near[max(start - 1, 0)], near[min(start + 1, len(near) - 1)]
        best = minimize_scalar(
            lambda share: self.gap(share=float(share)),
            bounds=bounds,
            method="bounded",
            options={"xatol": 1e-5 * near[start]},
        )
        return float(best.x)

    def _gap_to(self, share: float, expected: Sequence[float], site: Site | None = None) -> float:
        reference, site = self.config.reference, site or self.config.site
        with site.apply(self.loaded.blocks, share * self.config.intervention.strength):
            log_probs = next_log_probs(self.loaded, reference.input_ids)[reference.token_ids]
        return float((log_probs - torch.tensor(expected)).abs().max())
