"""Several blocks steered with one strength: calibrated, kept, checked and served as one."""

from __future__ import annotations

import json
import shutil

import pytest
import tiny
import torch
from test_export import LAYER, SEVERAL, STRENGTH, config_for, hooked

import calibrate
from calibrate.common.errors import ArtefactError
from calibrate.deploy.diagnosis import ReferenceInput
from calibrate.deploy.verify import check_directory
from calibrate.engine.loading import load_model

BLOCKS = (0, 1)


@pytest.fixture(scope="module")
def loaded():
    return load_model(tiny.model("gpt2"), tiny.tokenizer())


@pytest.fixture(scope="module")
def directory(tiny_options, tmp_path_factory):
    """A finished calibration of two blocks."""
    out = tmp_path_factory.mktemp("several") / "bright"
    calibrate.calibrate(tiny.model("gpt2"), out=out, **{**tiny_options, "layer": "0-1"})
    return out


@pytest.fixture
def copy(directory, tmp_path):
    return shutil.copytree(directory, tmp_path / "copy")


def test_its_budget_is_kept_by_the_laws_of_one_site(directory):
    config = calibrate.load(directory)
    evidence = json.loads((directory / "evidence.json").read_text())
    assert [pilot["site"] for pilot in evidence["pilots"]] == ["blocks 0-1"]
    assert config.measured.delta_ce.upper <= config.budget.limit
    assert config.laws.cross_entropy.goodness.good


def test_the_config_lists_every_block_with_its_own_vector(directory):
    config = calibrate.load(directory)
    assert config.layers == BLOCKS
    assert config.where == "blocks 0-1"
    assert config.intervention.layer == 0
    first, second = config.site.vectors
    assert not torch.allclose(first.values, second.values)
    assert config.vector.norm == pytest.approx(float((first.values + second.values).norm()))
    with pytest.raises(ArtefactError, match="this config steers blocks 0-1; use config"):
        assert config.steering_vector


def test_steering_with_it_is_a_hook_after_each_block(directory, loaded):
    config = calibrate.load(directory)
    reference, strength = config.reference, config.intervention.strength
    shifts = {one.layer: strength * one.values for one in config.site.vectors}
    for context in (config.steer(loaded.model), hooked(loaded, shifts)):
        with context, torch.no_grad():
            logits = loaded.model(input_ids=torch.tensor([reference.input_ids])).logits[0, -1]
        found = torch.log_softmax(logits, dim=-1)[reference.token_ids]
        torch.testing.assert_close(found, torch.tensor(reference.log_probs), rtol=0, atol=1e-5)


def test_the_gate_opens_for_it(directory, loaded):
    report = check_directory(directory, loaded)
    assert report.passed, report.failures


def all_blocks(facts, **change):
    for block in facts["interventions"]:
        block.update(change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda facts: facts["interventions"].reverse(), "interventions is out of range"),
        (lambda facts: facts.update(interventions=None), "interventions must list the 2 blocks"),
        (lambda facts: all_blocks(facts, weight=0.0), "interventions.weight is out of range"),
        (
            lambda facts: facts["interventions"][1].update(weight=0.0),
            "interventions.weight is out of range",
        ),
        (
            lambda facts: all_blocks(facts, residual_norm=0.0),
            "interventions.residual_norm is out of",
        ),
        (lambda facts: all_blocks(facts, norm=-1.0), "interventions.norm is out of range"),
        (lambda facts: all_blocks(facts, signal=1.5), "interventions.signal is out of range"),
        (lambda facts: facts["vector"].update(signal=2.0), "vector.signal is out of range"),
        (lambda facts: facts["vector"].update(signal=-0.5), "vector.signal is out of range"),
        (lambda facts: facts["vector"].update(norm=0.0), "vector.norm is out of range"),
        (lambda facts: facts["interventions"].clear(), "interventions is out of range"),
        (lambda facts: facts["interventions"][1].update(layer=3), "interventions is out of range"),
        (lambda facts: facts["interventions"][0].update(layer=-1), "interventions is out of range"),
        (lambda facts: facts["interventions"][1].update(layer=0), "interventions is out of range"),
        (lambda facts: facts["intervention"].update(layer=1), "interventions is out of range"),
        (lambda facts: facts["interventions"][1].update(key="x"), "must hold the steering vector"),
    ],
)
def test_blocks_that_no_calibration_lists_are_damage(copy, change, said):
    path = copy / "steering.json"
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))
    with pytest.raises(ArtefactError, match=said):
        calibrate.load(copy)


def test_a_block_left_out_is_caught_by_the_gate(copy, loaded):
    path = copy / "steering.json"
    facts = json.loads(path.read_text())
    facts["interventions"].pop()
    path.write_text(json.dumps(facts))
    report = check_directory(copy, loaded)
    assert "steered log-probabilities must be as recorded" in report.failures[0]


@pytest.mark.parametrize(
    ("recorded", "said"),
    [
        (((0, 1), STRENGTH, False), "recorded at blocks 0-1, and the config says blocks 1-2"),
        (((LAYER,), STRENGTH, False), "recorded without block 2, which the config steers too"),
        ((SEVERAL, -STRENGTH, False), "recorded with the opposite sign"),
        ((SEVERAL, 2 * STRENGTH, False), "recorded at strength 1.4, and the config says 0.7"),
        ((SEVERAL, STRENGTH, True), "recorded with 'last' positions steered"),
    ],
)
def test_which_mistake_explains_a_missed_reference(recorded, said, finished, loaded):
    config = config_for(finished.result.config, loaded, SEVERAL, recorded=recorded)
    assert said in next(ReferenceInput(config, loaded).explanations(5e-3))
