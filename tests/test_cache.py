"""Unsteered replies kept for the next concept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch
from accelerate import cpu_offload

from calibrate import cache
from calibrate.cache import recalled
from calibrate.concept import read_prompts
from calibrate.replies import sample_unsteered
from calibrate.settings import Sampling, Settings

REQUEST = {"prompts": ["a", "b"], "seed": 0}
SAID = [[1, 2], [3]]


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    """A model as if loaded by name, and an empty cache."""
    monkeypatch.setenv("STEERING_CALIBRATE_CACHE", str(tmp_path))
    return replace(tiny.loaded("llama"), by_name=True)


def never():
    raise AssertionError("sampled again")


def test_what_was_said_is_recalled(loaded):
    assert recalled(loaded, REQUEST, lambda: SAID) == SAID
    assert recalled(loaded, REQUEST, never) == SAID


def test_another_request_is_sampled(loaded):
    recalled(loaded, REQUEST, lambda: SAID)
    assert recalled(loaded, {**REQUEST, "seed": 1}, lambda: [[4]]) == [[4]]


def test_one_changed_weight_is_another_model(loaded):
    recalled(loaded, REQUEST, lambda: SAID)
    with torch.no_grad():
        next(loaded.model.parameters())[0, 0] += 1e-3
    assert recalled(loaded, REQUEST, lambda: [[4]]) == [[4]]


def test_of_a_model_that_was_in_memory_nothing_is_kept(loaded):
    in_memory = replace(loaded, by_name=False)
    recalled(in_memory, REQUEST, lambda: SAID)
    assert recalled(in_memory, REQUEST, lambda: [[4]]) == [[4]]


def test_of_a_model_whose_weights_are_elsewhere_nothing_is_kept(loaded):
    cpu_offload(loaded.blocks[0], execution_device=torch.device("cpu"))
    recalled(loaded, REQUEST, lambda: SAID)
    assert recalled(loaded, REQUEST, lambda: [[4]]) == [[4]]


@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"a": 1}'])
def test_a_damaged_entry_is_sampled_again(loaded, tmp_path, damage):
    recalled(loaded, REQUEST, lambda: SAID)
    (entry,) = (tmp_path / "replies").glob("*.json")
    entry.write_text(damage)
    assert recalled(loaded, REQUEST, lambda: SAID) == SAID
    assert recalled(loaded, REQUEST, never) == SAID


def test_an_unwritable_cache_costs_nothing_but_time(loaded, tmp_path):
    (tmp_path / "replies").write_text("a file where the folder should be")
    assert recalled(loaded, REQUEST, lambda: SAID) == SAID


def test_the_least_recently_used_go(loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "MOST_BYTES", 25)  # three of the entries, which are 8 bytes each
    ticks = iter(range(1000))
    utime = cache.os.utime
    monkeypatch.setattr(cache.os, "utime", lambda path: utime(path, (next(ticks) + 1e9,) * 2))
    for seed in (0, 1, 2, 0, 3):
        recalled(loaded, {"seed": seed}, lambda: [[1, 100]])
        recalled(loaded, {"seed": seed}, never)
    assert sum(path.stat().st_size for path in (tmp_path / "replies").glob("*")) <= 25
    recalled(loaded, {"seed": 0}, never)
    assert recalled(loaded, {"seed": 1}, lambda: [[9]]) == [[9]]


def test_recalled_replies_are_those_that_were_sampled(loaded):
    settings = Settings(sampling=Sampling(max_new_tokens=4))
    prompts = read_prompts()[:24]
    first = sample_unsteered(loaded, prompts, settings)
    spent = loaded.meter.tokens
    assert sample_unsteered(loaded, prompts, settings) == first
    assert loaded.meter.tokens == spent
