"""The gate: open for what was calibrated, closed for every way of getting it wrong."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from safetensors.numpy import load_file, save_file
from test_export import config_for
from tokenizers import normalizers

import calibrate
import probes
from calibrate.common.errors import ArtefactError, InputError, VerificationFailed
from calibrate.deploy.checks import TOLERANCES, why_not_same
from calibrate.deploy.export import export
from calibrate.deploy.verify import check_directory, open_model
from calibrate.engine.loading import DTYPES, load_model
from calibrate.models.model import preserving_model_state


@pytest.fixture(scope="module")
def loaded():
    return load_model(tiny.model("gpt2"), tiny.tokenizer())


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of a finished calibration, to be tampered with."""
    shutil.copytree(finished.directory, tmp_path / "copy")
    return tmp_path / "copy"


def tampered(directory, change):
    path = directory / "steering.json"
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))
    return directory


def failures(directory, loaded, **options):
    report = check_directory(directory, loaded, **options)
    assert not report.passed
    return report.failures


def test_it_opens_for_a_fresh_artefact(finished, loaded):
    report = check_directory(finished.directory, loaded)
    assert report.passed
    assert [check.name for check in report.checks] == [
        "identity", "reference", "budget", "presence", "long run",
    ]  # fmt: skip
    recorded = finished.result.config.measured
    assert f"ΔCE {recorded.delta_ce.value:.4f}" in report.checks[2].found
    assert f"changes by {recorded.presence.change.value:+.3f}" in report.checks[3].found
    assert json.loads(json.dumps(report.facts()))["passed"] is True


def test_quick_looks_at_identity_and_reference_only(finished, loaded):
    report = check_directory(finished.directory, loaded, quick=True)
    assert [check.name for check in report.checks] == ["identity", "reference"]


def test_three_times_the_strength_is_recognised(copy, loaded):
    def triple(facts):
        facts["intervention"]["strength"] *= 3

    recorded = calibrate.load(copy).intervention.strength
    (found,) = failures(tampered(copy, triple), loaded)
    assert f"recorded at strength {recorded:.4g}, and the config says {3 * recorded:.4g}" in found


def test_a_block_off_by_one_is_recognised(copy, loaded):
    layer = calibrate.load(copy).intervention.layer
    other = layer - 1 if layer else layer + 1

    def shift(facts):
        facts["intervention"]["layer"] = facts["interventions"][0]["layer"] = other

    (found,) = failures(tampered(copy, shift), loaded)
    assert f"recorded at block {layer}, and the config says block {other}" in found


def test_other_positions_are_recognised(copy, loaded):
    def last(facts):
        facts["intervention"]["positions"] = "last"

    (found,) = failures(tampered(copy, last), loaded)
    assert "recorded with 'all' positions steered, and the config says 'last'" in found


def test_a_negated_vector_is_recognised_with_and_without_its_hash(copy, loaded):
    path = copy / "steering.safetensors"
    save_file({name: -values for name, values in load_file(path).items()}, path)
    (found,) = failures(copy, loaded)
    assert "is not the vector this config was calibrated with" in found

    def rehash(facts):
        facts["vector"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()

    (found,) = failures(tampered(copy, rehash), loaded)
    assert "opposite sign: the vector or the strength is negated" in found


def test_a_vector_of_another_direction_has_no_explanation(copy, loaded):
    path = copy / "steering.safetensors"
    rng = np.random.default_rng(0)
    other = {name: rng.permutation(values) for name, values in load_file(path).items()}
    save_file(other, path)

    def rehash(facts):
        facts["vector"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()

    (found,) = failures(tampered(copy, rehash), loaded)
    assert "no single mistake explains it" in found


def test_another_model_is_named(finished):
    llama = load_model(tiny.model("llama"), tiny.tokenizer())
    (found,) = failures(finished.directory, llama)
    assert "the architecture must be GPT2LMHeadModel, as in the calibration, got LlamaFor" in found


def test_other_weights_are_recognised_before_anything_is_steered(finished):
    model = tiny.model("gpt2")
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight.mul_(1.5)
    (found,) = failures(finished.directory, load_model(model, tiny.tokenizer()))
    assert "unsteered log-probabilities must be as recorded" in found
    assert "other weights" in found


def test_another_tokenizer_is_named(finished):
    (found,) = failures(
        finished.directory, load_model(tiny.model("gpt2"), tiny.tokenizer(bos=True))
    )
    assert "the tokenizer must be" in found


def test_a_tokenizer_that_cuts_text_otherwise_is_named(finished):
    """Of the same vocabulary: a normaliser is no part of it."""
    lower = tiny.tokenizer()
    lower.backend_tokenizer.normalizer = normalizers.Replace("It's", "the")
    (found,) = failures(finished.directory, load_model(tiny.model("gpt2"), lower))
    assert "how the tokenizer cuts text must be" in found


def test_a_config_from_before_tokenization_was_recorded_still_holds(copy, loaded):
    def forget(facts):
        del facts["model"]["tokenization_sha256"]

    assert check_directory(tampered(copy, forget), loaded, quick=True).passed


def test_another_chat_template_is_named(finished):
    (found,) = failures(
        finished.directory, load_model(tiny.model("gpt2"), tiny.tokenizer(chat=True))
    )
    assert "the chat template must be None, as in the calibration" in found


def test_another_precision_is_named_with_the_way_out(finished):
    half = load_model(tiny.model("gpt2").to(torch.bfloat16), tiny.tokenizer())
    (found,) = failures(finished.directory, half)
    assert "the precision must be float32, as in the calibration, got bfloat16" in found
    assert "--dtype" in found


def test_another_revision_is_named(copy, loaded):
    def revise(facts):
        facts["model"]["revision"] = "abc"

    tampered(copy, revise)
    assert check_directory(
        copy, loaded, quick=True
    ).passed  # the loaded model does not know its own
    loaded.model.config._commit_hash = "def"
    try:
        again = load_model(loaded.model, loaded.tokenizer)
        (found,) = failures(copy, again, quick=True)
    finally:
        loaded.model.config._commit_hash = None
    assert "the model's revision must be abc, as in the calibration, got def" in found


def test_a_budget_that_does_not_hold_on_a_corpus_closes_it(copy, loaded, tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(tiny.texts(tiny.DULL, 60, seed=5)))

    def tighten(facts):
        facts["budget"]["limit"] = 1e-3

    (found,) = failures(tampered(copy, tighten), loaded, corpus=corpus)
    assert "above the budget of 0.001 nat" in found


def test_the_file_it_was_verified_on_gives_the_texts_that_were_held_out(
    tiny_options, loaded, tmp_path
):
    said = tiny.texts(tiny.DULL, 60, seed=5)
    corpus, other = tmp_path / "corpus.txt", tmp_path / "other.txt"
    corpus.write_text("\n".join(said))
    other.write_text("\n".join(said[:15]))
    out = tmp_path / "out"
    recorded = calibrate.calibrate(
        tiny.model("gpt2"), out=out, corpus=corpus, **tiny_options
    ).config.measured.delta_ce
    assert recorded.n_sequences < 60
    for file, found in (
        (corpus, f"ΔCE {recorded.value:.4f} on {recorded.n_sequences} sequences, 95% bound "
         f"{recorded.upper:.4f}"),
        (other, "on 15 sequences"),
    ):  # fmt: skip
        (check,) = (
            check
            for check in check_directory(out, loaded, corpus=file).checks
            if check.name == "budget"
        )
        assert found in check.found


def test_a_corpus_that_quick_would_not_heed_is_refused(finished, loaded, tmp_path):
    with pytest.raises(InputError, match="--quick measures no cross-entropy"):
        check_directory(finished.directory, loaded, corpus=tmp_path / "c.txt", quick=True)


@pytest.mark.parametrize("split", ["verify", "search"])
@pytest.mark.parametrize("prompts", [None, []])
def test_evidence_without_prompts_is_damaged(split, prompts, copy, loaded):
    facts = json.loads((copy / "evidence.json").read_text())
    facts["splits"]["prompts"][split] = prompts
    if prompts is None:
        del facts["splits"]["prompts"][split]
    (copy / "evidence.json").write_text(json.dumps(facts))
    with pytest.raises(ArtefactError, match=r"splits\.prompts must list search and verify prompts"):
        check_directory(copy, loaded)


def test_every_precision_that_can_be_calibrated_can_be_loaded(finished, tmp_path):
    assert {*TOLERANCES, "auto"} == {*DTYPES}
    tiny.model("gpt2").save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    identity = replace(finished.result.config.model, dtype="float64", id=str(tmp_path))
    opened = open_model(finished.result.config.model_copy(update={"model": identity}))
    assert opened.dtype == torch.float64


def test_a_presence_that_does_not_move_as_recorded_closes_it(copy, loaded):
    def boast(facts):
        facts["measured"]["presence"]["change"] = {"value": 0.9, "low": 0.85, "high": 0.95}

    (found,) = failures(tampered(copy, boast), loaded)
    assert "but +0.900 was recorded" in found


def audited(judge, **change):
    """A second judge's reading, as a config records it."""

    def add(facts):
        presence = facts["measured"]["presence"]
        facts["measured"]["audit"] = {
            **{end: presence[end] for end in ("value", "low", "high", "baseline")},
            "change": {**presence["change"], **change},
            "judge": judge,
            "agreement": 0.9,
            "opinion": "sees no change",
        }

    return add


def test_the_auditor_is_asked_again_and_what_it_said_is_repeated(copy, loaded, monkeypatch):
    """The double of the auditor reads as the probe does."""
    probe = probes.load(copy / "probe")
    module = types.ModuleType("house_auditors")
    module.again = lambda texts, _: probe.score(texts, loaded)
    monkeypatch.setitem(sys.modules, "house_auditors", module)
    report = check_directory(tampered(copy, audited("house_auditors:again")), loaded)
    assert report.passed
    (check,) = [check for check in report.checks if check.name == "audit"]
    assert check.found.startswith("presence to house_auditors:again changes by +")
    assert check.found.endswith("the second judge sees no change")
    boast = {"value": 0.9, "low": 0.85, "high": 0.95}
    (found,) = failures(tampered(copy, audited("house_auditors:again", **boast)), loaded)
    assert "but +0.900 was recorded" in found


def test_an_auditor_that_cannot_be_made_again_is_named(copy, loaded):
    for judge, reason in (
        ("embedding", "was fitted on texts that are not kept"),
        ("no_such_module:f", "must be a function that can be imported"),
        ("collections:Counter", "was an object in memory"),
    ):
        report = check_directory(tampered(copy, audited(judge)), loaded)
        (check,) = [check for check in report.checks if check.name == "audit"]
        assert check.passed
        assert f"{judge} read a change of +" in check.found
        assert f"is not asked again here: judge {judge!r} {reason}" in check.found


def test_a_config_that_was_verified_on_a_file_wants_one(copy, loaded):
    def from_file(facts):
        facts["measured"]["delta_ce"]["corpus"] = "file"

    with pytest.raises(InputError, match="give that file with --corpus FILE"):
        check_directory(tampered(copy, from_file), loaded)


def test_a_directory_without_a_config_is_an_error_not_a_failure(tmp_path, loaded):
    with pytest.raises(ArtefactError, match=r"must hold a steering\.json"):
        check_directory(tmp_path, loaded)


@pytest.fixture(scope="module")
def half():
    """A model in bfloat16, whose rounding is as large as a weak steering's effect."""
    return load_model(tiny.model("llama").to(torch.bfloat16), tiny.tokenizer())


def weak(finished, half, by=1.0, seed=None):
    """A config whose reference was made with its strength times `by`.

    seed: of noise as large as what rounding on another machine does, if any.
    """
    config = config_for(
        finished.result.config, half, strength=0.1, recorded=((1,), 0.1 * by, False)
    )
    reference = config.reference
    effect = np.subtract(reference.log_probs, reference.unsteered_log_probs)
    assert np.abs(effect).max() < TOLERANCES["bfloat16"]
    if seed is None:
        return config
    rng, n = np.random.default_rng(seed), len(reference.token_ids)
    rounded = {
        name: (getattr(reference, name) + rng.uniform(-0.02, 0.02, n)).tolist()
        for name in ("log_probs", "unsteered_log_probs")
    }
    return config.model_copy(update={"reference": replace(reference, **rounded)})


def test_a_weak_effect_in_bfloat16_is_told_from_none_and_from_its_opposite(finished, half):
    with preserving_model_state(half):
        assert why_not_same(weak(finished, half), half) is None
        assert all(why_not_same(weak(finished, half, seed=n), half) is None for n in range(8))
        right = weak(finished, half)
        off = right.intervention.model_copy(update={"strength": 1e-6})
        found = why_not_same(right.model_copy(update={"intervention": off}), half)
        negated = why_not_same(weak(finished, half, by=-1.0), half)
    assert "must shift log-probabilities by 0.5 to 1.5 times what was recorded, got 0" in found
    assert "opposite sign: the vector or the strength is negated" in negated


def test_an_effect_that_rounding_hides_is_no_pass_but_says_so(finished, half):
    config = weak(finished, half)
    shifted = [value + 0.01 for value in config.reference.unsteered_log_probs]
    reference = replace(config.reference, log_probs=shifted)
    config = config.model_copy(update={"reference": reference})
    with preserving_model_state(half):
        found = why_not_same(config, half)
    assert "rounding in bfloat16 can do as much to so small an effect" in found
    assert "this cannot tell; verify on the machine it was calibrated on" in found


@pytest.mark.parametrize("name", ["peft", "folded", "snippet"])
def test_an_export_in_bfloat16_of_a_weak_effect_has_to_steer(finished, half, tmp_path, name):
    assert export(weak(finished, half), name, tmp_path / "right", half).gap is not None
    with pytest.raises(VerificationFailed, match=r"by 0\.5 to 1\.5 times what was recorded, got -"):
        export(weak(finished, half, by=-1.0), name, tmp_path / "wrong", half)
    assert not (tmp_path / "wrong").exists()
