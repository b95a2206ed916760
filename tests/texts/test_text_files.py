"""Files of texts: the shapes people keep them in, and how all others are refused."""

from __future__ import annotations

import csv
import io
import itertools
import json
import random

import hypothesis
import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck
from refused import Refused, each

from calibrate.common.errors import CalibrateError, ConceptError
from calibrate.texts.concept import Concept, read_concept, read_corpus, read_lines, read_prompts
from calibrate.texts.text_files import Entry, read_asked, read_labelled, read_unlabelled

UP, DOWN = "What a day!", "What a mess."
PAIR = [
    Entry(UP, positive=True, pair=f"{UP}\n{DOWN}"),
    Entry(DOWN, positive=False, pair=f"{UP}\n{DOWN}"),
]
CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hello?"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "How was it?"},
    {"role": "assistant", "content": UP},
]


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def jsonl(*rows):
    return "\n".join(json.dumps(row) for row in rows)


LABELLED = {
    "text and label": (".jsonl", jsonl({"text": UP, "label": "positive"}), [Entry(UP, None, True)]),
    "other words for labels": (
        ".jsonl",
        jsonl(*({"text": UP, "label": label} for label in ("Pos", 1, True, "yes", "TRUE", " 1 "))),
        [Entry(UP, None, True)] * 6,
    ),
    "and for the others": (
        ".jsonl",
        jsonl(*({"text": DOWN, "label": label} for label in ("neg", 0, False, "No", "Negative"))),
        [Entry(DOWN, None, False)] * 5,
    ),
    "a matched pair": (".jsonl", jsonl({"positive": UP, "negative": DOWN}), PAIR),
    "a preference": (
        ".jsonl",
        jsonl({"prompt": "How was it?", "chosen": UP, "rejected": DOWN}),
        [
            Entry(UP, "How was it?", True, "", PAIR[0].pair),
            Entry(DOWN, "How was it?", False, "", PAIR[0].pair),
        ],
    ),
    "a preference of chats": (
        ".jsonl",
        jsonl({"chosen": CHAT, "rejected": [*CHAT[:-1], {"role": "assistant", "content": DOWN}]}),
        [
            Entry(UP, "How was it?", True, "", PAIR[0].pair),
            Entry(DOWN, "How was it?", False, "", PAIR[0].pair),
        ],
    ),
    "a reply to a prompt": (
        ".jsonl",
        jsonl({"prompt": "How was it?", "response": UP, "label": 1}),
        [Entry(UP, "How was it?", True)],
    ),
    "question and answer": (
        ".jsonl",
        jsonl({"question": "How was it?", "answer": UP, "label": 1}),
        [Entry(UP, "How was it?", True)],
    ),
    "a chat": (".jsonl", jsonl({"messages": CHAT, "label": 0}), [Entry(UP, "How was it?", False)]),
    "a chat of another house": (
        ".json",
        json.dumps(
            [
                {
                    "conversations": [
                        {"from": "human", "value": "How was it?"},
                        {"from": "gpt", "value": UP},
                        {"from": "human", "value": "Good."},
                    ],
                    "label": "pos",
                }
            ]
        ),
        [Entry(UP, "How was it?", True)],
    ),
    "a chat in parts": (
        ".jsonl",
        jsonl(
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "How was it?"}]},
                    {
                        "role": "assistant",
                        "content": [{"type": "text", "text": part} for part in ("What ", "a day!")],
                    },
                ],
                "label": 1,
            }
        ),
        [Entry(UP, "How was it?", True)],
    ),
    "groups by name and by number": (
        ".jsonl",
        jsonl({"text": UP, "label": 1, "group": "a"}, {"text": DOWN, "label": 0, "group": 7}),
        [Entry(UP, None, True, "a"), Entry(DOWN, None, False, "7")],
    ),
    "fields that are null or not known": (
        ".jsonl",
        jsonl({"text": UP, "label": 1, "prompt": None, "group": None, "response": None, "id": 3}),
        [Entry(UP, None, True)],
    ),
    "a list of objects": (
        ".json",
        json.dumps([{"text": UP, "label": 1}, {"text": DOWN, "label": 0}], indent=2),
        [Entry(UP, None, True), Entry(DOWN, None, False)],
    ),
    "objects one a line under the name of a list": (
        ".json",
        jsonl({"text": UP, "label": 1}, {"text": DOWN, "label": 0}),
        [Entry(UP, None, True), Entry(DOWN, None, False)],
    ),
    "a table": (
        ".csv",
        f"id,Text,Label,group\n1,{UP},positive,a\n2,{DOWN},0,\n",
        [Entry(UP, None, True, "a"), Entry(DOWN, None, False)],
    ),
    "a table with line ends, commas and quotes in its texts": (
        ".csv",
        'text,label\r\n"one, ""two""\nthree",1\r\n',
        [Entry('one, "two"\nthree', None, True)],
    ),
    "a table of pairs with semicolons": (".csv", f"positive;negative\n{UP};{DOWN}\n;\n", PAIR),
    "a table with tabs": (
        ".tsv",
        f"prompt\tresponse\tlabel\nHow, then?\t{UP}\tyes\n\t{DOWN}\tno\n",
        [Entry(UP, "How, then?", True), Entry(DOWN, None, False)],
    ),
    "a name in capitals": (".CSV", f"text,label\n{UP},1\n", [Entry(UP, None, True)]),
}


@pytest.mark.parametrize("shape", LABELLED)
def test_a_concept_file_is_read(shape, tmp_path):
    suffix, content, expected = LABELLED[shape]
    assert read_labelled(write(tmp_path, f"mine{suffix}", content)) == expected


UNLABELLED = {
    "one a line": (".txt", f"{UP}\n\n  {DOWN}  \n", [UP, DOWN]),
    "lines of Windows": (".txt", f"{UP}\r\n{DOWN}\r\n", [UP, DOWN]),
    "a corpus with empty texts": (
        ".jsonl",
        jsonl({"text": UP}, {"text": " "}, "", DOWN),
        [UP, DOWN],
    ),
    "no suffix": ("", f"{UP}\n{DOWN}", [UP, DOWN]),
    "text": (".jsonl", jsonl({"text": UP}, {"text": DOWN, "prompt": "Well?"}), [UP, DOWN]),
    "a list of strings": (".json", json.dumps([UP, DOWN]), [UP, DOWN]),
    "strings one a line": (".jsonl", jsonl(UP, DOWN), [UP, DOWN]),
    "the reply, not the prompt": (".jsonl", jsonl({"prompt": "Well?", "response": UP}), [UP]),
    "a completion": (".csv", f"prompt,completion\nWell?,{UP}\n", [UP]),
    "a chat": (".jsonl", jsonl({"messages": CHAT}), [UP]),
    "chats for prompt and reply": (
        ".jsonl",
        jsonl({"prompt": CHAT[1:2], "completion": CHAT[-1:]}),
        [UP],
    ),
}


@pytest.mark.parametrize("shape", UNLABELLED)
def test_a_file_of_texts_is_read(shape, tmp_path):
    suffix, content, expected = UNLABELLED[shape]
    assert list(read_lines(write(tmp_path, f"mine{suffix}", content))) == expected


ASKED = {
    "one a line": (".txt", "How?\nWhy?\n", ["How?", "Why?"]),
    "prompts": (".jsonl", jsonl({"prompt": "How?"}, {"question": "Why?"}), ["How?", "Why?"]),
    "texts": (".jsonl", jsonl({"text": "How?"}), ["How?"]),
    "the prompt, not the reply": (".jsonl", jsonl({"prompt": "How?", "response": UP}), ["How?"]),
    "a list of strings": (".json", json.dumps(["How?"]), ["How?"]),
    "a chat": (".jsonl", jsonl({"messages": CHAT}), ["How was it?"]),
    "a chat without a reply": (".jsonl", jsonl({"messages": CHAT[:2]}), ["Hello?"]),
    "a table": (".csv", "id,prompt\n1,How?\n", ["How?"]),
}


@pytest.mark.parametrize("shape", ASKED)
def test_a_file_of_prompts_is_read(shape, tmp_path):
    suffix, content, expected = ASKED[shape]
    assert read_asked(write(tmp_path, f"mine{suffix}", content)) == expected


@pytest.mark.parametrize("inside", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e"])
def test_a_line_ends_at_a_line_feed_alone(inside, tmp_path):
    text = f"one{inside}two"
    raw = json.dumps({"text": text, "label": 1}, ensure_ascii=False)
    for name, content in (("a.jsonl", raw), ("b.csv", f"text,label\n{text},1\n")):
        assert read_labelled(write(tmp_path, name, content)) == [Entry(text, None, True)]
    plain = raw.replace(json.dumps(text, ensure_ascii=False), f'"{text}"')  # not escaped
    assert read_labelled(write(tmp_path, "c.jsonl", plain)) == [Entry(text, None, True)]
    assert read_lines(write(tmp_path, "d.txt", f"{text}\n{text}")) == (text, text)


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"], ids=lambda name: name
)
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_every_encoding_that_says_what_it_is_is_read(encoding, end, tmp_path):
    text = "Ωμέγα, 喜び — 😀"
    for name, content in (
        ("a.csv", f'label,text{end}1,"{text}"{end}'),
        ("a.jsonl", json.dumps({"text": text, "label": 1}, ensure_ascii=False) + end),
    ):
        path = write(tmp_path, name, content.encode(encoding))
        assert read_labelled(path) == [Entry(text, None, True)]
    assert read_lines(write(tmp_path, "a.txt", f"{text}{end}".encode(encoding))) == (text,)


def test_texts_of_two_files_keep_their_prompts_and_groups(tmp_path):
    words = [
        "".join(letters) for letters in itertools.islice(itertools.permutations("abcdef"), 300)
    ]
    texts = [" ".join(words[k : k + 6]) for k in range(0, 240, 6)]
    up = write(
        tmp_path, "up.jsonl", jsonl(*({"prompt": "Well?", "response": t} for t in texts[:20]))
    )
    down = write(
        tmp_path,
        "down.csv",
        "text,group\n" + "".join(f"{t},g\n" for t in texts[20:39]) + f"{texts[39]},h",
    )
    with pytest.raises(ConceptError, match="12 different negative texts, got 2 "):
        read_concept("mine", up, down)
    down = write(
        tmp_path,
        "down.csv",
        "text,group\n" + "".join(f"{t},g{i % 14}\n" for i, t in enumerate(texts[20:])),
    )
    concept = read_concept("mine", up, down)
    assert {text.prompt for text in concept.texts.positives} == {"Well?"}
    assert len({text.group for text in concept.texts.negatives}) == 14


def refused(situation, says, name, content, read=read_labelled):
    return Refused(
        situation, f"…{says}", lambda folder: read(write(folder, name, content)), ConceptError
    )


def positives(path):
    return read_unlabelled(path, True)


PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
REFUSED = [
    refused("an empty file", "must hold at least one text, got an empty file", "a.jsonl", ""),
    refused("an empty table", "must hold at least one text, got an empty file", "a.csv", "\n\n"),
    refused(
        "a table of a header alone",
        "must hold at least one text, got an empty file",
        "a.csv",
        "text,label\n",
    ),
    refused(
        "a file of blank lines",
        "must hold at least one text, got an empty file",
        "a.txt",
        " \n\n",
        read_lines,
    ),
    Refused(
        "a file that does not exist",
        "cannot read …gone.txt: No such file or directory",
        lambda folder: read_prompts(folder / "gone.txt"),
        ConceptError,
    ),
    Refused("a directory for a file", "cannot read …: Is a directory", read_corpus, ConceptError),
    refused(
        "a picture",
        "must be UTF-8, got byte 0x89 at offset 0; convert it (iconv -t UTF-8)",
        "a.jsonl",
        PNG,
    ),
    refused(
        "a spreadsheet",
        "must be text, got a NUL as character 5; if it is UTF-16 without a byte order mark, "
        "convert it (iconv -f UTF-16LE -t UTF-8)",
        "a.csv",
        b"PK\x03\x04\x14\x00\x06\x00",
    ),
    refused(
        "Latin-1",
        "must be UTF-8, got byte 0xe9 at offset 13; convert it (iconv -t UTF-8)",
        "a.jsonl",
        '{"text": "caf\xe9", "label": "positive"}'.encode("latin-1"),
    ),
    refused(
        "UTF-16 without a byte order mark",
        "must be text, got a NUL as character 1; …",
        "a.txt",
        "yes\n".encode("utf-16-le"),
        read_lines,
    ),
    refused(
        "UTF-16 that is cut off",
        "must be UTF-16, got byte 0x73 at offset 6; …",
        "a.txt",
        "yes".encode("utf-16")[:-1],
        read_lines,
    ),
    refused(
        "YAML",
        "must hold one text a line, or be .jsonl, .json, .csv or .tsv; convert it from .yaml",
        "a.yaml",
        "- yes\n",
        read_lines,
    ),
    refused(
        "a concept of one text a line",
        "…; texts one a line go into two files, --positives and --negatives",
        "a.txt",
        f"{UP}\n",
    ),
    refused(
        "a line that is not JSON",
        "line 2 must be JSON, got \"{'text': oops}\" (Expecting property name enclosed in "
        "double quotes)",
        "a.jsonl",
        jsonl({"text": UP, "label": 1}) + "\n{'text': oops}\n",
    ),
    refused(
        "brackets nested too deeply",
        "line 1 must be JSON, got too many levels of brackets",
        "a.jsonl",
        "[" * 100_000,
    ),
    refused(
        "NaN in JSON",
        "line 1 must be JSON, got …NaN… (NaN is no JSON)",
        "a.jsonl",
        '{"text": NaN, "label": 1}',
    ),
    refused(
        "a number of 5,000 digits",
        "line 1 must be JSON, got … (Exceeds the limit…)",
        "a.jsonl",
        '{"text": "a", "label": ' + "1" * 5000 + "}",
    ),
    refused(
        "a field that stands twice",
        "line 1 must be JSON, got … ('text' stands in one object twice)",
        "a.jsonl",
        '{"text": "a", "text": "b", "label": 1}',
    ),
    refused(
        "a list where an object is wanted",
        "line 1 must be an object with text and label, …, got a list",
        "a.jsonl",
        "[1, 2]",
    ),
    refused(
        "a string where an object is wanted",
        "row 1 must be an object with text and label, …, got 'sun'",
        "a.json",
        '["sun"]',
    ),
    refused(
        "a number where a text is wanted",
        "row 2 must be a text, or an object with text, or prompt and response, or messages, got 2",
        "a.json",
        '["sun", 2]',
        read_lines,
    ),
    refused(
        "an object of lists",
        "line 1 must have a text in 'positive', got a list",
        "a.json",
        '{"positive": ["a"], "negative": ["b"]}',
    ),
    refused(
        "null for a text",
        "line 1 must have a text in 'text', got null or an empty cell",
        "a.jsonl",
        '{"text": null, "label": 1}',
    ),
    refused(
        "a number for a text",
        "line 1 must have a text in 'text', got 3",
        "a.jsonl",
        '{"text": 3, "label": 1}',
    ),
    refused(
        "true for a text",
        "line 1 must have a text in 'text', got true",
        "a.jsonl",
        '{"text": true, "label": 1}',
    ),
    refused(
        "a list for a text",
        "line 1 must have a text in 'text', got a list",
        "a.jsonl",
        '{"text": ["a"], "label": 1}',
    ),
    refused(
        "an object for a reply",
        "line 1 must have a text in 'response', got an object",
        "a.jsonl",
        '{"response": {"text": "a"}}',
        read_lines,
    ),
    refused(
        "an empty text",
        "line 1 must have a text in 'text', got an empty one",
        "a.jsonl",
        '{"text": " ", "label": 1}',
    ),
    refused(
        "half a character",
        "line 1 must have a text in 'text', got half a character ('\\ud800')",
        "a.jsonl",
        '{"text": "a\\ud800", "label": 1}',
    ),
    refused(
        "a NUL in a text",
        "line 1 must have a text in 'text', got one with a NUL in it",
        "a.jsonl",
        '{"text": "a\\u0000", "label": 1}',
    ),
    refused(
        "a number for a prompt",
        "line 1 must have a text in 'prompt', got 3",
        "a.jsonl",
        '{"text": "a", "label": 1, "prompt": 3}',
    ),
    refused(
        "a fraction for a group",
        "line 1 must have a name or number in 'group', got 1.5",
        "a.jsonl",
        '{"text": "a", "label": 1, "group": 1.5}',
    ),
    refused(
        "no label",
        "line 1 must have a label beside text, got fields 'text'",
        "a.jsonl",
        '{"text": "a"}',
    ),
    refused(
        "a label of another kind",
        "line 1 must have a label that is positive or negative (or 1 or 0, true or false, "
        "yes or no), got 'joyful'",
        "a.jsonl",
        '{"text": "a", "label": "joyful"}',
    ),
    refused(
        "a third label",
        "line 3 must have a label that is positive or negative (or 1 or 0, true or false, "
        "yes or no), got '2'",
        "a.csv",
        "text,label\na,1\nb,2\n",
    ),
    refused(
        "other fields",
        "line 1 must have text and label, …, got fields 'statement', 'label'",
        "a.jsonl",
        '{"statement": "a", "label": 1}',
    ),
    refused(
        "half a pair",
        "line 1 must have a text in 'negative', got null",
        "a.jsonl",
        '{"positive": "a"}',
    ),
    refused(
        "two shapes at once",
        "line 1 must give its text in one way (…), got positive and negative, text",
        "a.jsonl",
        '{"text": "a", "positive": "b", "negative": "c"}',
    ),
    refused(
        "a pair with a label",
        "line 1 must give its text in one way (…), got positive and negative, label",
        "a.jsonl",
        '{"label": 1, "positive": "b", "negative": "c"}',
    ),
    refused(
        "two prompts",
        "line 1 must have one prompt, got prompt and question",
        "a.jsonl",
        '{"prompt": "a", "question": "b", "response": "c"}',
        read_lines,
    ),
    refused(
        "a prompt without a reply among texts",
        "line 1 must have text and label, …, got fields 'prompt'",
        "a.jsonl",
        '{"prompt": "a"}',
        read_lines,
    ),
    refused(
        "a reply without a prompt among prompts",
        "line 1 must have prompt, text or messages, got fields 'response'",
        "a.jsonl",
        '{"response": "a"}',
        read_asked,
    ),
    refused(
        "pairs in a file of positives",
        "line 1 must have texts of one kind, got positive and negative; such a file is a "
        "whole concept: --concept FILE",
        "a.jsonl",
        '{"positive": "a", "negative": "b"}',
        positives,
    ),
    refused(
        "a negative text in a file of positives",
        "line 1 must have a positive text, as the whole file, got label 0; a file of both "
        "labels is a whole concept: --concept FILE",
        "a.jsonl",
        '{"text": "a", "label": 0}',
        positives,
    ),
    refused(
        "a chat without a reply",
        "line 1 must have a turn of the assistant in 'messages', got prompt",
        "a.jsonl",
        jsonl({"messages": CHAT[1:2]}),
        read_lines,
    ),
    refused(
        "a chat with an unknown role",
        "line 1 must have turns of user, assistant or system in 'messages', got role 'narrator'",
        "a.jsonl",
        jsonl({"messages": [{"role": "narrator", "content": "a"}]}),
        read_lines,
    ),
    refused(
        "a chat that is a string",
        "line 1 must have a list of messages, with role and content, in 'messages', got 'Hi'",
        "a.jsonl",
        '{"messages": "Hi"}',
        read_lines,
    ),
    refused(
        "a chat with a picture",
        "line 1 must have parts of text alone in 'messages content', got an object",
        "a.jsonl",
        jsonl({"messages": [{"role": "assistant", "content": [{"type": "image_url"}]}]}),
        read_lines,
    ),
    refused(
        "a chat whose reply calls a tool",
        "line 1 must have a text in 'messages content', got null",
        "a.jsonl",
        jsonl({"messages": [{"role": "assistant", "content": None}]}),
        read_lines,
    ),
    refused(
        "a table without a header",
        "must begin with a header that names its columns (text and label, say), got 'I am "
        "glad', '1'",
        "a.csv",
        "I am glad,1\nI am sad,0\n",
    ),
    refused(
        "a table with other columns",
        "must begin with a header that names its columns (text and label, say), got "
        "'sentence', 'score'",
        "a.csv",
        "sentence,score\na,1\n",
    ),
    refused(
        "a table with a column twice",
        "must have one column 'text', got several; rename one",
        "a.csv",
        "text,text,label\na,b,1\n",
    ),
    refused(
        "a comma in a text without quotes",
        "line 3 must have 2 columns, as the header has, got 3; put texts that hold a "
        "delimiter in quotes",
        "a.csv",
        "text,label\na,1\nb, c,0\n",
    ),
    refused(
        "an empty cell for a text",
        "line 2 must have a text in 'text', got null or an empty cell",
        "a.csv",
        "text,label\n,1\n",
    ),
    refused(
        "a quote that does not end",
        "line 3 must be rows of columns, … (unexpected end of data)",
        "a.csv",
        'text,label\na,1\n"b,0\nc,1\n',
    ),
    refused(
        "a quote within a quoted text",
        "line 2 must be rows of columns, … (',' expected after '\"')",
        "a.csv",
        'text,label\n"a"b,1\n',
    ),
]


@each(REFUSED)
def test_a_file_of_another_shape_is_refused(row, tmp_path):
    row.check(tmp_path)


def test_a_path_that_is_not_one_line_is_shown_as_one(tmp_path):
    with pytest.raises(ConceptError) as caught:
        read_lines(tmp_path / "two\nlines.txt")
    assert len(str(caught.value).splitlines()) == 1


# Files thrown at every reader. Most are nearly right, since bytes at random are refused at once.

GOOD = [
    "joy",
    "a day in the rain",
    "one\u2028two\x85three\x0bfour\x0cfive",
    "caf\xe9, 喜び; 😀",
    'she said "yes", and\tno',
    "first\nsecond\r\nthird",
    " '{[ \\ ",
    "null",
    "NaN",
    "x" * 300,
]
BAD = [
    "",
    " \n",
    "half \ud800",
    "nul \x00",
    "\ufeffmark",
    "lone\rreturn",
    None,
    True,
    1,
    1.5,
    10**400,
]
TEXT = st.sampled_from([*GOOD * 8, *BAD])
LABEL = st.sampled_from(
    ["positive", "negative", "Pos", "no", "1", "0"] * 4 + [1, 0, "x", None, [1]]
)
TURN = st.fixed_dictionaries(
    {"role": st.sampled_from([*["user", "assistant"] * 8, "system", "x", 3]), "content": TEXT}
)
SHAPES = (
    {"text": TEXT, "label": LABEL},
    {"text": TEXT, "label": LABEL, "group": TEXT},
    {"positive": TEXT, "negative": TEXT},
    {"prompt": TEXT, "chosen": TEXT, "rejected": TEXT},
    {"prompt": TEXT, "response": TEXT, "label": LABEL},
    {"messages": st.lists(TURN, min_size=1, max_size=3), "label": LABEL},
    {"text": TEXT},
    {"prompt": TEXT},
    {"text": TEXT, "prompt": TEXT, "positive": TEXT},
    {"other": TEXT, "text": st.lists(TEXT, max_size=2) | st.dictionaries(TEXT.map(str), TEXT)},
)
ROWS = st.one_of(
    *(st.lists(st.fixed_dictionaries(shape), min_size=1, max_size=3) for shape in SHAPES),
    st.lists(TEXT, max_size=3),
    st.just([]),
)
SUFFIX = st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".txt", "", ".JSONL", ".md"])
ENCODING = st.sampled_from(
    ["utf-8"] * 9 + ["utf-8-sig", "utf-16", "utf-16-le", "latin-1", "utf-32"]
)


def as_lines(rows, ascii_only):
    return "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows)


def as_table(rows, delimiter):
    written = io.StringIO()
    header = sorted({name for row in rows if isinstance(row, dict) for name in row})
    table = csv.DictWriter(written, header, delimiter=delimiter, extrasaction="ignore", restval="")
    table.writeheader()
    table.writerows(row for row in rows if isinstance(row, dict))
    return written.getvalue()


CONTENT = {
    ".jsonl": st.builds(as_lines, ROWS, st.booleans()),
    ".json": st.builds(
        lambda rows, by: json.dumps(rows, indent=by), ROWS, st.sampled_from([None, 1])
    ),
    ".csv": st.builds(as_table, ROWS, st.sampled_from(",,;")),
    ".tsv": st.builds(as_table, ROWS, st.just("\t")),
    ".txt": st.lists(TEXT.map(str), max_size=3).map("\n".join),
}


@st.composite
def files(draw):
    """A file's suffix and bytes; some are cut off, or have a byte changed."""
    suffix = draw(st.sampled_from(list(CONTENT)))
    content = draw(CONTENT[suffix]).encode(draw(ENCODING), errors="replace")
    damage = draw(st.sampled_from(["none"] * 12 + ["bytes", "a byte", "a suffix"]))
    if damage == "a suffix":
        suffix = draw(SUFFIX)
    if damage == "bytes":
        content = draw(st.binary(max_size=40))
    if damage == "a byte" and content:
        at = draw(st.integers(0, len(content) - 1))
        other = draw(st.sampled_from([b"", b"\x00", b"\xff", b'"', b"\n", b"{", b"\x80"]))
        content = content[:at] + other + content[at + 1 :]
    return suffix, content


def strings_in(content):
    """All that a file says, read without the project: its characters, and its JSON and CSV strings.

    The parts of a chat's turn, which are read as one text, are joined too.
    """
    found = []
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        found.append(text)
        for part in [text, *text.split("\n")]:
            try:
                value = json.loads(part, strict=False)
            except (ValueError, RecursionError):
                continue
            found += strings_of(value)
        for delimiter in ",;\t":
            try:
                found += [
                    c
                    for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
                    for c in row
                ]
            except csv.Error:
                continue
    return found


def strings_of(value):
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for one in value.values() for text in strings_of(one)]
    if isinstance(value, list):
        parts = [text for one in value for text in strings_of(one)]
        return [*parts, "".join(parts)]
    return []


def texts_of(read):
    """The texts, and the prompts, that a reader returned."""
    if isinstance(read, Concept):
        return [one.text for side in (read.texts.positives, read.texts.negatives) for one in side]
    if isinstance(read, dict):
        return [text for part in read.values() for text in part]
    return [
        text
        for one in read
        for text in ([one.text, one.prompt] if isinstance(one, Entry) else [one])
    ]


def thrown_at(read, path):
    """What a reader returns, or nothing and its message; any other error is a failure."""
    try:
        return read(path), ""
    except CalibrateError as error:
        return [], str(error)


READERS = (read_labelled, positives, read_asked, read_lines)


@hypothesis.settings(max_examples=2400, suppress_health_check=list(HealthCheck))
@hypothesis.given(files(), st.sampled_from(READERS))
def test_whatever_a_file_holds_it_is_refused_or_every_text_was_in_it(tmp_path_factory, file, read):
    suffix, content = file
    path = tmp_path_factory.getbasetemp() / f"thrown{suffix}"
    path.write_bytes(content)
    found, message = thrown_at(read, path)
    assert len(message.splitlines()) <= 1
    said = strings_in(content)
    for text in filter(None, texts_of(found)):
        assert text == text.strip() != ""
        assert any(text in one for one in said)


@hypothesis.settings(max_examples=40)
@hypothesis.given(
    st.sampled_from([text for text in GOOD if "\n" not in text]),
    st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".txt"]),
    st.sampled_from([read_concept, read_prompts, read_corpus]),
    st.sampled_from([None, 0, 50, 99]),
)
def test_a_long_file_is_read_whole_or_refused_for_its_one_bad_row(
    tmp_path_factory, text, suffix, read, bad
):
    """As many rows as every reader wants, all different; perhaps a bad one among them."""
    letters = "abcdefghij"
    texts = ["".join(random.Random(k).choices(letters, k=30)) for k in range(100)]
    rows = [{"text": f"{one} {text} {one[::-1]}", "label": k % 2} for k, one in enumerate(texts)]
    if bad is not None:
        rows[bad]["text"] = "\x00"
    path = tmp_path_factory.getbasetemp() / f"long{suffix}"
    written = {
        ".jsonl": lambda: as_lines(rows, False),
        ".json": lambda: json.dumps(rows),
        ".csv": lambda: as_table(rows, ","),
        ".tsv": lambda: as_table(rows, "\t"),
        ".txt": lambda: "\n".join(row["text"] for row in rows),
    }[suffix]()
    path.write_bytes(written.encode())
    if bad is not None or (read is read_concept and suffix == ".txt"):
        with pytest.raises(ConceptError):
            read(path)
        return
    assert sorted(texts_of(read(path))) == sorted(row["text"].strip() for row in rows)
