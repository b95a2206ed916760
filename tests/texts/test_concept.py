"""Concepts, prompts and corpora: what they are made of, and how they are split."""

from __future__ import annotations

import json
import random
import time
import tracemalloc

import hypothesis
import hypothesis.strategies as st
import pytest
import tiny
from refused import Refused, each

from calibrate.common.alike import near_copies
from calibrate.common.errors import ConceptError, InputError
from calibrate.texts import replies
from calibrate.texts.concept import (
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
from calibrate.texts.dealing import deal
from calibrate.texts.replies import corpus_texts

GOOD = [{"text": t, "label": "positive"} for t in tiny.texts(tiny.BRIGHT, 20)] + [
    {"text": t, "label": "negative"} for t in tiny.texts(tiny.DULL, 20)
]

LONG = [
    "The ferry left the harbour an hour late because the captain could not find the papers that "
    "the customs officer had asked for on the evening before we sailed.",
    "My grandmother kept a jar of buttons on the highest shelf of her pantry, and every winter she "
    "let us sort them by colour until the lamps were lit.",
    "Nobody in the village remembers who built the stone bridge, but each spring a mason comes by "
    "and looks at its arches for a long while without a word.",
    "Before the exam she had read seven books about beetles, two about the history of glass, and "
    "a thin one in which somebody argued that numbers do not exist.",
    "Our new printer hums at night, prints pages that nobody has sent, and then waits for someone "
    "to come downstairs in slippers and pull the plug from the wall.",
    "If you follow the dry canal past three locks and a mill without a roof, you reach an orchard "
    "whose owner sells pears for less than you would pay in town.",
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


def concept_file(rows):
    return lambda folder: read_concept(jsonl(folder / "mine.jsonl", rows))


def many(n):
    return [Text(text) for text in tiny.texts(tiny.BRIGHT, n)]


def truncated(texts, n):
    """Every text cut off at n places."""
    return [" ".join(text.split()[: 3 + k]) for text in texts for k in range(n)]


def by_coin(texts):
    rng = random.Random(0)
    heads = [rng.random() < 0.5 for _ in texts]
    return (
        [text for text, up in zip(texts, heads, strict=True) if up is side]
        for side in (True, False)
    )


REFUSED = [
    Refused(
        "a concept whose name has a line break in it",
        "a concept's name must be one line of plain characters, got 'joy\\n'; choose another",
        lambda _: Concept.from_texts(
            "joy\n", tiny.texts(tiny.BRIGHT, 12), tiny.texts(tiny.DULL, 12)
        ),
        ConceptError,
    ),
    Refused(
        "a concept file with texts of one label only",
        f"concept 'mine' needs at least {MIN_TEXTS} different negative texts, got 0",
        concept_file(GOOD[:20]),
        ConceptError,
    ),
    Refused(
        "too few texts of one label",
        f"concept 'mine' needs at least {MIN_TEXTS} different positive texts, got 5",
        concept_file(GOOD[15:]),
        ConceptError,
    ),
    Refused(
        "texts that are truncations of a few",
        f"concept 'mine' needs at least {MIN_TEXTS} different positive texts, got 4 "
        "(60 in all: near copies count once)",
        lambda _: Concept.from_texts("mine", truncated(LONG[:4], 15), tiny.texts(tiny.DULL, 20)),
        ConceptError,
    ),
    Refused(
        "truncations of six sentences, labelled by a coin",
        f"concept 'coin' needs at least {MIN_TEXTS} different positive texts, got 6 "
        "(… in all: near copies count once)",
        lambda _: Concept.from_texts("coin", *by_coin(truncated(LONG, 20))),
        ConceptError,
    ),
    Refused(
        "a text that stands in the file twice",
        "the texts of concept 'mine' must differ from each other, got 1 more than once, for "
        "example …; remove the copies",
        concept_file([*GOOD, GOOD[3]]),
        ConceptError,
    ),
    Refused(
        "the same texts under both labels",
        "concept 'mine' must have negatives that differ from its positives, got the same texts "
        "(their steering vector would be zero)",
        lambda _: Concept.from_texts("mine", many(20), many(20)),
        ConceptError,
    ),
    Refused(
        "one string where a list of texts is wanted",
        "concept 'mine' must have a list of positive texts, got one text",
        lambda _: Concept.from_texts("mine", "I am happy", many(20)),
        ConceptError,
    ),
    Refused(
        "a number among the texts in memory",
        "negative text 1 of concept 'mine' must have a text in 'text', got 1",
        lambda _: Concept.from_texts("mine", many(20), [1, *many(20)]),
        ConceptError,
    ),
    Refused(
        "an empty text in memory",
        "positive text 1 of concept 'mine' must have a text in 'text', got an empty one",
        lambda _: Concept.from_texts("mine", ["  ", *many(20)], many(20)),
        ConceptError,
    ),
    Refused(
        "half a character in memory",
        "positive text 1 of concept 'mine' must have a text in 'text', got half a character "
        "('\\ud83d')",
        lambda _: Concept.from_texts("mine", ["cut \ud83d", *many(20)], many(20)),
        ConceptError,
    ),
    Refused(
        "a NUL in a prompt in memory",
        "positive text 1 of concept 'mine' must have a text in 'prompt', got one with a NUL in it",
        lambda _: Concept.from_texts("mine", [Text("yes", "a\0"), *many(20)], many(20)),
        ConceptError,
    ),
    Refused(
        "a concept that is misspelt",
        "concept must be a built-in name (…) or a .jsonl, .json, .csv or .tsv file, got "
        "'optimstic'; did you mean optimistic?",
        lambda _: read_concept("optimstic"),
        ConceptError,
    ),
    Refused(
        "a directory as the concept",
        "concept must be a built-in name (…) or a .jsonl, .json, .csv or .tsv file, got a "
        "directory",
        read_concept,
        ConceptError,
    ),
    Refused(
        "a concept whose name is too long for a file",
        "concept must be a built-in name (…) or a .jsonl, .json, .csv or .tsv file, got 'xxx…",
        lambda _: read_concept("x" * 5000),
        ConceptError,
    ),
    Refused(
        "--positives without --negatives",
        "--positives and --negatives go together, got only one of them",
        lambda folder: read_concept("mine", lines(folder / "up.txt", ["sun"])),
        ConceptError,
    ),
    Refused(
        "too few prompts",
        f"…few.txt must hold at least {MIN_PROMPTS} different prompts, got 5",
        lambda folder: read_prompts(lines(folder / "few.txt", tiny.prompts(5))),
        ConceptError,
    ),
    Refused(
        "prompts that differ in their punctuation and case alone",
        f"…same.txt must hold at least {MIN_PROMPTS} different prompts, got 10 (30 in all: near "
        "copies count once)",
        lambda folder: read_prompts(
            lines(
                folder / "same.txt",
                [
                    mark.format(text)
                    for text in tiny.prompts(10)
                    for mark in ("{}", "{}?", "{} ...")
                ],
            )
        ),
        ConceptError,
    ),
    Refused(
        "a prompt that stands in the file twice",
        "the prompts in …twice.txt must differ from each other, got 1 more than once, for example "
        "…; remove the copies",
        lambda folder: read_prompts(
            lines(folder / "twice.txt", tiny.prompts(30) + tiny.prompts(1))
        ),
        ConceptError,
    ),
    Refused(
        "too few texts in a corpus",
        f"…few.txt must hold at least {MIN_CORPUS} different texts, got 5",
        lambda folder: read_corpus(lines(folder / "few.txt", tiny.prompts(5))),
        ConceptError,
    ),
    Refused(
        "a corpus of near copies",
        f"…logs.txt must hold at least {MIN_CORPUS} different texts, got 1 (50 in all: near copies "
        "count once)",
        lambda folder: read_corpus(
            lines(folder / "logs.txt", [f"{LONG[0]} Line {n}." for n in range(50)])
        ),
        ConceptError,
    ),
    Refused(
        "a corpus of texts of one token",
        "cross-entropy must be measured on 2 texts or more, of at least two tokens each, got 1 in "
        "the first 8,192 tokens of 25 texts; give longer ones with --corpus",
        lambda _: corpus_texts(tiny.loaded(), [*tiny.BRIGHT, *tiny.DULL, "the sun"]),
    ),
]


@each(REFUSED)
def test_what_cannot_be_a_concept_or_its_prompts_is_refused(row, tmp_path):
    row.check(tmp_path)


def test_a_corpus_of_which_one_text_fits_needs_shorter_ones(loaded, monkeypatch):
    texts = tiny.prompts(8)
    longest = max(len(text.split()) for text in texts)
    monkeypatch.setattr(replies, "MAX_CORPUS_TOKENS", longest)
    with pytest.raises(InputError, match="give shorter ones with --corpus"):
        corpus_texts(loaded, texts)
    monkeypatch.setattr(replies, "MAX_CORPUS_TOKENS", 2 * longest)
    assert len(corpus_texts(loaded, texts)) >= 2


def test_texts_in_memory_make_a_concept():
    concept = Concept.from_texts("x", tiny.texts(tiny.BRIGHT, 12), tiny.texts(tiny.DULL, 12))
    assert isinstance(concept.texts.positives[0], Text)


def invented(n, length, seed=0):
    """Sentences of words nobody has used before, so that no two are alike."""
    rng = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    return [" ".join("".join(rng.choices(letters, k=5)) for _ in range(length)) for _ in range(n)]


def n_groups(texts):
    return len(set(near_copies(texts)))


def test_truncations_of_a_text_are_one_group():
    assert n_groups(truncated(LONG, 20)) == len(LONG)
    ends = [" ".join(text.split()[k:]) for text in LONG for k in range(20)]
    assert n_groups(ends) == len(LONG)


def test_filled_in_templates_are_one_group():
    things = ["cheese", "rain", "Paris", "my dog", "old films", "football", "the sea", "maths"]
    assert n_groups([f"I love {one} because it makes me happy" for one in things]) == 1
    assert (
        n_groups([f"The best thing about {one} is that I never get tired" for one in things]) == 1
    )


def test_light_paraphrases_are_one_group():
    for text in LONG:
        words = text.split()
        one_changed = [" ".join([*words[:k], "zebra", *words[k + 1 :]]) for k in range(len(words))]
        turned_round = f"{' '.join(words[12:])} {' '.join(words[:12])}"
        louder = text.upper().replace(",", " --") + "!!!"
        longer = f"As I said, {text} And that is that."
        assert n_groups([text, *one_changed, turned_round, louder, longer]) == 1


def test_texts_that_only_begin_alike_or_share_a_frame_of_few_words_are_different():
    begun = [f"I think that {' '.join(text.split()[4:16])}" for text in LONG]
    assert n_groups(begun) == len(LONG)
    assert n_groups(["Yes", "No", "Yes, I saw him", "No, I did not see it", "I see"]) == 5
    assert n_groups(["so good", "that cake was so good indeed", "it rained so good a rain"]) == 3


@pytest.mark.parametrize(
    ("texts", "groups"),
    [
        (
            [
                "今天天气很好我们去公园散步吧",
                "今天天气很好我们去公园",
                "他昨天丢了工作心里非常难过",
            ],
            2,
        ),
        (["私は毎朝コーヒーを飲みます", "私は毎朝コーヒーを飲む", "電車がまた遅れてしまった"], 2),
        (["วันนี้อากาศดีมากเราไปเดินเล่นกัน", "วันนี้อากาศดีมากเราไปเดินเล่น", "เขาตกงานเมื่อวานนี้"], 2),
        (["😀🎉🥳🎂🎈", "😀🎉🥳🎂", "😢💔🌧️☔"], 2),
        (["나는 오늘 정말 행복하다", "나는 오늘 정말", "비가 와서 우울한 하루였다"], 2),
    ],
)
def test_where_words_are_not_set_apart_characters_count(texts, groups):
    assert n_groups(texts) == groups


def test_a_group_is_joined_by_name_as_well():
    names = ["a", "b", "a", "c", "b"]
    assert near_copies([*LONG[:5]], names) == (0, 1, 0, 2, 1)
    copies = [LONG[0], LONG[1], LONG[2], LONG[0].upper(), LONG[4]]
    assert len(set(near_copies(copies, ["a", "b", "a", "b", "c"]))) == 2


def test_five_thousand_texts_are_grouped_quickly():
    rng = random.Random(0)
    vocabulary = [word for text in invented(40, 50) for word in text.split()]
    natural = [" ".join(rng.choices(vocabulary, k=60)) for _ in range(4000)]
    framed = [f"I think it is most important to {one}" for one in invented(1000, 4, seed=1)]
    started = time.process_time()
    groups = near_copies([*natural, *framed])
    assert time.process_time() - started < 4  # about one second on a quiet machine
    assert len(set(groups[:4000])) == 4000


def test_a_word_repeated_a_hundred_thousand_times_needs_no_more_memory_than_its_text():
    tracemalloc.start()
    try:
        groups = near_copies(["no " * 100_000, "no " * 100_000 + "indeed", "no no, it rains"])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert groups == (0, 0, 2)
    assert peak < 100_000_000  # bytes; every repetition beside every other would be 80 GB


def test_no_split_separates_near_copies_whatever_their_labels():
    texts = [cut for text in invented(40, 24) for cut in truncated([text], 8)]
    concept = Concept.from_texts("coin", *by_coin(texts))
    parts = concept.split()
    beginnings = {
        name: {text.text[:17] for text in (*part.positives, *part.negatives)}
        for name, part in parts.items()
    }
    assert sum(map(len, beginnings.values())) == len(set().union(*beginnings.values())) == 40
    assert {name: len(found) for name, found in beginnings.items()} == {
        "vector": 16,
        "probe": 16,
        "held_out": 8,
    }
    again = Concept.from_texts("coin", *(side[::-1] for side in by_coin(texts)))
    assert {name: set(part.positives) for name, part in again.split().items()} == {
        name: set(part.positives) for name, part in parts.items()
    }


def test_a_group_column_keeps_texts_together(tmp_path):
    rows = [{**row, "group": number % 15} for number, row in enumerate(GOOD)]
    parts = read_concept(jsonl(tmp_path / "grouped.jsonl", rows)).split()
    groups = [
        {text.group for text in (*part.positives, *part.negatives)} for part in parts.values()
    ]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 15


def test_prompts_and_corpus_texts_that_are_near_copies_share_a_split(tmp_path):
    prompts = tiny.prompts(40)
    parts = split_prompts([*prompts, *(f"{prompt.title()}?!" for prompt in prompts)])
    for part in parts.values():
        assert {text.lower().rstrip("?!") for text in part} == {
            text for text in part if text in prompts
        }
    texts = invented(30, 24)
    halves = read_corpus(lines(tmp_path / "c.txt", truncated(texts, 5)))
    begun = [{text[:17] for text in half} for half in halves.values()]
    assert not begun[0] & begun[1]
    assert {len(half) for half in begun} == {15}


@st.composite
def groups_of_both_labels(draw):
    """How many positives and negatives each of some groups has; twelve or more have either."""
    sizes = st.sampled_from([0, 1, 1, 1, 2, 5, 20])
    groups = draw(st.lists(st.tuples(sizes, sizes).filter(any), min_size=12, max_size=30))
    for label in (0, 1):
        missing = 12 - sum(group[label] > 0 for group in groups)
        groups += [(1 - label, label)] * max(missing, 0)
    return groups


@hypothesis.settings(max_examples=50)
@hypothesis.given(groups_of_both_labels(), st.randoms(use_true_random=False))
def test_whole_groups_are_dealt_in_proportion_and_every_split_gets_both_labels(groups, rng):
    things = [
        (f"group {number}", bool(label))
        for number, counts in enumerate(groups)
        for label in (0, 1)
        for _ in range(counts[label])
    ]
    rng.shuffle(things)
    keys, labels = zip(*things, strict=True)
    shares = {"vector": 0.4, "probe": 0.4, "held_out": 0.2}
    parts = deal(keys, labels, shares)
    assert sorted(place for part in parts.values() for place in part) == list(range(len(keys)))
    where = {keys[place]: name for name, part in parts.items() for place in part}
    assert all(where[keys[place]] == name for name, part in parts.items() for place in part)
    for label in (0, 1):
        total = sum(group[label] > 0 for group in groups)
        for name, part in parts.items():
            n = len({keys[place] for place in part if labels[place] == label})
            assert n >= 2
            assert abs(n - shares[name] * total) <= 1
    in_order = deal(*zip(*sorted(things), strict=True), shares)
    places = sorted(range(len(things)), key=lambda place: things[place])
    assert {keys[places[place]] for place in in_order["probe"]} == {
        keys[place] for place in parts["probe"]
    }
