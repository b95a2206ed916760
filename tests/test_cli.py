"""The command line: statuses, one-line errors, machine-readable output, instant help."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import tiny

from calibrate import cli

COMMAND = [sys.executable, "-c", "from calibrate.cli import main; main()"]
EVERYDAY = "bright.jsonl"


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory):
    """A random GPT-2 saved the way transformers saves models."""
    directory = tmp_path_factory.mktemp("model") / "tiny"
    tiny.model("gpt2").save_pretrained(directory)
    tiny.tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture
def workplace(tmp_path, monkeypatch, tiny_options):
    """A directory with a concept file, where commands run."""
    monkeypatch.chdir(tmp_path)
    texts = tiny_options["concept"].texts
    rows = [{"text": t.text, "label": "positive"} for t in texts.positives]
    rows += [{"text": t.text, "label": "negative"} for t in texts.negatives]
    (tmp_path / EVERYDAY).write_text("\n".join(json.dumps(row) for row in rows))
    return tmp_path


def run(capsys, *arguments):
    """Run the command line in this process; return (status, stdout, stderr)."""
    old = sys.argv
    sys.argv = ["calibrate", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as stop:
            cli.main()
    finally:
        sys.argv = old
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def main_job(model_directory, tiny_options, *extra):
    return [
        *("--model", model_directory, "--concept", EVERYDAY),
        *("--prompts", tiny_options["prompts"], "--ce-budget", "1.0", "--trials", "2", "--quiet"),
        *extra,
    ]


def test_help_answers_in_half_a_second():
    times = []
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run([*COMMAND, "--help"], capture_output=True, check=True, text=True)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.5
    assert "--ce-budget" in done.stdout


def test_the_main_job_writes_a_config_and_prints_the_headline(
    capsys, workplace, model_directory, tiny_options
):
    status, out, err = run(capsys, *main_job(model_directory, tiny_options))
    assert (status, err) == (0, "")
    assert "steered towards bright" in out
    config = json.loads((workplace / "bright-tiny" / "steering.json").read_text())
    assert config["concept"]["name"] == "bright"

    again = run(capsys, *main_job(model_directory, tiny_options, "--json"))
    assert again[0] == 0
    assert json.loads(again[1]) == config

    status, out, _ = run(capsys, "show", "bright-tiny")
    assert status == 0
    for word in ("ΔCE", "presence", "unsteered", "token-forwards", "report.html"):
        assert word in out
    assert json.loads(run(capsys, "show", "bright-tiny", "--json")[1]) == config

    status, out, _ = run(
        capsys, "generate", "bright-tiny", "--prompt", "the river", "--json", "--max-tokens", 8
    )
    replies = json.loads(out)
    assert status == 0
    assert replies["strength"] == config["intervention"]["strength"]
    assert replies["steered"] != replies["unsteered"]
    same = run(
        capsys, "generate", "bright-tiny", "--prompt", "the river", "--json", "--strength", 0
    )
    assert json.loads(same[1])["steered"] == json.loads(same[1])["unsteered"]


def test_progress_goes_to_standard_error(capsys, workplace, model_directory, tiny_options):
    arguments = [a for a in main_job(model_directory, tiny_options, "--json") if a != "--quiet"]
    status, out, err = run(capsys, *arguments)
    assert status == 0
    json.loads(out)
    for word in ("unsteered replies", "trial 1", "block", "ΔCE", "verification"):
        assert word in err


def test_concepts_lists_the_built_in_ones(capsys):
    status, out, _ = run(capsys, "concepts")
    assert status == 0
    assert "joy" in out
    assert "72 + 72" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--concept is missing"),
        (["--concept", "jo"], "got 'jo'; did you mean joy"),
        (["--concept", "joy", "--ce-budget", "0"], "above 0 nat, got 0"),
        (["--concept", "joy", "--ce-budget", "nan"], "above 0 nat, got nan"),
        (["--concept", "joy", "--ce-budget", "lots"], "'lots' is not a valid float"),
        (["--concept", "joy", "--layer", "middle"], "must be auto or a block's number"),
        (["--concept", "joy", "--goal", "explode"], "'explode' is not one of"),
        (["--concept", "joy", "--colour", "red"], "No such option '--colour'"),
        (["--concept", "x", "--positives", "gone.txt", "--negatives", "gone.txt"], "cannot read"),
        (["--concept", "x", "--positives", "gone.txt"], "go together"),
        (["--concept", "joy", "--negatives", "random", "--negatives", "contrastive"], "takes one"),
        (["--concept", "joy", "--prompts", "gone.txt"], "cannot read gone.txt: No such file"),
        (["show", "nowhere"], "nowhere must hold a steering.json"),
        (["generate", "nowhere", "--prompt", "hi"], "nowhere must hold a steering.json"),
        (["generate", "nowhere"], "Missing option '--prompt'"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(capsys, workplace, arguments, said):
    status, out, err = run(capsys, *arguments)
    assert status == 2
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert [p.name for p in workplace.iterdir()] == [EVERYDAY]


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--layer", "3"], "layer must be in 0..2 for"),
        (["--layer", "-1"], "layer must be in 0..2 for"),
        (["--blocks", "transformer.x"], "--blocks must name a module list, got 'transformer.x'"),
        (["--out", EVERYDAY], "--out must be a directory"),
        (["--out", "."], "holds 'bright.jsonl'; choose another --out"),
        (["--corpus", "gone.txt"], "cannot read gone.txt"),
        (["--storage", "mysterious://x"], "--storage must be a database URL"),
        (["--describe", "sunny"], "needs a model with a chat template"),
    ],
)
def test_bad_input_that_needs_the_model_is_one_line_and_status_2(
    capsys, workplace, model_directory, tiny_options, extra, said
):
    status, out, err = run(capsys, *main_job(model_directory, tiny_options, *extra))
    assert status == 2
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
    assert not list(workplace.glob("*/steering.json"))


def test_an_infeasible_request_is_status_3_with_a_report(
    capsys, workplace, model_directory, tiny_options
):
    plain = tiny.texts(tiny.PLAIN, 80, seed=8)
    (workplace / "these.txt").write_text("\n".join(plain[:40]))
    (workplace / "those.txt").write_text("\n".join(plain[40:]))
    texts = ("--concept", "nothing", "--positives", "these.txt", "--negatives", "those.txt")
    status, out, err = run(capsys, *main_job(model_directory, tiny_options, *texts))
    assert status == 3
    assert out == ""
    assert "the probe cannot tell 'nothing' apart" in err
    assert "could be tried: give more texts" in err
    assert [p.name for p in (workplace / "nothing-tiny").iterdir()] == ["report.html"]


def test_an_unexpected_error_is_not_swallowed(monkeypatch, capsys, workplace):
    monkeypatch.setattr("calibrate.concept.read_concept", lambda *_: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["calibrate", "--concept", "joy"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_ctrl_c_leaves_a_resumable_study_and_says_so(workplace, model_directory, tiny_options):
    arguments = main_job(model_directory, tiny_options, "--trials", "400")
    arguments = [str(a) for a in arguments if a != "--quiet"]
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ},
        # A shell starts background jobs with SIGINT ignored, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "trial 3" in line:
            break
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(timeout=60) == 130
    assert "finished trials are kept in bright-tiny, and the same command goes on" in rest
    assert "Traceback" not in rest
    assert [p.name for p in (workplace / "bright-tiny").iterdir()] == ["study.journal"]


def test_laws_writes_pictures_and_points_and_says_where_each_law_held(
    capsys, model_directory, workplace, tiny_options
):
    arguments = [
        *("laws", "--model", model_directory, "--concept", EVERYDAY, "--layer", "0"),
        *("--prompts", tiny_options["prompts"], "--ce-budget", "0.4", "--out", "curves"),
    ]
    status, out, _ = run(capsys, *arguments)
    assert status == 0
    assert "ΔCE" in out
    assert sorted(path.name for path in (workplace / "curves").iterdir()) == sorted(
        [
            "laws.json",
            *(f"{n}.{f}" for n in ("tokens", "concept", "delta_ce") for f in ("png", "svg")),
        ]
    )
    status, out, _ = run(capsys, *arguments, "--json", "--quiet")
    assert status == 0
    assert json.loads(out) == json.loads((workplace / "curves" / "laws.json").read_text())


def test_laws_leaves_other_directories_alone(capsys, model_directory, workplace):
    (workplace / "other").mkdir()
    (workplace / "other" / "thesis.txt").write_text("mine")
    status, _, err = run(
        capsys, "laws", "--model", model_directory, "--concept", EVERYDAY, "--out", "other"
    )
    assert status == 2
    assert "thesis.txt" in err
