"""The built-in concepts are as many, as varied and as clean as they claim to be."""

from __future__ import annotations

from collections import Counter

import pytest

from calibrate.alike import near_copies
from calibrate.concept import SAME, built_in_concepts, read_concept, read_prompts

PAPERS_EIGHT = (
    "apathetic",
    "depression",
    "evil",
    "humorous",
    "impolite",
    "joy",
    "lying",
    "optimistic",
)


def test_the_papers_eight_concepts_are_built_in():
    assert built_in_concepts() == PAPERS_EIGHT


@pytest.mark.parametrize("name", PAPERS_EIGHT)
def test_a_pack_has_enough_texts_of_every_kind_and_length(name):
    texts = read_concept(name).texts
    for side in (texts.positives, texts.negatives):
        assert len(side) >= 64
        assert sum(text.prompt is not None for text in side) >= 24
        words = [len(text.text.split()) for text in side]
        assert min(words) <= 12
        assert max(words) >= 30


@pytest.mark.parametrize("name", PAPERS_EIGHT)
def test_positives_and_negatives_are_matched_in_topic_and_length(name):
    texts = read_concept(name).texts
    pairs = list(zip(texts.positives, texts.negatives, strict=True))
    assert all(one.prompt == other.prompt for one, other in pairs)
    ratio = sum(len(p.text) for p in texts.positives) / sum(len(n.text) for n in texts.negatives)
    assert 0.8 < ratio < 1.25


@pytest.mark.parametrize("name", PAPERS_EIGHT)
def test_no_text_names_its_concept_and_none_is_repeated(name):
    texts = read_concept(name).texts
    everything = [text.text for text in (*texts.positives, *texts.negatives)]
    assert max(Counter(everything).values()) == 1
    if name not in ("joy", "lying"):  # everyday words, which people who feel or do it use
        assert not [text for text in everything if name in text.lower()]


def test_concepts_do_not_share_texts_and_no_reply_answers_a_neutral_prompt():
    seen = Counter(
        text.text
        for name in PAPERS_EIGHT
        for text in (*read_concept(name).texts.positives, *read_concept(name).texts.negatives)
    )
    assert max(seen.values()) == 1
    asked = {t.prompt for name in PAPERS_EIGHT for t in read_concept(name).texts.positives}
    assert not asked & set(read_prompts())


@pytest.mark.parametrize("name", PAPERS_EIGHT)
def test_no_text_of_a_pack_is_a_near_copy_of_another_pair(name):
    texts = read_concept(name).texts
    assert len({text.group for text in (*texts.positives, *texts.negatives)}) == 72
    assert len(texts.positives) == len(texts.negatives) == 72


def test_the_neutral_prompts_are_no_near_copies_of_each_other():
    prompts = read_prompts()
    assert len(set(near_copies(prompts, share=SAME))) == len(prompts)


def test_statements_of_one_persona_do_not_collapse_into_few_groups(shared_data):
    for name, least, most in (("happiness_vs_sadness", 420, 5), ("persona_agreeableness", 280, 50)):
        texts = read_concept(shared_data / "concepts" / f"{name}.jsonl").texts
        everything = (*texts.positives, *texts.negatives)
        sizes = Counter(near_copies([text.text for text in everything]))
        assert len(sizes) >= least
        assert max(sizes.values()) <= most


def test_there_are_enough_neutral_prompts():
    prompts = read_prompts()
    assert len(prompts) >= 96
    assert len(set(prompts)) == len(prompts)
