"""What a model does on a device that is not the CPU is what it does on the CPU."""

from __future__ import annotations

import warnings

import pytest
import tiny
from second_device import second_device

import calibrate
from calibrate.common.errors import CalibrateWarning
from calibrate.common.settings import Sampling
from calibrate.engine.loading import load_model

OPTIONS = {
    "layer": 1, "ce_budget": 0.4, "min_gain": 0.0, "trials": 2, "teacher": "none", "audit": "none",
    "guard": "none", "long_run": 0,
    "sampling": Sampling(temperature=1.0, top_p=1.0, max_new_tokens=12),
}  # fmt: skip


def found(model, folder):
    """The config of a light calibration that loses no shortcut."""
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(tiny.prompts(100)))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".* goes without", CalibrateWarning)
        return calibrate.calibrate(
            model, tiny.concept(60), tokenizer=tiny.tokenizer(), prompts=prompts, **OPTIONS
        ).config


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
    with second_device() as device:
        model = tiny.model("llama").to(device)
        assert model.device == device
        there = found(model, tmp_path)
    assert there.range.strength_at_budget.value == pytest.approx(
        here.range.strength_at_budget.value, rel=1e-5
    )
    assert there.intervention.strength == pytest.approx(here.intervention.strength, rel=1e-5)
    assert there.measured.presence.value == pytest.approx(here.measured.presence.value, abs=1e-4)
