"""Log-odds against derivatives made another way."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from calibrate.engine.loading import load_model
from calibrate.engine.unsteered import Corpus, run_unsteered
from calibrate.engine.vector import SteeringVector
from calibrate.laws import log_odds
from calibrate.laws.log_odds import (
    central_difference,
    forward_derivative,
    logit_derivative,
    measure_log_odds,
    sampled_contexts,
)

EVERYTHING = slice(None)


def bench(architecture, sequences, dtype=torch.float32):
    loaded = load_model(tiny.model(architecture).to(dtype), tiny.tokenizer())
    layer = min(1, loaded.num_layers - 1)
    run = run_unsteered(loaded, Corpus(tuple(sequences), self_sampled=True), [layer])
    values = torch.randn(loaded.hidden_size, generator=torch.Generator().manual_seed(1))
    return loaded, run, SteeringVector(values, layer, residual_norm=5.0)


def forward(loaded, one, vector, positions="all"):
    with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
        return forward_derivative(loaded, one, vector, positions)(EVERYTHING)


KINKED = {"opt"}  # its ReLUs have no derivative at 0, which a few contexts straddle
WITHOUT = {"bloom"}  # its GELU is an autograd function without a forward derivative


@pytest.mark.parametrize("architecture", [a for a in tiny.CONFIGS if a not in WITHOUT])
@pytest.mark.parametrize("positions", ["all", "last"])
def test_the_difference_agrees_with_the_forward_mode_derivative(architecture, positions, sequences):
    loaded, run, vector = bench(architecture, sequences)
    for one in run.batches:
        exact = forward(loaded, one, vector, positions)
        found = central_difference(loaded, one, vector, positions)(EVERYTHING)
        agrees = (found - exact).abs().amax(dim=1) < 2e-3 * exact.abs().max()
        assert agrees.float().mean() > (0.9 if architecture in KINKED else 0.999)


@pytest.mark.parametrize("architecture", sorted(WITHOUT))
def test_where_there_is_no_forward_derivative_it_says_so(architecture, sequences):
    loaded, run, vector = bench(architecture, sequences)
    with pytest.raises((NotImplementedError, RuntimeError)):
        forward(loaded, run.batches[0], vector)


def test_the_derivative_is_that_of_a_hand_written_hook(loaded, sequences):
    loaded, run, vector = bench("llama", sequences)
    one, step = run.batches[0], 1e-2
    logits = []
    for shift in (step, -step):
        with tiny.hand_written_hook(loaded.blocks[1], shift * vector.values):
            out = loaded.model(input_ids=one.batch.ids, attention_mask=one.batch.mask).logits
        logits.append(out[one.batch.predicting()])
    expected = (logits[0] - logits[1]) / (2 * step)
    with logit_derivative(loaded, one, vector) as derivative:
        assert (derivative(EVERYTHING) - expected).abs().max() < 2e-3 * expected.abs().max()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_infinitely_far_out_only_the_normed_vector_speaks(sign, dtype, sequences):
    loaded, _, vector = bench("llama", sequences, dtype=dtype)
    normed = sign * vector.values / vector.values.square().mean().sqrt()
    weights = loaded.model.model.norm.weight.float() * normed
    expected = loaded.model.lm_head.weight.float() @ weights
    off = (log_odds.far_logits(loaded, vector, sign) - expected).abs().max()
    assert off < (1e-4 if dtype == torch.float32 else 2e-2) * expected.abs().max()


def test_in_half_precision_the_forward_derivative_is_used_and_is_the_better_one(sequences):
    loaded, run, vector = bench("llama", sequences)
    half, half_run, _ = bench("llama", sequences, dtype=torch.bfloat16)
    exact = forward(loaded, run.batches[0], vector)
    with logit_derivative(half, half_run.batches[0], vector) as derivative:
        used = derivative(EVERYTHING).float()
    difference = central_difference(half, half_run.batches[0], vector)(EVERYTHING).float()
    assert (used - exact).norm() < 0.05 * exact.norm()
    assert (used - exact).norm() < 0.5 * (difference - exact).norm()


def test_without_a_forward_derivative_half_precision_falls_back(sequences):
    half, run, vector = bench("bloom", sequences, dtype=torch.bfloat16)
    with logit_derivative(half, run.batches[0], vector) as derivative:
        found = derivative(EVERYTHING)
    assert torch.equal(found, central_difference(half, run.batches[0], vector)(EVERYTHING))


def test_the_sampled_contexts_carry_their_own_distributions(sequences):
    """Rows are counted batch by batch, as the watched rows of a steered pass are."""
    loaded, run, vector = bench("llama", sequences)
    odds = measure_log_odds(loaded, run, vector, ())
    rows = sampled_contexts(run)
    hidden = torch.cat([one.hidden for one in run.batches])
    expected = torch.log_softmax(loaded.logits(hidden[rows]), dim=-1).double().numpy()
    assert np.allclose(odds.tokens.log_p, expected, atol=1e-5)
    assert len(rows) == min(log_odds.SAMPLE_CONTEXTS, run.corpus.n_scored)
