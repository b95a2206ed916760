"""What the law of the bounded remainder foretells at one site: tokens, concept and cost.

Five passes give the last residuals of some scored tokens; everything else is read from them. What
the corpus as a whole costs, and how much mass the concept's tokens have there, follows from these
tokens' share of what was measured on all: of the cost at ±α_B, of the mass's log-odds at 0.

The law foretells KL(p₀ ‖ p_α), which on the model's own replies is ΔCE. On other text ΔCE has a
slope and may fall below 0: it is not foretold there, and κ takes a pass of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from calibrate.engine.last_residual import last_residuals
from calibrate.engine.site import Site
from calibrate.engine.unsteered import UnsteeredRun
from calibrate.laws.formulas import clipped_logit
from calibrate.laws.remainder import FITTED_AT, ReadOut, RemainderLaw, divergences, row_slices
from calibrate.laws.remainder_passes import measure_remainder, reader_of
from calibrate.models.model import LoadedModel

FOLLOWED = 512  # scored tokens whose residuals are followed, beside the contexts that are watched


@dataclass(frozen=True, eq=False)
class Foretold:
    """The law of one site, and what was measured there on all tokens.

    watched: places of the watched contexts among those of the law. rises: of cross-entropy at the
    law's unit of either sign, nats per token; None on text the model has not written. mass: of the
    concept's tokens at 0.
    """

    law: RemainderLaw
    read_out: ReadOut
    watched: np.ndarray
    rises: Mapping[int, float] | None
    mass: float

    def log_probabilities(self, strength: float) -> np.ndarray:
        """Ln p of the watched contexts, (n_contexts, vocabulary)."""
        return self.law.taken(self.watched).log_probabilities(strength, self.read_out)

    def curves(
        self, strengths: np.ndarray, tokens: Sequence[int]
    ) -> tuple[np.ndarray | None, np.ndarray]:
        """ΔCE, nats per token, and the mass of some tokens, at every strength.

        ΔCE is None on text the model has not written.
        """
        parts = [
            self._along(self.law.taken(rows), (0.0, *strengths.tolist()), tokens)
            for rows in row_slices(len(self.law.at_zero))
        ]
        costs, masses = np.concatenate(parts, axis=2).mean(axis=2)
        log_odds = clipped_logit(np.array([self.mass, *masses]))
        shifted = log_odds[2:] + log_odds[0] - log_odds[1]
        return self._costs(strengths, costs[1:]), expit(shifted)

    def _along(
        self, law: RemainderLaw, strengths: Sequence[float], tokens: Sequence[int]
    ) -> np.ndarray:
        """KL from p₀, nats, and the mass of some tokens: (2, n_strengths, n_contexts)."""
        before = law.log_probabilities(0.0, self.read_out)
        found = np.empty((2, len(strengths), len(before)))
        for place, strength in enumerate(strengths):
            log_p = law.log_probabilities(strength, self.read_out)
            found[0, place] = divergences(before, log_p)
            found[1, place] = np.exp(log_p[:, list(tokens)]).sum(axis=1)
        return found

    def _costs(self, strengths: np.ndarray, followed: np.ndarray) -> np.ndarray | None:
        """ΔCE of all tokens, from the mean KL of those that are followed."""
        if self.rises is None:
            return None
        positive, negative = (
            self.rises[sign] / self.law.rise(sign * self.law.unit, self.read_out)
            for sign in (1, -1)
        )
        costs: np.ndarray = np.where(strengths > 0, positive, negative) * followed
        return costs


def foretell(
    loaded: LoadedModel,
    run: UnsteeredRun,
    site: Site,
    unit: float,
    contexts: Sequence[int],
    rises: Mapping[float, float],
    mass: float,
) -> Foretold:
    """Measure the law of a site in five passes; in six on text the model has not written.

    unit: α_B, above 0. contexts: indices of the scored tokens to watch. rises: what all tokens
    cost at -1, 1 and FITTED_AT times α_B, by that share, nats. mass: of the concept's tokens at 0.
    """
    followed = np.linspace(0, run.corpus.n_scored - 1, FOLLOWED).astype(int)
    rows = np.union1d(followed, contexts)
    read_out = reader_of(loaded)
    law = measure_remainder(loaded, run, site, unit, rows.tolist())
    places = np.searchsorted(rows, contexts)
    if run.corpus.self_sampled:
        wanted = law.rise(unit, read_out) * rises[FITTED_AT] / rises[1]
        at_units = {sign: rises[sign] for sign in (1, -1)}
        return Foretold(law.fitted_to(wanted, read_out), read_out, places, at_units, mass)
    far = last_residuals(loaded, run, site, FITTED_AT * unit, rows.tolist())
    wanted = law.divergence_from(far, read_out)
    return Foretold(law.fitted_to(wanted, read_out), read_out, places, None, mass)
