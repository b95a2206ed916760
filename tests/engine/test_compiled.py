"""Models that torch.compile has made faster are steered and measured all the same.

Compiled code takes no notice of hooks that come later, so that steering would do nothing without
a word. The backend is the one that compiles nothing: what is skipped is decided before it.
"""

from __future__ import annotations

import pytest
import tiny
import torch

from calibrate.engine.cross_entropy import delta_ce
from calibrate.engine.loading import load_model
from calibrate.engine.site import SteeringVector
from calibrate.engine.unsteered import Corpus, run_unsteered
from calibrate.models.model import preserving_model_state
from calibrate.models.tokens import TokenSequence

pytestmark = pytest.mark.slow

IDS = torch.tensor([[7, 20, 9, 33, 12, 41], [5, 6, 30, 31, 8, 10]])
LAYER = 1


def in_place(model):
    model.compile(backend="eager")
    return model


def by_block(model):
    for block in model.model.layers:
        block.compile(backend="eager")
    return model


def wrapped(model):
    return torch.compile(model, backend="eager")


@pytest.fixture(params=[in_place, by_block, wrapped])
def compiled(request):
    torch.compiler.reset()
    yield request.param(tiny.model())
    torch.compiler.reset()


@pytest.fixture
def steering():
    values = torch.randn(32, generator=torch.Generator().manual_seed(0))
    return SteeringVector(values, LAYER, residual_norm=1.0)


@torch.no_grad()
def test_steering_reaches_compiled_code_and_leaves_it(compiled, steering):
    loaded, plain = load_model(compiled, tiny.tokenizer()), tiny.model()
    unsteered = compiled(input_ids=IDS).logits  # compiled without a hook
    with steering.apply(plain.model.layers, 1.5):
        expected = plain(input_ids=IDS).logits
    for _ in range(2):
        with steering.apply(loaded.blocks, 1.5):
            torch.testing.assert_close(compiled(input_ids=IDS).logits, expected)
        torch.testing.assert_close(compiled(input_ids=IDS).logits, unsteered)
    assert (expected - unsteered).abs().max() > 1e-3


@torch.no_grad()
def test_a_compiled_model_is_measured_like_any_other(compiled, steering):
    sequences = (TokenSequence(tuple(IDS[0].tolist()), 2), TokenSequence(tuple(IDS[1].tolist()), 1))
    corpus, found = Corpus(sequences, self_sampled=True), []
    compiled(input_ids=IDS)
    for model in (compiled, tiny.model()):
        loaded = load_model(model, tiny.tokenizer())
        with preserving_model_state(loaded):
            run = run_unsteered(loaded, corpus, [LAYER])
            found.append(delta_ce(loaded, run, tiny.site(steering.values, LAYER), 0.5).value)
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0] > 1e-3
