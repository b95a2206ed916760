"""What steering after one block does, at strengths from within the budget to far beyond it.

Strengths are shares of α_B, of both signs. The laws are fitted near 0, as in a calibration, and
judged against every other strength here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from calibrate.common.blocks import site_name
from calibrate.common.estimate import Interval
from calibrate.common.record import Section
from calibrate.engine.site import Site
from calibrate.laws.bench import Bench, name_of
from calibrate.laws.far_end import FarEnd
from calibrate.laws.foretold import Foretold, foretell
from calibrate.laws.formulas import CrossEntropyLaw, Goodness, MassLaw, judge_mass, judge_rise
from calibrate.laws.log_odds import sampled_contexts, text_before
from calibrate.laws.panels import AccuracyCurve, PresenceCurve
from calibrate.laws.remainder import FITTED_AT
from calibrate.laws.tokens import ProbabilityCurves, TokenLaw, judge_peaks, judge_shapes

SHARES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)  # of α_B, of either sign
WITHIN, BEYOND = 1.0, 3.0  # shares up to which the laws are judged
LIKELY = 200  # tokens of each context whose curves are judged
SHOWN = 8  # tokens of the shown context whose curves are kept
PEAK_STRENGTHS = 81  # at which the law's peaks are looked for


class TokenCurve(Section):
    """One token's probability in one context, measured and by the law, at every strength."""

    token: str
    log_odds: float
    probability: list[float]
    predicted: list[float]
    peak: float
    peak_predicted: float


class BlockCurves(Section):
    """Everything measured at one block or band, against strengths in ascending order.

    layer: of several blocks steered with one strength, which `layers` lists, the first.

    delta_ce: nats per token; concept_mass: probability of the concept's tokens. Their errors are
    standard deviations over resampled concept texts, where those were asked for, and for ΔCE
    otherwise the standard error over sequences. law_*: what the paper's laws predict, as a
    calibration uses them; remainder_*: what the law of the bounded remainder does, None for ΔCE on
    text the model has not written, where it is no KL. goodness: by law, up to α_B of either sign;
    goodness_beyond: up to BEYOND times as far, where the laws extrapolate; "peaks" is absent where
    too few tokens peak.
    context: the end of the text before the tokens shown; of the contexts sampled, the one in which
    probabilities move most. far: by sign, the tokens left at a far strength. Strengths at which
    activations are not finite are left out, far ones too. presence, accuracy: None where nobody was
    asked to read replies, and no questions were put.
    """

    layer: int
    layers: list[int] = Field(default_factory=list)
    relative_unit: float
    strengths: list[float]
    strength_at_budget: dict[str, Interval]
    plateaus: dict[str, float]
    delta_ce: list[float]
    delta_ce_error: list[float]
    law_delta_ce: list[float]
    quadratic: list[float]
    concept_mass: list[float]
    concept_mass_error: list[float] | None
    law_concept_mass: list[float]
    remainder_delta_ce: list[float] | None
    remainder_concept_mass: list[float]
    context: str
    tokens: list[TokenCurve]
    goodness: dict[str, Goodness]
    goodness_beyond: dict[str, Goodness]
    far: dict[str, FarEnd]
    presence: PresenceCurve | None = None
    accuracy: AccuracyCurve | None = None

    @property
    def where(self) -> str:
        """The steered blocks in words, such as "block 15" or "blocks 8-26"."""
        return site_name(self.layers or [self.layer], "all")


@dataclass(frozen=True, eq=False)
class _Watched:
    """Probabilities of each watched context's likeliest tokens, measured at every strength.

    ids: (n_contexts, LIKELY), token ids. measured, by_law: their curves, at the measured strengths
    and at finer ones.
    """

    ids: np.ndarray
    measured: ProbabilityCurves
    by_law: ProbabilityCurves


def block_curves(bench: Bench, site: Site, resamples: Sequence[Site] = ()) -> BlockCurves:
    """Measure the curves of steering at a site, and judge the laws.

    resamples: the same site with vectors made from resampled texts, for error bars.
    Raises: Infeasible if either sign has no strength that spends the budget; it says which;
        NumericalError if activations are not finite up to where the laws are judged.
    """
    odds = bench.log_odds(site)
    pilots = {sign: bench.pilot(site, odds, sign) for sign in (1, -1)}
    unit = abs(pilots[1].strength_at_budget.value)
    strengths = unit * np.array([*(-share for share in reversed(SHARES)), 0.0, *SHARES])
    contexts, needed = sampled_contexts(bench.run), BEYOND * unit
    passes = bench.passes(site, strengths, needed, contexts)
    others = [bench.passes(other, strengths, needed) for other in resamples]
    strengths = np.array(
        [at for at in strengths if at in passes and all(at in other for other in others)]
    )
    measured = [passes[at] for at in strengths.tolist()]
    rises = np.array([steered.rise.value for steered in measured])
    masses = np.array([steered.mass.value for steered in measured])
    law_rises = _predicted({sign: pilot.law for sign, pilot in pilots.items()}, strengths)
    law_masses = _predicted({sign: pilot.mass_law for sign, pilot in pilots.items()}, strengths)
    resampled = [[other[at] for at in strengths.tolist()] for other in others]
    foretold = _foretold(bench, site, unit, contexts, strengths, rises, masses)
    far_rises, far_masses = foretold.curves(strengths, bench.concept_tokens)
    by_law = {"cross_entropy": law_rises, "cross_entropy_remainder": far_rises}
    watched = _watch(foretold, strengths, np.stack([steered.watched for steered in measured]))
    shown = int(np.argmax(np.ptp(watched.measured.probabilities, axis=2).sum(axis=1)))
    goodness, goodness_beyond = (
        _judge_laws(
            strengths,
            share * unit * (1 + 1e-9),
            {law: row for law, row in by_law.items() if row is not None},
            {"concept": law_masses, "concept_remainder": far_masses},
            (rises, masses),
            watched,
        )
        for share in (WITHIN, BEYOND)
    )

    return BlockCurves(
        layer=site.first,
        layers=[*site.layers] if len(site.layers) > 1 else [],
        relative_unit=site.relative(1.0),
        strengths=strengths.tolist(),
        strength_at_budget={
            name_of(sign): pilot.strength_at_budget for sign, pilot in pilots.items()
        },
        plateaus={name_of(sign): pilot.law.plateau for sign, pilot in pilots.items()},
        delta_ce=rises.tolist(),
        delta_ce_error=(
            _spread([[steered.rise.value for steered in curve] for curve in resampled])
            or [steered.rise.standard_error for steered in measured]
        ),
        law_delta_ce=law_rises.tolist(),
        quadratic=(0.5 * pilots[1].law.curvature * strengths**2).tolist(),
        concept_mass=masses.tolist(),
        concept_mass_error=_spread(
            [[steered.mass.value for steered in curve] for curve in resampled]
        ),
        law_concept_mass=law_masses.tolist(),
        remainder_delta_ce=None if far_rises is None else far_rises.tolist(),
        remainder_concept_mass=far_masses.tolist(),
        context=text_before(bench.loaded, bench.run, contexts[shown]),
        tokens=_token_curves(bench, odds.tokens, strengths, watched, shown),
        goodness=goodness,
        goodness_beyond=goodness_beyond,
        far=bench.far_ends(site, odds, contexts),
    )


def _judge_laws(
    strengths: np.ndarray,
    reach: float,
    rises: Mapping[str, np.ndarray],
    masses: Mapping[str, np.ndarray],
    truth: tuple[np.ndarray, np.ndarray],
    watched: _Watched,
) -> dict[str, Goodness]:
    """Judge every law at strengths up to `reach`; peaks are left out where too few are there.

    rises, masses: predicted, by law. truth: rises and masses measured.
    """
    near = np.abs(strengths) <= reach
    steered = near & (strengths != 0)
    measured = watched.measured.up_to(reach)
    by_law = watched.by_law.at(measured.strengths)
    at, (rise, mass) = strengths[steered], (row[steered] for row in truth)
    unsteered = float(truth[1][strengths == 0].item())
    peaks = judge_peaks(measured.peaks(), by_law.peaks(), float(measured.strengths[-1]))
    return {
        **{law: judge_rise(at, row[steered], rise) for law, row in rises.items()},
        **{law: judge_mass(at, row[steered], mass, unsteered) for law, row in masses.items()},
        "bumps": judge_shapes(measured.probabilities.reshape(-1, len(measured.strengths))),
        **({} if peaks is None else {"peaks": peaks}),
    }


def n_strengths() -> int:
    """How many strengths a site is measured at, where activations are finite at all of them."""
    return 2 * len(SHARES) + 1


def _spread(curves: Sequence[Sequence[float]]) -> list[float] | None:
    """Standard deviation at each strength over resamples, None without any."""
    return np.std(np.array(curves), axis=0, ddof=1).tolist() if len(curves) > 1 else None


def _predicted(laws: Mapping[int, CrossEntropyLaw | MassLaw], strengths: np.ndarray) -> np.ndarray:
    """What the law of each sign predicts."""
    positive, negative = (np.asarray(laws[sign].predict(strengths)) for sign in (1, -1))
    return np.where(strengths >= 0, positive, negative)


def _foretold(
    bench: Bench,
    site: Site,
    unit: float,
    contexts: Sequence[int],
    strengths: np.ndarray,
    rises: np.ndarray,
    masses: np.ndarray,
) -> Foretold:
    """The law of the bounded remainder at a site.

    unit: α_B, above 0. rises, masses: measured at the strengths, multiples of it among them.
    """
    places = {share: np.argmin(np.abs(strengths - share * unit)) for share in (-1, 0, 1, FITTED_AT)}
    measured = {share: float(rises[place]) for share, place in places.items() if share}
    mass = float(masses[places[0]])
    return foretell(bench.loaded, bench.run, site, unit, contexts, measured, mass)


def _watch(foretold: Foretold, strengths: np.ndarray, measured: np.ndarray) -> _Watched:
    """measured: (n_strengths, n_contexts, vocabulary)."""
    unsteered = measured[np.argmin(np.abs(strengths))]
    ids = np.argsort(-unsteered, axis=1)[:, :LIKELY]
    finest_near_zero = float(np.abs(strengths).max()) * np.linspace(-1, 1, PEAK_STRENGTHS) ** 3
    fine = np.union1d(strengths, finest_near_zero)
    by_law = [
        np.exp(np.take_along_axis(foretold.log_probabilities(float(at)), ids, axis=1))
        for at in fine
    ]
    curves = np.take_along_axis(measured, ids[None], axis=2).transpose(1, 2, 0)
    return _Watched(
        ids, ProbabilityCurves(strengths, curves), ProbabilityCurves(fine, np.stack(by_law, axis=2))
    )


def _token_curves(
    bench: Bench, tilt: TokenLaw, strengths: np.ndarray, watched: _Watched, context: int
) -> list[TokenCurve]:
    """The tokens that move most in one context."""
    measured, by_law = watched.measured, watched.by_law
    picked = np.argsort(-np.ptp(measured.probabilities[context], axis=1))[:SHOWN]
    return [
        TokenCurve(
            token=bench.loaded.tokenizer.decode([int(watched.ids[context, row])]),
            log_odds=float(tilt.log_odds[context, watched.ids[context, row]]),
            probability=measured.probabilities[context, row].tolist(),
            predicted=by_law.at(strengths).probabilities[context, row].tolist(),
            peak=float(measured.peaks()[context, row]),
            peak_predicted=float(by_law.peaks()[context, row]),
        )
        for row in picked
    ]
