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

    def gap(
        self,
        share: float = 1.0,
        layer: int | None = None,
        positions: Positions | None = None,
    ) -> float:
        """Largest gap to the steered log-probabilities, at a share of the strength."""
        return self._gap_to(share, self.config.reference.log_probs, layer, positions)

    def explanations(self, tolerance: float) -> Iterator[str]:
        """Variants that would have given what was recorded."""
        intervention = self.config.intervention
        for layer in (intervention.layer - 1, intervention.layer + 1):
            inside = 0 <= layer < self.loaded.num_layers
            if inside and self.gap(layer=layer) <= tolerance:
                yield f"it was recorded at block {layer}, and the config says {intervention.layer}"
        for positions in get_args(Positions):
            if positions != intervention.positions and self.gap(positions=positions) <= tolerance:
                yield (
                    f"it was recorded with {positions!r} positions steered, and the config says "
                    f"{intervention.positions!r}"
                )
        if self.gap(share=-1.0) <= tolerance:
            yield "it was recorded with the opposite sign: the vector or the strength is negated"
        share = self._best_share()
        if self.gap(share=share) <= tolerance:
            yield (
                f"it was recorded at strength {share * intervention.strength:.4g}, and the config "
                f"says {intervention.strength:.4g}"
            )

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

    def _gap_to(
        self,
        share: float,
        expected: Sequence[float],
        layer: int | None = None,
        positions: Positions | None = None,
    ) -> float:
        reference, intervention = self.config.reference, self.config.intervention
        vector = self.config.steering_vector
        elsewhere = replace(vector, layer=intervention.layer if layer is None else layer)
        site = Site((elsewhere,), positions or intervention.positions)
        with site.apply(self.loaded.blocks, share * intervention.strength):
            log_probs = next_log_probs(self.loaded, reference.input_ids)[reference.token_ids]
        return float((log_probs - torch.tensor(expected)).abs().max())
