"""The law of concept presence: a sigmoid of the strength, up to where presence falls.

Theorem 3.6 of arXiv:2602.02712 makes the mass of a concept's tokens a sigmoid of ν(α). Presence,
which judges read in whole replies, is fitted with ν(α) = ν·α between two asymptotes:

    F(α) = floor + (ceiling - floor)·σ(r + ν·α)

The theorem does not cover its fall: beyond some strength text degenerates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression, minimize
from scipy.special import expit, logit

from calibrate.laws.formulas import Goodness, clipped_logit

GOOD_PRESENCE = 3.0  # largest error of presence, in standard errors of the difference

# Twice the log-likelihood that turning back has to gain, per ln(strengths): where presence is level
# at 7 to 41 of them, which is where noise gains most, 1 of 20 exceeds it by chance.
TURNING = 3.8
ASYMPTOTE_POINTS = 6  # strengths needed before floor and ceiling are fitted too
STEEPEST = 20.0  # log-odds over all strengths, or over the smallest step where all four are fitted
STARTS = (1.0, 5.0, 20.0)  # log-odds over all strengths that the fit is begun with


def judge_presence(strength: float, predicted: float, measured: float, error: float) -> Goodness:
    """Judge a law of presence at one strength, in standard errors of the difference."""
    misfit = abs(predicted - measured) / max(error, 1e-12)
    return Goodness.of(((strength, predicted, measured),), misfit, GOOD_PRESENCE)


@dataclass(frozen=True)
class PresenceLaw:
    """Measured presence: F(α) = floor + (ceiling - floor)·σ(r + ν·α).

    log_odds: r. gain: ν, per unit strength. floor, ceiling: asymptotes, in [0, 1].
    """

    log_odds: float
    gain: float
    floor: float = 0.0
    ceiling: float = 1.0

    def predict(self, strength: float | np.ndarray) -> float | np.ndarray:
        """Presence, in [floor, ceiling]."""
        rise = expit(self.log_odds + self.gain * np.asarray(strength))
        presence: float | np.ndarray = self.floor + (self.ceiling - self.floor) * rise
        return presence

    def invert(self, presence: float) -> float:
        """The strength of a presence; infinite where none has it.

        >>> round(PresenceLaw(-1.0, 2.0).invert(0.5), 6)
        0.5
        """
        if not self.floor < presence < self.ceiling or not self.gain:
            return float("inf")
        share = (presence - self.floor) / (self.ceiling - self.floor)
        return (float(logit(share)) - self.log_odds) / self.gain


@dataclass(frozen=True, eq=False)
class PresenceFit:
    """A law of presence fitted by maximum likelihood.

    covariance: (4, 4), of log_odds, gain, floor and ceiling; zero for those not fitted.
    fall: the strength from which presence turns back since text degenerates, or None. Only
        smaller strengths were fitted.
    """

    law: PresenceLaw
    covariance: np.ndarray
    fall: float | None

    @property
    def log_odds_error(self) -> float:
        """Standard error of r."""
        return float(np.sqrt(self.covariance[0, 0]))

    @property
    def gain_error(self) -> float:
        """Standard error of ν."""
        return float(np.sqrt(self.covariance[1, 1]))

    def standard_error(self, strength: float) -> float:
        """Standard error of the predicted presence at a strength."""
        slope = _gradient(_parameters(self.law), np.array([strength]))[0]
        return float(np.sqrt(max(slope @ self.covariance @ slope, 0.0)))

    def interval(self, strength: float, quantile: float) -> tuple[float, float]:
        """The interval of the predicted presence, so many standard errors to either side.

        The errors of r and ν are those of the log-odds, so that far beyond what was fitted the
        interval widens where the sigmoid levels off; those of the asymptotes are added.
        """
        law, at = self.law, np.array([1.0, strength])
        half = quantile * np.sqrt(max(at @ self.covariance[:2, :2] @ at, 0.0))
        value = float(law.predict(strength))
        ends = [
            float(
                PresenceLaw(law.log_odds + shift, law.gain, law.floor, law.ceiling).predict(
                    strength
                )
            )
            for shift in (-half, half)
        ]
        rise = expit(law.log_odds + law.gain * strength)
        near = np.array([1 - rise, rise])
        more = quantile * np.sqrt(max(near @ self.covariance[2:, 2:] @ near, 0.0))
        low, high = (float(np.hypot(end - value, more)) for end in ends)
        return max(value - low, 0.0), min(value + high, 1.0)


def fit_presence(
    strengths: Sequence[float],
    presences: Sequence[float],
    counts: Sequence[float],
    rising: bool = True,
) -> PresenceFit:
    """Fit the law of presence, up to where presence falls, by maximum likelihood.

    rising: whether steering is meant to raise presence; if not, a rise counts as its fall.
    The likelihood is that of `counts` coin tosses at each strength. Judgements are probabilities,
    which vary less, so that the standard errors are rather too wide.
    """
    alpha, y, n = _outwards(strengths, presences, counts)
    last = _before_fall(y if rising else 1 - y, n)
    fall = None if last == len(y) else float(alpha[last])
    law, covariance = _fitted(alpha[:last], y[:last], n[:last])
    return PresenceFit(law, covariance, fall)


def errors_along(
    law: PresenceLaw, fitted: np.ndarray, covariance: np.ndarray, strengths: np.ndarray
) -> np.ndarray:
    """Standard errors of a law at strengths, from those of what it was fitted to.

    fitted: the strengths it was fitted to. covariance: of the presence measured there. Parameters
    that ended at a bound, as a floor of 0 does, are taken for known.
    Returns: of the shape of `strengths`.
    """
    theta = _parameters(law)
    free = np.array([True, True, law.floor > 0, law.ceiling < 1])
    slopes = _gradient(theta, fitted)[:, free]
    f = np.clip(_sigmoid(theta, fitted), 1e-9, 1 - 1e-9)
    weighted = slopes.T / (f * (1 - f))
    moved = _gradient(theta, strengths)[:, free] @ np.linalg.pinv(weighted @ slopes) @ weighted
    errors: np.ndarray = np.sqrt(np.maximum((moved @ covariance * moved).sum(axis=1), 0.0))
    return errors


def fit_both_ways(
    strengths: Sequence[float], presences: Sequence[float], counts: Sequence[float]
) -> tuple[PresenceLaw, dict[int, float | None]]:
    """Fit one law of presence to strengths of both signs, between the falls on either side.

    Returns: the law, and by sign the strength from which presence turns back, None where it does
        not; among negative strengths it turns back by rising.
    """
    alpha, y, n = _outwards(strengths, presences, counts)
    kept = np.zeros(len(alpha), dtype=bool)
    falls: dict[int, float | None] = {}
    for sign in (1, -1):
        side = np.flatnonzero(sign * alpha >= 0)
        last = _before_fall(y[side] if sign > 0 else 1 - y[side], n[side])
        falls[sign] = None if last == len(side) else float(alpha[side[last]])
        kept[side[:last]] = True
    law, _ = _fitted(alpha[kept], y[kept], n[kept])
    return law, falls


def n_fitted(strengths: Sequence[float] | np.ndarray) -> int:
    """How many parameters are fitted to presence at these strengths.

    r alone where nothing but 0 is known, ν with others, floor and ceiling with ASYMPTOTE_POINTS.
    """
    if not np.any(strengths):
        return 1
    return 4 if len(set(strengths)) >= ASYMPTOTE_POINTS else 2


def _outwards(*columns: Sequence[float]) -> list[np.ndarray]:
    """Columns in the order of the first one's size."""
    order = np.argsort(np.abs(columns[0]), kind="stable")
    return [np.asarray(values, float)[order] for values in columns]


def _fitted(alpha: np.ndarray, y: np.ndarray, n: np.ndarray) -> tuple[PresenceLaw, np.ndarray]:
    """The law of largest likelihood, and the covariance of its parameters."""
    free = n_fitted(alpha)
    if free == 1:
        return _level(y, n)
    reach = float(np.abs(alpha).max())
    shares = alpha / reach
    steepest = STEEPEST if free == 2 else STEEPEST / float(np.diff(np.unique(shares)).min())
    bounds = [(-STEEPEST - steepest, STEEPEST + steepest), (-steepest, steepest)]
    bounds = [*bounds, (0.0, 1.0), (0.0, 1.0)][:free]
    r = float(clipped_logit(y[:1])[0])
    asymptotes = [max(float(y.min()) - 0.02, 0.0), min(float(y.max()) + 0.02, 1.0)]
    found = [
        minimize(
            lambda theta: -_log_likelihood(y, _sigmoid(_full(theta), shares), n),
            [r, sign * gain, *asymptotes][:free],
            bounds=bounds,
            method="L-BFGS-B",
        )
        for gain in (STARTS if free == 4 else STARTS[:1])
        for sign in ((1, -1) if free == 4 else (1,))
    ]
    fitted = _upright(_full(min(found, key=lambda one: float(one.fun)).x))
    fitted[1] /= reach
    slopes = _gradient(fitted, alpha)[:, :free]
    f = np.clip(_sigmoid(fitted, alpha), 1e-9, 1 - 1e-9)
    information = (slopes * (n / (f * (1 - f)))[:, None]).T @ slopes
    covariance = np.zeros((4, 4))
    covariance[:free, :free] = np.linalg.pinv(information)
    return PresenceLaw(*map(float, fitted)), covariance


def _level(y: np.ndarray, n: np.ndarray) -> tuple[PresenceLaw, np.ndarray]:
    """The law where nothing is known of any strength but 0: presence as it is there, no gain."""
    r = float(clipped_logit(np.average(y, weights=n)))
    covariance = np.zeros((4, 4))
    covariance[0, 0] = 1 / float(n.sum() * expit(r) * expit(-r))
    return PresenceLaw(r, 0.0), covariance


def _log_likelihood(y: np.ndarray, f: np.ndarray, n: np.ndarray) -> float:
    """Of shares `y` of n coin tosses each, for coins that show heads with probability `f`."""
    f = np.clip(f, 1e-9, 1 - 1e-9)
    return float((n * (y * np.log(f) + (1 - y) * np.log(1 - f))).sum())


def _upright(theta: np.ndarray) -> np.ndarray:
    """The same sigmoid with its floor below its ceiling."""
    r, gain, floor, ceiling = theta
    return np.array([-r, -gain, ceiling, floor]) if floor > ceiling else np.array(theta)


def _before_fall(presences: np.ndarray, counts: np.ndarray) -> int:
    """How many points, by size of strength, come before presence turns back.

    It does where rising up to there and falling from there on is likelier than rising throughout,
    by more than noise makes it.
    """

    def likelihood(part: slice, rising: bool) -> float:
        y, n = presences[part], counts[part]
        if not len(y):
            return 0.0
        return _log_likelihood(y, isotonic_regression(y, weights=n, increasing=rising).x, n)

    n = len(presences)
    turned = [likelihood(slice(k), True) + likelihood(slice(k, n), False) for k in range(1, n + 1)]
    best = n - int(np.argmax(turned[::-1]))
    return best if 2 * (turned[best - 1] - turned[-1]) > TURNING * np.log(n) else n


def _parameters(law: PresenceLaw) -> np.ndarray:
    return np.array([law.log_odds, law.gain, law.floor, law.ceiling])


def _full(theta: np.ndarray) -> np.ndarray:
    """All four parameters; those not fitted at their defaults."""
    return np.concatenate([theta, np.array([0.0, 0.0, 0.0, 1.0])[len(theta) :]])


def _sigmoid(theta: np.ndarray, strengths: np.ndarray) -> np.ndarray:
    r, gain, floor, ceiling = theta
    values: np.ndarray = floor + (ceiling - floor) * expit(r + gain * strengths)
    return values


def _gradient(theta: np.ndarray, strengths: np.ndarray) -> np.ndarray:
    """Derivatives of the law by its four parameters, (n_strengths, 4)."""
    r, gain, floor, ceiling = theta
    s = expit(r + gain * strengths)
    steep = (ceiling - floor) * s * (1 - s)
    return np.stack([steep, steep * strengths, 1 - s, s], axis=1)
