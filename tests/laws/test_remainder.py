"""The law of the bounded remainder, against passes of random models."""

from __future__ import annotations

import weakref
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from scipy.special import logsumexp

from calibrate.engine.cross_entropy import measure_steered
from calibrate.engine.last_residual import last_residuals, read_out
from calibrate.engine.loading import load_model
from calibrate.engine.site import Site, SteeringVector
from calibrate.engine.unsteered import Corpus, run_unsteered
from calibrate.laws.log_odds import far_logits, sampled_contexts
from calibrate.laws.remainder import ROWS, RemainderLaw, divergences
from calibrate.laws.remainder_passes import measure_remainder, reader_of
from calibrate.models.hooks import hidden_of

UNIT = 0.3


def total_variation(before, after):
    """Between distributions, in [0, 1]; both arrays of ln p, (n_contexts, n_tokens)."""
    return 0.5 * np.abs(np.exp(before) - np.exp(after)).sum(axis=1)


def bench(architecture, sequences, layers=(1,), positions="all", dtype=torch.float32):
    loaded = load_model(tiny.model(architecture).to(dtype), tiny.tokenizer())
    layers = [layer for layer in layers if layer < loaded.num_layers] or [0]
    run = run_unsteered(loaded, Corpus(tuple(sequences), self_sampled=True), layers[:1])
    drawn = [
        torch.randn(loaded.hidden_size, generator=torch.Generator().manual_seed(layer))
        for layer in layers
    ]
    vectors = (
        SteeringVector(values, layer, residual_norm=5.0)
        for values, layer in zip(drawn, layers, strict=True)
    )
    return loaded, run, Site(tuple(vectors), positions)


def measured(loaded, run, site, strength):
    """ln p of the watched contexts, as a pass has it."""
    watched = measure_steered(loaded, run, site, strength, (), sampled_contexts(run)).watched
    return np.log(watched.astype(float))


@pytest.mark.parametrize("positions", ["all", "last"])
@pytest.mark.parametrize("architecture", list(tiny.CONFIGS))
def test_a_residual_after_the_last_block_is_what_the_model_reads(
    architecture, positions, sequences
):
    """Also where that block is steered itself."""
    loaded, run, site = bench(architecture, sequences, positions=positions)
    last = replace(site.vectors[0], layer=loaded.num_layers - 1)
    for steered in (site, Site((last,), positions)):
        rows = sampled_contexts(run)
        found = last_residuals(loaded, run, steered, 0.7, rows)
        log_p = read_out(loaded, torch.from_numpy(found).float()).log_softmax(dim=-1).numpy()
        assert log_p == pytest.approx(measured(loaded, run, steered, 0.7), abs=1e-4)


@pytest.mark.parametrize("layers", [(0,), (0, 1)])
def test_the_law_is_right_at_its_passes_and_near_between_them(layers, sequences):
    loaded, run, site = bench("llama", sequences, layers)
    law = measure_remainder(loaded, run, site, UNIT, sampled_contexts(run))
    read = reader_of(loaded)
    before = measured(loaded, run, site, 0.0)
    for strength in (-UNIT, 0.0, UNIT):
        found = law.log_probabilities(strength, read)
        assert found == pytest.approx(measured(loaded, run, site, strength), abs=1e-3)
    for strength in (-0.5 * UNIT, 0.5 * UNIT, 1.5 * UNIT):
        truth = measured(loaded, run, site, strength)
        miss = total_variation(law.log_probabilities(strength, read), truth).mean()
        assert miss < 0.1 * total_variation(before, truth).mean()


def test_far_out_only_the_vector_speaks_and_the_remainder_is_bounded(sequences):
    loaded, run, site = bench("llama", sequences)
    law = measure_remainder(loaded, run, site, UNIT, sampled_contexts(run))
    for sign in (1, -1):
        limit = far_logits(loaded, site, sign).log_softmax(dim=-1).numpy()
        found = law.log_probabilities(sign * 1e6, reader_of(loaded))
        assert found == pytest.approx(np.broadcast_to(limit, found.shape), abs=1e-3)
        near, far = (np.abs(law.remainder(sign * at)).max() for at in (1e3, 1e9))
        assert far == pytest.approx(near, rel=1e-2)


def test_the_scale_is_the_one_at_which_the_cost_is_right(sequences):
    loaded, run, site = bench("llama", sequences)
    law, read = measure_remainder(loaded, run, site, UNIT, sampled_contexts(run)), reader_of(loaded)
    truth = replace(law, scale=4.0)
    assert law.fitted_to(truth.rise(2 * UNIT, read), read).scale == pytest.approx(4.0, abs=0.1)
    assert law.fitted_to(1e9, read).scale in (1.2, 12.0)


def test_half_precision_goes_without_the_derivative(sequences):
    loaded, run, site = bench("llama", sequences, dtype=torch.bfloat16)
    law = measure_remainder(loaded, run, site, UNIT, sampled_contexts(run))
    assert law.slope is None
    found = law.log_probabilities(UNIT, reader_of(loaded))
    assert total_variation(found, measured(loaded, run, site, UNIT)).max() < 0.05


def test_between_its_passes_the_derivative_makes_it_a_better_law():
    """On a remainder that turns, g(α) = (tanh α, 1/(1 + α²)): known in closed form."""

    def true(strength):
        return np.array([[np.tanh(strength), 1 / (1 + strength**2)]])

    law = RemainderLaw(1.0, np.zeros(2), true(0), np.array([[1.0, 0.0]]), true(1), true(-1), 2.0)
    without = replace(law, slope=None)
    misses = [abs(one.remainder(0.5) - true(0.5))[0, 0] for one in (law, without)]
    assert misses[0] < misses[1] / 2


def test_the_divergence_of_two_coins():
    before, after = np.log([[0.5, 0.5]]), np.log([[0.9, 0.1]])
    expected = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
    assert divergences(before, after) == pytest.approx([expected])


def test_distributions_of_few_contexts_are_held_at_a_time():
    """A large vocabulary's over all contexts take gigabytes."""
    rng, asked = np.random.default_rng(0), []
    n = 2 * ROWS + 3
    at_zero, above, below = rng.normal(size=(3, n, 4))
    law = RemainderLaw(1.0, np.ones(4), at_zero, None, above, below)

    def read(residuals):
        asked.append(len(residuals))
        return residuals - logsumexp(residuals, axis=1, keepdims=True)

    found = law.rise(0.5, read)
    assert law.fitted_to(found, read).scale > 0
    assert max(asked) == ROWS
    whole = divergences(*(law.log_probabilities(at, read) for at in (0.0, 0.5))).mean()
    assert found == pytest.approx(whole)


def test_the_last_blocks_output_is_held_for_one_batch_at_a_time(sequences, monkeypatch):
    loaded = tiny.loaded(batch_tokens=32)
    run = run_unsteered(loaded, Corpus(tuple(sequences), self_sampled=True), [1])
    seen, alive = [], []

    def watched(output):
        hidden = hidden_of(output)
        seen.append(weakref.ref(hidden))
        alive.append(sum(one() is not None for one in seen))
        return hidden

    monkeypatch.setattr("calibrate.engine.last_residual.hidden_of", watched)
    last_residuals(loaded, run, tiny.site(torch.ones(loaded.hidden_size), 1), 0.5, [0, 30])
    assert len(run.batches) > 2
    assert len(seen) == len(run.batches)
    assert max(alive) == 1
