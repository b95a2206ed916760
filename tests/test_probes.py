"""The probe: what it learns, how it is kept, and whom it refuses to read for."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import tiny
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import probes
from calibrate.errors import ArtefactError, InputError
from probes import Example, degenerate_examples, fit_probe
from probes.features import text_features
from probes.fit import _p_value as p_value


def written(n, seed):
    return [
        Example(text, positive, "written", f"{seed} {index}")
        for positive, words in ((True, tiny.BRIGHT), (False, tiny.DULL))
        for index, text in enumerate(tiny.texts(words, n, seed))
    ]


@pytest.fixture(scope="module")
def model():
    return tiny.loaded()


@pytest.fixture(scope="module")
def examples(model):
    own = [Example(text, False, "own", text) for text in tiny.texts(tiny.PLAIN, 20, seed=3)]
    primed = [
        Example(text, positive, "primed", f"primed {index}")
        for positive, words in ((True, tiny.BRIGHT), (False, tiny.DULL))
        for index, text in enumerate(tiny.texts(words, 12, seed=4))
    ]
    # A shuffled text of single words is still a text of that kind, so only plain ones are broken.
    broken = degenerate_examples(own, model.tokenizer, seed=0)
    return [*written(30, 0), *primed, *own, *broken]


@pytest.fixture(scope="module")
def probe(model, examples):
    return fit_probe("bright", examples, written(12, 1), model)


def test_it_tells_the_concept_from_its_opposite_and_from_plain_text(probe, model):
    scores = {
        kind: probe.score(tiny.texts(words, 20, seed=9), model).mean()
        for kind, words in (("bright", tiny.BRIGHT), ("dull", tiny.DULL), ("plain", tiny.PLAIN))
    }
    assert scores["bright"] > 0.7
    assert scores["dull"] < 0.3
    assert scores["plain"] < 0.3
    assert probe.quality.texts.auc.value > 0.9
    assert probe.quality.replies.auc.value > 0.8


def test_probabilities_are_calibrated_on_text_it_was_not_fitted_on(probe, model):
    texts = written(60, 7)
    scores = probe.score([example.text for example in texts], model)
    labels = np.array([example.positive for example in texts])
    assert np.mean((scores - labels) ** 2) < 0.15
    assert probe.quality.texts.brier.value < 0.15
    assert probe.quality.texts.calibration_error.value < 0.15
    assert (scores[labels] > probe.threshold).mean() > 0.8
    assert (scores[~labels] > probe.threshold).mean() < 0.2


def test_an_empty_text_scores_zero(probe, model):
    assert probe.score(["", "sun"], model)[0] == 0.0


def test_reading_does_not_depend_on_the_batch(probe, examples):
    texts = [example.text for example in examples]
    one, many = tiny.loaded(batch_tokens=1), tiny.loaded(batch_tokens=4096)
    assert probe.score(texts, one) == pytest.approx(probe.score(texts, many), abs=1e-5)


def test_it_is_the_same_after_saving_and_loading(probe, model, tmp_path):
    probe.save(tmp_path / "probe")
    again = probes.load(tmp_path / "probe")
    texts = tiny.texts(tiny.BRIGHT, 5)
    assert again.score(texts, model) == pytest.approx(probe.score(texts, model), abs=1e-7)
    assert again.quality == probe.quality
    assert sorted(p.name for p in (tmp_path / "probe").iterdir()) == [
        "probe.json",
        "probe.safetensors",
    ]


def test_another_model_is_refused(probe):
    with pytest.raises(ArtefactError, match=r"reads LlamaForCausalLM \(hidden size 32\)"):
        probe.score(["sun"], tiny.loaded(layers=1))


def test_a_damaged_or_newer_probe_is_refused(probe, tmp_path):
    with pytest.raises(ArtefactError, match="must hold a probe"):
        probes.load(tmp_path)
    probe.save(tmp_path)
    facts = json.loads((tmp_path / "probe.json").read_text())
    (tmp_path / "probe.json").write_text(json.dumps({**facts, "version": 99}))
    with pytest.raises(ArtefactError, match="version 3, got steering-probe 99"):
        probes.load(tmp_path)
    del facts["bias"]
    (tmp_path / "probe.json").write_text(json.dumps(facts))
    with pytest.raises(ArtefactError, match=r"is damaged: .*bias"):
        probes.load(tmp_path)


def test_primed_replies_that_do_not_differ_are_not_used(model, examples):
    plain = tiny.texts(tiny.PLAIN, 24, seed=11)
    useless = [
        Example(text, index % 2 == 0, "primed", f"primed {index}")
        for index, text in enumerate(plain)
    ]
    rest = [example for example in examples if example.kind != "primed"]
    probe = fit_probe("bright", [*rest, *useless], written(12, 1), model)
    assert "primed +" not in probe.quality.n_examples
    assert "primed +" in fit_probe("bright", examples, written(12, 1), model).quality.n_examples


def test_degenerate_text_is_broken_in_three_ways(model):
    text = "sun laugh song dance the road walks and then a bright kite"
    source = [Example(text, True, "written", str(index)) for index in range(30)]
    broken = degenerate_examples(source, model.tokenizer, seed=0)
    assert all(not e.positive and e.kind == "degenerate" for e in broken)
    assert [e.group for e in broken] == [e.group for e in source]
    shuffled, looped, drawn = (broken[way::3] for way in range(3))
    assert all(sorted(e.text.split()) == sorted(text.split()) for e in shuffled)
    assert all(len(set(e.text.split())) <= 3 for e in looped)
    assert any(set(e.text.split()) - set(text.split()) for e in drawn)


def by_character():
    """A tokenizer whose tokens are characters, as they nearly are for Chinese and for emoji."""
    letters = sorted({letter for text in UNSPACED for letter in text})
    core = Tokenizer(
        models.WordLevel({one: at for at, one in enumerate(["?", *letters])}, unk_token="?")
    )
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="?")


UNSPACED = [
    "今天天气很好我们去公园散步吧",
    "วันนี้อากาศดีมากเราไปเดินเล่นกัน",
    "私は毎朝コーヒーを飲みます",
    "😀🎉🥳🎂🎈🥰✨",
]


@pytest.mark.parametrize("text", UNSPACED)
def test_text_without_spaces_is_broken_and_never_whole(text):
    source = [Example(text, True, "written", "one")] * 60
    broken = degenerate_examples(source, by_character(), seed=0)
    assert len(broken) >= 40  # shuffles and loops of nothing else, for sure
    assert not [one for one in broken if text in one.text.replace(" ", "")]
    loops = [one.text for one in broken[1::3]]
    assert all(len(set(loop)) <= 3 < len(set(text)) for loop in loops)


@pytest.mark.parametrize(
    "text", ["Joy!", "so happy", "喜び", "😀", "", "ha ha ha ha", "!!! !!! !!!"]
)
def test_what_says_the_same_when_broken_has_no_broken_copy(text, model):
    source = [Example(text, True, "written", "one")] * 9
    for tokenizer in (model.tokenizer, by_character()):
        for one in degenerate_examples(source, tokenizer, seed=0):
            assert "".join(text.split()) not in "".join(one.text.split())


def test_a_hundred_scores_of_near_copies_are_no_evidence():
    """Three sentences a label, by chance apart; a hundred copies of each change nothing."""
    few = [Example(f"{k}", k < 3, "written", f"group {k}") for k in range(6)]
    scores = np.array([5.0, 4.0, 3.0, 2.0, 1.0, 0.0])
    many = [replace(one, text=f"{one.text} {n}") for one in few for n in range(100)]
    jittered = np.repeat(scores, 100) + np.random.default_rng(0).normal(0, 0.1, 600)
    assert p_value(many, jittered) == p_value(few, scores) == pytest.approx(1 / 20)


def test_near_copies_share_a_group_and_none_is_held_out(model):
    rng = random.Random(0)
    sentences = tiny.texts(tiny.PLAIN, 24, seed=5)
    cut = [" ".join(text.split()[: 4 + k]) for text in sentences for k in range(4)]
    labelled = [
        Example(text, rng.random() < 0.5, "written", f"{number}") for number, text in enumerate(cut)
    ]
    own = [Example(text, False, "own", text) for text in tiny.texts(tiny.PLAIN, 20, seed=3)]
    probe = fit_probe("coin", [*labelled[:64], *own], labelled[64:], model)
    assert probe.quality.p_value > 0.01
    with pytest.raises(InputError, match=r"held-out texts must differ .* got near copies"):
        fit_probe("coin", [*labelled[::2], *own], labelled[1::2], model)


def test_features_are_the_mean_of_the_texts_residuals(model):
    rng = random.Random(0)
    texts = [tiny.text(tiny.BRIGHT, rng, length) for length in (3, 9, 5)]
    features = text_features(model, [*texts, ""], [0, 1])
    assert features.shape == (2, 4, model.hidden_size)
    assert not features[:, 3].any()
    alone = text_features(model, [texts[1]], [1])[0, 0]
    assert features[1, 1] == pytest.approx(alone, abs=1e-5)
