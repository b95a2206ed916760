"""Costs between two ways of running a model, against passes written out by hand."""

from __future__ import annotations

import pytest
import tiny
import torch

from calibrate.common.settings import Sampling
from calibrate.engine.cross_entropy import delta_ce
from calibrate.engine.divergence import Way, divergence
from calibrate.engine.generation import sample
from calibrate.engine.unsteered import Corpus, run_unsteered
from calibrate.models.prompts import encode_prompt

TEXTS = ("the house", "a road walks", "sun and rain")


@pytest.fixture
def shift():
    return torch.randn(32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def prompts(loaded):
    return [encode_prompt(loaded, text) for text in TEXTS]


@pytest.fixture
def replies(loaded, prompts):
    sampling = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=12)
    drawn = sample(loaded, prompts, sampling, 0, per_prompt=4)
    return [reply for reply in drawn if reply.ids]


def by_hand(loaded, prompts, reply, temperature, shift=None):
    """Log-probabilities before each of a reply's tokens, (n_tokens, vocabulary)."""
    prompt = prompts[reply.prompt_index]
    ids = torch.tensor([[*prompt.ids, *reply.ids]])
    hook = tiny.hand_written_hook(loaded.blocks[1], shift) if shift is not None else torch.no_grad()
    with hook:
        logits = loaded.model(input_ids=ids).logits[0]
    rows = logits[len(prompt.ids) - 1 : -1].double() / temperature
    return rows.log_softmax(dim=-1)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_it_is_the_divergence_of_two_passes_written_by_hand(
    loaded, prompts, replies, shift, temperature
):
    site = tiny.site(shift, 1)
    (found,) = divergence(loaded, Way(prompts), Way(prompts, site, 0.5), replies, [temperature])
    for row, reply in enumerate(replies):
        p = by_hand(loaded, prompts, reply, temperature)
        q = by_hand(loaded, prompts, reply, temperature, 0.5 * shift)
        expected = float((p.exp() * (p - q)).sum())
        assert found.sums[row] == pytest.approx(expected, rel=1e-3, abs=1e-5)
        assert found.counts[row] == len(reply.ids)


def test_at_temperature_one_it_is_delta_ce(loaded, prompts, replies, shift):
    site = tiny.site(shift, 1)
    run = run_unsteered(loaded, Corpus(tuple(reply.sequence for reply in replies), True), [1])
    (found,) = divergence(loaded, Way(prompts), Way(prompts, site, 1.0), replies, [1.0])
    assert found.value == pytest.approx(delta_ce(loaded, run, site, 1.0).value, rel=1e-4)


def test_a_pass_that_was_made_serves_both_directions(loaded, prompts, replies, shift):
    plain, steered = Way(prompts), Way(prompts, tiny.site(shift, 1), 1.0)
    run = run_unsteered(loaded, Corpus(tuple(reply.sequence for reply in replies), False), [1])
    for ways in ((plain, steered), (steered, plain)):
        spent = loaded.meter.tokens
        (made,) = divergence(loaded, *ways, replies, [0.7], run)
        shared = loaded.meter.tokens - spent
        (alone,) = divergence(loaded, *ways, replies, [0.7])
        assert made.sums == pytest.approx(alone.sums, rel=1e-6)
        assert shared < (loaded.meter.tokens - spent - shared) / 2


def test_other_prompts_are_another_way(loaded, prompts, replies):
    asked = [encode_prompt(loaded, f"{text} laugh song dance") for text in TEXTS]
    (found,) = divergence(loaded, Way(prompts), Way(asked), replies, [1.0])
    for row, reply in enumerate(replies):
        p, q = (by_hand(loaded, which, reply, 1.0) for which in (prompts, asked))
        assert found.sums[row] == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-3)


def test_the_same_way_costs_nothing_and_the_directions_differ(loaded, prompts, replies, shift):
    plain, steered = Way(prompts), Way(prompts, tiny.site(shift, 1), 1.0)
    assert divergence(loaded, plain, plain, replies, [1.0])[0].value == pytest.approx(0, abs=1e-6)
    there, back = (
        divergence(loaded, *ways, replies, [1.0])[0].value
        for ways in ((plain, steered), (steered, plain))
    )
    assert there > 0
    assert back > 0
    assert abs(there - back) > 1e-3
