"""Log-odds against derivatives made another way."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from calibrate.engine.loading import load_model
from calibrate.engine.site import Site, SteeringVector
from calibrate.engine.unsteered import Corpus, run_unsteered
from calibrate.laws import log_odds
from calibrate.laws.log_odds import (
    central_difference,
    forward_derivative,
    logit_derivative,
    measure_log_odds,
    sampled_contexts,
)

EVERYTHING = slice(None)


def bench(architecture, sequences, dtype=torch.float32, layers=(1,), positions="all"):
    loaded = load_model(tiny.model(architecture).to(dtype), tiny.tokenizer())
    layers = [layer for layer in layers if layer < loaded.num_layers] or [0]
    run = run_unsteered(loaded, Corpus(tuple(sequences), self_sampled=True), layers[:1])
    vectors = (
        SteeringVector(
            torch.randn(loaded.hidden_size, generator=torch.Generator().manual_seed(layer)),
            layer,
            residual_norm=5.0,
        )
        for layer in layers
    )
    return loaded, run, Site(tuple(vectors), positions)


def forward(loaded, one, site):
    with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
        return forward_derivative(loaded, one, site)(EVERYTHING)


KINKED = {"opt"}  # its ReLUs have no derivative at 0, which a few contexts straddle
WITHOUT = {"bloom"}  # its GELU is an autograd function without a forward derivative


@pytest.mark.parametrize("positions", ["all", "last"])
@pytest.mark.parametrize(
    ("architecture", "layers"),
    [
        *((each, (1,)) for each in tiny.CONFIGS if each not in WITHOUT),
        *((each, (0, 1)) for each in tiny.CONFIGS if each not in WITHOUT | KINKED),
    ],
)
def test_the_difference_agrees_with_the_forward_mode_derivative(
    architecture, positions, layers, sequences
):
    loaded, run, site = bench(architecture, sequences, layers=layers, positions=positions)
    for one in run.batches:
        exact = forward(loaded, one, site)
        found = central_difference(loaded, one, site)(EVERYTHING)
        agrees = (found - exact).abs().amax(dim=1) < 2e-3 * exact.abs().max()
        assert agrees.float().mean() > (0.9 if architecture in KINKED else 0.999)


@pytest.mark.parametrize("architecture", sorted(WITHOUT))
def test_where_there_is_no_forward_derivative_it_says_so(architecture, sequences):
    loaded, run, site = bench(architecture, sequences)
    with pytest.raises((NotImplementedError, RuntimeError)):
        forward(loaded, run.batches[0], site)


def test_the_derivative_is_that_of_a_hand_written_hook(loaded, sequences):
    loaded, run, site = bench("llama", sequences)
    one, step = run.batches[0], 1e-2
    logits = []
    for shift in (step, -step):
        with tiny.hand_written_hook(loaded.blocks[1], shift * site.total):
            out = loaded.model(input_ids=one.batch.ids, attention_mask=one.batch.mask).logits
        logits.append(out[one.batch.predicting()])
    expected = (logits[0] - logits[1]) / (2 * step)
    with logit_derivative(loaded, one, site) as derivative:
        assert (derivative(EVERYTHING) - expected).abs().max() < 2e-3 * expected.abs().max()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_infinitely_far_out_only_the_normed_vector_speaks(sign, dtype, sequences):
    loaded, _, site = bench("llama", sequences, dtype=dtype)
    normed = sign * site.total / site.total.square().mean().sqrt()
    weights = loaded.model.model.norm.weight.float() * normed
    expected = loaded.model.lm_head.weight.float() @ weights
    off = (log_odds.far_logits(loaded, site, sign) - expected).abs().max()
    assert off < (1e-4 if dtype == torch.float32 else 2e-2) * expected.abs().max()


def test_in_half_precision_the_forward_derivative_is_used_and_is_the_better_one(sequences):
    loaded, run, site = bench("llama", sequences)
    half, half_run, _ = bench("llama", sequences, dtype=torch.bfloat16)
    exact = forward(loaded, run.batches[0], site)
    with logit_derivative(half, half_run.batches[0], site) as derivative:
        used = derivative(EVERYTHING).float()
    difference = central_difference(half, half_run.batches[0], site)(EVERYTHING).float()
    assert (used - exact).norm() < 0.05 * exact.norm()
    assert (used - exact).norm() < 0.5 * (difference - exact).norm()


def test_without_a_forward_derivative_half_precision_falls_back(sequences):
    half, run, site = bench("bloom", sequences, dtype=torch.bfloat16)
    with logit_derivative(half, run.batches[0], site) as derivative:
        found = derivative(EVERYTHING)
    assert torch.equal(found, central_difference(half, run.batches[0], site)(EVERYTHING))


def test_a_shortage_of_memory_is_not_taken_for_a_missing_derivative(sequences, monkeypatch):
    half, run, site = bench("llama", sequences, dtype=torch.bfloat16)

    def short(*_given):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(log_odds, "forward_derivative", short)
    with (
        pytest.raises(torch.OutOfMemoryError),
        logit_derivative(half, run.batches[0], site),
    ):
        pass


def test_the_sampled_contexts_carry_their_own_distributions(sequences):
    """Rows are counted batch by batch, as the watched rows of a steered pass are."""
    loaded, run, site = bench("llama", sequences)
    odds = measure_log_odds(loaded, run, site, ())
    rows = sampled_contexts(run)
    hidden = torch.cat([one.hidden for one in run.batches])
    expected = torch.log_softmax(loaded.logits(hidden[rows]), dim=-1).double().numpy()
    assert np.allclose(odds.tokens.log_p, expected, atol=1e-5)
    assert len(rows) == min(log_odds.SAMPLE_CONTEXTS, run.corpus.n_scored)
