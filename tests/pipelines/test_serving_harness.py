"""lm-evaluation-harness scores and continues texts through calibrate serve."""

from __future__ import annotations

import pytest
import torch
from serving_fixtures import saved, serving

from calibrate.models.model import preserving_model_state

pytestmark = pytest.mark.slow

CONTEXT, ENDINGS = "the house by the river", [" sun and rain", " table with a stone"]


@pytest.fixture(scope="module")
def places(finished, tmp_path_factory):
    return saved(tmp_path_factory.mktemp("harness"), finished, "bright")


def test_likelihoods_and_replies_are_those_of_the_steered_model(places, monkeypatch):
    models = pytest.importorskip(
        "lm_eval.models.openai_completions", reason="needs lm-eval: pip install -e .[consumers]"
    )
    instance = pytest.importorskip("lm_eval.api.instance").Instance
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with serving(monkeypatch, [places / "bright"], model=str(places / "model")) as server:
        harness = models.LocalCompletionsAPI(
            model="bright",
            base_url=f"{server.address}/v1/completions",
            tokenizer=str(places / "model"),
            max_length=100,
        )
        scored = harness.loglikelihood(
            [
                instance("loglikelihood", {}, (CONTEXT, ending), place)
                for place, ending in enumerate(ENDINGS)
            ]
        )
        (text,) = harness.generate_until(
            [instance("generate_until", {}, (CONTEXT, {"until": ["\n"], "max_gen_toks": 4}), 0)]
        )
        loaded, config = server.catalogue.loaded, server.catalogue.calibrations[0].config
    context = loaded.tokenizer(CONTEXT)["input_ids"]
    with preserving_model_state(loaded), config.steer(loaded):
        for ending, (log_prob, greedy) in zip(ENDINGS, scored, strict=True):
            ids = [*context, *loaded.tokenizer(ending)["input_ids"]]
            logits = loaded.model(input_ids=torch.tensor([ids])).logits[0]
            after = logits.log_softmax(-1)[len(context) - 1 : -1]
            following = torch.tensor(ids[len(context) :])
            expected = after.gather(1, following[:, None]).sum()
            assert log_prob == pytest.approx(float(expected), abs=1e-3)
            assert greedy == bool((after.argmax(-1) == following).all())
        ids = list(context)
        for _ in range(4):
            ids.append(int(loaded.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert text.split() == loaded.tokenizer.decode(ids[len(context) :]).split()
