"""Why a model does not say what it said when it was calibrated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from scipy.optimize import minimize_scalar

from calibrate.artefact.config import SteeringConfig
from calibrate.engine.vector import SteeringVector
from calibrate.models.hooks import Positions
from calibrate.models.model import LoadedModel
from calibrate.search.reference import next_log_probs

SHARES = (1e-2, 10.0)  # of the strength, within which one that explains the reference is sought


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
        return self._apart(0.0, self.config.reference.unsteered_log_probs)

    def gap(
        self,
        share: float = 1.0,
        layer: int | None = None,
        positions: Positions | None = None,
    ) -> float:
        """Largest gap to the steered log-probabilities, at a share of the strength."""
        return self._apart(share, self.config.reference.log_probs, layer, positions)

    def explanations(self, tolerance: float) -> Iterator[str]:
        """Variants that would have given what was recorded."""
        done = self.config.intervention
        for layer in (done.layer - 1, done.layer + 1):
            inside = 0 <= layer < self.loaded.num_layers
            if inside and self.gap(layer=layer) <= tolerance:
                yield f"it was recorded at block {layer}, and the config says {done.layer}"
        for positions in get_args(Positions):
            if positions != done.positions and self.gap(positions=positions) <= tolerance:
                yield (
                    f"it was recorded with {positions!r} positions steered, and the config says "
                    f"{done.positions!r}"
                )
        if self.gap(share=-1.0) <= tolerance:
            yield "it was recorded with the opposite sign: the vector or the strength is negated"
        share = self._best_share()
        if self.gap(share=share) <= tolerance:
            yield (
                f"it was recorded at strength {share * done.strength:.4g}, and the config says "
                f"{done.strength:.4g}"
            )

    def _best_share(self) -> float:
        """The share of the strength that comes nearest to what was recorded."""
        near = np.geomspace(*SHARES, 13)
        start = int(np.argmin([self.gap(share=float(share)) for share in near]))
        bounds = near[max(start - 1, 0)], near[min(start + 1, len(near) - 1)]
        found = minimize_scalar(
            lambda share: self.gap(share=float(share)),
            bounds=bounds,
            method="bounded",
            options={"xatol": 1e-5 * near[start]},
        )
        return float(found.x)

    def _apart(
        self,
        share: float,
        expected: Sequence[float],
        layer: int | None = None,
        positions: Positions | None = None,
    ) -> float:
        reference, done = self.config.reference, self.config.intervention
        vector = self.config.steering_vector
        where = SteeringVector(vector.values, done.layer if layer is None else layer, 1.0)
        with where.apply(self.loaded.blocks, share * done.strength, positions or done.positions):
            found = next_log_probs(self.loaded, reference.input_ids)[reference.token_ids]
        return float((found - torch.tensor(expected)).abs().max())
