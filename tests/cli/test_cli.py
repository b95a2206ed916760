"""The command line: statuses, one-line errors, machine-readable output, instant help."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import fields

import pytest
import tiny

import calibrate
from calibrate.cli import commands as cli
from calibrate.common.errors import InputError, VerificationFailed
from calibrate.common.settings import Sampling, Settings

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


def said_wrong(err):
    """The lines on standard error that are no notes."""
    return [line for line in err.splitlines() if not line.startswith("calibrate: note: ")]


def main_job(model_directory, tiny_options, *extra):
    return [
        *("--model", model_directory, "--concept", EVERYDAY),
        *("--prompts", tiny_options["prompts"], "--ce-budget", "1.0", "--trials", "2", "--quiet"),
        *("--min-gain", "0", "--teacher", "none", "--audit", "none"),
        *extra,
    ]


def test_help_answers_without_importing_anything_large():
    code = """
import sys
before = {*sys.modules}
from calibrate.cli import main
try:
    main()
finally:
    roots = {name.partition(".")[0] for name in {*sys.modules} - before}
    print(*sorted(roots - sys.stdlib_module_names), file=sys.stderr)
"""
    command = [sys.executable, "-c", code, "--help"]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    assert "--ce-budget" in done.stdout
    assert done.stderr.split() == ["calibrate", "click"]


def test_every_setting_is_an_option_and_without_options_all_are_at_their_defaults(
    monkeypatch, capsys
):
    given = {}
    monkeypatch.setattr(cli, "run_main_job", given.update)
    assert run(capsys, "--concept", "joy")[0] == 0
    names = {entry.name for entry in fields(Settings)} - {"sampling"}
    assert given["negatives"] == ()
    assert given["ce_budget"] == (Settings().ce_budget,)
    assert (
        Settings(**{name: given[name] for name in names - {"negatives", "ce_budget"}}) == Settings()
    )
    assert given["reply_tokens"] == Sampling().max_new_tokens


def test_the_main_job_writes_a_config_and_prints_the_headline(
    capsys, workplace, model_directory, tiny_options
):
    status, out, err = run(capsys, *main_job(model_directory, tiny_options))
    assert (status, said_wrong(err)) == (0, [])
    assert "note: nobody has graded replies for 'bright'" in err
    assert "steered towards bright" in out
    config = json.loads((workplace / "bright-tiny" / "steering.json").read_text())
    assert config["concept"]["name"] == "bright"

    again = run(capsys, *main_job(model_directory, tiny_options, "--json"))
    assert again[0] == 0
    printed = json.loads(again[1])
    assert printed == config | {"menu": printed["menu"]}

    status, out, _ = run(capsys, "show", "bright-tiny")
    assert status == 0
    for word in ("ΔCE", "presence", "unsteered", "token-forwards", "report.html"):
        assert word in out
    assert json.loads(run(capsys, "show", "bright-tiny", "--json")[1]) == printed

    status, out, _ = run(
        capsys, "generate", "bright-tiny", "--prompt", "the river", "--json", "--max-tokens", 8
    )
    replies = json.loads(out)
    assert status == 0
    assert replies["strength"] == config["intervention"]["strength"]
    assert replies["steered"] != replies["unsteered"]
    assert replies["answered"] == {"unsteered": True, "steered": True}
    same = run(
        capsys, "generate", "bright-tiny", "--prompt", "the river", "--json", "--strength", 0
    )
    assert json.loads(same[1])["steered"] == json.loads(same[1])["unsteered"]


@pytest.fixture(scope="module")
def calibrated(model_directory, tiny_options, tmp_path_factory):
    """A finished calibration of a model on disk, made by the command line."""
    folder = tmp_path_factory.mktemp("calibrated")
    result = calibrate.calibrate(
        str(model_directory), out=folder / "bright", **{**tiny_options, "tokenizer": None}
    )
    return result, folder / "bright"


def test_verify_opens_for_a_fresh_artefact_and_closes_for_a_tampered_one(capsys, calibrated):
    _, directory = calibrated
    status, out, err = run(capsys, "verify", directory)
    assert status == 0
    assert all(word in out for word in ("identity", "reference", "budget", "presence"))
    assert "✗" not in out
    path = directory / "steering.json"
    fresh = path.read_text()
    facts = json.loads(fresh)
    facts["intervention"]["strength"] *= 3
    path.write_text(json.dumps(facts))
    try:
        status, out, err = run(capsys, "verify", directory, "--json")
    finally:
        path.write_text(fresh)
    assert status == 4
    assert json.loads(out)["passed"] is False
    assert "calibrate: steered log-probabilities must be as recorded" in err
    assert "and the config says" in err
    status, out, _ = run(capsys, "verify", directory, "--quick")
    assert status == 0
    assert "budget" not in out


def test_verify_measures_in_another_stack(capsys, calibrated):
    _, directory = calibrated
    status, out, _ = run(capsys, "verify", directory, "--against", "folded")
    assert status == 0
    assert "budget in folded" in out
    status, _, err = run(capsys, "verify", directory, "--against", "tensorrt")
    assert status == 2
    assert "--against must be one of llama.cpp, peft, folded, got 'tensorrt'" in err


def test_an_export_for_a_stack_that_fails_is_in_the_report(monkeypatch, capsys, calibrated):
    def fails(*_, **__):
        raise VerificationFailed("the folded export must reproduce the log-probabilities")

    monkeypatch.setattr("calibrate.deploy.runtimes.export", fails)
    quick = ("verify", calibrated[1], "--quick", "--against", "folded")
    status, out, err = run(capsys, *quick, "--json")
    assert status == 4
    assert json.loads(out)["checks"][-1] == {
        "name": "budget in folded",
        "passed": False,
        "found": "the folded export must reproduce the log-probabilities",
    }
    assert "must reproduce" in err


def test_an_export_is_not_taken_for_its_calibration(capsys, calibrated, tmp_path):
    """The base model would be checked, and not the weights of the export."""
    _, directory = calibrated
    for name in ("peft", "folded"):
        target = tmp_path / name
        assert run(capsys, "export", directory, "--format", name, "--to", target)[0] == 0
        status, out, err = run(capsys, "verify", target, "--quick")
        assert (status, out) == (2, "")
        assert f"must be a calibration's directory, got a {name} export of one" in err
        assert f"with --against {name}" in err


def test_export_says_how_close_it_came_and_how_to_serve_it(capsys, calibrated, tmp_path):
    _, directory = calibrated
    target = tmp_path / "adapter"
    status, out, _ = run(capsys, "export", directory, "--format", "peft", "--to", target)
    assert status == 0
    assert "log-probabilities as in the calibration within" in out
    assert f"PeftModel.from_pretrained(model, '{target}')" in out
    status, out, _ = run(
        capsys, "generate", target, "--prompt", "the road", "--json", "--max-tokens", 8
    )
    assert status == 0
    assert json.loads(out)["steered"] != json.loads(out)["unsteered"]
    status, out, _ = run(
        capsys, "export", directory, "--format", "svec", "--to", tmp_path / "v.svec", "--no-check"
    )
    assert status == 0
    assert "unchecked" in out


def test_a_refused_or_unknown_export_is_status_2(capsys, calibrated, tmp_path):
    _, directory = calibrated
    for name, said in (("onnx", "--format must be one of gguf"), ("lm-eval", "must end in .pt")):
        status, out, err = run(
            capsys, "export", directory, "--format", name, "--to", tmp_path / "x"
        )
        assert (status, out) == (2, "")
        assert said in err
    assert list(tmp_path.iterdir()) == []


def test_chat_replies_and_obeys(capsys, monkeypatch, calibrated):
    result, directory = calibrated
    lines = iter(["/strength 0.25", "sun laugh", "", "/nonsense", "/off", "rain"])

    def line(prompt):
        print(prompt, end="")
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", line)
    status, out, _ = run(capsys, "chat", directory, "--max-tokens", 8)
    assert status == 0
    alpha = f"{result.config.intervention.strength:+.4g}"
    assert f"bright (increased), calibrated at α = {alpha}" in out
    assert f"[{alpha}]" in out
    assert "[+0.25]" in out
    assert "there is no /nonsense" in out
    assert "[+0]" in out
    assert any(word in out for word in tiny.VOCABULARY[5:])


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
    assert "244 + 244" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--concept is missing"),
        (["--concept", "jo"], "got 'jo'; did you mean joy"),
        (["--concept", "joy", "--ce-budget", "0"], "above 0 nat, got 0"),
        (["--concept", "joy", "--ce-budget", "nan"], "above 0 nat, got nan"),
        (
            ["--concept", "joy", "--ce-budget", "lots"],
            "must be numbers set apart by commas, such as 0.05,0.1,0.2, got 'lots'",
        ),
        (
            ["--concept", "joy", "--layer", "middle"],
            "layer must be auto, search, a block's number, or several such as 8-26 or 8,12,20, got",
        ),
        (
            ["--concept", "joy", "--chat-template-kwargs", "[1]"],
            "'--chat-template-kwargs': must be a JSON object, got '[1]'",
        ),
        (["--concept", "joy", "--chat-template-kwargs", "{"], "a JSON object, got '{' (Expecting"),
        (["--concept", "joy", "--goal", "explode"], "'explode' is not one of"),
        (["--concept", "joy", "--colour", "red"], "No such option"),
        (["--concept", "x", "--positives", "gone.txt", "--negatives", "gone.txt"], "cannot read"),
        (["--concept", "x", "--positives", "gone.txt"], "go together"),
        (["--concept", "joy", "--negatives", "random", "--negatives", "contrastive"], "takes one"),
        (["--concept", "joy", "--prompts", "gone.txt"], "cannot read gone.txt: No such file"),
        (["--concept", "joy", "--judge", "probe"], "judge must be auto, "),
        (["--concept", "joy", "--audit", "embeding"], "got 'embeding'; did you mean embedding"),
        (["--concept", "joy", "--precision", "2"], "precision must be between 0 and 1, got 2"),
        (["--concept", "joy", "--min-gain", "-1"], "the wished gain must be from 0 up to 1"),
        (["show", "nowhere"], "nowhere must hold a steering.json"),
        (["verify", "nowhere"], "nowhere must hold a steering.json"),
        (["chat", "nowhere"], "nowhere must hold a steering.json"),
        (["export", "nowhere", "--format", "gguf", "--to", "x"], "nowhere must hold a steering"),
        (["export", "nowhere", "--format", "gguf"], "Missing option '--to'"),
        (["generate", "nowhere", "--prompt", "hi"], "nowhere must hold a steering.json"),
        (["generate", "nowhere"], "Missing option '--prompt'"),
        (["--model", "m", "verify", "joy"], "go after it, got --model before verify"),
        (
            ["--quiet", "--ce-budget", "0.2", "pick", "joy", "--out", "x"],
            "go after it, got --ce-budget, --quiet before pick",
        ),
        (
            ["--concept", "x", "--describe", "sunny", "--positives", "gone.txt"],
            "--describe has the model write the texts, so --positives and --negatives FILE must be",
        ),
        (
            ["--concept", "x", "--describe", "sunny", "--negatives", "gone.txt"],
            "left out, got gone.txt",
        ),
        (
            ["--concept", "joy", "--judge", "question", "--fetch-teacher"],
            "--fetch-teacher needs --judge auto, got question",
        ),
        (
            ["--concept", "joy", "--teacher", "none", "--fetch-teacher"],
            "--fetch-teacher needs a teacher, got --teacher none",
        ),
        (
            ["verify", "nowhere", "--quick", "--corpus", EVERYDAY],
            "--quick measures no cross-entropy, so --corpus must be left out, got bright.jsonl",
        ),
        (["verify", "me/joy"], "must be a directory for the gate, and there is none; name one, or"),
        (
            ["verify", "hub:joy"],
            "hub: must stand before USER/NAME or USER/NAME@REVISION, got hub:j",
        ),
        (["frontier", "me/joy"], "must be a directory, since the frontier is written into it"),
        (["grade", "me/joy"], "must be a directory, since grades are written into it"),
        *(
            ([*command, place], "me/joy must hold a steering.json")
            for command in (("show",), ("verify",), ("generate", "--prompt", "hi"), ("frontier",))
            for place in ("./me/joy", "me/joy/", "x/../me/joy")
        ),
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
        (["--layer", "1-3"], "layer must be in 0..2 for"),
        (["--blocks", "transformer.x"], "--blocks must name a module list, got 'transformer.x'"),
        (["--out", EVERYDAY], "--out must be a directory"),
        (["--out", "."], "holds 'bright.jsonl'; choose another --out"),
        (["--corpus", "gone.txt"], "cannot read gone.txt"),
        (["--storage", "mysterious://x"], "--storage must be a database URL"),
        (["--describe", "sunny"], "needs a model with a chat template"),
        (["--teacher", "gone.gguf"], "a .gguf model must be an existing file, got 'gone.gguf'"),
        (["--max-tokens", "0"], "--max-tokens must be above 0, got 0"),
        (["--max-minutes", "-1"], "--max-minutes must be above 0, got -1"),
        (["--max-tokens", "100"], "the limits must allow for one block, one trial and the verif"),
    ],
)
def test_bad_input_that_needs_the_model_is_one_line_and_status_2(
    capsys, workplace, model_directory, tiny_options, extra, said
):
    status, out, err = run(capsys, *main_job(model_directory, tiny_options, *extra))
    assert status == 2
    assert out == ""
    (line,) = said_wrong(err)
    assert said in line
    assert not list(workplace.glob("*/steering.json"))


def test_an_infeasible_request_is_status_3_with_a_report(
    capsys, workplace, model_directory, tiny_options
):
    plain = tiny.texts(tiny.PLAIN, 60, seed=8)
    for name, few, others in (("these", tiny.BRIGHT, plain[:30]), ("those", tiny.DULL, plain[30:])):
        (workplace / f"{name}.txt").write_text("\n".join([*tiny.texts(few, 10), *others]))
    texts = ("--concept", "vague", "--positives", "these.txt", "--negatives", "those.txt")
    status, out, err = run(capsys, *main_job(model_directory, tiny_options, *texts))
    assert status == 3
    assert out == ""
    assert "the probe cannot tell 'vague' apart" in err
    assert "could be tried: give more texts" in err
    assert [p.name for p in (workplace / "vague-tiny").iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("at_hand", "typed", "fetches"), [(True, "y", None), (False, "y", True), (False, "n", False)]
)
def test_a_person_is_asked_before_the_teacher_is_fetched(
    monkeypatch, workplace, model_directory, tiny_options, at_hand, typed, fetches
):
    class Typing(io.StringIO):
        def isatty(self):
            return True

    given = {}

    def calibration(*_, **options):
        given.update(options)
        raise InputError("enough")

    monkeypatch.setattr("calibrate.judging.choice.is_installed", lambda: True)
    monkeypatch.setattr("calibrate.judging.choice.is_at_hand", lambda _: at_hand)
    monkeypatch.setattr("calibrate.calibration.calibrate", calibration)
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _: typed)
    monkeypatch.setattr(sys, "stdin", Typing())
    arguments = main_job(model_directory, tiny_options)
    place = arguments.index("--teacher")
    del arguments[place : place + 2]
    monkeypatch.setattr(sys, "argv", ["calibrate", *map(str, arguments)])
    with pytest.raises(SystemExit):
        cli.main()
    assert bool(given["fetch_teacher"]) is bool(fetches)


def test_an_unexpected_error_is_not_swallowed(monkeypatch, capsys, workplace):
    monkeypatch.setattr("calibrate.texts.concept.read_concept", lambda *_: 1 / 0)
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
        if "trial 1" in line:
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
    status, out, err = run(capsys, *arguments, "--quiet")
    assert (status, err) == (0, "")
    (headline,) = out.splitlines()
    assert headline.startswith("The laws of steering")


def test_laws_refuses_before_the_model_loads_what_no_judge_would_heed(capsys, workplace):
    (workplace / "question.txt").write_text("Is {text} of {concept}?")
    for given, rule in (
        (("--teacher", "qwen2.5-1.5b"), "--teacher needs --judge auto, got nobody"),
        (("--judge", "auto", "--teacher", "no.gguf"), "must be an existing file, got 'no.gguf'"),
        (("--judge-question", "question.txt"), "--judge-question needs a judge"),
        (("--judge", "question", "--judge-url", "http://localhost:1"), "--judge-url needs a judge"),
    ):
        status, _, err = run(capsys, "laws", "--model", "no-model", "--concept", EVERYDAY, *given)
        assert status == 2
        assert rule in " ".join(err.split())


def test_laws_leaves_other_directories_alone(capsys, model_directory, workplace):
    (workplace / "other").mkdir()
    (workplace / "other" / "thesis.txt").write_text("mine")
    status, _, err = run(
        capsys, "laws", "--model", model_directory, "--concept", EVERYDAY, "--out", "other"
    )
    assert status == 2
    assert "thesis.txt" in err
