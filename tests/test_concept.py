"""Reading concepts and prompts: what is accepted, and how the rest is refused."""

from __future__ import annotations

import json

import pytest
import tiny

from calibrate.concept import (
    MIN_CORPUS,
    MIN_PROMPTS,
    MIN_TEXTS,
    Concept,
    Text,
    read_concept,
    read_corpus,
    read_prompts,
    split_prompts,
)
from calibrate.errors import ConceptError

GOOD = [{"text": t, "label": "positive"} for t in tiny.texts(tiny.BRIGHT, 20)] + [
    {"text": t, "label": "negative"} for t in tiny.texts(tiny.DULL, 20)
]


def jsonl(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def lines(path, texts):
    path.write_text("\n".join(texts), encoding="utf-8")
    return path


def test_labelled_lines_and_matched_pairs_read_alike(tmp_path):
    labelled = read_concept(jsonl(tmp_path / "bright.jsonl", GOOD))
    pairs = [
        {"positive": p, "negative": n, "prompt": "why"}
        for p, n in zip(tiny.texts(tiny.BRIGHT, 20), tiny.texts(tiny.DULL, 20), strict=True)
    ]
    paired = read_concept(jsonl(tmp_path / "pairs.jsonl", pairs))
    assert labelled.name == "bright"
    assert {t.text for t in labelled.texts.positives} == {t.text for t in paired.texts.positives}
    assert all(t.prompt == "why" for t in paired.texts.negatives)


def test_positives_and_negatives_come_from_two_files(tmp_path):
    up = lines(tmp_path / "up.txt", tiny.texts(tiny.BRIGHT, 15))
    down = jsonl(tmp_path / "down.jsonl", [{"text": t} for t in tiny.texts(tiny.DULL, 12)])
    concept = read_concept("mine", up, down)
    assert (len(concept.texts.positives), len(concept.texts.negatives)) == (15, 12)


def test_splits_are_disjoint_complete_and_independent_of_the_order(tmp_path):
    concept = read_concept(jsonl(tmp_path / "a.jsonl", GOOD))
    shuffled = read_concept(jsonl(tmp_path / "b.jsonl", GOOD[::-1]))
    parts = concept.split()
    assert set(parts) == {"vector", "probe", "held_out"}
    texts = [t.text for part in parts.values() for t in (*part.positives, *part.negatives)]
    assert sorted(texts) == sorted(row["text"] for row in GOOD)
    for name, part in shuffled.split().items():
        assert set(part.positives) == set(parts[name].positives)
    assert concept.data_sha256 == shuffled.data_sha256


def test_a_matched_pair_is_never_torn_apart():
    for part in read_concept("joy").split().values():
        assert {t.group for t in part.positives} == {t.group for t in part.negatives}


def test_prompts_are_split_disjointly():
    parts = split_prompts(read_prompts())
    texts = [text for part in parts.values() for text in part]
    assert sorted(texts) == sorted(read_prompts())
    assert {name: len(part) for name, part in parts.items()} == {
        "probe": 48,
        "search": 48,
        "verify": 64,
    }


def test_a_corpus_is_halved_and_its_copies_dropped(tmp_path):
    texts = tiny.texts(tiny.PLAIN, 20)
    parts = read_corpus(lines(tmp_path / "c.txt", texts + texts[:5]))
    assert sorted((*parts["search"], *parts["verify"])) == sorted(texts)


BROKEN = {
    "empty": ("", "must hold at least one text, got an empty file"),
    "one-sided": (
        "\n".join(json.dumps(row) for row in GOOD[:20]),
        f"needs at least {MIN_TEXTS} negative texts, got 0",
    ),
    "too few": (
        "\n".join(json.dumps(row) for row in GOOD[15:]),
        f"needs at least {MIN_TEXTS} positive texts, got 5",
    ),
    "duplicate": (
        "\n".join(json.dumps(row) for row in [*GOOD, GOOD[3]]),
        "must differ from each other, got 1 more than once",
    ),
    "not JSON": (
        json.dumps(GOOD[0]) + "\n{'text': oops}\n",
        r"line 2 must be JSON, got .\{'text': oops\}",
    ),
    "not an object": ("[1, 2]", "line 1 must be a JSON object"),
    "no label": ('{"text": "a"}', r"line 1 must have text and label \(positive or negative\)"),
    "wrong label": ('{"text": "a", "label": "joyful"}', 'line 1 must have .*"joyful"'),
    "empty text": (
        "\n".join(json.dumps(row) for row in [*GOOD, {"text": " ", "label": "positive"}]),
        "has an empty positive text",
    ),
    "the same on both sides": (
        "\n".join(
            json.dumps({"text": row["text"], "label": label})
            for row in GOOD[:20]
            for label in ("positive", "negative")
        ),
        "negatives that differ from its positives",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_with_the_rule_and_the_value(tmp_path, case):
    content, said = BROKEN[case]
    path = tmp_path / "broken.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConceptError, match=said):
        read_concept(path)


def test_a_file_that_is_not_utf8_is_refused_with_the_byte(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes('{"text": "caf\xe9", "label": "positive"}'.encode("latin-1"))
    with pytest.raises(ConceptError, match=r"must be UTF-8, got byte 0xe9 at offset 13; convert"):
        read_concept(path)


def test_an_unknown_concept_suggests_near_names():
    with pytest.raises(ConceptError, match="got 'optimstic'; did you mean optimistic"):
        read_concept("optimstic")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConceptError, match=r"cannot read .*gone\.txt: No such file"):
        read_prompts(tmp_path / "gone.txt")


def test_positives_need_negatives(tmp_path):
    up = lines(tmp_path / "up.txt", tiny.texts(tiny.BRIGHT, 15))
    with pytest.raises(ConceptError, match="go together"):
        read_concept("mine", up)


def test_too_few_prompts_or_corpus_texts_are_refused(tmp_path):
    few = lines(tmp_path / "few.txt", tiny.prompts(5))
    with pytest.raises(ConceptError, match=f"at least {MIN_PROMPTS} prompts, got 5"):
        read_prompts(few)
    with pytest.raises(ConceptError, match=f"at least {MIN_CORPUS} different texts, got 5"):
        read_corpus(few)
    twice = lines(tmp_path / "twice.txt", tiny.prompts(30) + tiny.prompts(1))
    with pytest.raises(ConceptError, match="must differ"):
        read_prompts(twice)


def test_texts_in_memory_are_checked_like_files():
    with pytest.raises(ConceptError, match="needs at least"):
        Concept.from_texts("x", ["one"], ["two"])
    concept = Concept.from_texts("x", tiny.texts(tiny.BRIGHT, 12), tiny.texts(tiny.DULL, 12))
    assert isinstance(concept.texts.positives[0], Text)
