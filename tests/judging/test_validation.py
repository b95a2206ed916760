"""Judges held against people who read the same texts, and what is refused of either."""

from __future__ import annotations

import json
import sys
import types

import numpy as np
import pytest
import tiny
from refused import Refused, each
from sklearn.metrics import brier_score_loss, roc_auc_score
from test_cli import calibrated, model_directory, run  # noqa: F401 - fixtures

from calibrate.common.errors import ConceptError
from calibrate.deploy.judge import open_judge
from calibrate.judging.graded_texts import read_graded
from calibrate.judging.validation import hold_against
from probes import Reader
from probes.graded import GradedText
from probes.judges import FunctionJudge


def scoring(scores):
    """A judge that says these, in the order of the texts."""
    return Reader(FunctionJudge(lambda texts, _: scores), "bright", "mine")


def graded(grades, **columns):
    """Texts with these grades; columns: other fields, a value each."""
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    rows = rows or [{}] * len(grades)
    return [
        GradedText(f"text {at}", grade, **row)
        for at, (grade, row) in enumerate(zip(grades, rows, strict=True))
    ]


@pytest.fixture(scope="module")
def mixed():
    """Forty texts of ten prompts and two conditions, a noisy judge and two noisy readers."""
    rng = np.random.default_rng(0)
    clear = rng.uniform(0, 2, size=40)
    first, second = (np.clip((clear + rng.normal(0, 0.4, 40)).round(), 0, 2) for _ in range(2))
    scores = np.clip(clear / 2 + rng.normal(0, 0.2, 40), 0, 1)
    texts = graded(
        first.tolist(),
        second=second.tolist(),
        group=[f"prompt {at % 10}" for at in range(40)],
        condition=["steered" if at < 20 else "plain" for at in range(40)],
    )
    return texts, scores, first, second


def test_every_figure_is_what_scikit_learn_makes_of_the_same_texts(mixed):
    texts, scores, first, second = mixed
    found = hold_against(scoring(scores), texts)
    for separation, least in ((found.somewhat, 1), (found.clearly, 2)):
        truth = first >= least
        assert separation.auc.value == pytest.approx(roc_auc_score(truth, scores))
        assert separation.readers.value == pytest.approx(roc_auc_score(truth, second))
        assert separation.n_positive == truth.sum()
        assert separation.why_not == ""
    assert found.brier.value == pytest.approx(brier_score_loss(first >= 1, scores))
    assert (found.n_texts, found.n_groups) == (40, 10)
    assert (found.judge, found.concept) == ("mine", "bright")


def test_levels_are_means_and_shares_of_all_texts_and_of_each_condition(mixed):
    texts, scores, first, _ = mixed
    found = hold_against(scoring(scores), texts)
    assert [one.condition for one in found.levels] == ["steered", "plain"]
    rows = (slice(None), slice(20), slice(20, None))
    for level, part in zip((found.level, *found.levels), rows, strict=True):
        assert level.judge.value == pytest.approx(scores[part].mean())
        assert level.readers.value == pytest.approx((first[part] >= 1).mean())
        gap = level.judge.value - level.readers.value
        assert level.difference.value == pytest.approx(gap)
        for one in (level.judge, level.readers, level.difference):
            assert one.low < one.value < one.high
    assert sum(one.n_texts for one in found.levels) == 40


def test_an_interval_of_a_mean_is_as_wide_as_the_prompts_are_few():
    """Ten replies a prompt that all say the same are worth one: the standard error of ten means."""
    rng = np.random.default_rng(1)
    of_prompt = rng.uniform(0, 1, 10)
    scores = np.repeat(of_prompt, 10)
    grades = [0.0, 2.0] * 50
    prompts = [f"{at // 10}" for at in range(100)]
    together = hold_against(scoring(scores), graded(grades, group=prompts)).level.judge
    alone = hold_against(scoring(scores), graded(grades)).level.judge
    error = of_prompt.std() / np.sqrt(10)
    assert together.high - together.low == pytest.approx(2 * 1.96 * error, rel=0.2)
    assert alone.high - alone.low == pytest.approx(2 * 1.96 * error / np.sqrt(10), rel=0.2)


def test_texts_of_one_prompt_alone_are_resampled_each_by_itself():
    rng = np.random.default_rng(2)
    scores, grades = rng.uniform(0, 1, 50), [0.0, 1.0] * 25
    found = hold_against(scoring(scores), graded(grades, group=["prompt"] * 50))
    assert found.n_groups == 1
    width = found.level.judge.high - found.level.judge.low
    assert width == pytest.approx(2 * 1.96 * scores.std() / np.sqrt(50), rel=0.2)


@pytest.mark.parametrize(
    ("grade", "why_not", "clearly"),
    [
        (0, "no text is graded 1 or more", None),
        (1, "every text is graded 1 or more", None),
        (2, "every text is graded 1 or more", "every text is graded 2"),
        (1.5, "every text is graded 1 or more", "no text is graded 2"),
    ],
)
def test_texts_of_one_grade_show_levels_and_why_there_is_no_auc(grade, why_not, clearly):
    scores = np.linspace(0.2, 0.4, 12)
    found = hold_against(scoring(scores), graded([grade] * 12))
    assert found.somewhat.auc is None
    assert found.somewhat.why_not == why_not
    assert (found.clearly and found.clearly.why_not) == clearly
    assert found.level.judge.value == pytest.approx(0.3)
    assert found.level.readers.value == float(grade >= 1)
    assert found.brier.value == pytest.approx(((scores - (grade >= 1)) ** 2).mean())


def test_without_a_second_reader_or_with_one_on_one_side_there_is_no_limit():
    grades = [0.0] * 6 + [2.0] * 6
    scores = np.linspace(0, 1, 12)
    assert hold_against(scoring(scores), graded(grades)).somewhat.readers is None
    second = [0.0] * 6 + [None] * 6
    found = hold_against(scoring(scores), graded(grades, second=second))
    assert found.somewhat.readers is None
    second = [0.0, 0.0, 1.0] + [None] * 3 + [2.0, 2.0, 2.0] + [None] * 3
    found = hold_against(scoring(scores), graded(grades, second=second))
    assert found.somewhat.readers.value == 1.0


def test_the_texts_that_are_misread_most_come_first():
    grades = [0.0] * 6 + [1.0] * 2 + [2.0] * 6
    scores = [0.1, 0.9, 0.6, 0.7, 0.8, 0.2, 0.0, 0.0, 0.9, 0.4, 0.05, 0.6, 0.5, 0.3]
    found = hold_against(scoring(scores), graded(grades))
    assert [one.probability for one in found.too_high] == [0.9, 0.8, 0.7]
    assert [one.text for one in found.too_low] == ["text 10", "text 13", "text 9"]
    right = hold_against(scoring(np.array(grades) / 2), graded(grades))
    assert right.too_high == right.too_low == ()


def test_reading_is_timed():
    now = [100.0]

    def slow(texts, _):
        now[0] += 0.25 * len(texts)
        return [0.5] * len(texts)

    reader = Reader(FunctionJudge(slow), "", "slow")
    found = hold_against(reader, graded([0.0, 1.0] * 5), clock=lambda: now[0])
    assert found.seconds_per_text == 0.25


def write(folder, name, content):
    path = folder / name
    path.write_text(content)
    return path


def jsonl(*rows):
    return "\n".join(json.dumps(row) for row in rows)


def test_a_file_of_grades_is_read_with_all_that_stands_beside_them(tmp_path):
    row = {"prompt": "How?", "response": "So.", "grade": 0.5, "grade_2": 2, "condition": 0.25}
    rest = [{"text": f"{k}", "grade": k % 3, "grade_2": None} for k in range(9)]
    read = read_graded(write(tmp_path, "a.jsonl", jsonl(row, *rest)))
    assert read[0] == GradedText("So.", 0.5, 2.0, "How?", "0.25")
    assert read[1:] == tuple(GradedText(f"{k}", k % 3) for k in range(9))


def test_a_table_of_labels_is_read_as_concept_files_are(tmp_path):
    labels = ["yes", "No", "TRUE", "0", "positive"] * 2
    lines = [f'"text; {k}";{label};{label};g{k};up' for k, label in enumerate(labels)]
    content = "\n".join(["text;label;label_2;group;condition", *lines])
    read = read_graded(write(tmp_path, "a.csv", content))
    assert [one.grade for one in read] == [one.second for one in read] == [1, 0, 1, 0, 1] * 2
    assert read[3] == GradedText("text; 3", 0, 0, "g3", "up")


ROWS = [{"text": f"text {k}", "grade": k % 3} for k in range(12)]


def beside(**fields):
    """Twelve good rows, the third of which has these fields too; None takes one away."""
    rows = [dict(row) for row in ROWS]
    rows[2] = {name: value for name, value in {**rows[2], **fields}.items() if value is not None}
    return jsonl(*rows)


def bad_file(situation, says, content, name="a.jsonl"):
    return Refused(
        situation,
        f"…{says}",
        lambda folder: read_graded(write(folder, name, content)),
        ConceptError,
    )


def bad_judge(situation, says, *arguments, **named):
    return Refused(situation, says, lambda _: open_judge(*arguments, **named))


REFUSED = [
    bad_file(
        "a text without a grade",
        "a.jsonl line 3 must have a grade (0, 1 or 2) or a label (yes or no) beside its text, got "
        "fields 'text'",
        beside(grade=None),
    ),
    bad_file(
        "a text with a grade and a label",
        "line 3 must have a grade (0, 1 or 2) or a label (yes or no) beside its text, got grade "
        "and label",
        beside(label="yes"),
    ),
    *(
        bad_file(
            f"a grade of {got}",
            f"line 3 must have a number from 0 (not) to 2 (clearly) in 'grade', got {got}",
            beside(grade=grade),
        )
        for grade, got in (
            *((3, "3"), (-1, "-1"), ("clearly", "'clearly'"), ("nan", "'nan'"), (True, "true")),
            *(("0,5", "'0,5'"), (10**400, "1000…"), ([1], "a list")),
        )
    ),
    bad_file(
        "a second reader's grade out of range",
        "line 3 must have a number from 0 (not) to 2 (clearly) in 'grade_2', got 5",
        beside(grade_2=5),
    ),
    bad_file(
        "a second reader's label beside a grade",
        "line 3 must have 'grade_2' beside 'grade', got 'label_2'",
        beside(label_2="yes"),
    ),
    bad_file(
        "grades and labels in one file",
        "line 3 must have a grade, as the first text has, got a label",
        beside(grade=None, label="yes"),
    ),
    bad_file(
        "a label that is none",
        "line 1 must have a label that is positive or negative (…), got 'perhaps'",
        jsonl(*({"text": "a", "label": "perhaps"} for _ in range(10))),
    ),
    bad_file(
        "a condition that is a list",
        "line 3 must have a text or number in 'condition', got a list",
        beside(condition=[1]),
    ),
    bad_file(
        "an empty text with a grade",
        "line 3 must have a text in 'text', got an empty one",
        beside(text=" "),
    ),
    bad_file(
        "a pair of texts with a grade",
        "line 3 must have one text, got positive and negative",
        beside(text=None, positive="a", negative="b"),
    ),
    bad_file("a row that is a text", "line 1 must be an object with fields, got 'a'", '"a"'),
    bad_file(
        "nine graded texts",
        "a.jsonl must hold at least 10 graded texts, got 9",
        jsonl(*ROWS[:9]),
    ),
    bad_file(
        "graded texts one a line",
        "a file of graded texts must be .jsonl, .json, .csv or .tsv, got …a.txt",
        "text",
        "a.txt",
    ),
    bad_file(
        "a table whose columns have other names",
        "must begin with a header that names its columns (text and label, say), got 'reply', "
        "'score'",
        "reply,score\na,1\n",
        "a.csv",
    ),
    Refused(
        "a judge held against three texts",
        "judge 'mine' must be held against at least 10 graded texts, got 3",
        lambda _: hold_against(scoring([0, 0, 1]), graded([0, 1, 2])),
        ConceptError,
    ),
    bad_judge(
        "holding a judge of an unknown name against readers",
        "judge must be …, module:function, or the directory of a finished calibration or of a "
        "probe, got 'questoin'; did you mean question?",
        "questoin",
    ),
    bad_judge(
        "holding the probe against readers without its directory",
        "judge must be …, module:function, or the directory of a finished calibration or of a "
        "probe, got 'probe'",
        "probe",
        "joy",
    ),
    bad_judge(
        "holding a function that does not exist against readers",
        "judge 'no_such:judge' must be a function that can be imported, got: …",
        "no_such:judge",
        "joy",
    ),
    bad_judge(
        "holding a judge against readers without saying what it looks for",
        "judge 'question' must know what to look for; give it with --concept",
        "question",
    ),
    bad_judge(
        "an embedding judge of a concept without texts",
        "concept must be a built-in name (…) or a .jsonl, .json, .csv or .tsv file, got 'jo'; did "
        "you mean joy?",
        "embedding",
        "jo",
    ),
    Refused(
        "holding a directory without a probe against readers",
        "… must hold a probe, but it cannot be read: …",
        lambda folder: open_judge(str(folder)),
    ),
]


@each(REFUSED)
def test_what_no_judge_can_be_held_against_is_refused(row, tmp_path):
    row.check(tmp_path)


@pytest.fixture
def texts_file(tmp_path):
    """Bright texts graded 1 and 2, dull ones 0, some of them wrongly, under three prompts."""
    rows = [
        {"text": text, "grade": grade, "prompt": f"prompt {at % 3}", "condition": words[0]}
        for words, grades in ((tiny.BRIGHT, (1, 2, 0)), (tiny.DULL, (0, 0, 0, 1)))
        for at, text in enumerate(tiny.texts(words, 12, seed=5))
        for grade in [grades[at % len(grades)]]
    ]
    return write(tmp_path, "graded.jsonl", jsonl(*rows))


@pytest.fixture
def house_judge(monkeypatch):
    module = types.ModuleType("house_judges")
    module.counting = lambda texts, concept: [
        float(any(word in tiny.BRIGHT for word in text.split())) for text in texts
    ]
    monkeypatch.setitem(sys.modules, "house_judges", module)
    return "house_judges:counting"


def test_a_judge_by_name_is_held_against_a_file(capsys, texts_file, house_judge):
    arguments = ("judge", house_judge, "--texts", texts_file, "--concept", "bright things")
    status, out, _ = run(capsys, *arguments)
    assert status == 0
    for word in (
        *("24 texts", "3 prompts", "AUC, somewhat", "AUC, clearly", "Brier", "calibration error"),
        *("difference", "sun", "rain", "judge says yes, readers no", "s a text"),
    ):
        assert word in out
    assert "judge says no, readers yes" not in out
    assert "second reader" not in out
    status, out, _ = run(capsys, *arguments, "--json")
    found = json.loads(out)
    assert status == 0
    assert (found["judge"], found["concept"]) == (house_judge, "bright things")
    assert found["somewhat"]["auc"]["value"] == pytest.approx(
        roc_auc_score(*zip(*[(g >= 1, s) for g, s in outcomes(texts_file)], strict=True))
    )
    assert [level["condition"] for level in found["levels"]] == ["sun", "rain"]


def outcomes(path):
    """Grade and score of every row, by hand."""
    for line in path.read_text().splitlines():
        row = json.loads(line)
        yield row["grade"], float(bool(set(row["text"].split()) & set(tiny.BRIGHT)))


def test_labels_show_no_clearly_and_one_label_says_why_there_is_no_auc(
    capsys, tmp_path, house_judge
):
    rows = [{"text": t, "label": "yes", "label_2": "yes"} for t in tiny.texts(tiny.BRIGHT, 10)]
    path = write(tmp_path, "labels.jsonl", jsonl(*rows))
    status, out, _ = run(capsys, "judge", house_judge, "--texts", path, "--concept", "x")
    assert status == 0
    assert "none: every text is graded 1 or more" in out
    assert "clearly" not in out


def test_the_probe_of_a_calibration_is_held_against_a_file(
    capsys,
    texts_file,
    calibrated,  # noqa: F811
    model_directory,  # noqa: F811
):
    result, directory = calibrated
    status, out, _ = run(capsys, "judge", directory, "--texts", texts_file, "--json")
    assert status == 0
    found = json.loads(out)
    assert (found["judge"], found["concept"]) == ("probe", "bright")
    reader = open_judge(str(directory / "probe"), model=str(model_directory))
    again = hold_against(reader, read_graded(texts_file))
    assert found["somewhat"]["auc"]["value"] == pytest.approx(again.somewhat.auc.value)
    assert again.level.judge.value == pytest.approx(
        result.probe.score([t.text for t in read_graded(texts_file)], reader.judge.model).mean(),
        abs=1e-6,
    )
    status, _, err = run(
        capsys, "judge", directory, "--texts", texts_file, "--concept", "something else"
    )
    assert status == 2
    assert "--concept must be 'bright', which the probe in" in err


def test_a_bad_file_or_judge_is_one_line_and_status_2(capsys, texts_file, tmp_path):
    short = write(tmp_path, "short.jsonl", jsonl(*ROWS[:3]))
    for arguments, said in (
        (("question", "--texts", short, "--concept", "joy"), "at least 10 graded texts, got 3"),
        (("questoin", "--texts", texts_file), "did you mean question?"),
        (("question",), "Missing option '--texts'"),
    ):
        status, out, err = run(capsys, "judge", *arguments)
        assert (status, out) == (2, "")
        assert said in err
        assert err.count("\n") == 1
