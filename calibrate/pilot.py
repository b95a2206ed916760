"""Pilot passes: the few measurements from which the laws predict everything else.

    1. a pair of passes at ±ε gives every token's log-odds M = ∂logit/∂α, and with them the
       curvature, the slope, and how fast the concept's tokens gain;
    2. one pass at the strength where ½cα² alone would spend the budget gives the saturation;
    3. passes at the strength the law then names test the law and tighten it, until two
       successive answers agree within TOLERANCE, or MAX_PASSES have been spent.

The plateau far out costs no pass: there the logits tend to those of norm(±v).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from calibrate.cross_entropy import UnsteeredRun, delta_ce, logit_slices, steered_hidden
from calibrate.errors import Infeasible
from calibrate.estimate import RatioEstimate
from calibrate.laws import ConceptLaw, CrossEntropyLaw, Goodness
from calibrate.settings import Settings
from calibrate.vector import SteeringVector

if TYPE_CHECKING:
    from calibrate.model import LoadedModel

TOLERANCE = 0.005  # relative change of α_B below which no further pass is made
MAX_PASSES = 3  # pilot strengths beyond the ±ε pair
EPSILON_SHARE = 0.01  # ε‖v‖ / median ‖h‖: small enough to be linear, large enough for float32
RESAMPLES = 500  # bootstrap resamples of the sequences, for the interval of α_B
TYPICAL_LIFT = 3.0  # how much more often a concept's token stands in positive texts
FAR = 1e4  # multiple of the residual norm at which only v is left in the residual stream


@dataclass(frozen=True)
class Interval:
    """A value with a two-sided confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Pilot:
    """What the pilot learned about steering after one block.

    vector: the steering vector of that block.
    law: ΔCE as a function of strength, of the sign that was asked for.
    concept: mass of the concept's tokens as a function of strength.
    goodness: how the law did at the last strength it had not been fitted on.
    strength_at_budget: α_B with its interval over resampled sequences.
    points: (strength, ΔCE) of every pilot pass, nats per token.
    """

    vector: SteeringVector
    law: CrossEntropyLaw
    concept: ConceptLaw
    goodness: Goodness
    strength_at_budget: Interval
    points: tuple[tuple[float, float], ...]

    @property
    def promise(self) -> float:
        """Log of the factor by which α_B multiplies the odds of the concept's tokens."""
        return self.concept.gain * self.strength_at_budget.value


@dataclass(frozen=True, eq=False)
class _LogOdds:
    """What the ±ε pair says, summed over each sequence's scored tokens.

    curvature, slope, plateau: arrays (n_sequences,), sums of Var_p₀[M], of E_p₀[M] - M(label),
    and of the rise of CE infinitely far out; counts: scored tokens.
    concept: probability of the concept's tokens averaged over contexts, and its derivative.
    """

    curvature: np.ndarray
    slope: np.ndarray
    plateau: np.ndarray
    counts: np.ndarray
    concept: ConceptLaw

    def law(self, weights: np.ndarray | None = None) -> CrossEntropyLaw:
        """The law before any saturation is known; `weights` resamples the sequences."""
        weights = np.ones(len(self.counts)) if weights is None else weights
        total = weights @ self.counts
        return CrossEntropyLaw(
            slope=float(weights @ self.slope / total),
            curvature=float(weights @ self.curvature / total),
            saturation=0.0,
            plateau=float(weights @ self.plateau / total),
        )


def run_pilots(
    loaded: LoadedModel,
    run: UnsteeredRun,
    vectors: Sequence[SteeringVector],
    concept_tokens: Sequence[int],
    settings: Settings,
) -> dict[int, Pilot]:
    """Run a pilot for each vector, and return them by block, most promising first.

    Promising is a block whose vector, at the strength that spends the budget, multiplies the
    odds of the concept's tokens most (or, to decrease it, divides them most).
    Raises: Infeasible if no block's vector can spend the budget.
    """
    pilots, failures = [], []
    for vector in vectors:
        try:
            pilots.append(run_pilot(loaded, run, vector, concept_tokens, settings))
        except Infeasible as failure:
            failures.append(failure)
    if not pilots:
        reasons = [reason for failure in failures for reason in failure.reasons]
        raise Infeasible(reasons, failures[0].advice)
    pilots.sort(key=lambda pilot: -pilot.promise * settings.sign)
    return {pilot.vector.layer: pilot for pilot in pilots}


def run_pilot(
    loaded: LoadedModel,
    run: UnsteeredRun,
    vector: SteeringVector,
    concept_tokens: Sequence[int],
    settings: Settings,
) -> Pilot:
    """Fit the laws for one block and name the strength that spends the budget.

    concept_tokens: ids of tokens typical of the concept (`concept_token_ids`).
    Raises: Infeasible if the plateau lies below the budget, so that no strength spends it.
    """
    budget, sign, positions = settings.ce_budget, settings.sign, settings.positions
    odds = _log_odds(loaded, run, vector, concept_tokens, settings)
    law = odds.law()
    strength = law.invert(budget, sign)
    measured: list[tuple[float, RatioEstimate]] = []
    for _ in range(MAX_PASSES):
        _require_finite(strength, law, budget, vector)
        rise = delta_ce(loaded, run, vector.values, vector.layer, strength, positions)
        goodness = Goodness(strength, float(law.predict(strength)), rise.value)
        measured.append((strength, rise))
        law = _fitted(odds.law(), measured)
        named = law.invert(budget, sign)
        settled = abs(named / strength - 1) < TOLERANCE
        strength = named
        if settled:
            break
    _require_finite(strength, law, budget, vector)
    low, high = _resampled_interval(odds, measured, settings)
    return Pilot(
        vector=vector,
        law=law,
        concept=odds.concept,
        goodness=goodness,
        strength_at_budget=Interval(strength, low, high),
        points=tuple((at, rise.value) for at, rise in measured),
    )


def concept_token_ids(
    loaded: LoadedModel,
    positives: Sequence[str],
    negatives: Sequence[str],
    neutral: Sequence[str],
    most: int = 50,
) -> tuple[int, ...]:
    """Return tokens typical of the positive texts and rare in the others, most typical first.

    Typical are tokens found in at least two positive texts, ranked by the smoothed ratio of
    their rate there to their rate in the negatives and the neutral replies together.
    """
    ids = [[_word_ids(loaded, text) for text in texts] for texts in (positives, negatives, neutral)]
    spread = Counter(token for text in ids[0] for token in set(text))
    inside = Counter(token for text in ids[0] for token in text)
    outside = Counter(token for part in ids[1:] for text in part for token in text)
    n_inside, n_outside = max(inside.total(), 1), max(outside.total(), 1)
    lift = {
        token: (inside[token] / n_inside) / ((outside[token] + 1) / n_outside)
        for token, texts in spread.items()
        if texts >= 2
    }
    ranked = sorted(lift, key=lambda token: (-lift[token], token))
    return tuple(token for token in ranked if lift[token] >= TYPICAL_LIFT)[:most]


def _word_ids(loaded: LoadedModel, text: str) -> list[int]:
    ids: list[int] = loaded.tokenizer(" " + text, add_special_tokens=False)["input_ids"]
    return ids


def _fitted(
    law: CrossEntropyLaw, measured: Sequence[tuple[float, RatioEstimate]]
) -> CrossEntropyLaw:
    strengths = np.array([strength for strength, _ in measured])
    return law.fitted_to(strengths, np.array([rise.value for _, rise in measured]))


def _require_finite(
    strength: float, law: CrossEntropyLaw, budget: float, vector: SteeringVector
) -> None:
    if not np.isfinite(strength):
        raise Infeasible(
            [
                f"no strength at block {vector.layer} raises cross-entropy by the budget of "
                f"{budget:g} nat: the law levels off at {law.plateau:.3g} nat"
            ],
            ["ask for a smaller --ce-budget, or another --layer"],
        )


def _resampled_interval(
    odds: _LogOdds,
    measured: Sequence[tuple[float, RatioEstimate]],
    settings: Settings,
) -> tuple[float, float]:
    """Percentile interval of α_B over bootstrap resamples of the sequences."""
    rng = np.random.default_rng(settings.seed)
    n = len(odds.counts)
    strengths = np.array([strength for strength, _ in measured])
    sums = np.stack([rise.sums for _, rise in measured])
    named = []
    for weights in rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(float):
        rises = sums @ weights / (weights @ odds.counts)
        law = odds.law(weights).fitted_to(strengths, rises)
        named.append(law.invert(settings.ce_budget, settings.sign))
    tail = (1 - settings.confidence) / 2
    low, high = np.quantile(named, [tail, 1 - tail])
    return float(low), float(high)


def _log_odds(
    loaded: LoadedModel,
    run: UnsteeredRun,
    vector: SteeringVector,
    concept_tokens: Sequence[int],
    settings: Settings,
) -> _LogOdds:
    """Measure every token's log-odds by a central difference, and reduce them as they come."""
    epsilon = EPSILON_SHARE * vector.residual_norm / vector.norm
    tokens = torch.tensor(list(concept_tokens), dtype=torch.long, device=loaded.device)
    n = len(run.corpus.sequences)
    sums = np.zeros((3, n))
    counts = np.zeros(n)
    masses: list[torch.Tensor] = []
    far = torch.log_softmax(_far_logits(loaded, vector, settings.sign), dim=-1)
    for one in run.batches:
        plus, minus = (
            steered_hidden(loaded, one, shift * vector.values, vector.layer, settings.positions)
            for shift in (epsilon, -epsilon)
        )
        labels = one.batch.labels()
        per_token = torch.empty(3, len(labels), dtype=torch.float64)
        for part in logit_slices(loaded, plus):
            log_p = torch.log_softmax(loaded.logits(one.hidden[part]), dim=-1)
            odds = (loaded.logits(plus[part]) - loaded.logits(minus[part])) / (2 * epsilon)
            label = None if run.corpus.self_sampled else labels[part]
            per_token[:, part] = _reduced(log_p, odds, far, label)
            masses.append(_concept_mass(log_p.exp(), odds, tokens))
        lengths = [sequence.n_scored for sequence in one.batch.sequences]
        for row, values in zip(one.batch.rows, torch.split(per_token, lengths, dim=1), strict=True):
            sums[:, row], counts[row] = values.sum(dim=1), values.shape[1]
    mass, derivative = torch.cat(masses, dim=1).mean(dim=1).tolist()
    gain = derivative / max(mass * (1 - mass), 1e-12)
    return _LogOdds(sums[0], sums[1], sums[2], counts, ConceptLaw.from_mass(mass, gain))


def _reduced(
    log_p: torch.Tensor, odds: torch.Tensor, far: torch.Tensor, label: torch.Tensor | None
) -> torch.Tensor:
    """Curvature, slope and plateau of each token, float64 of shape (3, n_tokens)."""
    p = log_p.exp()
    mean = (p * odds).sum(dim=-1)
    variance = (p * (odds - mean[:, None]) ** 2).sum(dim=-1)
    if label is None:  # the label is a draw from p, so its expectation stands for it
        slope = torch.zeros_like(mean)
        plateau = (p * (log_p - far)).sum(dim=-1)
    else:
        slope = mean - odds.gather(1, label[:, None])[:, 0]
        plateau = log_p.gather(1, label[:, None])[:, 0] - far[label]
    return torch.stack([variance, slope, plateau]).double().cpu()


def _concept_mass(p: torch.Tensor, odds: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Mass F of the concept's tokens and dF/dα in each context, float64 (2, n_tokens)."""
    mean = (p * odds).sum(dim=-1, keepdim=True)
    chosen = p[:, tokens]
    derivative = (chosen * (odds[:, tokens] - mean)).sum(dim=-1)
    return torch.stack([chosen.sum(dim=-1), derivative]).double().cpu()


def _far_logits(loaded: LoadedModel, vector: SteeringVector, sign: int) -> torch.Tensor:
    """Logits of norm(±v), shape (vocabulary,): the limit of steering (Proposition 4.1)."""
    far = sign * FAR * vector.residual_norm * vector.values / vector.norm
    norm_parameter = next(loaded.final_norm.parameters())
    return loaded.logits(loaded.final_norm(far.to(norm_parameter)))
