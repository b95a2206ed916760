"""Steering vectors, against a difference of means written out by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tiny
import torch

from calibrate.common.errors import CalibrateWarning, ConceptError, InputError
from calibrate.common.settings import Settings
from calibrate.engine.site import Site, SteeringVector
from calibrate.models.prompts import encode_text
from calibrate.texts import replies
from calibrate.texts.concept import Text, Texts
from calibrate.texts.extraction import concept_vectors, extract_vectors

ROUNDING = 2e-5  # float32, on residuals of size 1 to 10


def by_hand(loaded, texts, pooling="mean"):
    """Mean over texts of the token mean (or last token) after every block but the last."""
    rows = []
    for text in texts:
        ids = torch.tensor([loaded.tokenizer(text)["input_ids"]])
        states = loaded.model(input_ids=ids, output_hidden_states=True).hidden_states[1:-1]
        pooled = [s[0, 1:].mean(dim=0) if pooling == "mean" else s[0, -1] for s in states]
        rows.append(torch.stack(pooled))
    return torch.stack(rows).mean(dim=0)


@pytest.fixture
def bright():
    return tiny.texts(tiny.BRIGHT, 10)


@pytest.fixture
def dull():
    return tiny.texts(tiny.DULL, 7)


def encoded(loaded, texts):
    return [encode_text(loaded, text) for text in texts]


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_vectors_are_the_difference_of_means(bright, dull, bos, pooling):
    loaded = tiny.loaded(bos=bos)
    vectors = extract_vectors(
        loaded, encoded(loaded, bright), encoded(loaded, dull), pooling=pooling
    )
    expected = by_hand(loaded, bright, pooling) - by_hand(loaded, dull, pooling)
    assert len(vectors) == loaded.num_layers
    for layer in range(loaded.num_layers - 1):
        torch.testing.assert_close(vectors[layer].values, expected[layer], rtol=0, atol=ROUNDING)
        assert vectors[layer].layer == layer
        assert vectors[layer].norm == pytest.approx(float(expected[layer].norm()), rel=1e-4)


def test_batch_size_changes_nothing(bright, dull):
    one, many = tiny.loaded(batch_tokens=1), tiny.loaded(batch_tokens=2048)
    for alone, together in zip(
        extract_vectors(one, encoded(one, bright), encoded(one, dull)),
        extract_vectors(many, encoded(many, bright), encoded(many, dull)),
        strict=True,
    ):
        torch.testing.assert_close(alone.values, together.values, rtol=0, atol=ROUNDING)
        assert alone.residual_norm == pytest.approx(together.residual_norm, rel=1e-5)


def test_normalised_vectors_have_length_one_and_the_same_direction(loaded, bright, dull):
    raw = extract_vectors(loaded, encoded(loaded, bright), encoded(loaded, dull))
    unit = extract_vectors(loaded, encoded(loaded, bright), encoded(loaded, dull), normalize=True)
    for one, other in zip(raw, unit, strict=True):
        assert other.norm == pytest.approx(1.0, abs=1e-6)
        torch.testing.assert_close(other.values * one.norm, one.values, rtol=1e-4, atol=1e-6)
        relative = Site((other,)).relative(one.norm)
        assert relative == pytest.approx(Site((one,)).relative(1.0), rel=1e-5)


def test_a_text_that_replies_is_averaged_over_the_reply_alone():
    loaded = tiny.loaded(chat=True)
    texts = Texts((Text("sun laugh", "the river"),), (Text("rain sigh", "the river"),))
    ours = concept_vectors(loaded, texts, Settings())
    means = []
    for reply in ("sun laugh", "rain sigh"):
        ids = loaded.tokenizer(f"<user> the river <reply> {reply}", add_special_tokens=False)
        states = loaded.model(
            input_ids=torch.tensor([ids["input_ids"]]), output_hidden_states=True
        ).hidden_states
        means.append(states[1][0, -2:].mean(dim=0))
    torch.testing.assert_close(ours[0].values, means[0] - means[1], rtol=0, atol=ROUNDING)


def test_random_negatives_are_the_models_own_samples():
    loaded = tiny.loaded(bos=True)
    texts = tiny.concept().split()["vector"]
    contrastive = concept_vectors(loaded, texts, Settings())
    random = concept_vectors(loaded, texts, Settings(negatives="random"))
    again = concept_vectors(loaded, texts, Settings(negatives="random"))
    assert not torch.allclose(contrastive[0].values, random[0].values)
    torch.testing.assert_close(random[0].values, again[0].values, rtol=0, atol=0)


def test_a_model_that_says_nothing_has_no_random_negatives(monkeypatch):
    silent = SimpleNamespace(text="")
    monkeypatch.setattr(replies, "sample", lambda *_, per_prompt, **__: [silent] * per_prompt)
    texts = tiny.concept().split()["vector"]
    with pytest.raises(InputError, match=r"all \d+ samples from an empty prompt are empty; use"):
        concept_vectors(tiny.loaded(bos=True), texts, Settings(negatives="random"))


def test_equal_means_are_refused(loaded, bright):
    with pytest.raises(ConceptError, match="difference of means is zero"):
        extract_vectors(loaded, encoded(loaded, bright), encoded(loaded, bright))


def test_a_random_site_has_the_norms_and_angles_of_the_real_one_and_none_of_its_directions():
    generator = torch.Generator().manual_seed(7)
    shared = torch.randn(64, generator=generator)
    vectors = [shared + 0.5 * torch.randn(64, generator=generator) for _ in range(3)]
    site = Site(tuple(SteeringVector(values, n, 1.0) for n, values in enumerate(vectors)))
    drawn, again, other = (site.random_like(seed) for seed in (0, 0, 1))
    before, after = (torch.stack([v.values for v in one.vectors]) for one in (site, drawn))
    torch.testing.assert_close(before @ before.T, after @ after.T, rtol=1e-4, atol=1e-4)
    assert drawn.norm == pytest.approx(site.norm, rel=1e-5)
    assert abs(torch.cosine_similarity(site.total, drawn.total, dim=0)) < 0.4
    assert torch.equal(drawn.total, again.total)
    assert not torch.allclose(drawn.total, other.total)


def test_a_random_vector_at_one_block_is_noise_of_the_same_norm():
    site = tiny.site(3 * torch.ones(8), 1)
    noise = torch.randn((1, 8), generator=torch.Generator().manual_seed(4))[0]
    expected = noise * site.norm / noise.norm()
    torch.testing.assert_close(site.random_like(4).total, expected, rtol=1e-5, atol=1e-5)


def with_words(texts, words):
    """These texts, and as many of one word."""
    return tuple(Text(text, group=f"pair {n}") for n, text in enumerate((*texts, *words)))


@pytest.mark.parametrize("negatives", ["contrastive", "random"])
def test_texts_of_one_token_are_left_out_and_that_is_said(bright, dull, negatives):
    loaded, settings = tiny.loaded(), Settings(negatives=negatives)
    with pytest.warns(CalibrateWarning, match="3 of 20 texts are one token long"):
        vectors = concept_vectors(
            loaded,
            Texts(with_words(bright, ("sun", "kite")), with_words(dull, ("rain",))),
            settings,
        )
    alone = concept_vectors(loaded, Texts(with_words(bright, ()), with_words(dull, ())), settings)
    for one, other in zip(vectors, alone, strict=True):
        torch.testing.assert_close(one.values, other.values, rtol=0, atol=0)
        assert one.noise == other.noise


def test_texts_of_one_token_count_after_a_bos():
    texts = Texts(with_words((), tiny.BRIGHT), with_words((), tiny.DULL))
    loaded = tiny.loaded(bos=True)
    expected = by_hand(loaded, tiny.BRIGHT) - by_hand(loaded, tiny.DULL)
    vectors = concept_vectors(loaded, texts, Settings())
    torch.testing.assert_close(vectors[0].values, expected[0], rtol=0, atol=ROUNDING)


def test_a_concept_of_single_tokens_is_refused(loaded, bright):
    texts = Texts(with_words(bright, ()), with_words((), tiny.DULL))
    with pytest.raises(ConceptError, match="got 10 positives and 0 negatives; give longer"):
        concept_vectors(loaded, texts, Settings())


def test_a_sequence_without_a_token_to_average_is_refused(loaded, bright):
    with pytest.raises(ConceptError, match="got 1 without; leave them out"):
        extract_vectors(loaded, encoded(loaded, bright), encoded(loaded, ["rain"]))
