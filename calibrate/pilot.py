"""Pilot passes: the few measurements from which the laws predict everything else.

1. one derivative gives every token's log-odds M = ∂logit/∂α (`calibrate.log_odds`), and
   with them the curvature, the slope, the plateau, and how fast the concept's tokens gain;
2. one pass at the strength where these alone would spend the budget gives the saturation;
3. passes at the strength the law then names test the law and tighten it, until two
   successive answers agree within TOLERANCE, or MAX_PASSES have been spent. The law goes through
   the pass nearest to the budget, so that what its form misses elsewhere does not matter there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from calibrate.cross_entropy import Steered, UnsteeredRun, measure_steered
from calibrate.errors import Infeasible
from calibrate.laws import ConceptLaw, CrossEntropyLaw, Goodness, judge_mass, judge_rise
from calibrate.log_odds import LogOdds, measure_log_odds
from calibrate.settings import Settings
from calibrate.token_law import TokenLaw
from calibrate.vector import SteeringVector

if TYPE_CHECKING:
    from calibrate.model import LoadedModel

TOLERANCE = 0.005  # relative change of α_B below which no further pass is made
MAX_PASSES = 3  # pilot strengths beyond the derivative
RESAMPLES = 500  # bootstrap resamples of the sequences, for intervals and standard errors
PEAK_REACH = 5.0  # how many α_B far the peak of the concept's mass is looked for
TYPICAL_LIFT = 3.0  # how much more often a concept's token stands in positive texts


@dataclass(frozen=True)
class Interval:
    """A value with a two-sided confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PilotPoint:
    """One pilot pass: its strength, ΔCE in nats per token, and the mass of concept tokens."""

    strength: float
    delta_ce: float
    concept_mass: float


@dataclass(frozen=True, eq=False)
class Pilot:
    """What the pilot learned about steering after one block, in one direction.

    vector: the steering vector of that block.
    law: ΔCE as a function of strength, through the pass nearest to the budget.
    errors: standard errors of the law's parameters, by name.
    concept: mass of the concept's tokens as a function of strength.
    tokens: the law of single tokens in some of the corpus's contexts.
    mass_peak: where, by that law, the concept's tokens have most mass; at most PEAK_REACH·α_B.
    rise_goodness: how the law of ΔCE did at the last strength it had not been fitted on.
    mass_goodness: how the concept's law, which is fitted to none, did at all pilot strengths.
    strength_at_budget: α_B with its interval over resampled sequences.
    points: every pilot pass.
    """

    vector: SteeringVector
    law: CrossEntropyLaw
    errors: dict[str, float]
    concept: ConceptLaw
    tokens: TokenLaw
    mass_peak: float
    rise_goodness: Goodness
    mass_goodness: Goodness
    strength_at_budget: Interval
    points: tuple[PilotPoint, ...]

    @property
    def promise(self) -> float:
        """Log of the factor by which α_B multiplies the odds of the concept's tokens."""
        return self.concept.gain * self.strength_at_budget.value


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
    odds = measure_log_odds(loaded, run, vector, concept_tokens, settings.positions)
    return fit_pilot(loaded, run, vector, odds, concept_tokens, settings)


def fit_pilot(
    loaded: LoadedModel,
    run: UnsteeredRun,
    vector: SteeringVector,
    odds: LogOdds,
    concept_tokens: Sequence[int],
    settings: Settings,
) -> Pilot:
    """Spend the pilot's passes, given the log-odds, in the direction of the goal.

    Raises: Infeasible as `run_pilot` does.
    """
    budget, sign = settings.ce_budget, settings.sign
    law = odds.law(sign)
    strength = law.invert(budget, sign)
    measured: list[tuple[float, Steered]] = []
    for _ in range(MAX_PASSES):
        _require_finite(strength, law, budget, vector)
        steered = measure_steered(
            loaded, run, vector.values, vector.layer, strength, settings.positions, concept_tokens
        )
        rise_goodness = judge_rise([strength], [float(law.predict(strength))], [steered.rise.value])
        measured.append((strength, steered))
        at, nearest = _nearest(measured, budget)
        law = odds.law(sign).through(at, nearest.rise.value)
        named = law.invert(budget, sign)
        settled = abs(named / strength - 1) < TOLERANCE
        strength = named
        if settled:
            break
    _require_finite(strength, law, budget, vector)
    low, high, errors = _resampled(odds, measured, settings)
    strengths = [at for at, _ in measured]
    masses = [steered.mass for _, steered in measured]
    token_law = odds.tokens.fitted_to(law, strength)
    return Pilot(
        vector=vector,
        law=law,
        errors=errors,
        concept=odds.concept,
        tokens=token_law,
        mass_peak=token_law.mass_peak(concept_tokens, PEAK_REACH * strength),
        rise_goodness=rise_goodness,
        mass_goodness=judge_mass(
            strengths, [float(odds.concept.predict(at)) for at in strengths], masses
        ),
        strength_at_budget=Interval(strength, low, high),
        points=tuple(PilotPoint(at, steered.rise.value, steered.mass) for at, steered in measured),
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


def _nearest(measured: Sequence[tuple[float, Steered]], budget: float) -> tuple[float, Steered]:
    """The pass that spent nearly the budget: the law goes through it, and interpolates least."""
    spent = [(at, steered) for at, steered in measured if steered.rise.value > 0]
    return min(spent or measured[-1:], key=lambda one: abs(np.log(one[1].rise.value / budget)))


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


def _resampled(
    odds: LogOdds, measured: Sequence[tuple[float, Steered]], settings: Settings
) -> tuple[float, float, dict[str, float]]:
    """Percentile interval of α_B, and standard errors of the law's parameters.

    Both from RESAMPLES bootstrap resamples of the sequences.
    """
    rng = np.random.default_rng(settings.seed)
    n = len(odds.counts)
    strength, nearest = _nearest(measured, settings.ce_budget)
    laws = []
    for weights in rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(float):
        rise = float(nearest.rise.sums @ weights / (weights @ odds.counts))
        laws.append(odds.law(settings.sign, weights).through(strength, rise))
    named = [law.invert(settings.ce_budget, settings.sign) for law in laws]
    tail = (1 - settings.confidence) / 2
    low, high = np.quantile(named, [tail, 1 - tail])
    parameters = [asdict(law) for law in laws]
    errors = {
        name: float(np.std([one[name] for one in parameters], ddof=1)) for name in parameters[0]
    }
    return float(low), float(high), errors
