"""The paper's own model, as the oracle of the laws: exact, and independent of `calibrate`.

In the unconstrained features model every context has its own free feature, and a trained model
gives each context its data distribution exactly. Steering along the difference of mean features
of positive and negative contexts then tilts the next-token distribution exponentially:

    M(z)     = mean over positives of log p(z|c) - mean over negatives     (Definition 3.2)
    p_α(z|c) = p(z|c) exp(αM(z)) / Σ_y p(y|c) exp(αM(y))
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp


@dataclass(frozen=True)
class Ufm:
    """A vocabulary split into concepts, and contexts that each belong to one of them.

    log_p: (n_contexts, n_tokens), log of each context's next-token distribution.
    token_concept, context_concept: the concept each token and each context belongs to.
    """

    log_p: np.ndarray
    token_concept: np.ndarray
    context_concept: np.ndarray

    def log_odds(self, target: int, negative: int | None = None) -> np.ndarray:
        """M, shape (n_tokens,), for steering towards `target`.

        negative: the contrasted concept, or None for every other context.
        """
        positives = self.context_concept == target
        negatives = ~positives if negative is None else self.context_concept == negative
        return self.log_p[positives].mean(axis=0) - self.log_p[negatives].mean(axis=0)

    def steered(self, odds: np.ndarray, strength: float) -> np.ndarray:
        """Next-token probabilities of every context, (n_contexts, n_tokens)."""
        tilted = self.log_p + strength * odds
        return np.exp(tilted - logsumexp(tilted, axis=1, keepdims=True))

    def mass(self, odds: np.ndarray, strength: float, concept: int) -> np.ndarray:
        """Probability of a concept's tokens in every context, (n_contexts,)."""
        return self.steered(odds, strength)[:, self.token_concept == concept].sum(axis=1)

    def delta_ce(self, odds: np.ndarray, strength: float) -> float:
        """Rise of cross-entropy on data distributed as the contexts say, nats per token."""
        p = np.exp(self.log_p)
        return float((p * (self.log_p - np.log(self.steered(odds, strength)))).sum(axis=1).mean())


def dataset(
    n_concepts: int,
    tokens_each: int,
    contexts_each: int,
    within: float,
    rng: np.random.Generator,
    spread: float = 0.0,
) -> Ufm:
    """The paper's dataset (Definition 2.1): a context favours the tokens of its own concept.

    within: probability that the next token is of the context's concept, in (0, 1).
    spread: standard deviation of a log-normal jitter of every probability, which makes tokens of
        a concept differ; 0 is the definition itself.
    """
    token_concept = np.repeat(np.arange(n_concepts), tokens_each)
    context_concept = np.repeat(np.arange(n_concepts), contexts_each)
    own = context_concept[:, None] == token_concept[None, :]
    outside = (1 - within) / (tokens_each * (n_concepts - 1))
    log_p = np.log(np.where(own, within / tokens_each, outside))
    log_p = log_p + spread * rng.standard_normal(log_p.shape)
    return Ufm(log_p - logsumexp(log_p, axis=1, keepdims=True), token_concept, context_concept)
