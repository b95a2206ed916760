"""Where the law of tokens says that each token peaks (arXiv:2602.02712, Theorem 3.3)."""

from __future__ import annotations

import numpy as np

from calibrate.laws.dose import dose_of
from calibrate.laws.tokens import TokenLaw

STRENGTHS = 161  # grid on which E[M] is inverted


def peaks(law: TokenLaw, reach: float) -> np.ndarray:
    """The strength at which each token peaks, array (n_contexts, n_tokens).

    Where E_{p_α}[M] = M(z). Infinite, with the sign of the side, for tokens that still rise at
    `reach`, or at `-reach`.
    """
    strengths = reach * np.linspace(-1, 1, STRENGTHS) ** 3  # finest near 0, where most peak
    means = np.stack([mean_log_odds(law, strength) for strength in strengths], axis=1)
    return np.stack(
        [
            np.interp(odds, mean, strengths, left=-np.inf, right=np.inf)
            for odds, mean in zip(law.log_odds, means, strict=True)
        ]
    )


def mean_log_odds(law: TokenLaw, strength: float) -> np.ndarray:
    """E_{p_α}[M], array (n_contexts,); it rises with the strength."""
    dose = float(dose_of(strength, law.saturation))
    contexts = zip(law.log_p, law.log_odds, strict=True)
    return np.array([_tilted_mean(log_p, log_odds, dose) for log_p, log_odds in contexts])


def _tilted_mean(log_p: np.ndarray, log_odds: np.ndarray, dose: float) -> float:
    """E_{p_a}[M] in one context; one at a time, so that a large vocabulary fits the CPU's cache."""
    tilted = log_p + dose * log_odds
    weights = np.exp(tilted - tilted.max())
    return float(weights @ log_odds / weights.sum())
