"""An interrupted `calibrate laws` goes on where it was, and what has changed is measured anew."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import pytest
import tiny

from calibrate.common.errors import CalibrateWarning
from calibrate.common.progress import Progress
from calibrate.search import kept_curves
from calibrate.search.law_experiment import measure_laws
from calibrate.search.law_panels import ReadingBench
from calibrate.texts.guard import Guard

pytestmark = pytest.mark.slow


@pytest.fixture
def arguments(tiny_options, tmp_path, monkeypatch):
    """Of a model as if loaded by name, and an empty cache."""
    monkeypatch.setenv("STEERING_CALIBRATE_CACHE", str(tmp_path / "cache"))
    named = ("concept", "prompts", "ce_budget", "sampling")
    return {key: tiny_options[key] for key in named}


@pytest.fixture
def measured(monkeypatch):
    """What is measured and not recalled: sites, presence curves and questions."""
    found = []
    block_curves, curve = kept_curves.block_curves, ReadingBench.curve
    measure_accuracy = kept_curves.measure_accuracy

    def watched(bench, site, resamples=()):
        found.append(site.where)
        return block_curves(bench, site, resamples)

    def read(reading, site, unit):
        found.append(f"presence, {site.where}")
        return curve(reading, site, unit)

    def asked(*given):
        found.append("questions")
        return measure_accuracy(*given)

    monkeypatch.setattr(kept_curves, "block_curves", watched)
    monkeypatch.setattr(kept_curves, "measure_accuracy", asked)
    monkeypatch.setattr(ReadingBench, "curve", read)
    return found


def by_name():
    return replace(tiny.loaded("gpt2"), by_name=True)


class Interrupting(Progress):
    """Stops where a stage begins."""

    def __init__(self, stage):
        self.stage = stage

    def began(self, stage, total=None, unit="tokens"):
        if stage == self.stage:
            raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_with_the_next_block(arguments, measured):
    asked = {**arguments, "layers": (0, "1-2", 1)}
    with pytest.raises(KeyboardInterrupt):
        measure_laws(by_name(), progress=Interrupting("block 1"), **asked)
    assert measured == ["block 0", "blocks 1-2"]
    resumed = measure_laws(by_name(), **asked)
    assert measured == ["block 0", "blocks 1-2", "block 1"]
    assert resumed == measure_laws(tiny.loaded("gpt2"), **asked)


@pytest.mark.parametrize(
    "change", [{"ce_budget": 0.3}, {"normalize": True}, {"resamples": 2}, {"pooling": "last"}]
)
def test_what_is_asked_otherwise_is_measured_anew(arguments, measured, change):
    asked = {**arguments, "layers": (1,)}
    one = measure_laws(by_name(), **asked)
    other = measure_laws(by_name(), **{**asked, **change})
    assert measured == ["block 1", "block 1"]
    assert one.blocks != other.blocks


@pytest.mark.parametrize(
    "change",
    [
        {"goal": "decrease"},
        {"layer": 2},
        {"trials": 3},
        {"min_gain": 0.2},
        {"long_run": 0},
        {"max_fluency_drop": 1.0},
    ],
)
def test_what_the_curves_do_not_depend_on_measures_nothing_anew(arguments, measured, change):
    asked = {**arguments, "layers": (1,)}
    one = measure_laws(by_name(), **asked)
    other = measure_laws(by_name(), **asked, **change)
    assert measured == ["block 1"]
    assert one.blocks == other.blocks


@pytest.fixture
def few(tmp_path):
    """Questions of a guard, whose answers a model of random weights can only guess."""
    rows = zip(tiny.texts(tiny.PLAIN, 24), 2 * tiny.BRIGHT, 2 * tiny.DULL, strict=True)
    file = tmp_path / "few.jsonl"
    file.write_text(
        "\n".join(
            json.dumps({"question": text, "choices": pair, "answer": index % 2})
            for index, (text, *pair) in enumerate(rows)
        )
    )
    return file


def test_panels_are_kept_where_a_probe_reads(arguments, measured, few):
    asked = {**arguments, "layers": (1,), "guard": few}
    one = measure_laws(by_name(), judge="auto", teacher="none", **asked)
    assert measured == ["block 1", "presence, block 1", "questions"]
    assert measure_laws(by_name(), judge="auto", teacher="none", **asked) == one
    assert len(measured) == 3
    for _ in range(2):
        measure_laws(by_name(), judge=tiny.share_of_bright_words, **asked)
    assert measured[3:] == ["presence, block 1"] * 2


def test_a_guard_that_shows_nothing_is_told_of_once_a_run_kept_or_measured(
    arguments, measured, few, monkeypatch
):
    monkeypatch.setattr(Guard, "guessed", property(lambda guard: 1.0))
    asked = {**arguments, "layers": (1,), "guard": few}
    for _ in range(2):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", CalibrateWarning)
            measure_laws(by_name(), **asked)
        assert ["guessing 100%" in str(each.message) for each in told].count(True) == 1
    assert measured == ["block 1", "questions"]


def test_presence_is_kept_whatever_it_does_not_depend_on(arguments, measured):
    asked = {**arguments, "layers": (1,), "judge": "auto", "teacher": "none"}
    measure_laws(by_name(), **asked)
    other = measure_laws(by_name(), **asked, confidence=0.9)
    assert measured == ["block 1", "presence, block 1", "block 1"]
    measure_laws(by_name(), **asked, seed=1)
    assert measured[3:] == ["block 1", "presence, block 1"]
    assert other.blocks[0].presence is not None
