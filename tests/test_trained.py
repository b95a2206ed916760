"""Small GPT-2s that have learned something: the laws and the main job where they mean something.

The models are `scripts/train_tiny_gpt.py`'s; the concept is uppercase words.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

import calibrate
from calibrate.common.settings import Sampling, Settings
from calibrate.engine.cross_entropy import delta_ce
from calibrate.engine.generation import sample
from calibrate.engine.loading import load_model
from calibrate.engine.site import Site
from calibrate.engine.unsteered import Corpus, run_unsteered
from calibrate.laws.log_odds import measure_log_odds
from calibrate.laws.pilot import run_pilot
from calibrate.models.model import preserving_model_state
from calibrate.models.prompts import encode_prompt
from calibrate.texts.concept import read_concept, read_prompts
from calibrate.texts.extraction import concept_vectors

pytestmark = pytest.mark.slow

MODELS = Path(__file__).parent / "trained"
PROMPTS, UPPERCASE = MODELS / "prompts.txt", MODELS / "uppercase-words.jsonl"
SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=24)
SIZES = {"gpt2-1layer": 0, "gpt2-2layer": 1}  # and the block steered in each


@pytest.fixture(scope="module", params=SIZES)
def trained(request):
    return load_model(str(MODELS / request.param)), SIZES[request.param]


@pytest.fixture(scope="module")
def bench(trained):
    """Unsteered replies, and the vector towards uppercase words."""
    loaded, layer = trained
    with preserving_model_state(loaded):
        encoded = [encode_prompt(loaded, text) for text in read_prompts(PROMPTS)[:96]]
        replies = sample(loaded, encoded, SAMPLING, seed=0)
        vector = concept_vectors(loaded, read_concept(UPPERCASE).split()["vector"], Settings())[
            layer
        ]
        sequences = tuple(reply.sequence for reply in replies if reply.sequence.n_scored)
        run = run_unsteered(loaded, Corpus(sequences, self_sampled=True), [layer])
    return loaded, encoded, run, vector


def uppercase_ids(loaded):
    return [i for i in range(loaded.vocabulary_size) if loaded.tokenizer.decode([i]).isupper()]


def capitals(completions):
    letters = [c for reply in completions for c in reply.text if c.isalpha()]
    return sum(c.isupper() for c in letters) / max(len(letters), 1)


def test_together_the_models_are_small():
    assert sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file()) < 2_000_000


def test_the_models_have_learned_to_spell_and_to_keep_the_case(trained):
    loaded, _ = trained
    texts = read_concept(UPPERCASE).texts
    losses = []
    for text in (one.text for one in (*texts.positives[:20], *texts.negatives[:20])):
        ids = torch.tensor([loaded.tokenizer("<s>" + text)["input_ids"]])
        losses.append(float(loaded.model(input_ids=ids, labels=ids).loss))
    assert np.mean(losses) < 2.2  # nats a character; without case and spelling it is 3.2
    assert capitals(replies_to(loaded, "THE MORNING WAS ")) > 0.9
    assert capitals(replies_to(loaded, "the morning was ")) < 0.1


def replies_to(loaded, prompt):
    return sample(loaded, [encode_prompt(loaded, prompt)], SAMPLING, seed=0, per_prompt=8)


def test_steering_towards_uppercase_words_writes_them(bench):
    loaded, encoded, _, vector = bench
    shares = []
    for strength in (0.0, 1.0, 2.0):
        steering = vector.apply(loaded.blocks, strength)
        shares.append(capitals(sample(loaded, encoded[:24], SAMPLING, 0, within=steering)))
    assert shares[0] < 0.1
    assert shares == sorted(shares)
    assert shares[-1] > 0.8


@pytest.mark.parametrize("budget", [0.05, 0.1, 0.3])
def test_the_law_names_the_strength_that_spends_the_budget(bench, budget):
    loaded, _, run, vector = bench
    settings = Settings(ce_budget=budget)
    pilot = run_pilot(loaded, run, Site((vector,)), uppercase_ids(loaded), settings)
    truth = brentq(lambda a: delta_ce(loaded, run, Site((vector,)), a).value - budget, 1e-3, 5)
    assert pilot.strength_at_budget.value == pytest.approx(truth, rel=0.015)


def test_the_mass_of_uppercase_tokens_is_a_sigmoid_of_the_strength(bench):
    loaded, _, run, vector = bench
    ids = uppercase_ids(loaded)
    odds = measure_log_odds(loaded, run, Site((vector,)), ids)
    masses = [odds.tokens.mass(ids, strength) for strength in np.linspace(0, 3, 13)]
    assert masses == sorted(masses)
    assert masses[0] < 0.1 < 0.8 < masses[-1]


def test_the_main_job_raises_uppercase_words_within_the_budget(trained):
    loaded, layer = trained
    result = calibrate.calibrate(
        loaded,
        UPPERCASE,
        prompts=PROMPTS,
        layer=layer,
        ce_budget=0.3,
        trials=2,
        teacher="none",
        audit=None,
        sampling=SAMPLING,
    )
    measured = result.config.measured
    assert measured.delta_ce.upper <= 0.3
    assert measured.presence.low > measured.presence.baseline_interval[1]
    replies = result.evidence.completions
    loud, quiet = (
        np.mean([any(word.isupper() for word in text.split()) for text in texts])
        for texts in ([r.steered for r in replies], [r.unsteered for r in replies])
    )
    assert loud > quiet
