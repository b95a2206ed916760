"""Replies as long as they are served: what is read along them, and when they stop a strength."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from calibrate.common.errors import Infeasible, InputError
from calibrate.common.estimate import RatioEstimate
from calibrate.common.record import TestedStrength as Rung
from calibrate.common.settings import Sampling, Settings
from calibrate.deploy.verify import check_directory
from calibrate.engine.generation import completed, sample, sample_all
from calibrate.engine.loading import load_model
from calibrate.judging.loops import MIN_LOOP, longest_loop, looped
from calibrate.models.prompts import encode_prompt
from calibrate.models.steering import Steering
from calibrate.search import long_run
from calibrate.search.budget import VerifiedBudget, verify_long_run
from calibrate.search.long_run import (
    LOOP_MARGIN,
    PROMPTS,
    WINDOW,
    LongReplies,
    answer_at_length,
    read_along,
)
from probes import Reader


def in_a_loop(ids, place):
    """Whether some stretch through a place says one group again, tried one by one."""
    for first in range(place + 1):
        for last in range(max(place + 1, first + MIN_LOOP), len(ids) + 1):
            stretch = ids[first:last]
            for period in range(1, len(stretch) // 2 + 1):
                if stretch[period:] == stretch[:-period]:
                    return True
    return False


@given(st.lists(st.integers(0, 2), max_size=24))
def test_a_token_is_looped_where_a_stretch_through_it_is_said_again(ids):
    assert looped(ids).tolist() == [in_a_loop(ids, place) for place in range(len(ids))]


@pytest.mark.parametrize("text", ["我很高兴" * 8, "สวัสดี" * 8, "🎉🎈" * 8, "so it goes " * 8])
def test_loops_are_seen_with_spaces_between_the_words_and_without(text):
    ids = [ord(letter) for letter in text]
    assert looped(ids).all()
    assert longest_loop(ids) == 1.0


def test_what_is_said_twice_in_a_few_words_is_no_loop():
    assert not looped([1, 2, 2, 3, 4, 3, 4, 5]).any()


@dataclass
class Bright:
    """A judge who counts bright words."""

    def score(self, texts, concept):
        return np.array([np.mean([w in tiny.BRIGHT for w in text.split()]) for text in texts])


READER = Reader(Bright(), "bright", "counting")


def said(loaded, prompt, words):
    ids = loaded.tokenizer(words, add_special_tokens=False)["input_ids"]
    return completed(loaded, prompt, 0, ids)


def test_replies_are_read_window_by_window():
    """One reply of a window and a half, one of two windows of which the second is a loop."""
    loaded = tiny.loaded()
    prompt = encode_prompt(loaded, "the house")
    varied = " ".join([*tiny.DULL, *tiny.PLAIN])
    first = f"{' '.join([*tiny.BRIGHT, *tiny.PLAIN])} sun rain sun {varied}"
    second = f"{varied} sun rain sun {'laugh ' * 40}"
    words = [first.split()[:48], second.split()[:64]]
    replies = [said(loaded, prompt, " ".join(one)) for one in words]
    along = read_along(loaded, READER, replies)
    assert along.n_replies.tolist() == [2, 2]
    windows = [[one[:WINDOW] for one in words], [one[WINDOW:] for one in words]]
    for at, parts in enumerate(windows):
        expected = np.mean([np.mean([w in tiny.BRIGHT for w in part]) for part in parts])
        assert along.presence[at] == pytest.approx(expected)
    assert along.loops.tolist() == pytest.approx([2 / 64, 32 / 48])
    for at in range(2):
        assert along.log_prob[at] == pytest.approx(by_hand(loaded, replies, at), abs=1e-4)


def by_hand(loaded, replies, at):
    """Mean log-probability of a window's tokens, from one full pass a reply."""
    found = []
    for one in replies:
        ids, start = torch.tensor([one.sequence.ids]), one.sequence.start
        log_p = loaded.model(input_ids=ids).logits[0].log_softmax(-1)
        chosen = log_p[start - 1 : -1].gather(1, ids[0, start:, None])[:, 0]
        found += chosen[at * WINDOW : (at + 1) * WINDOW].tolist()
    return np.mean(found)


def test_thought_is_not_read_for_presence():
    loaded = tiny.loaded()
    prompt = encode_prompt(loaded, "the house")
    reply = said(loaded, prompt, " ".join(["sun"] * 20 + ["rain", "mud", "the", "a"] * 11))
    thinking = read_along(loaded, READER, [type(reply)(**{**vars(reply), "thought": 20})])
    cut = read_along(loaded, READER, [type(reply)(**{**vars(reply), "thought": None})])
    assert thinking.presence.tolist() == [0.0, 0.0]
    assert np.isnan(cut.presence).all()


def test_the_unsteered_replies_are_those_anyone_would_sample_and_the_steered_share_their_noise():
    loaded = tiny.loaded()
    prompts = [encode_prompt(loaded, text) for text in tiny.prompts(PROMPTS + 4)]
    long_replies = answer_at_length(loaded, prompts, Settings(long_run=80), by(loaded, 0.5))
    assert len(long_replies.prompts) == PROMPTS
    expected = sample(loaded, prompts[:PROMPTS], Sampling(max_new_tokens=80), seed=0)
    assert long_replies.unsteered == expected
    still = long_replies.steered(by(loaded, 0.0))
    assert long_replies.excess(still).value == 0
    assert [one.text for one in still] == [one.text for one in expected]


def test_steered_replies_sampled_ahead_are_those_that_are_sampled_alone():
    loaded = tiny.loaded()
    prompts = [encode_prompt(loaded, text) for text in tiny.prompts(6)]
    strong = by(loaded, 2.0)
    together = answer_at_length(loaded, prompts, Settings(long_run=80), strong)
    spent = loaded.meter.tokens
    ahead = together.steered(strong)
    assert loaded.meter.tokens == spent
    assert ahead == together.steered(by(loaded, 2.0))
    assert loaded.meter.tokens > spent


def by(loaded, strength):
    return Steering({1: strength * torch.ones(loaded.hidden_size)})


@pytest.mark.parametrize(
    ("asked", "reply_tokens", "n_tokens"),
    [(0, 32, None), (80, 32, 80), (192, 32, 126), (64, 100, 100)],
)
def test_replies_are_as_long_as_asked_for_and_as_the_context_has_room_for(
    asked, reply_tokens, n_tokens
):
    loaded = tiny.loaded()
    settings = Settings(long_run=asked, sampling=Sampling(max_new_tokens=reply_tokens))
    found = answer_at_length(
        loaded, [encode_prompt(loaded, "the house")], settings, by(loaded, 1.0)
    )
    assert (found and found.n_tokens) == n_tokens


def test_there_is_no_long_run_where_the_context_has_no_room():
    loaded = tiny.loaded()
    prompt = encode_prompt(loaded, "sun " * 70)
    assert answer_at_length(loaded, [prompt], Settings(), by(loaded, 1.0)) is None


@pytest.mark.parametrize("length", [-1, 1, 63])
def test_a_long_run_too_short_to_have_two_windows_is_refused(length):
    with pytest.raises(InputError, match=f"64 tokens or more, or 0 for none, got {length}"):
        Settings(long_run=length)


class Looping(LongReplies):
    """Long replies of which a share loops that grows with the strength."""

    def steered(self, push, ahead=()):
        self.sampled[push] = tuple(ahead)
        return [push] * len(self.unsteered)

    def excess(self, steered):
        return RatioEstimate(np.array(steered) * self.seed, np.ones(len(steered)))


def ladder(*strengths):
    rise = RatioEstimate(np.array([0.05, 0.06]), np.ones(2))
    rungs = [Rung(strength, rise.value, 0.09, True) for strength in strengths]
    rungs.append(Rung(9.0, rise.value, 0.2, False))
    return VerifiedBudget(strengths[-1], tuple(rungs), dict.fromkeys((*strengths, 9.0), rise))


def looping(slope):
    return Looping(None, (), Sampling(max_new_tokens=192), slope, (None,) * 4)


def test_the_next_smaller_strength_is_taken_where_long_replies_loop():
    replies = looping(LOOP_MARGIN / 0.85)
    budget, steered = verify_long_run(replies, ladder(0.5, 0.8, 0.9, 1.0), lambda push: push)
    assert budget.strength == 0.8
    assert steered == [0.8] * 4
    smaller = (0.5, 0.8, 0.9)
    assert replies.sampled == {1.0: (), 0.9: smaller, 0.8: smaller}
    tried = {one.strength for one in budget.tested if one.loop_excess is not None}
    assert tried == {1.0, 0.9, 0.8}
    assert budget.looped.strength == 0.9


def test_replies_that_were_sampled_ahead_are_those_that_would_be_sampled_later(monkeypatch):
    loaded, sampled = tiny.loaded(), []
    monkeypatch.setattr(
        long_run, "sample_all", lambda *given: sampled.append(given) or sample_all(*given)
    )
    prompts = tuple(encode_prompt(loaded, text) for text in ("the house", "sun and rain"))
    ahead, alone = (
        LongReplies(loaded, prompts, Sampling(max_new_tokens=64), 0, ()) for _ in range(2)
    )
    one, other = by(loaded, 1.0), by(loaded, 2.0)
    ahead.steered(one, [one, other])
    assert ahead.steered(other) == alone.steered(other) != alone.steered(one)
    assert len(sampled) == 3


def test_the_largest_strength_ships_where_long_replies_do_not_loop():
    budget, _ = verify_long_run(looping(LOOP_MARGIN), ladder(0.5, 1.0), lambda strength: strength)
    assert budget.strength == 1.0
    assert budget.looped is None


def test_a_concept_that_loops_at_every_strength_is_infeasible():
    with pytest.raises(Infeasible, match=r"192 tokens loop too much: .* 0\.5.*\+5\.0 points are"):
        verify_long_run(looping(1.0), ladder(0.5, 1.0), lambda strength: strength)


def test_the_artefact_says_what_becomes_of_long_replies(finished):
    found = finished.result.config.measured.long_run
    assert found.n_prompts == PROMPTS
    assert found.loop_excess.value == pytest.approx(found.loops - found.loops_baseline)
    assert found.loop_excess.value <= found.margin
    n_windows = -(-found.n_tokens // WINDOW)
    for along in (found.steered, found.unsteered):
        assert len(along.loops) == len(along.presence) == len(along.log_prob) <= n_windows
        assert along.n_replies == sorted(along.n_replies, reverse=True)
    assert (finished.directory / "long_run.png").read_bytes()[1:4] == b"PNG"
    assert "At serving length" in (finished.directory / "report.html").read_text()
    evidence = finished.result.evidence.tested
    assert [one.loop_excess for one in evidence if one.loop_excess is not None]


def test_the_gate_has_them_answered_again(finished, tmp_path):
    finished.result.save(tmp_path)
    loaded = load_model(tiny.model("gpt2"), tiny.tokenizer())
    checks = {one.name: one for one in check_directory(tmp_path, loaded).checks}
    excess = finished.result.config.measured.long_run.loop_excess.value
    assert checks["long run"].passed
    assert f"{100 * excess:+.1f} points" in checks["long run"].found
    path = tmp_path / "steering.json"
    facts = json.loads(path.read_text())
    facts["measured"]["long_run"]["margin"] = excess - 0.01
    path.write_text(json.dumps(facts))
    assert [one.name for one in check_directory(tmp_path, loaded).checks if not one.passed] == [
        "long run"
    ]
