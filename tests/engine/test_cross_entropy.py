"""ΔCE and KL, against probabilities computed one sequence at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch
from transformers import DynamicCache

from calibrate.engine import unsteered
from calibrate.engine.cross_entropy import delta_ce
from calibrate.engine.unsteered import Corpus, log_probs, run_unsteered


def by_plain_pass(loaded, sequence):
    """Log-probabilities (n_scored, vocabulary) of the scored tokens, from one plain pass."""
    ids = torch.tensor([sequence.ids])
    logits = loaded.model(input_ids=ids).logits[0]
    return torch.log_softmax(logits.double(), dim=-1)[sequence.start - 1 : -1]


def by_hand(loaded, sequences, layer, shift, self_sampled):
    total, count = 0.0, 0
    for sequence in sequences:
        before = by_plain_pass(loaded, sequence)
        with tiny.hand_written_hook(loaded.blocks[layer], shift):
            after = by_plain_pass(loaded, sequence)
        labels = torch.tensor(sequence.ids[sequence.start :])[:, None]
        if self_sampled:
            total += float((before.exp() * (before - after)).sum())
        else:
            total += float((before.gather(1, labels) - after.gather(1, labels)).sum())
        count += len(labels)
    return total / count


@pytest.fixture
def shift(loaded):
    return torch.randn(loaded.hidden_size, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "granite"])
@pytest.mark.parametrize("self_sampled", [True, False])
def test_delta_ce_equals_the_definition(architecture, self_sampled, sequences, shift):
    loaded = tiny.loaded(architecture)
    run = run_unsteered(loaded, Corpus(tuple(sequences), self_sampled), [0, 1])
    for layer in (0, 1):
        ours = delta_ce(loaded, run, tiny.site(shift, layer), 0.7)
        expected = by_hand(loaded, sequences, layer, 0.7 * shift, self_sampled)
        assert ours.value == pytest.approx(expected, abs=2e-6)
        assert len(ours.counts) == len(sequences)
        assert ours.counts.sum() == sum(s.n_scored for s in sequences)


@pytest.mark.parametrize("self_sampled", [True, False])
def test_without_the_unsteered_logits_at_hand_they_are_made_again(self_sampled, sequences, shift):
    """Soft-capped logits are not linear in the hidden state, nor are those of half precision."""
    linear, capped = tiny.loaded("granite"), tiny.loaded("gemma2")
    corpus = Corpus(tuple(sequences), self_sampled)
    assert all(one.prediction is None for one in run_unsteered(capped, corpus, [1]).batches)
    run = run_unsteered(linear, corpus, [1])
    bare = replace(run, batches=tuple(replace(one, prediction=None) for one in run.batches))
    assert all(one.prediction is not None for one in run.batches)
    ours, again = (delta_ce(linear, one, tiny.site(shift, 1), 0.7).sums for one in (run, bare))
    assert ours == pytest.approx(again, abs=1e-5)


@pytest.mark.parametrize("self_sampled", [True, False])
def test_batch_size_changes_delta_ce_by_less_than_a_ten_thousandth(
    self_sampled, sequences, shift, monkeypatch
):
    corpus = Corpus(tuple(sequences), self_sampled)
    values = []
    for batch_tokens, rows in ((1, 1), (30, 7), (4096, 1 << 24)):
        monkeypatch.setattr(unsteered, "SLICE_ROWS", rows)
        loaded = tiny.loaded(batch_tokens=batch_tokens)
        run = run_unsteered(loaded, corpus, [1])
        values.append(delta_ce(loaded, run, tiny.site(shift, 1), 1.0).sums)
    for other in values[1:]:
        assert other == pytest.approx(values[0], abs=1e-5)


def test_slices_off_the_cpu_are_bounded_by_their_elements(loaded, monkeypatch):
    monkeypatch.setattr(unsteered, "SLICE_ELEMENTS", 7 * loaded.vocabulary_size + 1)
    hidden = torch.empty(20, loaded.hidden_size, device="meta")
    slices = list(unsteered.logit_slices(loaded, hidden))
    assert [len(hidden[part]) for part in slices] == [7, 7, 6]


def test_the_kl_of_no_steering_is_zero_and_of_any_is_positive(loaded, sequences, shift):
    run = run_unsteered(loaded, Corpus(tuple(sequences), self_sampled=True), [1])
    assert delta_ce(loaded, run, tiny.site(shift, 1), 0.0).value == pytest.approx(0, abs=1e-6)
    for strength in (-2.0, -0.1, 0.1, 2.0):
        assert (delta_ce(loaded, run, tiny.site(shift, 1), strength).sums > 0).all()


def test_the_expected_delta_ce_over_sampled_labels_is_the_kl(loaded, sequences, shift):
    """Theorem 3.8's ingredient: draw labels from the model, and CE's rise averages to the KL."""
    sequence = sequences[0]
    before = by_plain_pass(loaded, sequence)
    with tiny.hand_written_hook(loaded.blocks[1], 0.5 * shift):
        after = by_plain_pass(loaded, sequence)
    draws = torch.multinomial(
        before[-1].exp(), 200_000, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    sampled = (before[-1] - after[-1])[draws].mean()
    exact = (before[-1].exp() * (before[-1] - after[-1])).sum()
    spread = (before[-1] - after[-1])[draws].std() / 200_000**0.5
    assert abs(float(sampled - exact)) < 4 * float(spread)


def test_positions_last_scores_a_reply_as_it_would_have_been_generated(loaded, sequences, shift):
    """Token by token with a cache, steering only the last position of each pass."""
    sequence = next(s for s in sequences if s.start >= 3)
    run = run_unsteered(loaded, Corpus((sequence,), self_sampled=False), [1])
    ours = delta_ce(loaded, run, tiny.site(shift, 1, "last"), 0.8)
    before = by_plain_pass(loaded, sequence)
    rows, cache = [], loaded.using(DynamicCache())
    with tiny.hand_written_hook(loaded.blocks[1], 0.8 * shift, last=True):
        ids = torch.tensor([sequence.ids[: sequence.start]])
        for label in sequence.ids[sequence.start :]:
            logits = loaded.model(input_ids=ids, **cache).logits
            rows.append(torch.log_softmax(logits[0, -1].double(), dim=-1))
            ids = torch.tensor([[label]])
    labels = torch.tensor(sequence.ids[sequence.start :])[:, None]
    after = torch.stack(rows)
    expected = float((before.gather(1, labels) - after.gather(1, labels)).mean())
    assert ours.value == pytest.approx(expected, abs=1e-5)


def test_log_probs_are_those_of_the_labels(loaded, sequences):
    run = run_unsteered(loaded, Corpus(tuple(sequences), self_sampled=False), [])
    found = log_probs(loaded, run)
    for row, sequence in enumerate(sequences):
        labels = torch.tensor(sequence.ids[sequence.start :])[:, None]
        expected = float(by_plain_pass(loaded, sequence).gather(1, labels).sum())
        assert found.sums[row] == pytest.approx(expected, abs=1e-5)
        assert found.counts[row] == sequence.n_scored
