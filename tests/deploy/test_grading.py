"""Grading replies: a blind session, sheets, what is inferred, and what it corrects."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pytest
import rich.console
from filelock import FileLock, Timeout
from refused import Refused, each
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score, roc_auc_score
from test_cli import run

import calibrate
import probes
from calibrate.artefact import saved
from calibrate.artefact.config import SteeringConfig
from calibrate.artefact.evidence import CompletionRecord, Evidence
from calibrate.artefact.grades import GRADES_FILE, Grades, load_grades
from calibrate.artefact.measured_sections import MeasuredSection
from calibrate.artefact.sections import BudgetSection, ProvenanceSection
from calibrate.cli import grade_session
from calibrate.cli.reader_table import readers_table
from calibrate.common.errors import ArtefactError, ConceptError
from calibrate.common.layout import WORKERS_FOLDER, WRITING_LOCK
from calibrate.deploy.finished import Calibration
from calibrate.deploy.grading import blind
from calibrate.deploy.grading.apply import apply_grades
from calibrate.deploy.grading.blind import BlindReply, Pair, ReadingRoom
from calibrate.deploy.grading.readers import infer
from calibrate.deploy.grading.sheet import read_sheet, write_sheet
from calibrate.texts.concept import built_in_concepts
from calibrate.texts.rubrics import rubric
from probes.correction import fit_correction

pytestmark = pytest.mark.slow

# --- A room of pairs that no model is needed for ------------------------------------------------


def pair(number, scores=(0.2, 0.7)):
    plain, steered = (
        BlindReply(f"{which}{number}", f"prompt {number}", f"{which} reply {number}")
        for which in ("p", "s")
    )
    return Pair(plain, steered, scores, scores)


def room(n=64, folder=Path("joy"), scores=None):
    config = SteeringConfig.model_construct(
        budget=BudgetSection.model_construct(confidence=0.95),
        provenance=ProvenanceSection.model_construct(seed=3, fingerprint="f"),
    )
    pairs = tuple(pair(i, *([] if scores is None else [tuple(scores[i])])) for i in range(n))
    return ReadingRoom(folder, config, None, pairs)


def graded(table, grader="ann"):
    """Grades of the first prompts, from an array of shape (n_prompts, 2)."""
    said = {}
    for number, (before, after) in enumerate(table):
        said |= {f"p{number}": before, f"s{number}": after}
    return Grades({grader: said})


def random_table(n=20, seed=0):
    rng = np.random.default_rng(seed)
    return [
        [int(a), int(b)] for a, b in zip(rng.integers(0, 2, n), rng.integers(0, 3, n), strict=True)
    ]


# --- What is read -------------------------------------------------------------------------------


def test_every_prompt_of_the_sample_is_read_plain_and_steered_in_another_order_for_each_grader():
    here = room()
    ann, ben = (here.sample(40, name) for name in ("ann", "ben"))
    assert ann == here.sample(40, "ann")
    assert ann != ben
    assert Counter(one.prompt for one in ann) == {f"prompt {i}": 2 for i in range(20)}
    assert {one.id for one in ann} == {one.id for one in ben}
    steered = [one.id.startswith("s") for one in ann]
    assert steered != sorted(steered)
    assert any(steered[:10])
    assert not all(steered[:10])


def test_whoever_stops_early_has_read_pairs_and_more_replies_only_come_after():
    here = room()
    order = here.sample(40, "ann")
    assert all(count == 2 for count in Counter(one.prompt for one in order[:20]).values())
    assert here.sample(60, "ann")[:40] == order


def test_a_rubric_says_in_a_line_what_each_grade_means_for_every_concept():
    for concept in (*built_in_concepts(), "pirate"):
        said = rubric(concept)
        assert all(mark in said for mark in ("1:", "2:", "0"))
        assert "\n" not in said
    assert "pirate" in rubric("pirate")


# --- What is inferred ---------------------------------------------------------------------------


def test_presence_before_and_after_is_what_the_readers_say_where_the_judge_read_no_more():
    table = random_table()
    found = infer(room(20), graded(table))
    before, after = (np.array(table)[:, side] for side in (0, 1))
    assert found.presence.before.value == pytest.approx((before >= 1).mean())
    assert found.presence.after.value == pytest.approx((after >= 1).mean())
    assert found.presence.change.value == pytest.approx((after >= 1).mean() - (before >= 1).mean())
    assert found.clearly.after.value == pytest.approx((after == 2).mean())
    assert (found.n_replies, found.n_prompts, found.n_judged) == (40, 20, 0)


def test_a_judge_of_more_prompts_moves_presence_by_what_its_readings_are_worth():
    """By the textbook's regression estimator of double sampling (Cochran 1977, ch. 12)."""
    rng = np.random.default_rng(0)
    scores = rng.uniform(size=(64, 2))
    table = (scores[:20] + 0.1 * rng.standard_normal((20, 2)) > 0.5).astype(int).tolist()
    found = infer(room(64, scores=scores), graded(table))
    said = np.array(table)[:, 1]
    slope = np.polyfit(scores[:20, 1], said, 1)[0]
    regression = said.mean() + slope * (scores[:, 1].mean() - scores[:20, 1].mean())
    assert found.presence.after.value == pytest.approx(regression, abs=0.02)
    assert found.n_judged == 44


def test_the_judges_auc_is_that_of_its_scores_against_the_grades_and_its_level_their_gap():
    rng = np.random.default_rng(1)
    scores, table = rng.uniform(size=(20, 2)), random_table(seed=1)
    found = infer(room(20, scores=scores), graded(table))
    yes = np.array(table) >= 1
    assert found.judge_auc.value == pytest.approx(roc_auc_score(yes.ravel(), scores.ravel()))
    assert found.judge_auc.low < found.judge_auc.value < found.judge_auc.high
    assert found.judge_level.value == pytest.approx(scores.mean() - yes.mean())


def test_grades_that_are_all_alike_have_no_auc_and_fail_nothing():
    found = infer(room(), graded([[0, 0]] * 10))
    assert found.judge_auc is None
    assert found.presence.change.low < found.presence.change.value == 0 < found.presence.change.high
    console = rich.console.Console(width=200)
    with console.capture() as said:
        console.print(readers_table(found))
    assert "undefined" in said.get()


def test_several_graders_are_averaged_and_their_agreement_is_cohens():
    ann, ben = random_table(seed=2), random_table(seed=3)
    both = Grades({**graded(ann).by_grader, **graded(ben, "ben").by_grader})
    found = infer(room(20), both)
    yes = [np.array(table) >= 1 for table in (ann, ben)]
    assert found.presence.after.value == pytest.approx(np.mean(yes, axis=0)[:, 1].mean())
    (agreement,) = found.agreement
    assert agreement.graders == ("ann", "ben")
    assert agreement.alike == pytest.approx((yes[0] == yes[1]).mean())
    assert agreement.kappa == pytest.approx(cohen_kappa_score(yes[0].ravel(), yes[1].ravel()))


def test_a_reply_that_was_skipped_leaves_its_prompt_out():
    grades = graded(random_table()).with_grade("ann", "s4", None)
    assert infer(room(), grades).n_prompts == 19


# --- The scale ----------------------------------------------------------------------------------


def replies_on_scale(slope, offset, n, seed=0):
    rng = np.random.default_rng(seed)
    log_odds = rng.normal(-1, 2, size=(n, 2))
    yes = rng.uniform(size=log_odds.shape) < expit(slope * log_odds + offset)
    return expit(log_odds), yes.astype(float)


def test_with_many_grades_the_scale_is_that_of_a_logistic_regression():
    scores, yes = replies_on_scale(0.5, 1.0, 150)
    found = fit_correction(scores, yes)
    plain = LogisticRegression(C=np.inf).fit(logit(scores).reshape(-1, 1), yes.ravel())
    assert found.method == "slope and offset"
    assert found.scale.slope == pytest.approx(plain.coef_[0, 0], abs=0.05)
    assert found.scale.offset == pytest.approx(plain.intercept_[0], abs=0.05)
    assert found.log_loss < found.log_loss_before


def test_a_scale_that_is_right_is_left_nearly_alone_and_a_contrary_one_is_never_turned_round():
    found = fit_correction(*replies_on_scale(1.0, 0.0, 150))
    assert 0.8 < found.scale.slope < 1.25
    assert abs(found.scale.offset) < 0.3
    assert fit_correction(*replies_on_scale(-1.0, 0.0, 20)).scale.slope > 0


def test_what_is_chosen_predicts_new_grades_no_worse_than_no_correction():
    gains = []
    for seed in range(30):
        scores, yes = replies_on_scale(1.0, 2.0, 12, seed)
        scale = fit_correction(scores, yes).scale
        new_scores, new_yes = replies_on_scale(1.0, 2.0, 300, seed + 1000)
        before = logit(new_scores)
        after = scale.slope * before + scale.offset
        losses = [np.mean(np.logaddexp(0, z) - new_yes * z) for z in (before, after)]
        gains.append(losses[0] - losses[1])
    assert np.mean(gains) > 0.1
    assert np.mean(np.array(gains) > 0) > 0.9


def test_grades_that_are_all_no_move_the_scale_by_a_finite_step():
    found = fit_correction(np.full((20, 2), 0.5), np.zeros((20, 2)))
    assert found.method == "offset"
    assert -8 < found.scale.offset < -1


# --- On a finished calibration ------------------------------------------------------------------


@pytest.fixture
def directory(finished, tmp_path):
    """A copy of a finished calibration."""
    shutil.copytree(finished.directory, tmp_path / "bright")
    return tmp_path / "bright"


@pytest.fixture
def keys(monkeypatch):
    """A terminal, and a list of keys that are pressed in it."""
    pressed = []
    monkeypatch.setattr(grade_session, "is_terminal", lambda: True)
    monkeypatch.setattr(click, "getchar", lambda: pressed.pop(0))
    return pressed


def said(directory, grader="ann"):
    return list(load_grades(directory).of(grader).values())


def test_a_session_shows_prompt_reply_and_rubric_and_keeps_a_grade_with_every_key(
    capsys, directory, keys
):
    keys += ["0", "x", "1", "2", "u", "s", "q"]
    status, out, err = run(capsys, "grade", directory, "--grader", "ann")
    assert (status, err) == (0, "")
    assert said(directory) == [0, 1, None]
    assert "3 of 40 replies are done" in out
    assert "does not express bright" in " ".join(out.split())
    shown = " ".join(out.split())
    order = ReadingRoom.open(directory).sample(40, "ann")
    assert all(" ".join(one.text.split()) in shown for one in order[:3])
    assert "reply 4 of 40" in out
    assert "reply 5 of 40" not in out


def test_nothing_that_is_shown_tells_the_condition_or_the_judges_score(capsys, directory, keys):
    keys += ["1"] * 9 + ["q"]
    _, out, _ = run(capsys, "grade", directory, "--grader", "ann")
    assert not any(word in out.lower() for word in ("steered", "plain", "α", "score"))
    for one in Evidence.load(directory).completions:
        assert f"{one.steered_presence:.2f}" not in out


def test_a_session_goes_on_where_it_stopped_and_ends_with_the_result(capsys, directory, keys):
    keys += ["1", "q"]
    run(capsys, "grade", directory, "--grader", "ann", "--replies", 10)
    keys += ["u", *"0120120120"]
    status, out, _ = run(capsys, "grade", directory, "--grader", "ann", "--replies", 10)
    assert status == 0
    assert said(directory) == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert keys == []
    for word in ("graded by", "presence", "unsteered", "AUC", "level"):
        assert word in out
    again = run(capsys, "grade", directory, "--grader", "ann", "--replies", 10)
    assert again[1].endswith(out[out.index("graded by") :])


def test_an_interrupt_keeps_what_was_graded(capsys, directory, keys, monkeypatch):
    def getchar():
        if keys:
            return keys.pop(0)
        raise KeyboardInterrupt

    monkeypatch.setattr(click, "getchar", getchar)
    keys += ["2", "1"]
    status, _, _ = run(capsys, "grade", directory, "--grader", "ann")
    assert status == 130
    assert said(directory) == [2, 1]
    assert not list(directory.glob(".*"))


def test_people_are_kept_apart(capsys, directory, keys):
    keys += ["1", "q", "2", "q"]
    for name in ("ann", "ben"):
        run(capsys, "grade", directory, "--grader", name)
    assert (said(directory, "ann"), said(directory, "ben")) == ([1], [2])


def fill(sheet, grade):
    """Fill in a sheet's grades as a spreadsheet does."""
    with sheet.open(encoding="utf-8-sig", newline="") as opened:
        rows = list(csv.DictReader(opened))
    for row in rows:
        row["grade"] = grade(row)
    with sheet.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.DictWriter(opened, rows[0].keys(), delimiter=";")
        writer.writeheader()
        writer.writerows(rows)
    return rows


def by_word(row):
    """A reader who finds brightness in the word itself, and more in two."""
    return str(min(2, row["reply"].split().count("sun") + row["reply"].split().count("laugh")))


def test_a_sheet_goes_out_and_comes_back_and_says_how_many_came_in(capsys, directory, tmp_path):
    sheet = tmp_path / "sheet.csv"
    status, out, err = run(capsys, "grade", directory, "--grader", "ann", "--export", sheet)
    assert (status, err) == (0, "")
    assert "wrote 40 replies" in out
    rows = fill(sheet, by_word)
    order = ReadingRoom.open(directory).sample(40, "ann")
    assert [row["id"] for row in rows] == [one.id for one in order]
    assert "steered" not in sheet.read_text().lower()
    status, out, _ = run(capsys, "grade", directory, "--grader", "ann", "--import", sheet)
    assert status == 0
    assert "40 grades came in" in out
    assert said(directory) == [int(by_word(row)) for row in rows]
    status, out, err = run(capsys, "grade", directory, "--json")
    facts = json.loads(out)
    assert (facts["n_replies"], facts["graders"]) == (40, ["ann"])


def test_a_sheet_of_json_lines_may_leave_rows_empty(directory, tmp_path):
    here = ReadingRoom.open(directory)
    order, sheet = here.sample(40, "ann"), tmp_path / "sheet.jsonl"
    write_sheet(sheet, order)
    rows = [json.loads(line) for line in sheet.read_text().splitlines()]
    assert [(row["prompt"], row["reply"]) for row in rows] == [(o.prompt, o.text) for o in order]
    rows[0]["grade"], rows[1]["grade"] = 2, ""
    sheet.write_text("\n".join(map(json.dumps, rows)))
    assert read_sheet(sheet, {one.id for one in order}) == {order[0].id: 2}


def test_no_cell_of_a_sheet_is_a_formula(tmp_path):
    write_sheet(tmp_path / "sheet.csv", [BlindReply("a", "prompt", '=HYPERLINK("x")')])
    with (tmp_path / "sheet.csv").open(encoding="utf-8-sig", newline="") as opened:
        (row,) = csv.DictReader(opened)
    assert row["reply"].startswith("'=")


# --- What grades correct ------------------------------------------------------------------------


@pytest.fixture
def read_by_ann(directory):
    """A calibration whose replies someone graded."""
    here = ReadingRoom.open(directory)
    grades = Grades({})
    for one in here.sample(40, "ann"):
        grades = grades.with_grade("ann", one.id, int(by_word({"reply": one.text})))
    (directory / GRADES_FILE).write_bytes(grades.to_bytes())
    return directory


def tree(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_applied_grades_are_in_config_report_summary_and_probe_and_nothing_else_changes(
    capsys, read_by_ann, finished
):
    status, out, _ = run(capsys, "grade", read_by_ann, "--apply")
    assert status == 0
    assert "steering.json: measured.readers" in out
    config = calibrate.load(read_by_ann)
    readers = config.measured.readers
    assert readers.graders == ["ann"]
    unread = config.measured.model_copy(update={"readers": None})
    assert config.model_copy(update={"measured": unread}) == finished.result.config
    fitted, probe = finished.result.probe, probes.load(read_by_ann / "probe")
    assert probe.scale == probes.scale.Scale(readers.scale.slope, readers.scale.offset)
    assert np.array_equal(probe.weights, fitted.weights)
    assert "blind" in (read_by_ann / "report.html").read_text()
    assert "to readers" in run(capsys, "show", read_by_ann)[1]
    assert readers.scale.log_loss <= readers.scale.log_loss_before
    changed = {p for p, content in tree(read_by_ann).items()
               if content != tree(finished.directory).get(p)}  # fmt: skip
    assert {p.name for p in changed} <= {"steering.json", "probe.json", "report.html", GRADES_FILE}


def test_the_same_grades_change_nothing_a_second_time(capsys, read_by_ann):
    run(capsys, "grade", read_by_ann, "--apply")
    before = tree(read_by_ann)
    status, out, _ = run(capsys, "grade", read_by_ann, "--apply")
    assert status == 0
    assert "nothing changes" in out
    assert tree(read_by_ann) == before


def test_a_corrected_probe_scores_on_the_corrected_scale(read_by_ann, finished):
    import tiny

    fitted, model = finished.result.probe, tiny.loaded("gpt2")
    texts = [*tiny.texts(tiny.BRIGHT, 10), *tiny.texts(tiny.DULL, 10), ""]
    corrected = fitted.rescaled(probes.scale.Scale(0.5, 1.0))
    scores, again = fitted.score(texts, model), corrected.score(texts, model)
    assert again[:-1] == pytest.approx(expit(0.5 * logit(scores[:-1]) + 1.0))
    assert again[-1] == 0
    assert corrected.as_fitted.score(texts, model) == pytest.approx(scores)
    assert corrected.rescaled(probes.scale.Scale(0.5, 1.0)) is corrected
    corrected.save(read_by_ann / "other")
    assert probes.load(read_by_ann / "other").scale == corrected.scale


def test_more_grades_correct_the_probe_as_it_was_fitted(read_by_ann, finished):
    here = ReadingRoom.open(read_by_ann)
    apply_grades(here, load_grades(read_by_ann))
    flipped = Grades({"ann": {k: 2 - v for k, v in load_grades(read_by_ann).of("ann").items()}})
    section, changes = apply_grades(here, flipped)
    assert len(changes) == 2
    fresh = finished.directory.parent / "fresh"
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(finished.directory, fresh)
    straight, _ = apply_grades(ReadingRoom.open(fresh), flipped)
    assert section == straight
    again, direct = (probes.load(one / "probe") for one in (read_by_ann, fresh))
    assert again.scale == direct.scale


def test_where_another_judge_read_only_the_artefact_is_corrected(read_by_ann):
    result = Calibration.load(read_by_ann)
    measured = result.config.measured.model_copy(update={"judges": ["embedding"]})
    config = result.config.model_copy(update={"measured": measured})
    Calibration(config, result.evidence, None).save(read_by_ann)
    section, changes = apply_grades(ReadingRoom.open(read_by_ann), load_grades(read_by_ann))
    assert section.scale is None
    assert len(changes) == 1


def test_grades_are_applied_under_the_directorys_lock_to_what_is_there_by_then(
    read_by_ann, monkeypatch
):
    here, grades = ReadingRoom.open(read_by_ann), load_grades(read_by_ann)
    save = saved.save

    def locked(directory, *parts):
        with pytest.raises(Timeout):
            FileLock(directory / WORKERS_FOLDER / WRITING_LOCK, timeout=0).acquire()
        save(directory, *parts)

    monkeypatch.setattr(saved, "save", locked)
    assert len(apply_grades(here, grades)[1]) == 2
    provenance = here.config.provenance.model_copy(update={"fingerprint": "another"})
    other = here.config.model_copy(update={"provenance": provenance})
    result = Calibration.load(read_by_ann)
    save(read_by_ann, other, result.evidence, result.probe)
    before = tree(read_by_ann)
    with pytest.raises(ArtefactError, match="holds another by now; run the command again"):
        apply_grades(here, grades)
    assert tree(read_by_ann) == before


# --- What is refused ----------------------------------------------------------------------------

MADE = "made by another program"


def unlike(kept=1, prompts=64, empty=0):
    """Evidence with so many replies to so many prompts, some of them empty."""
    rows = [
        CompletionRecord(
            prompt=f"prompt {number}",
            unsteered="plain",
            steered="" if number < empty else "steered",
            unsteered_presence=0.1,
            steered_presence=0.9,
            reply=reply,
        )
        for number in range(prompts)
        for reply in range(kept)
    ]
    return Evidence.model_construct(completions=rows)


def drawn(n):
    """A config with so many replies to each prompt."""
    measured = MeasuredSection.model_construct(presence=SimpleNamespace(n_replies=n))
    return SteeringConfig.model_construct(measured=measured)


def sheet(name, content):
    def act(folder):
        (folder / name).write_text(content)
        return read_sheet(folder / name, {"p1", "s1"})

    return act


def foreign(content):
    def act(folder):
        (folder / GRADES_FILE).write_text(content)
        load_grades(folder)

    return act


def taken(folder):
    (folder / "sheet.csv").write_text("years of work")
    write_sheet(folder / "sheet.csv", room().sample(40, "ann"))


REFUSED = (
    Refused(
        "grade a directory that is no calibration",
        "… must hold a steering.json, but it cannot be read (…); name a directory that calibrate "
        "wrote",
        ReadingRoom.open,
        ArtefactError,
    ),
    Refused(
        "grade a calibration of an earlier release",
        "… keeps one of the 2 replies to each prompt, as earlier releases did, and grades need "
        "them all; run the same calibration again into a new --out",
        lambda folder: blind._require_all_replies(folder, drawn(2), unlike(kept=1)),
        ArtefactError,
    ),
    Refused(
        "grade a calibration whose replies are nearly all empty",
        "… must have 5 prompts or more with a plain and a steered reply that are not empty, got 3; "
        "calibrate again with more --prompts",
        lambda folder: blind._pairs(folder, unlike(kept=2, empty=61), 0),
        ArtefactError,
    ),
    Refused(
        "ask for more replies than there are",
        "--replies must be even, at least 10 and at most 128 here, a plain and a steered reply to "
        "each prompt, got 300",
        lambda _: room().sample(300, "ann"),
    ),
    Refused(
        "ask for replies that make no pairs",
        "--replies must be even, …, got 41",
        lambda _: room().sample(41, "ann"),
    ),
    Refused(
        "infer from a handful of grades",
        "both replies to at least 5 prompts must be graded, got 4; grade more: calibrate grade …",
        lambda _: infer(room(), graded(random_table(4))),
    ),
    Refused(
        "grades of another calibration's replies",
        "…grades.json must grade this calibration's replies, got 2 grades of others ('p64', say); "
        "move it away",
        lambda _: infer(room(), graded(random_table(65))),
        ArtefactError,
    ),
    Refused(
        "a grades.json of the user's",
        "… must hold grades that calibrate grade wrote, got something else; move it away",
        foreign('{"ann": 5}'),
        ArtefactError,
    ),
    Refused(
        "a grades.json of a later version",
        "… must be steering-grades of version 1, got 7; use the release that wrote it",
        foreign('{"format": "steering-grades", "version": 7}'),
        ArtefactError,
    ),
    Refused(
        "a grades.json with a grade that is none",
        "… is damaged: graders must give 0, 1, 2 or null to each reply; move it away, and grade "
        "again or --import a sheet",
        foreign('{"format": "steering-grades", "version": 1, "graders": {"ann": {"p1": 3}}}'),
        ArtefactError,
    ),
    Refused(
        "export over a file",
        "… is in the way, and was not written by steering-calibrate or has been changed since; "
        "move it away, or choose another directory",
        taken,
        ArtefactError,
    ),
    Refused(
        "export a sheet in another format",
        "--export must be a .csv or .jsonl file, got …sheet.xlsx",
        lambda folder: write_sheet(folder / "sheet.xlsx", []),
    ),
    Refused(
        "import a sheet in another format",
        "--import must be a .csv or .jsonl file, got …sheet.xlsx",
        sheet("sheet.xlsx", ""),
    ),
    Refused(
        "import a sheet that is not there",
        "cannot read …: No such file or directory",
        lambda folder: read_sheet(folder / "sheet.csv", {"p1"}),
        ConceptError,
    ),
    Refused(
        "import a grade of 3",
        "… line 2 must have grade 0, 1, 2 or nothing, got '3'; leave it empty where you cannot "
        "tell",
        sheet("sheet.csv", "id,grade\np1,3\n"),
    ),
    Refused(
        "import a grade that is a truth value",
        "… line 1 must have grade 0, 1, 2 or nothing, got true; …",
        sheet("sheet.jsonl", '{"id": "p1", "grade": true}'),
    ),
    Refused(
        "import a grade of an unknown reply",
        "… line 3 must have the id of a reply of this calibration, got 'p9'; --export writes a "
        "sheet with all of them",
        sheet("sheet.csv", "id,grade\np1,2\np9,1\n"),
    ),
    Refused(
        "import a sheet without ids",
        "… line 2 must have the id of a reply of this calibration, got null; …",
        sheet("sheet.csv", "reply,grade\nso so,2\n"),
    ),
    Refused(
        "import two grades of one reply",
        "… line 3 must grade a reply of its own, got id 'p1' a second time; sheets of several "
        "people are imported one by one, each with its --grader",
        sheet("sheet.csv", "id,grade\np1,2\np1,1\n"),
    ),
    Refused(
        "import a sheet that nobody filled in",
        "… must have grades in column 'grade', got none",
        sheet("sheet.csv", "id,grade\np1,\ns1,\n"),
    ),
)


@each(REFUSED)
def test_what_cannot_be_graded_is_refused(row, tmp_path):
    row.check(tmp_path)


def test_without_a_terminal_a_session_names_the_way_out(capsys, directory):
    status, _, err = run(capsys, "grade", directory)
    assert status == 2
    assert err == (
        "calibrate: grades are given in a terminal, and this is none; write a sheet with --export "
        "FILE, and read it back with --import FILE\n"
    )


def test_a_grades_file_of_the_users_is_never_overwritten(capsys, directory, keys):
    (directory / GRADES_FILE).write_text(MADE)
    keys += ["1", "q"]
    status, _, err = run(capsys, "grade", directory, "--grader", "ann")
    assert status == 2
    assert "must hold grades that calibrate grade wrote" in err
    assert (directory / GRADES_FILE).read_text() == MADE


def test_an_export_goes_alone(capsys, directory, tmp_path):
    arguments = ("grade", directory, "--export", tmp_path / "sheet.csv", "--apply")
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert "--export goes alone" in err
