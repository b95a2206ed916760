"""The probe: what it learns, how it is kept, and whom it refuses to read for."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from scipy.special import logit
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import probes
from calibrate.common.errors import ArtefactError, CalibrateWarning, InputError
from calibrate.engine.loading import load_model
from probes import Example, GradedText, fit_written_probe, learn_probe
from probes.features import text_features
from probes.fit import _p_value as p_value
from probes.scale import Scale


def written(n, seed):
    return [
        Example(text, positive, f"{seed} {index}")
        for positive, words in ((True, tiny.BRIGHT), (False, tiny.DULL))
        for index, text in enumerate(tiny.texts(words, n, seed))
    ]


@pytest.fixture(scope="module")
def model():
    return tiny.loaded()


@pytest.fixture(scope="module")
def examples():
    return written(30, 0)


def fit(model, examples, held_out, replies=None, scale=None):
    """A probe that learned from written texts; plain replies are as dull as they are bright."""
    replies = tiny.texts(tiny.VOCABULARY[5:], 40, seed=3) if replies is None else replies
    return fit_written_probe("bright", examples, held_out, replies, model, scale or Scale(3.0, 0.0))


@pytest.fixture(scope="module")
def probe(model, examples):
    return fit(model, examples, written(12, 1))


def scores_of_kinds(probe, model):
    return {
        kind: probe.score(tiny.texts(words, 20, seed=9), model)
        for kind, words in (("bright", tiny.BRIGHT), ("dull", tiny.DULL), ("plain", tiny.PLAIN))
    }


def test_it_ranks_the_concept_above_plain_text_and_that_above_the_opposite(probe, model):
    scores = scores_of_kinds(probe, model)
    assert scores["bright"].mean() > 0.7
    assert scores["dull"].mean() < 0.3
    assert scores["dull"].mean() < scores["plain"].mean() < scores["bright"].mean()
    learned = probe.learned
    assert learned.quality.auc.value > 0.9
    assert learned.p_value < 0.01
    assert (learned.source, learned.n_texts) == ("written", {"positive": 30, "negative": 30})
    assert learned.quality.n == 24
    assert probe.clear(scores["plain"]) is None


MARKER = " </s> </s> </s>"


def test_what_tells_people_from_models_tells_nothing_of_the_concept(model, examples):
    """Texts of people all end in a mark that no reply has: the worst case of another domain."""
    marked = [
        [replace(one, text=one.text + MARKER) for one in some]
        for some in (examples, written(12, 1))
    ]
    probe = fit(model, *marked)
    scores = scores_of_kinds(probe, model)
    assert scores["bright"].mean() > 0.65
    assert scores["dull"].mean() < 0.35
    assert probe.learned.quality.auc.value > 0.9
    plain = probe.score(tiny.texts(tiny.VOCABULARY[5:], 60, seed=8), model)
    assert 0.3 < plain.mean() < 0.7  # not all of one label, though no written text is like them


def test_where_a_yes_begins_is_in_standard_deviations_of_plain_replies(model, examples):
    replies = tiny.texts(tiny.VOCABULARY[5:], 40, seed=3)
    scale = Scale(0.7, -1.3)
    probe = fit(model, examples, written(12, 1), replies, scale)
    said = (logit(probe.score(replies, model)) - scale.offset) / scale.slope
    assert said.mean() == pytest.approx(0.0, abs=1e-4)
    assert said.std() == pytest.approx(1.0, abs=1e-4)


def test_an_empty_text_scores_zero(probe, model):
    assert probe.score(["", "sun"], model)[0] == 0.0


def test_a_text_of_one_token_is_read_like_any_other(probe, model):
    bright, dull = (probe.score(words, model) for words in (tiny.BRIGHT, tiny.DULL))
    assert min(bright.min(), dull.min()) > 0
    assert bright.mean() > dull.mean()
    sun = tiny.VOCABULARY.index("sun")
    ids = torch.tensor([[model.tokenizer.eos_token_id, sun]])
    states = model.model(input_ids=ids, output_hidden_states=True).hidden_states
    expected = [states[layer + 1][0, 1].detach().numpy() for layer in range(2)]
    assert text_features(model, ["sun"], range(2))[:, 0] == pytest.approx(
        np.array(expected), abs=1e-5
    )


def test_reading_does_not_depend_on_the_batch(probe, examples):
    texts = [example.text for example in examples]
    one, many = tiny.loaded(batch_tokens=1), tiny.loaded(batch_tokens=4096)
    assert probe.score(texts, one) == pytest.approx(probe.score(texts, many), abs=1e-5)


def graded(n):
    """Texts that readers graded by how many of their words are bright."""
    rng = random.Random(2)
    found = []
    for number in range(n):
        bright = number % 3
        words = [rng.choice(tiny.BRIGHT if k < 4 * bright else tiny.PLAIN) for k in range(8)]
        found.append(GradedText(" ".join(words), bright, group=f"{number}"))
    return found


@pytest.mark.parametrize("source", ["graded", "written"])
def test_it_is_the_same_after_saving_and_loading(source, probe, model, tmp_path):
    kept = probe if source == "written" else learn_probe("bright", graded(90), model)
    kept = kept.rescaled(Scale(1.5, -0.25))
    kept.save(tmp_path / "probe")
    again = probes.load(tmp_path / "probe")
    texts = tiny.texts(tiny.BRIGHT, 5)
    scores = kept.score(texts, model)
    assert again.score(texts, model) == pytest.approx(scores, abs=1e-7)
    assert again.learned == kept.learned
    assert again.learned.source == source
    assert (again.scale, again.clearly) == (kept.scale, kept.clearly)
    assert (kept.clear(scores) is None) == (source == "written")
    assert sorted(p.name for p in (tmp_path / "probe").iterdir()) == [
        "probe.json",
        "probe.safetensors",
    ]


def test_a_correction_ranks_as_before_and_leaves_what_is_clear_to_the_probe_as_fitted(model):
    probe = learn_probe("bright", graded(90), model)
    texts = [one.text for one in graded(12)]
    corrected = probe.rescaled(Scale(2.0, -1.0))
    before, after = probe.score(texts, model), corrected.score(texts, model)
    odds = before / (1 - np.minimum(before, 1 - 1e-6))
    assert after == pytest.approx(1 / (1 + np.exp(1) / np.maximum(odds, 1e-9) ** 2), abs=1e-5)
    assert corrected.clear(after) == pytest.approx(probe.clear(before), abs=1e-3)
    assert corrected.as_fitted.score(texts, model) == pytest.approx(before)


def test_another_model_is_refused(probe):
    with pytest.raises(ArtefactError, match=r"reads LlamaForCausalLM \(hidden size 32\)"):
        probe.score(["sun"], tiny.loaded(layers=1))


def of_words(words):
    """The double's tokenizer, with these words in place of its own."""
    core = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>")


@pytest.mark.parametrize("kept", ["both hashes", "that of the vocabulary alone"])
def test_a_tokenizer_that_splits_otherwise_is_refused(probe, kept):
    kept = probe if kept == "both hashes" else replace(probe, tokenization_sha256=None)
    other = load_model(tiny.model(), of_words(tiny.VOCABULARY[::-1]))
    with pytest.raises(ArtefactError, match=r"reads the tokens of .* splits texts otherwise"):
        kept.score(["sun"], other)


def test_a_token_more_for_padding_is_no_other_tokenizer(probe, model):
    padded = tiny.tokenizer()
    padded.pad_token = "</s>"
    tuned = load_model(tiny.model(), padded)
    assert tuned.identity.tokenizer_sha256 != model.identity.tokenizer_sha256
    assert probe.score(["sun song"], tuned) == pytest.approx(probe.score(["sun song"], model))


def test_a_model_of_another_name_is_named(probe, model):
    with pytest.warns(CalibrateWarning, match="fitted with LlamaForCausalLM and reads with tuned"):
        probe.score(["sun"], replace(model, name="tuned"))


def test_a_damaged_or_newer_probe_is_refused(probe, tmp_path):
    with pytest.raises(ArtefactError, match="must hold a probe"):
        probes.load(tmp_path)
    probe.save(tmp_path)
    facts = json.loads((tmp_path / "probe.json").read_text())
    (tmp_path / "probe.json").write_text(json.dumps({**facts, "version": 99}))
    with pytest.raises(ArtefactError, match="version 4, got steering-probe 99"):
        probes.load(tmp_path)
    for part in ("bias", "learned", "clearly", "scale"):
        (tmp_path / "probe.json").write_text(
            json.dumps({name: fact for name, fact in facts.items() if name != part})
        )
        with pytest.raises(ArtefactError, match=rf"is damaged: .*{part}"):
            probes.load(tmp_path)


@pytest.mark.parametrize("damage", [lambda rows: rows[:-1], lambda rows: rows.ravel()])
def test_weights_that_do_not_fit_the_blocks_are_refused(probe, damage, tmp_path):
    replace(probe, weights=damage(probe.weights).copy()).save(tmp_path)
    with pytest.raises(ArtefactError, match="a row of weights for each block that is read, got"):
        probes.load(tmp_path)


def test_a_hundred_scores_of_near_copies_are_no_evidence():
    """Three sentences a label, by chance apart; a hundred copies of each change nothing."""
    few = [Example(f"{k}", k < 3, f"group {k}") for k in range(6)]
    scores = np.array([5.0, 4.0, 3.0, 2.0, 1.0, 0.0])
    many = [replace(one, text=f"{one.text} {n}") for one in few for n in range(100)]
    jittered = np.repeat(scores, 100) + np.random.default_rng(0).normal(0, 0.1, 600)
    assert p_value(many, jittered) == p_value(few, scores) == pytest.approx(1 / 20)


def test_near_copies_share_a_group_and_none_is_held_out(model):
    rng = random.Random(0)
    sentences = tiny.texts(tiny.PLAIN, 24, seed=5)
    cut = [" ".join(text.split()[: 4 + k]) for text in sentences for k in range(4)]
    labelled = [Example(text, rng.random() < 0.5, f"{number}") for number, text in enumerate(cut)]
    learned = fit(model, labelled[:64], labelled[64:]).learned
    assert learned.p_value > 0.01
    with pytest.raises(InputError, match=r"held-out texts must differ .* got near copies"):
        fit(model, labelled[::2], labelled[1::2])


def test_texts_of_one_group_alone_teach_nothing_and_break_nothing(model):
    alike = [replace(one, group="one") for one in written(12, 0)]
    probe = fit(model, alike, written(12, 1))
    assert np.isfinite(probe.weights).all()


def test_features_are_the_mean_of_the_texts_residuals(model):
    rng = random.Random(0)
    texts = [tiny.text(tiny.BRIGHT, rng, length) for length in (3, 9, 5)]
    features = text_features(model, [*texts, ""], [0, 1])
    assert features.shape == (2, 4, model.hidden_size)
    assert not features[:, 3].any()
    alone = text_features(model, [texts[1]], [1])[0, 0]
    assert features[1, 1] == pytest.approx(alone, abs=1e-5)
