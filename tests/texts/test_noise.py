"""The noise of a difference of means, against resampling and against a truth that is known."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

import calibrate
from calibrate.common.errors import CalibrateWarning, ConceptError
from calibrate.common.progress import Progress
from calibrate.common.settings import Settings
from calibrate.engine.site import Site, SteeringVector
from calibrate.texts.concept import Texts
from calibrate.texts.extraction import concept_vectors
from calibrate.texts.noise import pairs_for, require_signal, sampling_noise

SIZE = 24


def drawn(rng, n_pairs, truth, shared=1.0):
    """Matched pairs: what a pair shares cancels in the difference."""
    common = shared * rng.normal(size=(n_pairs, SIZE))
    positives = truth + common + rng.normal(size=(n_pairs, SIZE))
    negatives = common + rng.normal(size=(n_pairs, SIZE))
    return torch.from_numpy(positives), torch.from_numpy(negatives)


def test_it_is_what_resampling_whole_pairs_gives():
    rng = np.random.default_rng(0)
    positives, negatives = drawn(rng, 60, 0.3, shared=3.0)
    found = sampling_noise(positives, negatives, [*map(str, range(60))] * 2)
    v = (positives.mean(0) - negatives.mean(0)).numpy()
    squares = []
    for _ in range(4000):
        rows = rng.integers(0, 60, 60)
        resampled = (positives[rows].mean(0) - negatives[rows].mean(0)).numpy()
        squares.append(((resampled - v) ** 2).sum())
    assert found == pytest.approx(np.mean(squares) * 60 / 59, rel=0.03)


@pytest.mark.parametrize("shared", [0.0, 3.0])
def test_on_average_it_is_the_squared_distance_from_the_truth(shared):
    rng, truth, apart, found = np.random.default_rng(1), 0.3, [], []
    for _ in range(400):
        positives, negatives = drawn(rng, 30, truth, shared)
        v = positives.mean(0) - negatives.mean(0)
        apart.append(float(((v - truth) ** 2).sum()))
        found.append(sampling_noise(positives, negatives, [*map(str, range(30))] * 2))
    assert np.mean(found) == pytest.approx(np.mean(apart), rel=0.05)


def test_copies_are_no_further_evidence():
    """Each text three times, in one group: as much noise as once."""
    positives, negatives = drawn(np.random.default_rng(2), 20, 0.3)
    once = sampling_noise(positives, negatives, [*map(str, range(20))] * 2)
    thrice = sampling_noise(
        positives.repeat(3, 1), negatives.repeat(3, 1), [*map(str, range(20))] * 6
    )
    assert thrice == pytest.approx(once)


def test_the_pairs_it_would_take_give_that_signal():
    rng, truth, signals = np.random.default_rng(3), 0.3, {}
    for n in (20, round(pairs_for(0.5, 20, 0.8))):
        shares = []
        for _ in range(300):
            positives, negatives = drawn(rng, n, truth)
            square = float((positives.mean(0) - negatives.mean(0)).square().sum())
            noise = sampling_noise(positives, negatives, [*map(str, range(n))] * 2)
            shares.append([square - noise, square])
        below, above = np.mean(shares, axis=0)
        signals[n] = below / above
    (few, first), (many, then) = signals.items()
    assert many == 80
    assert then == pytest.approx(first / (first + (1 - first) * few / many), abs=0.02)


def test_a_concepts_vectors_know_their_noise_and_a_normalised_one_the_same_share(loaded):
    texts = tiny.concept().split()["vector"]
    raw = concept_vectors(loaded, texts, Settings())
    unit = concept_vectors(loaded, texts, Settings(normalize=True))
    for one, other in zip(raw, unit, strict=True):
        assert 0.5 < one.signal < 1
        assert other.signal == pytest.approx(one.signal, rel=1e-5)
    site = Site(raw[:2])
    assert min(v.signal for v in raw[:2]) <= site.signal <= max(v.signal for v in raw[:2])


def test_copies_of_a_text_make_it_no_more_certain_beside_random_negatives(loaded):
    texts = tiny.concept().split()["vector"]
    few, settings = texts.positives[:8], Settings(negatives="random")

    def noise(group):
        copies = tuple(replace(text, group=group(n)) for n, text in enumerate(few * 5))
        return concept_vectors(loaded, Texts(copies, texts.negatives), settings)[0].noise

    assert noise(lambda n: f"text {n % 8}") > 1.5 * noise(lambda n: f"text {n}")


def with_signal(signal, layer=3):
    values = torch.ones(4)
    return Site((SteeringVector(values, layer, 1.0, noise=(1 - signal) * 4),))


def test_a_vector_that_is_mostly_noise_is_refused_and_a_noisy_one_named():
    concept = tiny.concept()
    pairs = len(concept.texts.positives)
    with pytest.raises(ConceptError, match=r"must be signal, got 20% at block 3: .* about \d+ pa"):
        require_signal([with_signal(0.2), with_signal(0.1)], concept)
    with pytest.raises(ConceptError, match=f"differ in the concept alone \\(now {pairs} pairs"):
        require_signal([with_signal(-0.5)], concept)
    with pytest.warns(CalibrateWarning, match=r"60% of ‖v‖² at block 4 is signal"):
        kept = require_signal([with_signal(0.2), with_signal(0.6, 4)], concept)
    assert [site.name for site in kept] == ["block 4"]
    uneven = calibrate.Concept.from_texts(
        "uneven", tiny.texts(tiny.BRIGHT, 60), tiny.texts(tiny.DULL, 15)
    )
    with pytest.warns(CalibrateWarning, match=r"about 56 pairs like these 60 positives and 15 neg"):
        require_signal([with_signal(0.5)], uneven)  # 24 · 0.7 / 0.3 pairs
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(require_signal([with_signal(0.7), with_signal(0.95)], concept)) == 2


def test_texts_that_do_not_differ_in_anything_are_refused_before_a_judge_reads(tiny_options):
    """Both labels are drawn from the same words, so that v is nothing but noise."""

    class Watching(Progress):
        def began(self, stage, total=None, unit="tokens"):
            stages.append(stage)

    stages: list[str] = []
    texts = tiny.texts(tiny.PLAIN, 80)
    concept = calibrate.Concept.from_texts("nothing", texts[::2], texts[1::2])
    with pytest.raises(ConceptError, match="must be signal"):
        calibrate.calibrate(
            tiny.model("gpt2"), **{**tiny_options, "concept": concept}, progress=Watching()
        )
    assert stages[-1] == "blocks"
