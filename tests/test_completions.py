"""Sampling: exact in distribution, the same in any batch, cut at the end token."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from scipy.stats import chisquare

from calibrate import completions
from calibrate.completions import draw, sample
from calibrate.settings import Sampling
from calibrate.tokens import encode_prompt

SAMPLING = Sampling(max_new_tokens=8)


def nucleus(scores, sampling):
    """The distribution that should be drawn from, written out token by token."""
    p = torch.softmax(scores.double() / sampling.temperature, dim=-1)
    kept, mass = torch.zeros_like(p), 0.0
    for token in p.argsort(descending=True).tolist():
        if mass >= sampling.top_p:
            break
        kept[token] = p[token]
        mass += float(p[token])
    return kept / kept.sum()


@pytest.mark.parametrize("guess", [2, 1024])
@pytest.mark.parametrize("sampling", [Sampling(1.0, 1.0), Sampling(0.7, 0.95), Sampling(1.3, 0.5)])
def test_draws_follow_the_tempered_nucleus(sampling, guess, monkeypatch):
    monkeypatch.setattr(completions, "NUCLEUS_GUESS", guess)
    scores = 2 * torch.randn(30, generator=torch.Generator().manual_seed(0))
    n = 40_000
    drawn = draw(scores.repeat(n, 1), sampling, torch.arange(n) * 7919, step=3)
    counts = torch.bincount(drawn, minlength=30).numpy()
    expected = nucleus(scores, sampling).numpy() * n
    assert counts[expected == 0].sum() == 0
    assert chisquare(counts[expected > 0], expected[expected > 0]).pvalue > 1e-3


def test_noise_is_independent_across_steps_and_rows():
    scores = torch.zeros(500, 50)
    keys = torch.arange(500) * 104729
    first, second = (draw(scores, Sampling(1.0, 1.0), keys, step) for step in (0, 1))
    assert (first == second).float().mean() < 0.06  # 1 in 50 by chance
    assert len(set(first.tolist())) > 45


def replies(loaded, n=9, per_prompt=2, seed=0, **options):
    prompts = [encode_prompt(loaded, text) for text in tiny.prompts(n)]
    return sample(loaded, prompts, SAMPLING, seed, per_prompt, **options)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "bloom"])
def test_a_reply_does_not_depend_on_the_batch_it_was_drawn_in(architecture):
    together = replies(tiny.loaded(architecture, batch_tokens=4096))
    alone = replies(tiny.loaded(architecture, batch_tokens=1))
    assert [c.sequence for c in together] == [c.sequence for c in alone]


@pytest.mark.parametrize("architecture", tiny.CONFIGS)
@pytest.mark.parametrize("window", [4096, 16])
def test_sharing_a_prefix_changes_no_reply(architecture, window, monkeypatch):
    """Not with different lengths of prompts, and not under steering of all positions."""
    monkeypatch.setattr(completions, "WORTH_SHARING", 3)
    loaded = tiny.loaded(architecture, chat=True)
    if getattr(loaded.model.config.get_text_config(), "sliding_window", None):
        loaded.model.config.get_text_config().sliding_window = window
    questions = ("then", "with a stone", "and then two river")
    prompts = [encode_prompt(loaded, f"the house sits {text}") for text in questions]
    shift = torch.randn(loaded.hidden_size, generator=torch.Generator().manual_seed(1))
    replies = {
        share: sample(
            loaded,
            prompts,
            SAMPLING,
            seed=0,
            per_prompt=4,
            steering=tiny.hand_written_hook(loaded.blocks[0], 0.3 * shift),
            share_prefix=share,
        )
        for share in (True, False)
    }
    assert replies[True] == replies[False]


def test_a_shared_prefix_is_paid_for_once(loaded, monkeypatch):
    monkeypatch.setattr(completions, "WORTH_SHARING", 3)
    loaded.model.generation_config.eos_token_id = loaded.tokenizer.eos_token = None
    texts = ("the house sits then", "the house sits with a road")
    prompts = [encode_prompt(loaded, text) for text in texts]
    sample(loaded, prompts, SAMPLING, seed=0)
    assert loaded.meter.tokens == 3 + 2 * 3 + 2 * (SAMPLING.max_new_tokens - 1)


def test_replies_come_in_the_order_of_the_prompts_with_their_own_noise(loaded):
    drawn = replies(loaded)
    assert [c.prompt_index for c in drawn] == [i for i in range(9) for _ in range(2)]
    assert [c.prompt for c in drawn[::2]] == tiny.prompts(9)
    assert drawn[0].sequence != drawn[1].sequence
    assert [c.sequence for c in drawn] != [c.sequence for c in replies(loaded, seed=1)]
    assert [c.sequence for c in drawn] == [c.sequence for c in replies(loaded)]


def test_a_prompt_gets_the_same_replies_whatever_stands_beside_it(loaded):
    prompts = [encode_prompt(loaded, text) for text in tiny.prompts(5)]
    together = sample(loaded, prompts, SAMPLING, seed=0, per_prompt=[1, 2, 0, 1, 3])
    assert [c.prompt_index for c in together] == [0, 1, 1, 3, 4, 4, 4]
    alone = sample(loaded, prompts[4:], SAMPLING, seed=0, per_prompt=3)
    assert [c.sequence for c in together[4:]] == [c.sequence for c in alone]


def test_the_sequence_is_the_prompt_followed_by_the_reply(loaded):
    for completion in replies(loaded):
        prompt = encode_prompt(loaded, completion.prompt)
        assert completion.sequence.ids[: completion.sequence.start] == prompt.ids
        reply = completion.sequence.ids[completion.sequence.start :]
        assert loaded.tokenizer.decode(reply, skip_special_tokens=True).strip() == completion.text


def test_replies_end_at_the_end_token(loaded):
    loaded.model.generation_config.eos_token_id = list(range(5, 25))
    for completion in replies(loaded):
        reply = completion.sequence.ids[completion.sequence.start :]
        ended = [token in range(5, 25) or token == 2 for token in reply]
        assert not any(ended[:-1])


def test_noise_is_shared_between_strengths(loaded):
    """A vanishing strength changes no reply; a large one changes nearly all."""
    shift = torch.randn(loaded.hidden_size, generator=torch.Generator().manual_seed(1))
    plain = [c.sequence for c in replies(loaded)]
    for scale, same in ((1e-6, 1.0), (30.0, 0.2)):
        hook = tiny.hand_written_hook(loaded.blocks[1], scale * shift)
        steered = [c.sequence for c in replies(loaded, steering=hook)]
        share = np.mean([one == other for one, other in zip(plain, steered, strict=True)])
        assert share >= same if same == 1.0 else share <= same


def test_the_meter_counts_prompts_and_generated_tokens(loaded):
    loaded.model.generation_config.eos_token_id = None
    loaded.tokenizer.eos_token = None
    prompts = [encode_prompt(loaded, text) for text in ("the house", "a road and a river")]
    sample(loaded, prompts, SAMPLING, seed=0)
    width = max(len(prompt.ids) for prompt in prompts)
    assert loaded.meter.tokens == 2 * width + 2 * (SAMPLING.max_new_tokens - 1)
