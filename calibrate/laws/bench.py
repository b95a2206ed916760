"""What curves are measured with: the passes, pilots and far ends of one model and corpus."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from calibrate.common.errors import NumericalError
from calibrate.common.settings import Settings
from calibrate.engine.cross_entropy import Steered, measure_steered
from calibrate.engine.site import Site
from calibrate.engine.unsteered import UnsteeredRun
from calibrate.laws.far_end import FAR, FAR_NORMALISED, FarEnd, measure_far_end
from calibrate.laws.log_odds import LogOdds, measure_log_odds
from calibrate.laws.pilot import Pilot, fit_pilot
from calibrate.models.model import LoadedModel


def name_of(sign: int) -> str:
    """What a sign is called in the curves."""
    return "positive" if sign > 0 else "negative"


@dataclass(frozen=True, eq=False)
class Bench:
    """What every block is measured with."""

    loaded: LoadedModel
    run: UnsteeredRun
    concept_tokens: tuple[int, ...]
    settings: Settings

    def log_odds(self, site: Site) -> LogOdds:
        """The log-odds at one site."""
        return measure_log_odds(self.loaded, self.run, site, self.concept_tokens)

    def pilot(self, site: Site, odds: LogOdds, sign: int) -> Pilot:
        """The pilot at one site, in one direction."""
        settings = replace(self.settings, goal="increase" if sign > 0 else "decrease")
        return fit_pilot(self.loaded, self.run, site, odds, self.concept_tokens, settings)

    def steered(self, site: Site, strength: float, watched: Sequence[int] = ()) -> Steered:
        """What one strength does at a site."""
        return measure_steered(self.loaded, self.run, site, strength, self.concept_tokens, watched)

    def passes(
        self, site: Site, strengths: np.ndarray, needed: float, watched: Sequence[int] = ()
    ) -> dict[float, Steered]:
        """What each strength does at a site, but for those at which activations are not finite.

        Raises: NumericalError if one is of a size up to `needed`.
        """
        found: dict[float, Steered] = {}
        for strength in strengths.tolist():
            try:
                found[strength] = self.steered(site, strength, watched)
            except NumericalError:
                if abs(strength) <= needed:
                    raise
        return found

    def far_ends(self, site: Site, odds: LogOdds, contexts: Sequence[int]) -> dict[str, FarEnd]:
        """The tokens left far out at a site, by sign, where activations are finite there."""
        strength = FAR_NORMALISED if self.settings.normalize else FAR
        mean_odds, found = odds.tokens.log_odds.mean(axis=0), dict[str, FarEnd]()
        for sign in (1, -1):
            with suppress(NumericalError):
                found[name_of(sign)] = measure_far_end(
                    self.loaded, self.run, site, sign * strength, mean_odds, contexts
                )
        return found
