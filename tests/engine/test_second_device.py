"""What a model does on a device that is not the CPU is what it does on the CPU."""

from __future__ import annotations

import warnings
from unittest import mock

import numpy as np
import pytest
import tiny
import torch
from second_device import DEVICE, OTHER, second_device, spread

import calibrate
from calibrate.common.errors import CalibrateWarning
from calibrate.common.settings import Sampling
from calibrate.engine.cross_entropy import delta_ce
from calibrate.engine.divergence import Way, divergence
from calibrate.engine.forks import Fork, score_ways
from calibrate.engine.generation import Completion
from calibrate.engine.loading import load_model
from calibrate.engine.unsteered import Corpus, run_unsteered, token_log_probs
from calibrate.laws.log_odds import measure_log_odds
from calibrate.laws.remainder_passes import measure_remainder, reader_of
from calibrate.models.tokens import Prompt
from probes.question import Question

OPTIONS = {
    "layer": 1, "ce_budget": 0.4, "min_gain": 0.0, "trials": 2, "teacher": "none", "audit": "none",
    "guard": "none", "long_run": 0,
    "sampling": Sampling(temperature=1.0, top_p=1.0, max_new_tokens=12),
}  # fmt: skip


def found(model, folder, **more):
    """The config of a light calibration that loses no shortcut."""
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(tiny.prompts(100)))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".* goes without", CalibrateWarning)
        return calibrate.calibrate(
            model,
            tiny.concept(60),
            tokenizer=tiny.tokenizer(),
            prompts=prompts,
            **{**OPTIONS, **more},
        ).config


def measured(loaded, sequences):
    """What is read off a model's passes in float64, by name."""
    site = tiny.site(torch.randn(32, generator=torch.Generator().manual_seed(3)), 1)
    numbers = {}
    for self_sampled in (True, False):
        run = run_unsteered(loaded, Corpus(tuple(sequences), self_sampled), [1])
        odds = measure_log_odds(loaded, run, site, [7, 8])
        numbers[f"rise {self_sampled}"] = delta_ce(loaded, run, site, 0.7).sums
        numbers[f"odds {self_sampled}"] = np.stack([odds.curvature, odds.slope, odds.mass_change])
        numbers[f"labels {self_sampled}"] = np.concatenate(token_log_probs(loaded, run))
    remainder = measure_remainder(loaded, run, site, 0.7, [0, 5])
    numbers["remainder"] = reader_of(loaded)(remainder.residual(0.3))
    prompts = [Prompt("", sequence.ids[: sequence.start]) for sequence in sequences]
    replies = [Completion("", row, sequence, "") for row, sequence in enumerate(sequences)]
    ways = Way(prompts), Way(prompts, site, 0.7)
    numbers["divergence"] = divergence(loaded, *ways, replies, [0.7, 1.0])[0].sums
    forks = [Fork(sequence.ids[:-2], (sequence.ids[-2:], (9,))) for sequence in sequences]
    scores = score_ways(loaded, forks, (site, 0.7))
    numbers["ways"] = np.array([way.log_prob for found in scores for way in found.values()])
    asked = Question(loaded, "{text} with {concept} ?")
    first = {"yes": [9], "no": [10, 11]}
    with mock.patch.object(Question, "_first_tokens", lambda _, word: first[word]):
        numbers["question"] = asked.score(["the sun", "a road"], "rain")
    return numbers


@pytest.mark.parametrize("double", [True, False])
def test_what_is_read_in_float64_is_the_same_there(double, sequences):
    here = measured(tiny.loaded("llama"), sequences)
    with second_device(double) as device:
        there = measured(load_model(tiny.model("llama").to(device), tiny.tokenizer()), sequences)
    for name, values in here.items():
        assert there[name] == pytest.approx(values, rel=1e-3, abs=1e-4), name


@pytest.fixture
def elsewhere():
    with second_device() as device:
        yield device


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2", "gemma3", "gpt-neox", "gpt2"])
def test_every_shortcut_is_taken_there(architecture, elsewhere):
    model = tiny.model(architecture).to(elsewhere)
    report = load_model(model, tiny.tokenizer()).capabilities.report()
    here = load_model(tiny.model(architecture), tiny.tokenizer()).capabilities.report()
    assert report == here


def test_a_calibration_there_finds_what_one_here_finds(tmp_path):
    here = found(tiny.model("llama"), tmp_path)
    with second_device(double=False) as device:
        model = tiny.model("llama").to(device)
        assert model.device == device
        there = found(model, tmp_path)
    assert there.range.strength_at_budget.value == pytest.approx(
        here.range.strength_at_budget.value, rel=1e-5
    )
    assert there.intervention.strength == pytest.approx(here.intervention.strength, rel=1e-5)
    assert there.measured.presence.value == pytest.approx(here.measured.presence.value, abs=1e-4)


def dealt(head):
    """A Llama whose last two blocks and norm are on another device than its embedding."""
    there = ["model.layers.1", "model.layers.2", "model.norm"]
    here = ["model.embed_tokens", "model.rotary_emb", "model.layers.0"]
    places = dict.fromkeys(here, DEVICE) | dict.fromkeys(there, OTHER) | {"lm_head": head}
    return spread(tiny.model("llama"), places)


@pytest.mark.parametrize("head", [DEVICE, OTHER])
def test_what_is_read_of_a_model_on_two_devices_is_the_same(head, sequences):
    here = measured(tiny.loaded("llama"), sequences)
    with second_device():
        loaded = load_model(dealt(head), tiny.tokenizer())
        assert (loaded.device, loaded.logits_device) == (DEVICE, head)
        there = measured(loaded, sequences)
    for name, values in here.items():
        assert there[name] == pytest.approx(values, rel=1e-3, abs=1e-4), name


def test_a_calibration_of_a_model_on_two_devices_finds_the_same(tmp_path):
    """Its norm is elsewhere than its head, as where that has the embedding's weights."""
    here = found(tiny.model("llama"), tmp_path, layer="search")
    with second_device():
        there = found(dealt(DEVICE), tmp_path, layer="search")
    assert there.intervention.layer == here.intervention.layer
    assert there.intervention.strength == pytest.approx(here.intervention.strength, rel=1e-5)
    assert there.measured.presence.value == pytest.approx(here.measured.presence.value, abs=1e-4)


def test_replies_under_way_may_join_and_leave_on_two_devices():
    with second_device():
        assert load_model(dealt(DEVICE), tiny.tokenizer()).capabilities.joining.works
