"""Sampling: exact in distribution, the same in any batch, cut at the end token."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest
import tiny
import torch
from scipy.stats import chisquare

from calibrate.common.errors import NumericalError
from calibrate.common.record import Capability
from calibrate.common.settings import Sampling
from calibrate.engine import decoding
from calibrate.engine import generation as completions
from calibrate.engine import sampling as drawing
from calibrate.engine.generation import Request, sample, sample_all
from calibrate.engine.sampling import draw
from calibrate.models import tokens
from calibrate.models.model import preserving_model_state
from calibrate.models.prompts import encode_prompt
from calibrate.models.steering import Steering

SAMPLING = Sampling(max_new_tokens=8)
NOT_TAKEN = Capability(works=False, reason=None, fallback=None)


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


@pytest.mark.parametrize("guesses", [(2,), (2, 8), (128, 1024)])
@pytest.mark.parametrize("sampling", [Sampling(1.0, 1.0), Sampling(0.7, 0.95), Sampling(1.3, 0.5)])
def test_draws_follow_the_tempered_nucleus(sampling, guesses, monkeypatch):
    monkeypatch.setattr(drawing, "NUCLEUS_GUESSES", guesses)
    scores = 2 * torch.randn(30, generator=torch.Generator().manual_seed(0))
    n = 40_000
    drawn = draw(scores.repeat(n, 1), sampling, torch.arange(n) * 7919, step=3)
    counts = torch.bincount(drawn, minlength=30).numpy()
    expected = nucleus(scores, sampling).numpy() * n
    assert counts[expected == 0].sum() == 0
    assert chisquare(counts[expected > 0], expected[expected > 0]).pvalue > 1e-3


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_no_token_is_drawn_from_logits_that_are_not_numbers(broken):
    loaded = tiny.loaded()
    prompts, sampling = [encode_prompt(loaded, "the house")], Sampling(max_new_tokens=4)
    assert sample(loaded, prompts, sampling, 0)

    def breaks(_module, _args, output):
        output[..., 7] = broken
        return output

    handle = loaded.unembedding.register_forward_hook(breaks)
    with pytest.raises(NumericalError, match="must be finite, got NaN or infinity"):
        sample(loaded, prompts, sampling, 0)
    handle.remove()


def test_a_nucleus_of_all_tokens_changes_no_draw():
    scores = 3 * torch.randn(64, 3000, generator=torch.Generator().manual_seed(4))
    keys = torch.arange(64) * 7919
    whole, nearly = (draw(scores, Sampling(1.0, top_p), keys, step=2) for top_p in (1.0, 1 - 1e-9))
    assert whole.tolist() == nearly.tolist()


def test_how_many_tokens_are_looked_at_changes_no_draw(monkeypatch):
    """Rows sharp and flat stand side by side: some fit the first guess, some none."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(200, 500, generator=generator) * torch.logspace(-2, 1.5, 200)[:, None]
    sampling, keys = Sampling(1.0, 0.9), torch.arange(200) * 7919
    drawn = []
    for guesses in ((4, 64), (), (1,)):
        monkeypatch.setattr(drawing, "NUCLEUS_GUESSES", guesses)
        drawn.append(draw(scores, sampling, keys, step=2).tolist())
    assert drawn[0] == drawn[1] == drawn[2]


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


QUESTIONS = ("then", "with a stone", "and then two river")


def steerings(loaded):
    """None, two at one block, one at another, one of the last position, and one at two blocks."""
    generator = torch.Generator().manual_seed(1)
    shift = torch.randn(loaded.hidden_size, generator=generator)
    last = loaded.num_layers - 1
    return [
        None,
        Steering({0: 0.3 * shift}),
        Steering({0: -0.5 * shift}),
        Steering({last: 0.4 * shift}),
        Steering({last: 0.6 * shift}, "last"),
        Steering({0: 0.2 * shift, last: -0.3 * shift}),
    ]


@pytest.mark.parametrize("architecture", tiny.CONFIGS)
@pytest.mark.parametrize("window", [4096, 16])
@pytest.mark.parametrize("sharing", [3, 1000])
def test_rows_steered_in_their_own_ways_reply_as_they_would_alone(
    architecture, window, sharing, monkeypatch
):
    """Whatever stands beside them, a prefix shared or not; a hook on rows alike is the oracle."""
    monkeypatch.setattr(tokens, "WORTH_SHARING", sharing)
    loaded = tiny.loaded(architecture, chat=True)
    if getattr(loaded.model.config.get_text_config(), "sliding_window", None):
        loaded.model.config.get_text_config().sliding_window = window
    prompts = [encode_prompt(loaded, f"the house sits {text}") for text in QUESTIONS]
    requests = [Request(prompts, 2, steering) for steering in steerings(loaded)]
    with preserving_model_state(loaded):
        together = sample_all(loaded, requests, SAMPLING, seed=0)
        for steering, found in zip(steerings(loaded), together, strict=True):
            for index, prompt in enumerate(prompts):
                with ExitStack() as hooks:
                    for layer, shift in steering.shifts.items() if steering else ():
                        last_only = steering.positions == "last"
                        hook = tiny.hand_written_hook(loaded.blocks[layer], shift, last_only)
                        hooks.enter_context(hook)
                    alone = sample(loaded, [prompt], SAMPLING, 0, per_prompt=2)
                assert [one.sequence for one in alone] == [
                    one.sequence for one in found if one.prompt_index == index
                ]
    assert not any(module._forward_hooks for module in loaded.model.modules())


def test_one_batch_takes_fewer_passes_than_one_a_strength(loaded, monkeypatch):
    monkeypatch.setattr(tokens, "WORTH_SHARING", 3)
    prompts = [encode_prompt(loaded, f"the house sits {text}") for text in QUESTIONS]
    requests = [Request(prompts, 1, steering) for steering in steerings(loaded)]
    passes = []
    loaded.capabilities.report()  # tried before passes are counted
    loaded.blocks[0].register_forward_hook(lambda *_: passes.append(1))
    sample_all(loaded, requests, SAMPLING, seed=0)
    assert len(passes) <= 1 + SAMPLING.max_new_tokens  # a pass over the prefix, and one a token


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_transformers_own_loop_says_the_same(architecture, monkeypatch):
    """It is what models run that say something else in our loop."""
    loaded = tiny.loaded(architecture)
    prompts = [encode_prompt(loaded, text) for text in tiny.prompts(6)]
    requests = [Request(prompts, 1, steering) for steering in steerings(loaded)[:4]]
    ours = sample_all(loaded, requests, SAMPLING, seed=0)
    monkeypatch.setattr(decoding._Decoding, "run", lambda *_: pytest.fail("not to be used here"))
    monkeypatch.setitem(vars(loaded.capabilities), "fast_decoding", NOT_TAKEN)
    assert sample_all(loaded, requests, SAMPLING, seed=0) == ours
    monkeypatch.setitem(vars(loaded.capabilities), "batched_generation", NOT_TAKEN)
    assert sample_all(loaded, requests, SAMPLING, seed=0) == ours


def test_what_the_generation_config_does_to_logits_is_set_aside(loaded, monkeypatch):
    """Many chat models bring a penalty for repetition, which our loop knows nothing of."""
    ours = replies(loaded)
    loaded.model.generation_config.repetition_penalty = 5.0
    monkeypatch.setitem(vars(loaded.capabilities), "fast_decoding", NOT_TAKEN)
    assert replies(loaded) == ours
    assert loaded.model.generation_config.repetition_penalty == 5.0


def test_a_shared_prefix_is_paid_for_once_a_steering(loaded, monkeypatch):
    monkeypatch.setattr(tokens, "WORTH_SHARING", 3)
    loaded.model.generation_config.eos_token_id = loaded.tokenizer.eos_token = None
    texts = ("the house sits then", "the house sits with a road")
    prompts = [encode_prompt(loaded, text) for text in texts]
    sample(loaded, prompts, SAMPLING, seed=0)
    alone = 3 + 2 * 3 + 2 * (SAMPLING.max_new_tokens - 1)
    assert loaded.meter.tokens == alone
    requests = [Request(prompts, 1, steering) for steering in steerings(loaded)[:3]]
    sample_all(loaded, requests, SAMPLING, seed=0)
    assert loaded.meter.tokens == 4 * alone


def test_rows_that_have_ended_leave_the_batch(loaded):
    """Counted by the meter: the end tokens are so many that half the rows end at every step."""
    loaded.model.generation_config.eos_token_id = list(range(5, 25))
    prompts = [encode_prompt(loaded, text) for text in tiny.prompts(16)]
    drawn = sample(loaded, prompts, SAMPLING, seed=0, per_prompt=4)
    spoken = sum(one.sequence.n_scored for one in drawn)
    width = max(len(prompt.ids) for prompt in prompts)
    stepped = loaded.meter.tokens - 16 * width
    assert stepped < 1.3 * spoken
    assert stepped < 0.5 * 64 * (SAMPLING.max_new_tokens - 1)


def test_prompts_that_begin_otherwise_are_kept_out_of_the_batch(loaded, monkeypatch):
    """A long prefix of some is shared though others have another."""
    monkeypatch.setattr(tokens, "WORTH_SHARING", 3)
    monkeypatch.setattr(completions, "WORTH_SHARING", 3)
    loaded.model.generation_config.eos_token_id = loaded.tokenizer.eos_token = None
    alike = [encode_prompt(loaded, f"the house sits {word}") for word in tiny.PLAIN[3:9]]
    others = [encode_prompt(loaded, f"a river walks {word}") for word in tiny.PLAIN[3:9]]
    sample(loaded, [*alike, *others], SAMPLING, seed=0)
    steps = SAMPLING.max_new_tokens - 1
    assert loaded.meter.tokens == 2 * (3 + 6 * 1 + 6 * steps)


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
        steered = [c.sequence for c in replies(loaded, within=hook)]
        share = np.mean([one == other for one, other in zip(plain, steered, strict=True)])
        assert share >= same if same == 1.0 else share <= same


def test_the_meter_counts_prompts_and_generated_tokens(loaded):
    loaded.model.generation_config.eos_token_id = None
    loaded.tokenizer.eos_token = None
    prompts = [encode_prompt(loaded, text) for text in ("the house", "a road and a river")]
    sample(loaded, prompts, SAMPLING, seed=0)
    width = max(len(prompt.ids) for prompt in prompts)
    alone = 2 * width + 2 * (SAMPLING.max_new_tokens - 1)
    assert loaded.meter.tokens == alone
    sample(loaded, prompts, SAMPLING, seed=0, per_prompt=3)
    assert loaded.meter.tokens - alone == 2 * width + 6 * (SAMPLING.max_new_tokens - 1)
