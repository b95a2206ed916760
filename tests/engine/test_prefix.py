"""What all sequences begin with runs once, and nothing measured is any different."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from calibrate.common.errors import CalibrateWarning
from calibrate.engine.cross_entropy import measure_steered, tangent_hidden
from calibrate.engine.unsteered import Corpus, run_unsteered
from calibrate.models.tokens import TokenSequence

SHARED = tuple(range(5, 25))  # longer than the sliding windows of the tiny models
ROUNDING = 1e-5


@pytest.fixture
def corpus() -> Corpus:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randint(5, 40, (n,), generator=generator).tolist() for n in (5, 11, 7, 16, 4)]
    return Corpus(tuple(TokenSequence((*SHARED, *rest), len(SHARED) + 2) for rest in drawn), True)


@pytest.fixture
def direction() -> torch.Tensor:
    return torch.randn(32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("architecture", tiny.CONFIGS)
@pytest.mark.parametrize("positions", ["all", "last"])
def test_a_shared_prefix_changes_no_measurement(architecture, positions, corpus, direction):
    loaded = tiny.loaded(architecture, batch_tokens=40)
    layers = list(range(loaded.num_layers))
    ours = run_unsteered(loaded, corpus, layers)
    whole = run_unsteered(loaded, corpus, [], lend_prefix=False)
    assert all(one.prefix is not None and one.prefix.ids == SHARED for one in ours.batches)
    assert all(one.prefix is None for one in whole.batches)
    for layer in layers:
        found, oracle = (
            measure_steered(loaded, run, tiny.site(direction, layer, positions), 4.0).rise
            for run in (ours, whole)
        )
        assert abs(oracle.value) > 100 * ROUNDING
        np.testing.assert_allclose(found.sums, oracle.sums, rtol=0, atol=10 * ROUNDING)


@pytest.mark.parametrize("positions", ["all", "last"])
def test_derivatives_go_through_the_shared_prefix(positions, corpus, direction):
    loaded = tiny.loaded()
    tangents = []
    for lend in (True, False):
        (one,) = run_unsteered(loaded, corpus, [1], (), lend).batches
        with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
            dual = tangent_hidden(loaded, one, tiny.site(direction, 1, positions))
            tangents.append(forward_ad.unpack_dual(dual).tangent)
    torch.testing.assert_close(*tangents, rtol=0, atol=ROUNDING)
    assert tangents[0].abs().max() > 100 * ROUNDING


def test_it_is_run_once_and_not_row_by_row(corpus):
    loaded = tiny.loaded()
    spent = []
    for lend in (True, False):
        before = loaded.meter.tokens
        run = run_unsteered(loaded, corpus, [], (), lend)
        spent.append(loaded.meter.tokens - before)
    rest = sum(one.batch.n_tokens for one in run.batches) - len(SHARED) * len(corpus.sequences)
    assert spent[0] == len(SHARED) + rest
    assert spent[1] == rest + len(SHARED) * len(corpus.sequences)


def test_texts_that_begin_differently_run_whole(corpus):
    loaded = tiny.loaded()
    different = TokenSequence((30, *SHARED, 7), len(SHARED))
    mixed = Corpus((*corpus.sequences, different), True)
    assert all(one.prefix is None for one in run_unsteered(loaded, mixed, []).batches)


def test_a_text_scored_from_early_on_keeps_its_context(corpus):
    """The first scored token is predicted by the one before it, which has to run in its row."""
    loaded = tiny.loaded()
    early = TokenSequence(corpus.sequences[0].ids, 10)
    (one,) = run_unsteered(loaded, Corpus((*corpus.sequences, early), True), [1]).batches
    assert one.prefix.ids == SHARED[:9]
    assert one.batch.sums(torch.ones(len(one.hidden)))[one.batch.rows.index(5)] == early.n_scored


@pytest.mark.parametrize("failure", ["refuses", "differs"])
def test_a_model_that_cannot_lend_runs_whole(failure, corpus, direction, monkeypatch):
    loaded = tiny.loaded()
    block = loaded.blocks[0]
    forward = block.forward

    def spoilt(hidden, *args, **kwargs):
        cache = kwargs.keys() & {"cache", "past_key_values"}  # whichever transformers calls it
        if failure == "refuses" and any(kwargs[name] is not None for name in cache):
            raise ValueError("no cache of this kind")
        return forward(hidden, *args, **kwargs | dict.fromkeys(cache))

    monkeypatch.setattr(block, "forward", spoilt)
    with pytest.warns(CalibrateWarning, match="without prefix sharing, so every text runs whole"):
        assert not any(one.prefix for one in run_unsteered(loaded, corpus, [1]).batches)
