"""How much of a steering vector is sampling noise, and how many texts it would take for less.

A difference of means over few texts is off what infinitely many would give, μ, and all of v is paid
for in cross-entropy, its noise included:

    noise  = E‖v - μ‖²          from the spread between groups of texts (a matched pair is one), as
                                 resampling whole groups would give it (cluster-robust variance)
    signal = 1 - noise / ‖v‖²   an estimate of ‖μ‖² / ‖v‖², since E‖v‖² = ‖μ‖² + noise
    angle  = arccos √signal     expected between v and μ
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch

from calibrate.common.errors import CalibrateWarning, ConceptError
from calibrate.engine.site import Site
from calibrate.texts.concept import Concept

GOOD_SIGNAL = 0.7  # below which more texts are worth their while
MIN_SIGNAL = 0.3  # below which most of what steering costs buys nothing


def sampling_noise(
    positives: torch.Tensor, negatives: torch.Tensor, groups: Sequence[str]
) -> float:
    """E‖v - μ‖² of v = mean(positives) - mean(negatives).

    positives, negatives: pooled residuals of texts, (n_texts, hidden). groups: of each text,
    positives first; texts of one group are not independent.
    """
    shares = [
        sign * (side.double() - side.double().mean(dim=0)) / len(side)
        for sign, side in ((1, positives), (-1, negatives))
    ]
    sides = groups[: len(positives)], groups[len(positives) :]
    if {*sides[0]}.isdisjoint(sides[1]):
        return sum(_spread(*each) for each in zip(shares, sides, strict=True))
    return _spread(torch.cat(shares), groups)


def _spread(shares: torch.Tensor, groups: Sequence[str]) -> float:
    """The variance of a sum over texts, whole groups of which are drawn; inf for one group."""
    names, places = np.unique(np.asarray(groups), return_inverse=True)
    by_group = torch.zeros(len(names), shares.shape[1], dtype=torch.float64)
    by_group.index_add_(0, torch.from_numpy(places), shares)
    n = len(names)
    return float(by_group.square().sum() * n / (n - 1)) if n > 1 else float("inf")


def pairs_for(signal: float, pairs: float, wanted: float = GOOD_SIGNAL) -> float:
    """Return how many pairs give the wanted signal, where `pairs` give `signal`; inf for none."""
    if signal <= 0:
        return float("inf")
    return pairs * (1 - signal) / signal * wanted / (1 - wanted)


def require_signal(sites: Sequence[Site], concept: Concept) -> list[Site]:
    """Return the sites whose vectors are not mostly noise.

    Raises: ConceptError if there are none.
    Warns with CalibrateWarning about each whose signal is below GOOD_SIGNAL.
    """
    sides = concept.texts.positives, concept.texts.negatives
    sizes = [len({text.key for text in side}) for side in sides]
    known = [(site, 1.0 if site.signal is None else site.signal) for site in sites]
    best, signal = max(known, key=lambda one: one[1])
    if signal < MIN_SIGNAL:
        raise ConceptError(
            f"at least {MIN_SIGNAL:.0%} of ‖v‖² must be signal, got {signal:.0%} at {best.where}: "
            f"the rest is sampling noise of few texts, which cross-entropy pays for; "
            f"{_advice(signal, sizes)}"
        )
    for site, signal in known:
        if MIN_SIGNAL <= signal < GOOD_SIGNAL:
            warnings.warn(
                f"{signal:.0%} of ‖v‖² at {site.where} is signal, and the rest sampling noise of "
                f"few texts, which cross-entropy pays for; {_advice(signal, sizes)}",
                CalibrateWarning,
                stacklevel=2,
            )
    return [site for site, signal in known if signal >= MIN_SIGNAL]


def _advice(signal: float, sizes: Sequence[int]) -> str:
    """What would help; sizes: how many positives and negatives there are."""
    positives, negatives = sizes
    equal = positives == negatives
    have = f"{positives} pairs" if equal else f"{positives} positives and {negatives} negatives"
    as_noisy = 2 / (1 / positives + 1 / negatives)  # pairs
    needed = pairs_for(signal, as_noisy)
    if not np.isfinite(needed):
        return f"give texts that differ in the concept alone (now {have})"
    return f"about {np.ceil(needed):.0f} pairs like these {have} would give {GOOD_SIGNAL:.0%}"
