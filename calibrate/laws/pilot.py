"""Pilot passes: the few measurements from which the laws predict everything else.

1. One derivative on the first sequences gives every token's log-odds M = ∂logit/∂α
   (`laws.log_odds`), and from them the curvature, the slope, the plateau, and the gain of the
   concept's tokens.
2. Passes over all sequences, from the strength that spends the budget by these alone on, correct
   it and give the saturation (`laws.spending`). The laws are fitted through the pass nearest to the
   budget, where they have to be right. On text the model has not written, the first sequences give
   only a rough slope: from the second pass on it is fitted, so that the law of ΔCE goes through the
   two nearest passes.
3. One pass over the first sequences, at TEST_SHARE of α_B, tests the form of the laws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from calibrate.common.errors import Infeasible
from calibrate.common.estimate import Interval, RatioEstimate
from calibrate.common.settings import Settings
from calibrate.engine.cross_entropy import SUFFIX_SHARE, Steered, measure_steered
from calibrate.engine.site import Site
from calibrate.engine.unsteered import UnsteeredRun
from calibrate.laws.bootstrap import (
    mass_law_through,
    of_first_sequences,
    resampled_laws,
    resampled_mass_laws,
    rise_law_through,
    standard_errors,
    strength_interval,
)
from calibrate.laws.formulas import CrossEntropyLaw, Goodness, MassLaw, judge_mass, judge_rise
from calibrate.laws.log_odds import LogOdds, measure_log_odds
from calibrate.laws.spending import spend_budget
from calibrate.laws.tokens import TokenLaw
from calibrate.models.model import LoadedModel

TEST_SHARE = 0.75  # of α_B, at which the laws are tested
USUAL_PASSES = 2  # pilot strengths, as a rule at most
FIRST_PASSES = 3  # over the first sequences, for the derivative and for the test
PEAK_REACH = 5.0  # times α_B: the peak of the concept's mass is sought up to here


@dataclass(frozen=True)
class PilotPoint:
    """One pilot pass: its strength, ΔCE in nats per token, and the mass of concept tokens.

    The mass is that in the first sequences, on which the log-odds were measured.
    """

    strength: float
    delta_ce: float
    concept_mass: float


@dataclass(frozen=True, eq=False)
class Pilot:
    """What the pilot learned about steering at one site, in one direction.

    law: ΔCE as a function of strength, through the pass nearest to the budget; through the two
        nearest where the slope was fitted too.
    mass_law: mass of the concept's tokens as a function of strength, through the same pass.
    errors, mass_errors: standard errors of the laws' parameters, by name.
    rise_goodness, mass_goodness: how the laws did in the test pass, on the first sequences.
    strength_at_budget: α_B with its interval over resampled sequences.
    points: every pilot pass. nearest: ΔCE of the one nearest to the budget, by sequence.
    contexts: the law of single tokens in some of the corpus's contexts, before any saturation.
    concept_tokens: ids of tokens typical of the concept.
    """

    site: Site
    law: CrossEntropyLaw
    mass_law: MassLaw
    errors: dict[str, float]
    mass_errors: dict[str, float]
    rise_goodness: Goodness
    mass_goodness: Goodness
    strength_at_budget: Interval
    points: tuple[PilotPoint, ...]
    nearest: RatioEstimate
    contexts: TokenLaw
    concept_tokens: tuple[int, ...]

    @cached_property
    def tokens(self) -> TokenLaw:
        """The law of single tokens, its saturation fitted to the cost at α_B."""
        return self.contexts.fitted_to(self.law, self.strength_at_budget.value)

    @cached_property
    def mass_peak(self) -> float:
        """Where the law of tokens gives the concept's most mass; at most PEAK_REACH·α_B."""
        return self.tokens.mass_peak(
            self.concept_tokens, PEAK_REACH * self.strength_at_budget.value
        )


def run_pilots(
    loaded: LoadedModel,
    run: UnsteeredRun,
    sites: Sequence[Site],
    concept_tokens: Sequence[int],
    settings: Settings,
) -> dict[str, Pilot]:
    """Run a pilot at every site, and return them by the site's name, in the order of the sites.

    Raises: Infeasible if the budget can be spent at none of them.
    """
    pilots, failures = [], []
    for site in sites:
        try:
            pilots.append(run_pilot(loaded, run, site, concept_tokens, settings))
        except Infeasible as failure:
            failures.append(failure)
    if not pilots:
        reasons = [reason for failure in failures for reason in failure.reasons]
        raise Infeasible(reasons, failures[0].advice)
    return {pilot.site.name: pilot for pilot in pilots}


def expected_tokens(sites: int, corpus: float, first: float) -> float:
    """Token-forwards of the pilots at some sites, and of the unsteered pass before them.

    corpus, first: tokens of the corpus, and of its first sequences.
    """
    return corpus + sites * SUFFIX_SHARE * (USUAL_PASSES * corpus + FIRST_PASSES * first)


def run_pilot(
    loaded: LoadedModel,
    run: UnsteeredRun,
    site: Site,
    concept_tokens: Sequence[int],
    settings: Settings,
) -> Pilot:
    """Fit the laws at one site and name the strength that spends the budget.

    concept_tokens: ids of tokens typical of the concept (`concept_token_ids`).
    Raises: Infeasible if the plateau lies below the budget, so that no strength of the goal's sign
        spends it; it says which sign.
    """
    odds = measure_log_odds(loaded, run.first, site, concept_tokens)
    return fit_pilot(loaded, run, site, odds, concept_tokens, settings)


def fit_pilot(
    loaded: LoadedModel,
    run: UnsteeredRun,
    site: Site,
    odds: LogOdds,
    concept_tokens: Sequence[int],
    settings: Settings,
) -> Pilot:
    """Run the pilot's passes, given the log-odds, in the direction of the goal.

    odds: measured on `run.first`.
    Raises: Infeasible as `run_pilot` does.
    """

    def steered_at(strength: float, part: UnsteeredRun) -> Steered:
        return measure_steered(loaded, part, site, strength, concept_tokens)

    n_sequences = len(run.corpus.sequences)
    slope_known = run.corpus.self_sampled or len(odds.counts) == n_sequences
    passes: dict[float, Steered] = {}

    def rise_at(strength: float) -> float:
        passes[strength] = steered_at(strength, run)
        return passes[strength].rise.value

    budget, sign = settings.ce_budget, settings.sign
    spent = spend_budget(rise_at, odds.law(sign), slope_known, budget, sign, site.name)
    at, strength = spent.fitted_at[0], spent.strength
    nearest = passes[at]
    test = TEST_SHARE * strength
    goodness = _test_laws(odds, at, nearest, test, steered_at(test, run.first), sign)
    laws = resampled_laws(odds, [(each, passes[each].rise) for each in spent.fitted_at], settings)
    low, high = strength_interval(laws, n_sequences, settings)
    low, high = min(low, strength), max(high, strength)  # passes may contradict the laws' strength
    return Pilot(
        site=site,
        law=spent.law,
        mass_law=mass_law_through(odds, at, nearest.mass),
        errors=standard_errors(laws),
        mass_errors=standard_errors(resampled_mass_laws(odds, at, nearest.mass, settings)),
        rise_goodness=goodness[0],
        mass_goodness=goodness[1],
        strength_at_budget=Interval(strength, low, high),
        points=tuple(
            PilotPoint(tried, steered.rise.value, of_first_sequences(steered.mass, odds).value)
            for tried, steered in passes.items()
        ),
        nearest=nearest.rise,
        contexts=odds.tokens,
        concept_tokens=tuple(concept_tokens),
    )


def _test_laws(
    odds: LogOdds, at: float, nearest: Steered, test: float, measured: Steered, sign: int
) -> tuple[Goodness, Goodness]:
    """Judge both laws, fitted to the first sequences alone, on these at the test's strength."""
    law = rise_law_through(odds, [(at, of_first_sequences(nearest.rise, odds))], sign)
    mass_law = mass_law_through(odds, at, nearest.mass)
    return (
        judge_rise([test], [float(law.predict(test))], [measured.rise.value]),
        judge_mass(
            [test],
            [float(mass_law.predict(test))],
            [measured.mass.value],
            float(mass_law.predict(0.0)),
        ),
    )
