"""The laws fitted through passes, and their errors by resampling the sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
from scipy.stats import norm as normal
from scipy.stats import t as student

from calibrate.common.estimate import RatioEstimate
from calibrate.common.settings import Settings
from calibrate.laws.formulas import HIGHEST_SHARE, CrossEntropyLaw, MassLaw
from calibrate.laws.log_odds import LogOdds

RESAMPLES = 1000  # bootstrap resamples of the sequences, for intervals and standard errors


def resampled_laws(
    odds: LogOdds, passes: Sequence[tuple[float, RatioEstimate]], settings: Settings
) -> list[CrossEntropyLaw]:
    """The laws of ΔCE for RESAMPLES bootstrap resamples of the sequences, fitted as the law was.

    passes: what it was fitted to: the strength of one pass and its ΔCE, or of two, the one nearest
    to the budget first, where its slope was fitted too. Their first sequences are those of the
    log-odds.
    """
    return [
        rise_law_through(odds, passes, settings.sign, weights)
        for weights in _resample_counts(len(passes[0][1].counts), settings)
    ]


def resampled_mass_laws(
    odds: LogOdds, strength: float, mass: RatioEstimate, settings: Settings
) -> list[MassLaw]:
    """The laws of the concept's mass for as many resamples."""
    return [
        mass_law_through(odds, strength, mass, weights)
        for weights in _resample_counts(len(mass.counts), settings)
    ]


def strength_interval(
    laws: Sequence[CrossEntropyLaw], n: int, settings: Settings
) -> tuple[float, float]:
    """The interval of α_B over the laws of resamples of n sequences.

    A resample whose plateau lies below the budget counts with where it comes nearest.
    """
    strengths = [
        law.invert(min(settings.ce_budget, HIGHEST_SHARE * law.plateau), settings.sign)
        for law in laws
    ]
    tail = _tail(n, settings.confidence)
    low, high = np.quantile(strengths, [tail, 1 - tail])
    return float(low), float(high)


def _resample_counts(n: int, settings: Settings) -> np.ndarray:
    """How often each of n sequences counts in each resample, (RESAMPLES, n)."""
    rng = np.random.default_rng(settings.seed)
    return rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(float)


def rise_law_through(
    odds: LogOdds,
    passes: Sequence[tuple[float, RatioEstimate]],
    sign: int,
    weights: np.ndarray | None = None,
) -> CrossEntropyLaw:
    """The law of ΔCE through one pass, or through two.

    weights: how often each sequence counts; once each if None.
    """
    weights = np.ones(len(passes[0][1].counts)) if weights is None else weights
    points = [
        (strength, float(weights @ rise.sums / (weights @ rise.counts)))
        for strength, rise in passes
    ]
    return odds.law(sign, _of_first(weights, odds)).through_nearest(points)


def mass_law_through(
    odds: LogOdds, strength: float, mass: RatioEstimate, weights: np.ndarray | None = None
) -> MassLaw:
    """The law of the mass through one pass, of which only the first sequences are used."""
    weights = np.ones(len(mass.counts)) if weights is None else weights
    first = _of_first(weights, odds)
    value = float(first @ of_first_sequences(mass, odds).sums / (first @ odds.counts))
    return odds.mass_law(first).through(strength, value)


def _of_first(weights: np.ndarray, odds: LogOdds) -> np.ndarray:
    """Weights of the first sequences; all equal where a resample has none of them."""
    first = weights[: len(odds.counts)]
    return first if first.any() else np.ones_like(first)


def of_first_sequences(estimate: RatioEstimate, odds: LogOdds) -> RatioEstimate:
    """An estimate over all sequences, reduced to those of the log-odds."""
    n = len(odds.counts)
    return RatioEstimate(estimate.sums[:n], estimate.counts[:n])


def _tail(n: int, confidence: float) -> float:
    """The share of resamples to leave out on either side.

    Percentiles of resamples are too narrow by √(1 - 1/n), and by the difference of Student's t
    from the normal; both are made up for (Hesterberg, "What Teachers Should Know About the
    Bootstrap", 2015, the expanded percentile interval).
    """
    if n < 2:
        return (1 - confidence) / 2
    wide = np.sqrt(n / (n - 1)) * student.ppf((1 + confidence) / 2, n - 1)
    return float(normal.cdf(-wide))


def standard_errors(laws: Sequence[CrossEntropyLaw] | Sequence[MassLaw]) -> dict[str, float]:
    """Standard deviation of every parameter over resamples."""
    resamples = [asdict(law) for law in laws]
    return {name: float(np.std([law[name] for law in resamples], ddof=1)) for name in resamples[0]}
