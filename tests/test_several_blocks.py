"""Several blocks steered with one strength: calibrated, kept, checked and served as one."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from functools import partial

import pytest
import tiny
import torch
from test_export import LAYER, SEVERAL, STRENGTH, config_for, hooked

import calibrate
from calibrate.common.errors import ArtefactError
from calibrate.deploy.diagnosis import ReferenceInput
from calibrate.deploy.runtimes import Stack, _least_kl, _logits_of, check_stack
from calibrate.deploy.verify import check_directory
from calibrate.engine.cross_entropy import delta_ce
from calibrate.engine.loading import load_model
from calibrate.engine.unsteered import Corpus, run_unsteered
from calibrate.models.model import preserving_model_state
from calibrate.models.tokens import TokenSequence

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
        (
            lambda facts: facts.update(interventions=None),
            r"must list a block in interventions for every vector in .*, got none for vector\.1",
        ),
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
    assert [check.name for check in report.checks] == ["artefact"]
    assert "for every vector in steering.safetensors, got none for vector.1" in report.failures[0]


@contextmanager
def serving_at(layers, name, config, loaded, *_):
    """A stack that steers some of the blocks only."""
    vectors = [vector for vector in config.site.vectors if vector.layer in layers]
    shifts = {one.layer: config.intervention.strength * one.values for one in vectors}
    plain = _logits_of(loaded)

    def steered(ids):
        with hooked(loaded, shifts):
            return plain(ids)

    yield Stack(name, plain, steered)


@pytest.mark.parametrize("on", ["replies", "a corpus file"])
@pytest.mark.parametrize(("layers", "passes"), [((), False), ((0,), False), (BLOCKS, True)])
def test_a_stack_has_to_steer_every_block(
    directory, loaded, layers, passes, on, monkeypatch, tmp_path
):
    monkeypatch.setattr("calibrate.deploy.runtimes.serving", partial(serving_at, layers))
    corpus = None
    if on != "replies":
        corpus = tmp_path / "corpus.txt"
        corpus.write_text("\n".join(tiny.texts(tiny.BRIGHT, 60, seed=5)))
    check = check_stack(directory, loaded, "peft", corpus=corpus)
    assert check.passed == passes, check.found
    assert ("peft steers fewer blocks, more weakly or not at all" in check.found) != passes


@pytest.mark.parametrize(("copies", "share"), [(1, 0.5), (9, 0.95)])
def test_few_texts_or_many_ask_for_a_fair_share_of_the_models_own_kl(
    directory, loaded, copies, share
):
    """One text has no interval at all, and equal ones have none that is wider than 0."""
    config = calibrate.load(directory)
    texts = Corpus((TokenSequence((7, 12, 20, 9, 30), 2),) * copies, self_sampled=True)
    with preserving_model_state(loaded):
        run = run_unsteered(loaded, texts, [0])
        here = delta_ce(loaded, run, config.site, config.intervention.strength)
        assert _least_kl(config, loaded, texts) == pytest.approx(share * here.value)


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
