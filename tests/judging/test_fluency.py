"""What becomes of the text: likelihood under the unsteered model, repetition, length."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch

from calibrate.common.estimate import RatioEstimate
from calibrate.common.settings import Sampling
from calibrate.engine.generation import Completion, sample
from calibrate.judging.fluency import Fluency, measure_fluency
from calibrate.judging.loops import longest_loop
from calibrate.models.prompts import encode_prompt


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("the river runs to the sea", 0.0),
        ("no no no no", 1.0),
        ("we go up and down and down and down", 2 / 3),
        ("a b a b c", 4 / 5),
        ("one", 0.0),
        ("", 0.0),
    ],
)
def test_the_longest_loop_is_the_stretch_that_says_a_group_of_words_again(text, share):
    assert longest_loop(text.split()) == pytest.approx(share)


def test_fluency_is_measured_on_the_replies_that_are_not_empty():
    loaded = tiny.loaded()
    prompts = [encode_prompt(loaded, text) for text in tiny.prompts(8)]
    replies = list(sample(loaded, prompts, Sampling(max_new_tokens=10), seed=0))
    silent = Completion(replies[2].prompt, 2, prompts[2].followed_by((2,)), "")
    replies[2] = silent
    found = measure_fluency(loaded, replies)
    spoken = [one for one in replies if one.text]
    assert found.prompts == tuple(one.prompt_index for one in spoken)
    totals = []
    for one in spoken:
        ids = torch.tensor([one.sequence.ids])
        log_probs = loaded.model(input_ids=ids).logits[0].log_softmax(dim=-1)
        labels = ids[0, one.sequence.start :, None]
        totals.append(float(log_probs[one.sequence.start - 1 : -1].gather(1, labels).sum()))
    counts = [one.sequence.n_scored for one in spoken]
    assert found.log_prob.value == pytest.approx(sum(totals) / sum(counts), abs=1e-5)
    assert found.n_tokens == pytest.approx(np.mean(counts))


def fluency(prompts, sums, counts):
    estimate = RatioEstimate(np.array(sums, float), np.array(counts, float))
    return Fluency(tuple(prompts), estimate, 1.0, 0.0, 1.0)


def test_the_drop_is_taken_prompt_by_prompt():
    """By hand: -1 against -2 a token for prompt 0, -2 against -2.5 for prompt 3."""
    before = fluency([0, 1, 3], [-4, -9, -8], [4, 9, 4])
    after = fluency([0, 3], [-4, -5], [2, 2])
    drop = after.drop_from(before)
    assert drop.sums.tolist() == [1.0, 0.5]
    assert drop.value == pytest.approx(0.75)
