"""What the law of the bounded remainder foretells at one site: tokens, concept and cost.

Five passes give the last residuals of some scored tokens; everything else is read from them. What
the corpus as a whole costs, and how much mass the concept's tokens have there, follows from these
tokens' share of what was measured on all: at α_B of the cost, and at 0 of the log-odds of the mass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from calibrate.engine.site import Site
from calibrate.engine.unsteered import UnsteeredRun
from calibrate.laws.formulas import clipped_logit
from calibrate.laws.remainder import ReadOut, RemainderLaw, mean_divergence
from calibrate.laws.remainder_passes import measure_remainder, reader_of
from calibrate.models.model import LoadedModel

FOLLOWED = 128  # scored tokens whose residuals are followed, beside the contexts that are watched


@dataclass(frozen=True, eq=False)
class Foretold:
    """The law of one site, and what was measured there on all tokens.

    watched: places of the watched contexts among those of the law. rise: of cross-entropy at the
    law's unit, nats per token. mass: of the concept's tokens at 0.
    """

    law: RemainderLaw
    read_out: ReadOut
    watched: np.ndarray
    rise: float
    mass: float

    def log_probabilities(self, strength: float) -> np.ndarray:
        """Ln p of the watched contexts, (n_contexts, vocabulary)."""
        return self.law.taken(self.watched).log_probabilities(strength, self.read_out)

    def curves(self, strengths: np.ndarray, tokens: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """ΔCE, nats per token, and the mass of some tokens, at every strength."""
        before = self.law.log_probabilities(0.0, self.read_out)
        at_unit = self.law.rise(self.law.unit, self.read_out)
        rises, masses = [], []
        for strength in (0.0, *strengths):
            log_p = self.law.log_probabilities(float(strength), self.read_out)
            rises.append(mean_divergence(before, log_p))
            masses.append(np.exp(log_p[:, list(tokens)]).sum(axis=1).mean())
        log_odds = clipped_logit(np.array([self.mass, *masses]))
        shifted = log_odds[2:] + log_odds[0] - log_odds[1]
        return np.array(rises[1:]) * self.rise / at_unit, expit(shifted)


def foretell(
    loaded: LoadedModel,
    run: UnsteeredRun,
    site: Site,
    unit: float,
    contexts: Sequence[int],
    rises: tuple[float, float],
    mass: float,
) -> Foretold:
    """Measure the law of a site in five passes.

    unit: α_B, above 0. contexts: indices of the scored tokens to watch. rises: what α_B and
    FITTED_AT times as much cost on all tokens, nats. mass: of the concept's tokens at 0.
    """
    followed = np.linspace(0, run.corpus.n_scored - 1, FOLLOWED).astype(int)
    rows = np.union1d(followed, contexts)
    read_out = reader_of(loaded)
    law = measure_remainder(loaded, run, site, unit, rows.tolist())
    at_unit, farther = rises
    law = law.fitted_to(law.rise(unit, read_out) * farther / at_unit, read_out)
    return Foretold(law, read_out, np.searchsorted(rows, contexts), at_unit, mass)
