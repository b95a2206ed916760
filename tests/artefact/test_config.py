"""The steering config: whole, immutable, and strict about what it reads."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tracemalloc
from pathlib import Path

import jsonschema
import pydantic
import pytest
import tiny
import torch
from safetensors.torch import save_file

import calibrate
from calibrate.common.errors import ArtefactError
from calibrate.common.marks import sha256_of

SCHEMA = Path(__file__).parents[2] / "docs" / "steering-config.schema.json"


@pytest.fixture
def directory(finished, tmp_path):
    """A copy of a finished calibration's directory, free to be damaged."""
    return shutil.copytree(finished.directory, tmp_path / "copy")


def edit(directory, **changes):
    path = directory / "steering.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, **changes}))


def test_it_is_the_same_after_saving_and_loading(finished):
    assert calibrate.load(finished.directory) == finished.result.config


def test_without_their_covariance_the_errors_of_presence_are_not_taken_for_smaller(finished):
    law = finished.result.config.laws.presence
    older = law.model_copy(update={"covariance": None})
    for strength in (0.5, 1.0, 2.0):
        at = strength * finished.result.config.intervention.strength
        assert older.fit.standard_error(at) >= law.fit.standard_error(at) > 0


def test_the_json_follows_the_published_schema(finished):
    facts = json.loads((finished.directory / "steering.json").read_text())
    jsonschema.validate(facts, json.loads(SCHEMA.read_text()))
    assert facts["format"] == "steering-config"
    assert facts["version"] == 2
    assert facts["intervention"]["operation"] == "add"
    assert facts["intervention"]["site"] == "block_output"
    assert facts["budget"]["unit"] == "nats/token"


def test_steering_with_the_config_gives_the_reference_log_probabilities(finished):
    model, config = tiny.model("gpt2"), calibrate.load(finished.directory)
    reference = config.reference
    ids = torch.tensor([reference.input_ids])
    block = model.transformer.h[config.intervention.layer]
    vector = torch.from_numpy(config.steering_vector.values.numpy())
    for kept, context in (
        (reference.log_probs, config.steer(model)),
        (reference.unsteered_log_probs, config.steer(model, strength=0.0)),
        (
            reference.log_probs,
            tiny.hand_written_hook(block, config.intervention.strength * vector),
        ),
    ):
        with context:
            logits = model(input_ids=ids).logits[0, -1]
        found = torch.log_softmax(logits, dim=-1)[reference.token_ids]
        torch.testing.assert_close(found, torch.tensor(kept), rtol=0, atol=1e-5)


def test_steering_leaves_no_hook_behind(finished):
    model, config = tiny.model("gpt2"), calibrate.load(finished.directory)
    with pytest.raises(RuntimeError), config.steer(model), config.steer(model, strength=0.5):
        raise RuntimeError
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_of_another_shape_is_refused(finished):
    config = calibrate.load(finished.directory)
    with pytest.raises(ArtefactError, match=r"3 blocks of size 32\), got 1 blocks"):  # noqa: SIM117
        with config.steer(tiny.model("gpt2-1-layer")):
            pass


def test_a_config_cannot_be_changed(finished):
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        finished.result.config.intervention.strength = 3.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        finished.result.config.measured.presence.value = 1.0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 3}, "of version 1 or 2, got steering-config of version 3; use the release"),
        ({"format": "something"}, "must be a steering-config"),
        ({"intervention": {"layer": "two"}}, "is damaged: intervention"),
        ({"budget": None}, "is damaged: budget"),
    ],
)
def test_a_config_it_cannot_understand_is_refused(directory, changes, said):
    edit(directory, **changes)
    with pytest.raises(ArtefactError, match=said):
        calibrate.load(directory)


def test_a_missing_or_broken_file_is_named(directory, tmp_path):
    with pytest.raises(ArtefactError, match=r"must hold a steering\.json"):
        calibrate.load(tmp_path / "nowhere")
    (directory / "steering.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(ArtefactError, match="must hold the steering vector"):
        calibrate.load(directory)
    (directory / "steering.json").write_text("{")
    with pytest.raises(ArtefactError, match="must be JSON"):
        calibrate.load(directory)


@pytest.mark.parametrize("content", ["[" * 100_000, "1" * 5_000], ids=["deep", "long"])
def test_what_cannot_be_parsed_is_no_json(directory, content):
    (directory / "steering.json").write_text(content)
    with pytest.raises(ArtefactError, match=r"steering\.json must be JSON"):
        calibrate.load(directory)


def test_a_model_of_absurdly_many_blocks_takes_no_memory(directory):
    facts = json.loads((directory / "steering.json").read_text())
    edit(directory, model={**facts["model"], "num_layers": 10**6})
    tracemalloc.start()
    try:
        calibrate.load(directory)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 10**7


def test_what_a_later_release_records_of_the_settings_is_left_out(directory):
    facts = json.loads((directory / "steering.json").read_text())
    provenance = facts["provenance"]
    provenance["settings"]["of_tomorrow"] = provenance["settings"]["sampling"]["min_p"] = 0.1
    before = calibrate.load(directory).settings
    edit(directory, provenance=provenance)
    assert calibrate.load(directory).settings == before


@pytest.mark.parametrize(
    "values", [torch.ones(31), torch.ones(1, 32), torch.full((32,), torch.nan), torch.ones(())]
)
def test_a_vector_that_no_calibration_writes_is_damage(directory, values):
    path = directory / "steering.safetensors"
    save_file({"vector": values}, path)
    facts = json.loads((directory / "steering.json").read_text())
    edit(directory, vector={**facts["vector"], "sha256": sha256_of(path)})
    with pytest.raises(ArtefactError, match="is damaged: each vector must be 32 finite numbers"):
        calibrate.load(directory)


def test_another_vector_than_the_calibrated_one_is_refused(directory):
    save_file({"vector": torch.ones(32)}, directory / "steering.safetensors")
    with pytest.raises(ArtefactError, match="must have SHA-256"):
        calibrate.load(directory)
