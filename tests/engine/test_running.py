"""Replies that begin and end at different times are what each is alone."""

from __future__ import annotations

import pytest
import tiny
import torch

from calibrate.common.settings import Sampling
from calibrate.engine.decoding import Row, decode, end_ids
from calibrate.engine.running import Ongoing, RunningReplies, reply_alone
from calibrate.models.prompts import encode_prompt
from calibrate.models.steering import Steering

SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=14)
NO_END = frozenset({10_000})


def wishes(loaded):
    """Five replies of different prompts, lengths and steerings."""
    torch.manual_seed(1)
    vectors = torch.randn(3, loaded.hidden_size)
    steerings = [None, *(Steering({1: v}, p) for v in vectors for p in ("all", "last"))]
    texts = ["the house", "sun and rain with the river road", "table", "a stone walks", "one two"]
    return [
        Ongoing(encode_prompt(loaded, text), key, 6 + 2 * key, SAMPLING, steerings[key])
        for key, text in enumerate(texts)
    ]


def alone(loaded, wish):
    """What the same reply is by the decoding that calibrations use."""
    sampling = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=wish.most)
    (ids,) = decode(loaded, [Row(wish.prompt, wish.key, wish.steering)], sampling)
    return ids


@pytest.mark.parametrize("name", ["gpt2", "llama", "bloom", "opt", "gemma3", "mistral"])
def test_replies_that_join_at_different_steps_are_what_they_are_alone(name):
    loaded = tiny.loaded(name)
    ends = end_ids(loaded)
    running = RunningReplies(loaded, ends, loaded.capabilities.joining.works)
    replies = wishes(loaded)
    running.begin(replies[:2])
    running.step()
    running.begin(replies[2:3])
    running.step()
    running.begin(replies[3:])
    while running.step():
        pass
    assert [reply.ids for reply in replies] == [alone(loaded, reply) for reply in replies]


def test_who_leaves_changes_nobody_elses_reply():
    loaded = tiny.loaded()
    running = RunningReplies(loaded, NO_END, True)
    replies = wishes(loaded)
    running.begin(replies)
    longest = replies[1]
    for _ in range(3):
        running.step()
    running.keep(lambda reply: reply is not longest)
    while running.step():
        pass
    assert len(longest.ids) == 4
    stayed = [reply for reply in replies if reply is not longest]
    assert all(len(reply.ids) == reply.most for reply in stayed)
    for reply in stayed:
        again = Ongoing(reply.prompt, reply.key, reply.most, SAMPLING, reply.steering)
        single = RunningReplies(loaded, NO_END, True)
        single.begin([again])
        while single.step():
            pass
        assert again.ids == reply.ids


def test_the_likeliest_token_is_taken_without_sampling(loaded):
    (prompt,) = [encode_prompt(loaded, "the house")]
    reply = Ongoing(prompt, 0, 3)
    running = RunningReplies(loaded, NO_END, True)
    running.begin([reply])
    while running.step():
        pass
    ids = list(prompt.ids)
    for _ in range(3):
        ids.append(int(loaded.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert reply.ids == ids[len(prompt.ids) :]


def test_a_model_left_to_generate_replies_the_same(loaded):
    ends = end_ids(loaded)
    for reply in wishes(loaded):
        heard = []

        def receive(heard=heard, reply=reply):
            heard.append(list(reply.ids))
            return True

        reply_alone(loaded, reply, ends, receive)
        assert reply.ids == alone(loaded, reply)
        assert heard == [reply.ids[: n + 1] for n in range(len(reply.ids))]


def test_a_reply_alone_ends_when_nobody_listens(loaded):
    reply = wishes(loaded)[4]
    reply_alone(loaded, reply, NO_END, lambda: len(reply.ids) < 2)
    assert len(reply.ids) == 2
    assert not loaded.blocks[1]._forward_hooks


def test_sliding_windows_are_seen_not_to_join():
    assert not tiny.loaded("gemma3").capabilities.joining.works
    assert tiny.loaded("gpt2").capabilities.joining.works
