"""Sections of the config: the fitted laws."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calibrate.common.record import Section
from calibrate.laws.formulas import CrossEntropyLaw, Goodness, MassLaw
from calibrate.laws.presence import PresenceFit, PresenceLaw


@dataclass(frozen=True)
class CrossEntropyLawSection(CrossEntropyLaw):
    """ΔCE(α) = q / (1 + q/P), q = g·a + ½c·a²: g, c, the saturation of a(α), and P.

    errors: their standard errors over resampled sequences. goodness: by relative error, at the
        pilot's test and, for the steered block, at the study's trials.
    """

    errors: dict[str, float]
    goodness: Goodness


@dataclass(frozen=True)
class ConceptLawSection(MassLaw):
    """logit F(α) = r + ν·a(α), F the mass of the concept's tokens: r, ν, the saturation of a(α).

    errors: their standard errors over resampled sequences. goodness: by the log-odds of the
        mass, at the pilot's test.
    """

    errors: dict[str, float]
    goodness: Goodness


class PresenceLawSection(Section):
    """F(α) = floor + (ceiling - floor)·σ(r + να), F the measured presence: fitted to the study.

    fall: the strength from which presence fell again, if it did; the fit uses only those
        before it. covariance: of the four parameters, zero for those not fitted; None in older
        configs. goodness: in standard errors, at the verified strength.
    """

    log_odds: float
    log_odds_error: float
    gain: float
    gain_error: float
    floor: float
    ceiling: float
    fall: float | None
    covariance: list[list[float]] | None = None
    goodness: Goodness

    @property
    def law(self) -> PresenceLaw:
        """The law itself."""
        return PresenceLaw(self.log_odds, self.gain, self.floor, self.ceiling)

    @property
    def fit(self) -> PresenceFit:
        """The law with its errors: where their covariance is not known, those of r and ν alone.

        Without it errors come out rather too large: r and ν·α err against each other.
        """
        alone = np.diag([self.log_odds_error**2, self.gain_error**2, 0.0, 0.0])
        covariance = alone if self.covariance is None else np.array(self.covariance)
        return PresenceFit(self.law, covariance, self.fall)


class TokenLawSection(Section):
    """p_α(z|c) ∝ p₀(z|c)·exp(a(α)M(z)): the saturation of a(α), and where F peaks."""

    saturation: float
    mass_peak: float


class LawsSection(Section):
    """The laws at the steered block.

    relied_on: whether the law of ΔCE held at every candidate block; where it did not, the study
        searched more widely than the laws suggest.
    """

    cross_entropy: CrossEntropyLawSection
    concept: ConceptLawSection
    presence: PresenceLawSection
    tokens: TokenLawSection
    relied_on: bool
