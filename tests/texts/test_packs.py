"""The built-in concepts are as many, as varied and as clean as they claim to be."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from calibrate.common.alike import near_copies
from calibrate.judging.graded_replies import graded_replies, teacher_scale
from calibrate.texts.concept import SAME, built_in_concepts, read_concept, read_prompts

SCRIPTS = Path(__file__).parents[2] / "scripts"
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
        assert len(side) >= 240
        assert sum(text.prompt is not None for text in side) >= len(side) / 2
        assert min(len(text.text.split()) for text in side) <= 12
    pairs = zip(texts.positives, texts.negatives, strict=True)
    assert sum(all(60 <= len(one.text.split()) <= 150 for one in pair) for pair in pairs) >= 70


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
    assert not set(asked()) & set(read_prompts())


def asked():
    """The prompts of all packs' pairs, those that occur twice twice."""
    texts = (text for name in PAPERS_EIGHT for text in read_concept(name).texts.positives)
    return [text.prompt for text in texts if text.prompt is not None]


def test_no_prompt_is_answered_in_two_packs_or_twice_in_one():
    assert [prompt for prompt, n in Counter(asked()).items() if n > 1] == []


def test_judges_are_held_against_replies_to_prompts_that_nothing_was_fitted_on():
    graded = [
        prompt
        for name in ("prompts.txt", "prompts-second.txt")
        for prompt in (SCRIPTS / "graded" / name).read_text(encoding="utf-8").splitlines()
    ]
    assert len(set(graded)) == len(graded) >= 150
    assert not set(graded) & {*asked(), *read_prompts()}


@pytest.mark.parametrize("name", PAPERS_EIGHT)
def test_graded_replies_come_with_every_concept(name):
    graded, pack = graded_replies(name), read_concept(name).texts
    read = [one for one in graded if one.grade is not None]
    assert len(read) >= 100
    assert {one.says_yes for one in read} == {True, False}
    assert all(one.text.strip() and one.group for one in graded)
    written = {text.text for text in (*pack.positives, *pack.negatives)}
    assert not {one.text for one in graded} & written


def test_a_teachers_yes_is_nearly_a_readers():
    """The scale is fitted over all concepts; that of a teacher who ranks badly would be flat."""
    taught = [
        one for name in PAPERS_EIGHT for one in graded_replies(name) if one.taught is not None
    ]
    assert len(taught) >= 200
    assert 0.3 < teacher_scale().slope < 3


@pytest.mark.parametrize("name", PAPERS_EIGHT)
def test_no_text_of_a_pack_is_a_near_copy_of_another_pair(name):
    texts = read_concept(name).texts
    groups = {text.group for text in (*texts.positives, *texts.negatives)}
    assert len(groups) == len(texts.positives) == len(texts.negatives)


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
