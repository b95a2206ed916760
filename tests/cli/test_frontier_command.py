"""calibrate frontier and calibrate pick: from the command line, with what users get wrong."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import tiny
from rich.console import Console
from test_cli import EVERYDAY, main_job, run

from calibrate.artefact.beside_section import BesideSection
from calibrate.artefact.grades import GRADES_FILE, Grades
from calibrate.cli.frontier_table import frontier_summary
from calibrate.cli.main_job import _affordable, _with_frontier
from calibrate.common.cost import Limits
from calibrate.common.errors import CalibrateWarning
from calibrate.common.estimate import Interval
from calibrate.common.progress import SILENT
from calibrate.deploy.finished import Calibration
from calibrate.deploy.grading.blind import ReadingRoom


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory, tiny_options):
    directory = tmp_path_factory.mktemp("model") / "tiny"
    tiny.model("gpt2").save_pretrained(directory)
    tiny_options["tokenizer"].save_pretrained(directory)
    return directory


@pytest.fixture
def bright(finished, tmp_path):
    """A finished calibration of its own."""
    directory = tmp_path / "bright"
    shutil.copytree(finished.directory, directory)
    return directory


def test_a_frontier_is_measured_shown_and_added_to_the_directory(capsys, bright, model_directory):
    wanted = ("frontier", bright, "--model", model_directory, "--budgets", "0.2,0.1,0.4")
    status, out, err = run(capsys, *wanted)
    assert status == 0, err
    assert all(budget in out for budget in ("0.1", "0.2", "0.4", "asked in words", "best of 4"))
    frontier = Calibration.load(bright).frontier
    assert [point.budget for point in frontier.points] == [0.1, 0.2, 0.4]
    assert {"frontier.png", "frontier.svg"} <= {path.name for path in bright.iterdir()}

    status, out, _ = run(capsys, "show", bright)
    assert status == 0
    assert "still knows" not in out  # no guard was asked for
    assert f"{frontier.points[0].strength:.4g}" in out
    menu = json.loads(run(capsys, "show", bright, "--json")[1])["menu"]
    assert [each["strength"] for each in menu] == [each.strength for each in frontier.strengths]
    assert all(each["measured"] for each in menu)
    assert [each["budget"] for each in menu if each["shipped"]] == [0.4]

    chosen = bright.parent / "gentle"
    picking = ("pick", bright, "--model", model_directory, "--ce-budget", "0.2", "--out", chosen)
    status, out, err = run(capsys, *picking)
    assert status == 0, err
    config = Calibration.load(chosen).config
    assert config.budget.limit == 0.2
    assert f"{config.intervention.strength:.4g}" in out
    assert "shipped" in out  # the frontier came along
    before = (chosen / "steering.json").read_bytes()
    assert run(capsys, *picking, "--json")[0] == 0  # again: what is there is shown
    assert (chosen / "steering.json").read_bytes() == before
    status, _, err = run(capsys, *picking[:-3], "0.1", *picking[-2:])
    assert status == 2
    assert "other settings" in err
    status, _, err = run(capsys, *picking[:-1], bright)
    assert status == 2
    assert "--out must be another directory than DIR" in err


def grade(directory):
    """Grade the replies in a directory, as a reader does who goes by one word."""
    grades = Grades({})
    for one in ReadingRoom.open(directory).sample(40, "ann"):
        grades = grades.with_grade("ann", one.id, min(2, one.text.split().count("sun")))
    (directory / GRADES_FILE).write_bytes(grades.to_bytes())


def measured_while(monkeypatch, happens):
    """Have something happen at the end of the measurement of every frontier."""
    measure = Calibration.with_frontier

    def with_frontier(calibration, *given, **options):
        measured = measure(calibration, *given, **options)
        happens()
        return measured

    monkeypatch.setattr(Calibration, "with_frontier", with_frontier)


def test_grades_that_are_applied_meanwhile_stay(capsys, bright, model_directory, monkeypatch):
    grade(bright)
    before = Calibration.load(bright)
    measured_while(monkeypatch, lambda: run(capsys, "grade", bright, "--apply"))
    wanted = ("frontier", bright, "--model", model_directory, "--budgets", "0.1", "--no-rivals")
    assert run(capsys, *wanted)[0] == 0
    after = Calibration.load(bright)
    assert after.config.measured.readers.graders == ["ann"]
    assert after.probe.scale != before.probe.scale
    assert [point.budget for point in after.frontier.points] == [0.1]


def write_everyday(folder, tiny_options):
    """The concept of the main job, as a file in the working directory."""
    texts = tiny_options["concept"].texts
    rows = [{"text": one.text, "label": "positive"} for one in texts.positives]
    rows += [{"text": one.text, "label": "negative"} for one in texts.negatives]
    (folder / EVERYDAY).write_text("\n".join(map(json.dumps, rows)))


def test_they_stay_too_where_a_calibration_measures_its_budgets(
    capsys, tmp_path, model_directory, tiny_options, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write_everyday(tmp_path, tiny_options)
    out = tmp_path / "out"

    def graded():
        grade(out)
        run(capsys, "grade", out, "--apply")

    measured_while(monkeypatch, graded)
    several = main_job(model_directory, tiny_options, "--out", out, "--ce-budget", "1.0,0.5")
    status, _, err = run(capsys, *several)
    assert status == 0, err
    result = Calibration.load(out)
    assert result.config.measured.readers.graders == ["ann"]
    assert [point.budget for point in result.frontier.points] == [0.5, 1.0]


def test_where_none_of_several_budgets_ships_what_each_buys_is_shown(
    capsys, tmp_path, model_directory, tiny_options, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write_everyday(tmp_path, tiny_options)
    several = main_job(
        model_directory, tiny_options, "--out", "out", "--ce-budget", "2e-4,1e-4", "--long-run", "0"
    )
    status, out, err = run(capsys, *several)
    assert (status, out) == (3, "")
    assert "calibrate: at 0.0002 nat: " in err

    several.remove("--quiet")
    status, out, err = run(capsys, *several)
    assert status == 3
    assert all(shown in out for shown in ("0.0001", "0.0002", "asked in words", "sure to ship"))
    status, out, err = run(capsys, *several, "--json")
    assert status == 3
    facts = json.loads(out)
    assert [point["budget"] for point in facts["menu"]] == [1e-4, 2e-4]
    assert not any(point["ships"] for point in facts["menu"])
    assert "asked in words" in {rival["name"] for rival in facts["rivals"]}
    assert facts["reasons"][0].startswith("at 0.0002 nat: ")
    assert f"could be tried: {facts['advice'][0]}" in err

    status, _, err = run(capsys, "frontier", "out")
    assert status == 2
    assert "its calibration found no strength; why, and what each budget buys all the same" in err


def test_budgets_beyond_the_limits_or_without_a_judge_leave_the_calibration_as_it_is(finished):
    result, loaded = finished.result, tiny.loaded("gpt2")
    config = result.config
    one = config.cost["verification"].token_forwards
    assert _affordable(3, config, Limits()) == 3
    assert _affordable(3, config, Limits(3 * one)) == 2
    assert _affordable(3, config, Limits(minutes=1e-9)) == 0
    with pytest.warns(CalibrateWarning, match=r"what 0\.1, 0\.2 nat buys .* raise --max-tokens"):
        assert _with_frontier(result, (0.1, 0.2), loaded, None, Limits(one), SILENT) is result
    measured = config.measured.model_copy(update={"judges": ["embedding"]})
    unread = replace(result, config=config.model_copy(update={"measured": measured}))
    with pytest.warns(CalibrateWarning, match="not kept; calibrate anew with another --judge"):
        assert _with_frontier(unread, (0.1, 0.2), loaded, None, Limits(), SILENT) is unread


def test_another_calibration_that_came_meanwhile_is_left_alone(
    capsys, bright, model_directory, monkeypatch
):
    result = Calibration.load(bright)
    provenance = result.config.provenance.model_copy(update={"fingerprint": "another"})
    other = replace(result, config=result.config.model_copy(update={"provenance": provenance}))
    measured_while(monkeypatch, lambda: other.save(bright))
    wanted = ("frontier", bright, "--model", model_directory, "--budgets", "0.1", "--no-rivals")
    status, _, err = run(capsys, *wanted)
    assert status == 2
    assert "holds another by now; run the command again" in err
    assert Calibration.load(bright).config.provenance.fingerprint == "another"
    assert not (bright / "frontier.json").exists()


def test_json_is_the_frontier_and_nothing_else(capsys, bright, model_directory):
    status, out, _ = run(
        capsys,
        *("frontier", bright, "--model", model_directory),
        *("--budgets", "0.1", "--no-rivals", "--json"),
    )
    assert status == 0
    facts = json.loads(out)
    assert facts["format"] == "steering-frontier"
    assert facts["rivals"] == []


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ("", "numbers set apart by commas"),
        ("0.1,,0.2", "numbers set apart by commas"),
        ("much", "numbers set apart by commas"),
        ("0.1;0.2", "numbers set apart by commas"),
        ("0", "the budget must be"),
        ("-0.1", "the budget must be"),
        ("nan", "the budget must be"),
        ("inf", "the budget must be"),
        ("0.1,1e9", "the budget must be"),
    ],
)
def test_budgets_that_are_none_are_refused_before_anything_runs(capsys, bright, budgets, message):
    for command in (("frontier", bright, "--budgets", budgets), ("--ce-budget", budgets)):
        status, _, err = run(capsys, *command)
        assert status == 2
        assert message in err
        assert "Traceback" not in err


def test_a_file_of_another_origin_is_found_before_anything_is_measured(capsys, bright):
    (bright / "frontier.png").write_bytes(b"a holiday")
    status, _, err = run(capsys, "frontier", bright)
    assert status == 2
    assert "frontier.png" in err
    assert (bright / "frontier.png").read_bytes() == b"a holiday"


def test_before_a_frontier_the_summary_foretells_one(capsys, bright):
    status, out, _ = run(capsys, "show", bright)
    assert status == 0
    assert "by the laws" in out
    assert "calibrate frontier" in out
    facts = json.loads(run(capsys, "show", bright, "--json")[1])
    assert [each["measured"] for each in facts["menu"]] == [False, True, False, False]
    assert out.count("foretold") == 1 + 3
    strengths = [each["strength"] for each in facts["menu"]]
    assert strengths == sorted(strengths)
    for each in facts["menu"]:
        assert f"{each['strength']:.4g}" in out


def test_the_own_line_of_the_menu_is_what_was_verified(capsys, bright):
    facts = json.loads(run(capsys, "show", bright, "--json")[1])
    (own,) = [each for each in facts["menu"] if each["source"] == "verified"]
    measured = facts["measured"]
    assert own["budget"] == facts["budget"]["limit"]
    assert own["strength"] == facts["intervention"]["strength"]
    assert own["upper"] == measured["delta_ce"]["upper"]
    assert own["presence"] == {part: measured["presence"][part] for part in own["presence"]}
    assert own["change"] == measured["presence"]["change"]
    assert own["loops"] == measured["long_run"]["loops"]
    assert own["fluency_drop"] == measured["fluency"]["drop"]
    assert own["example"]
    foretold = [each for each in facts["menu"] if each["source"] == "foretold"]
    for each in foretold:
        low, high = each["strength_interval"]
        assert low < each["strength"] < high
        assert each["delta_ce"]["low"] < each["delta_ce"]["value"] < each["delta_ce"]["high"]
        assert 0 <= each["presence"]["low"] < each["presence"]["value"] < each["presence"]["high"]
        assert [each[name] for name in ("upper", "loops", "guard", "ships", "example")] == [
            None
        ] * 5


def test_the_report_has_the_same_menu(capsys, bright):
    menu = json.loads(run(capsys, "show", bright, "--json")[1])["menu"]
    page = (bright / "report.html").read_text()
    assert "What other budgets would buy" in page
    assert page.count('<span class="muted">foretold</span>') == 3
    for each in menu:
        assert f"{each['strength']:.4g}" in page
        assert f"{each['presence']['value']:.3f}" in page


def test_two_concepts_are_refused_before_their_model_is_loaded(capsys, bright):
    result = Calibration.load(bright)
    presence = result.config.measured.presence
    beside = BesideSection(
        name="shine",
        goal="increase",
        fingerprint="another",
        weight=1.0,
        judge="probe",
        presence=Interval(presence.value, presence.low, presence.high),
        baseline=presence.baseline,
        change=presence.change,
    )
    replace(result, config=result.config.model_copy(update={"beside": beside})).save(bright)
    for command in (
        ("frontier", bright, "--model", "nowhere"),
        (
            "pick",
            bright,
            "--model",
            "nowhere",
            "--ce-budget",
            "0.2",
            "--out",
            bright.parent / "two",
        ),
    ):
        status, _, err = run(capsys, *command)
        assert status == 2
        assert "this config also steers 'shine'" in " ".join(err.split())


def test_what_a_hostile_file_says_is_printed_as_it_is(capsys, bright, model_directory):
    wanted = ("frontier", bright, "--model", model_directory, "--budgets", "0.1")
    assert run(capsys, *wanted)[0] == 0
    facts = json.loads((bright / "frontier.json").read_text())
    facts["where"] = facts["points"][0]["why_not"] = facts["rivals"][0]["name"] = "[/red] [x]"
    facts["points"][0]["ships"] = False
    (bright / "frontier.json").write_text(json.dumps(facts))
    config = json.loads((bright / "steering.json").read_text())
    config["cost"]["[/red]"] = config["cost"]["study"]
    (bright / "steering.json").write_text(json.dumps(config))
    status, out, _ = run(capsys, "show", bright)
    assert status == 0
    assert "[/red]" in out
    frontier = Calibration.load(bright).frontier
    console = Console(width=400)
    console.print(frontier_summary(frontier, bright))
    assert capsys.readouterr().out.count("[/red] [x]") == 3


def test_another_model_is_refused(capsys, bright, tmp_path, tiny_options):
    other = tmp_path / "other"
    tiny.model("llama").save_pretrained(other)
    tiny_options["tokenizer"].save_pretrained(other)
    status, _, err = run(capsys, "frontier", bright, "--model", other)
    assert status == 2
    assert "the architecture must be" in err
    assert run(capsys, "frontier", bright.parent / "nowhere")[0] == 2
    assert run(capsys, "pick", bright, "--ce-budget", "0.1")[0] == 2  # no --out
