"""Foreseeable input, by library and command line: one line that says the rule and the way out.

What a console cannot print has a stand-in, JSON an escape, and every exit status is what it is on
a UTF-8 terminal.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import tiny
from refused import Refused, each
from transformers import dynamic_module_utils

import calibrate
import probes
from calibrate.cli import commands as cli
from calibrate.cli import talk
from calibrate.cli.console import readable
from calibrate.common.cost import Limits
from calibrate.common.errors import ArtefactError, CalibrateWarning, InputError
from calibrate.common.settings import Sampling, Settings
from calibrate.deploy.chat import Chat, SteeredModel
from calibrate.models.tokens import Prompt

NAN, INFINITE = float("nan"), float("inf")


def settings(name: str, value: object):
    return lambda _: Settings(**{name: value})


def sampling(name: str, value: object):
    return lambda _: Sampling(**{name: value})


def nobody(**options: object):
    """A calibration of a model there is not: the refusal comes before anything is loaded."""
    return lambda _: calibrate.calibrate("a model that does not exist", "joy", **options)


NATS = "must be a number of at most 100 and above 0 nat, got"
REFUSED = [
    *(
        Refused(
            f"a budget of {value} nat", f"the budget {NATS} {said}", settings("ce_budget", value)
        )
        for value, said in (
            *((0.0, "0"), (-1.0, "-1"), (NAN, "nan"), (INFINITE, "inf"), (1e300, "1e+300")),
            *(("lots", "'lots'"), (None, "None"), (True, "True")),
        )
    ),
    *(
        Refused(
            f"a fluency limit of {value}",
            f"the drop of fluency {NATS} {said}",
            settings("max_fluency_drop", value),
        )
        for value, said in ((0.0, "0"), (NAN, "nan"), (INFINITE, "inf"))
    ),
    *(
        Refused(
            f"{value!r} trials",
            f"there must be at most 10,000 and at least 1 trial, got {said}",
            settings("trials", value),
        )
        for value, said in (
            *((0, "0"), (-3, "-3"), (10**12, "1000000000000"), (2.5, "2.5"), (NAN, "nan")),
            *(("8", "'8'"), (10**50, "1000000000000000000000000000000000000000…")),
        )
    ),
    *(
        Refused(
            f"a precision of {value}",
            f"precision must be between 0 and 1, got {said}",
            settings("precision", value),
        )
        for value, said in ((0.0, "0"), (1.0, "1"), (NAN, "nan"), (INFINITE, "inf"))
    ),
    *(
        Refused(
            f"a wished gain of {value}",
            f"the wished gain must be from 0 up to 1, got {said}",
            settings("min_gain", value),
        )
        for value, said in ((1.0, "1"), (-0.1, "-0.1"), (NAN, "nan"))
    ),
    *(
        Refused(
            f"a confidence of {value}",
            f"confidence must be between 0.5 and 1, got {said}",
            settings("confidence", value),
        )
        for value, said in ((0.5, "0.5"), (1.0, "1"), (95.0, "95"), (NAN, "nan"))
    ),
    *(
        Refused(
            f"the seed {value!r}",
            f"the seed must be 0 or more and below 2**32, got {said}",
            settings("seed", value),
        )
        for value, said in ((-1, "-1"), (2**32, "4294967296"), (1.5, "1.5"), (NAN, "nan"))
    ),
    Refused(
        "a block by name",
        "layer must be auto, search, a block's number, or several such as 8-26 or 8,12,20, "
        "got 'middle'",
        settings("layer", "middle"),
    ),
    Refused(
        "a goal there is not",
        "goal must be increase or decrease, got 'explode'",
        settings("goal", "explode"),
    ),
    Refused(
        "sampling as a dictionary",
        "sampling must be a Sampling, got {'temperature': 1.0}",
        settings("sampling", {"temperature": 1.0}),
    ),
    *(
        Refused(
            f"a temperature of {value}",
            f"the temperature must be above 0 and at most 100, got {said}",
            sampling("temperature", value),
        )
        for value, said in ((0.0, "0"), (-1.0, "-1"), (NAN, "nan"), (INFINITE, "inf"))
    ),
    *(
        Refused(
            f"a nucleus of {value}",
            f"top_p must be above 0 and at most 1, got {said}",
            sampling("top_p", value),
        )
        for value, said in ((0.0, "0"), (1.5, "1.5"), (NAN, "nan"))
    ),
    *(
        Refused(
            f"replies of {value} tokens",
            f"max_new_tokens must be a whole number from 1 to 2**31, got {said}",
            sampling("max_new_tokens", value),
        )
        for value, said in ((0, "0"), (-1, "-1"), (2.5, "2.5"), (10**12, "1000000000000"))
    ),
    *(
        Refused(
            f"{value!r} tokens in all",
            f"--max-tokens must be above 0, got {said}",
            lambda _, value=value: Limits(tokens=value),
        )
        for value, said in ((0, "0"), (NAN, "nan"), (1.5, "1.5"), (True, "True"))
    ),
    *(
        Refused(
            f"{value!r} minutes in all",
            f"--max-minutes must be above 0, got {said}",
            lambda _, value=value: Limits(minutes=value),
        )
        for value, said in ((0.0, "0"), (-1.0, "-1"), (NAN, "nan"), (INFINITE, "inf"))
    ),
    Refused(
        "limits that allow nothing, before a model is loaded",
        "--max-tokens must be above 0, got 0",
        nobody(max_tokens=0),
    ),
]


@each(REFUSED)
def test_a_value_out_of_its_range_is_refused(row, tmp_path):
    row.check(tmp_path)


def test_numpys_numbers_are_as_good_as_pythons():
    import numpy as np

    found = Settings(trials=np.int64(3), ce_budget=np.float32(0.5), seed=np.uint32(2**32 - 1))
    assert found == Settings(trials=3, ce_budget=0.5, seed=2**32 - 1)
    assert json.loads(json.dumps([getattr(found, f.name) for f in fields(found)][:1])) == [0.5]


def test_a_whole_number_asks_for_what_the_same_decimal_one_does():
    assert repr(Settings(ce_budget=1)) == repr(Settings(ce_budget=1.0))
    assert repr(Sampling(1, 1, 8)) == repr(Sampling(1.0, 1.0, 8))


@pytest.mark.parametrize(
    "wrong",
    [
        True,
        1.0,
        -1,
        "",
        "8-",
        "-8",
        "8-4",
        "8,,9",
        "8,x",
        "middle",
        [],
        [3, 1.0],
        [-1, 2],
        "0-99999999999",
        "9" * 5000,
    ],
)
def test_blocks_are_named_by_whole_numbers(wrong):
    with pytest.raises(InputError, match="layer must be auto, search, a block's number"):
        Settings(layer=wrong)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (4, 4),
        ("4", 4),
        ([4], 4),
        ("4-4", 4),
        ("4-7", (4, 5, 6, 7)),
        ("9, 4-5", (4, 5, 9)),
        ([7, 4, 7], (4, 7)),
        (range(4, 7), (4, 5, 6)),
        (np.arange(4, 7), (4, 5, 6)),
    ],
)
def test_several_blocks_are_kept_in_order_each_once(given, kept):
    settings = Settings(layer=given)
    assert settings.layer == kept
    assert settings.blocks == (kept if isinstance(kept, tuple) else (kept,))


def test_the_largest_seed_is_as_good_as_any(tiny_options):
    options = {**tiny_options, "trials": 2, "seed": 2**32 - 1}
    assert calibrate.calibrate(tiny.model("gpt2"), **options).config.provenance.settings["seed"]


@pytest.mark.parametrize("strength", [NAN, INFINITE, -INFINITE, "much"])
def test_nobody_steers_by_what_is_not_a_number(finished, strength):
    model = tiny.model("gpt2")
    with (
        pytest.raises(InputError, match="the strength must be a finite number, got"),
        calibrate.load(finished.directory).steer(model, strength),
    ):
        pass
    assert not any(block._forward_hooks for block in model.transformer.h)


@pytest.mark.parametrize("typed", ["nan", "inf", "-inf", "1e999"])
def test_a_chat_keeps_its_strength_where_the_new_one_is_not_a_number(finished, typed):
    config = calibrate.load(finished.directory)
    chat = Chat(SteeredModel(None, config, 0.0), Sampling(), 0.5)
    with pytest.raises(InputError, match="the strength must be a finite number, got"):
        chat.command(f"/strength {typed}")
    assert chat.strength == 0.5


@pytest.fixture(scope="module")
def artefact(tmp_path_factory, tiny_options):
    """A calibration of a model on disk, both of them below a folder of their own."""
    folder = tmp_path_factory.mktemp("artefact")
    tiny.model("gpt2").save_pretrained(folder / "tiny")
    tiny.tokenizer().save_pretrained(folder / "tiny")
    texts = tiny_options["concept"].texts
    rows = [{"text": t.text, "label": "positive"} for t in texts.positives]
    rows += [{"text": t.text, "label": "negative"} for t in texts.negatives]
    (folder / "bright.jsonl").write_text("\n".join(map(json.dumps, rows)))
    graded = [{"text": row["text"], "grade": 2 * (row["label"] == "positive")} for row in rows]
    (folder / "graded.jsonl").write_text("\n".join(map(json.dumps, graded)))
    with_own_code(folder / "tiny", folder / "own")
    calibrate.calibrate(
        str(folder / "tiny"), out=folder / "bright", **{**tiny_options, "tokenizer": None}
    )
    return folder / "bright"


OWN_CODE = """
from transformers import GPT2Config, GPT2LMHeadModel as Known


class Config(GPT2Config):
    model_type = "mine"


class GPT2LMHeadModel(Known):
    config_class = Config
"""


def with_own_code(model, folder):
    """A copy of a GPT-2 that brings the code it is made of."""
    shutil.copytree(model, folder)
    (folder / "its.py").write_text(OWN_CODE)
    facts = json.loads((folder / "config.json").read_text())
    facts["model_type"] = "mine"
    facts["auto_map"] = {
        "AutoConfig": "its.Config", "AutoModelForCausalLM": "its.GPT2LMHeadModel"
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(facts))


def run(monkeypatch, *arguments, encoding: str = "utf-8", typed: str = "") -> tuple[int, str, str]:
    """Run a command on a console of an encoding; return (status, stdout, stderr)."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2))
    with monkeypatch.context() as patched:
        patched.setattr(sys, "argv", ["calibrate", *map(str, arguments)])
        patched.setattr(sys, "stdout", out)
        patched.setattr(sys, "stderr", err)
        patched.setattr(sys, "stdin", io.StringIO(typed))
        with pytest.raises(SystemExit) as stop:
            cli.main()
    out.flush()
    err.flush()
    said = (stream.buffer.getvalue().decode(encoding) for stream in (out, err))
    return stop.value.code, *said


COMMANDS = {
    "show": lambda d: ["show", d],
    "show --json": lambda d: ["show", d, "--json"],
    "verify": lambda d: ["verify", d, "--quick"],
    "verify --json": lambda d: ["verify", d, "--quick", "--json"],
    "generate": lambda d: ["generate", d, "--prompt", "the river", "--max-tokens", 4],
    "generate --json": lambda d: [
        *("generate", d, "--prompt", "the α 中 😀", "--max-tokens", 4, "--json"),
    ],
    "chat": lambda d: ["chat", d, "--max-tokens", 4],
    "export": lambda d: [
        *("export", d, "--format", "svec", "--to", d.parent / "v.svec", "--no-check")
    ],
    "concepts": lambda _: ["concepts"],
    "help": lambda _: ["--help"],
    "help of verify": lambda _: ["verify", "--help"],
    "a mistake": lambda _: ["--concept", "jœy→"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_console_sees_the_same_status_and_readable_words(monkeypatch, artefact, command):
    arguments, typed = COMMANDS[command](artefact), "/concept\nrain\n"
    status, out, err = run(monkeypatch, *arguments, typed=typed)
    for encoding in ("cp1252", "cp437", "ascii", "latin-1"):
        found = run(monkeypatch, *arguments, encoding=encoding, typed=typed)
        assert found[0] == status, found
        assert "Traceback" not in found[2]
        if command.endswith("--json"):
            assert json.loads(found[1]) == json.loads(out)
        elif encoding == "ascii":
            assert ("alpha" in found[1]) == ("α" in out)
            assert found[1].isascii()
            assert found[2].isascii()
    assert status == (2 if command == "a mistake" else 0), err


def test_progress_and_the_headline_need_no_more_than_ascii(
    monkeypatch, tmp_path, artefact, tiny_options
):
    status, out, err = run(
        monkeypatch,
        *(
            "--model",
            artefact.parent / "tiny",
            "--concept",
            artefact.parent / "bright.jsonl",
            "--out",
            tmp_path / "out",
        ),
        *("--prompts", tiny_options["prompts"], "--ce-budget", "1.0", "--trials", "2"),
        *("--teacher", "none", "--audit", "none"),
        encoding="ascii",
    )
    assert status == 0, err
    assert "steered towards bright" in out
    assert "deltaCE" in err
    assert "alpha" in err


@pytest.mark.parametrize(
    ("character", "stand_in"),
    [
        *(("α", "alpha"), ("Δ", "delta"), ("→", "->"), ("✓", "ok"), ("✗", "x"), ("‖", "||")),
        *(("…", "..."), ("–", "-"), ("é", "e"), ("中", "?"), ("─", "-"), ("│", "|"), ("┏", "+")),
        *(("╭", "+"), ("━", "-"), ("\udcff", "?"), ("a", "a")),
    ],
)
def test_stand_ins_can_be_read(character, stand_in):
    assert readable(character) == stand_in


ENVIRONMENTS = {
    "cp1252 by PYTHONIOENCODING": {"PYTHONIOENCODING": "cp1252"},
    "the C locale without UTF-8 mode": {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_a_process_on_such_a_console_verifies(artefact, tmp_path, environment):
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        done = subprocess.run(
            [*COMMAND, "verify", artefact, "--quick"],
            env={**os.environ, **ENVIRONMENTS[environment]},
            stdout=out,
            stderr=err,
            check=False,
        )
    said = (tmp_path / "out").read_bytes().decode("ascii")
    assert (done.returncode, "reference" in said) == (0, True), (tmp_path / "err").read_text()


COMMAND = [sys.executable, "-c", "from calibrate.cli import main; main()"]


def test_a_reader_who_leaves_is_no_failure(artefact):
    arguments = " ".join(f"'{part}'" for part in [*COMMAND, "show", artefact])
    script = f"set -o pipefail; {arguments} | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert "steered towards bright" in done.stdout
    assert done.stdout.splitlines()[-1] == "0"


@pytest.mark.parametrize("arguments", [["--help"], ["concepts"]])
def test_a_reader_who_never_reads_is_no_failure(arguments):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*COMMAND, *arguments], stdout=writing, stderr=subprocess.PIPE, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_full_disk_under_stdout_is_one_line(artefact):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, "show", artefact, "--json"], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 2
    assert done.stderr.decode().strip() == "calibrate: [Errno 28] No space left on device"


LONG = "x" * 300
WRONG = [
    (["--concept", ""], "'--concept': must not be empty"),
    (["--concept", "joy", "--study", ""], "'--study': must not be empty"),
    (["--concept", "joy", "--storage", ""], "'--storage': must not be empty"),
    (["--concept", "joy", "--out", ""], "'--out': must not be empty"),
    (["--concept", "joy", "--model", ""], "'--model': must not be empty"),
    (["--concept", "joy", "--describe", ""], "'--describe': must not be empty"),
    (["--concept", "joy", "--judge", ""], "'--judge': must not be empty"),
    (["--concept", "joy", "--corpus", ""], "'--corpus': must not be empty"),
    (["--concept", "joy", "--negatives", ""], "'--negatives': must not be empty"),
    (["--concept", "a\udcffb"], "must be text in the encoding of the console, got bytes that"),
    (["--concept", "joy", "--seed", "4294967296"], "below 2**32, got 4294967296"),
    (["--concept", "joy", "--trials", "9" * 30], "at least 1 trial, got 9999"),
    (["--concept", "joy", "--max-minutes", "inf"], "--max-minutes must be above 0, got inf"),
    (["--concept", "joy", "--max-tokens", "0"], "--max-tokens must be above 0, got 0"),
    (["--concept", "joy", "--dtype", "float7", "--model", "TINY"], "dtype must be one of auto"),
    (["--concept", "joy", "--device", "cuda:99", "--model", "TINY"], "device must be auto, cpu"),
    (["--concept", "joy", "--batch-tokens", "0", "--model", "TINY"], "--batch-tokens must be a wh"),
    (["--concept", "joy", "--model", LONG], "model must be smollm2, "),
    (["--concept", "joy", "--model", "TINY", "--out", LONG], "File name too long"),
    (["--concept", LONG], "concept must be a built-in name"),
    (["--concept", "joy", "--prompts", LONG], "File name too long"),
    (
        [
            "--concept",
            "joy",
            "--model",
            "TINY",
            "--prompts",
            "PROMPTS",
            "--storage",
            "sqlite://",
            "--quiet",
        ],
        "got 'sqlite://' (a database in memory is another one in every thread; name a file)",
    ),
    (["show", ""], "must not be empty"),
    (["show", LONG], "must hold a steering.json, but it cannot be read"),
    (["show", __file__], "must hold a steering.json, but it cannot be read"),
    (["verify", __file__], "must hold a steering.json, but it cannot be read"),
    (["chat", __file__], "must hold a steering.json, but it cannot be read"),
    (["generate", __file__, "--prompt", "x"], "must hold a steering.json, but it cannot be read"),
    (["export", __file__, "--format", "gguf", "--to", "x"], "must hold a steering.json, but"),
    (["verify", "DIR", "--against", "tensorrt"], "--against must be one of llama.cpp, peft, fold"),
    (["verify", "DIR", "--against", "llama.cpp", "--gguf", "gone"], "--gguf must be an existing f"),
    (["verify", "DIR", "--gguf", __file__], "with --against llama.cpp, got no --against; give th"),
    (["verify", "DIR", "--against", "peft", "--gguf", __file__], "got --against peft; give that"),
    (["verify", "DIR", "--corpus", "gone"], "cannot read gone"),
    (["verify", "DIR", "--model", "/gone/away"], "model must be smollm2"),
    (["verify", "DIR", "--dtype", "float7"], "dtype must be one of auto"),
    (["generate", "DIR", "--prompt", ""], "a prompt must have at least one token, got ''"),
    (["generate", "DIR", "--prompt", " \n"], "a prompt must have at least one token, got"),
    (["generate", "DIR", "--prompt", "a\udce9"], "must be text in the encoding of the console"),
    (["generate", "DIR", "--prompt", "a", "--strength", "nan"], "a finite number, got nan"),
    (["generate", "DIR", "--prompt", "a", "--strength", "inf"], "a finite number, got inf"),
    (["generate", "DIR", "--prompt", "a", "--strength", "-1e999"], "a finite number, got -inf"),
    (["generate", "DIR", "--prompt", "a", "--seed", "-1"], "the seed must be 0 or more and below"),
    (["generate", "DIR", "--prompt", "a", "--seed", "4294967296"], "the seed must be 0 or more"),
    (["generate", "DIR", "--prompt", "a", "--max-tokens", "0"], "0 is not in the range x>=1"),
    (
        ["generate", "DIR", "--prompt", "the river", "--max-tokens", "127"],
        "--max-tokens must leave room in the context of 128 tokens for the prompt's 2, got 127; "
        "give at most 126",
    ),
    (["generate", "DIR", "--prompt", "a", "--max-tokens", "9" * 9], "give at most 127"),
    (["chat", "DIR", "--max-tokens", "128"], "the prompt's 1, got 128; give at most 127"),
]
LOADING = [  # commands that load the model of a finished calibration
    ["verify", "DIR"],
    ["frontier", "DIR"],
    ["pick", "DIR", "--out", "other", "--ce-budget", "0.2"],
    ["judge", "DIR", "--texts", "GRADED"],
    ["generate", "DIR", "--prompt", "a"],
    ["chat", "DIR"],
    ["serve", "DIR", "--port", "0"],
    ["export", "DIR", "--format", "peft", "--to", "adapter"],
    ["push", "DIR", "me/it", "--export", "peft", "--dry-run", "pushed"],
]
UNLOADABLE = [
    (["--device", "cuda:99"], "device must be auto, cpu"),
    (["--device-map", "everywhere"], "--device-map must be one of auto, balanced"),
    (["--dtype", "float7"], "dtype must be one of auto"),
    (["--blocks", "no.such.part"], "no.such.part"),
    (["--model", "OWN"], "brings code of its own, which must be allowed"),
    (["--tensor-parallel"], "--tensor-parallel "),
]
WRONG += [([*command, *options], said) for command in LOADING for options, said in UNLOADABLE]


@pytest.mark.parametrize(("arguments", "said"), WRONG, ids=[" ".join(a)[:60] for a, _ in WRONG])
def test_wrong_arguments_end_in_one_line_and_status_2(
    monkeypatch, tmp_path, artefact, tiny_options, arguments, said
):
    monkeypatch.chdir(tmp_path)
    places = {
        "DIR": artefact,
        "TINY": artefact.parent / "tiny",
        "FILE": artefact.parent / "bright.jsonl",
        "PROMPTS": tiny_options["prompts"],
        "GRADED": artefact.parent / "graded.jsonl",
        "OWN": artefact.parent / "own",
    }
    status, out, err = run(monkeypatch, *(places.get(part, part) for part in arguments))
    assert (status, out) == (2, "")
    # A slow machine is told first that something was fetched.
    (line,) = [each for each in err.splitlines() if not each.startswith("✓")]
    assert said in line
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    "command",
    [
        ["verify", "DIR", "--quick"],
        ["generate", "DIR", "--prompt", "the river", "--max-tokens", "4"],
        ["chat", "DIR", "--max-tokens", "4"],
        ["export", "DIR", "--format", "peft", "--to", "adapter"],
        ["push", "DIR", "me/it", "--export", "peft", "--dry-run", "pushed"],
    ],
)
def test_a_model_with_code_of_its_own_is_used_once_that_is_allowed(
    monkeypatch, tmp_path, artefact, command
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    given = [artefact if word == "DIR" else word for word in command]
    own = ["--model", artefact.parent / "own"]
    status, _, err = run(monkeypatch, *given, *own, "--trust-remote-code", typed="/quit\n")
    assert (status, "calibrate: " in err) == (0, False)


def test_a_checkpoint_for_any_engine_is_not_made_of_a_model_with_code_of_its_own(
    monkeypatch, tmp_path, artefact
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    own = ["--model", artefact.parent / "own", "--trust-remote-code"]
    command = ["export", artefact, "--format", "folded", "--to", "folded", *own]
    status, _, err = run(monkeypatch, *command)
    assert status == 2
    assert "own runs code of its own, and the folded format is for engines that have the" in err


def test_each_of_our_warnings_is_one_note_on_stderr_and_others_stay_away(monkeypatch):
    def noisy(_directory):
        for _ in range(2):
            warnings.warn("the cache\nis cold", CalibrateWarning, stacklevel=1)
            warnings.warn("somebody's API is old", FutureWarning, stacklevel=1)
        warnings.warn("another", CalibrateWarning, stacklevel=1)
        raise InputError("enough")

    monkeypatch.setattr("calibrate.artefact.config.load", noisy)
    status, out, err = run(monkeypatch, "show", "anywhere")
    assert (status, out) == (2, "")
    assert err.splitlines() == [
        "calibrate: note: the cache is cold",
        "calibrate: note: another",
        "calibrate: enough",
    ]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "memory must suffice for the model and one text, and it does not; give"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "memory must suffice"),
        (OSError(28, "No space left on device", "x/y"), "cannot use x/y: No space left on device"),
        (PermissionError(13, "Permission denied", "y"), "cannot use y: Permission denied"),
    ],
)
def test_what_the_machine_refuses_is_one_line_and_status_2(monkeypatch, error, said):
    def fail(_directory):
        raise error

    monkeypatch.setattr("calibrate.artefact.config.load", fail)
    status, _, err = run(monkeypatch, "show", "anywhere")
    assert status == 2
    assert err.startswith(f"calibrate: {said}")
    assert err.count("\n") == 1


def test_what_is_typed_into_a_chat_has_to_be_text(monkeypatch, artefact):
    typed = "/strength nan\nri\udce9\n/off\n" + "rain " * 200 + "\n"
    status, out, err = run(monkeypatch, "chat", artefact, "--max-tokens", 4, typed=typed)
    assert (status, err.count("Traceback")) == (0, 0)
    for said in ("a finite number, got nan", "what you type must be text in", "context of 128"):
        assert said in out


def test_a_blank_prompt_that_has_tokens_is_none_for_a_base_model_either():
    with pytest.raises(InputError, match="a text that a base model can go on from, got ' '"):
        talk._require_reply(tiny.loaded(), Prompt(" ", (5,)), 4)
    talk._require_reply(tiny.loaded(chat=True), Prompt("", (5,)), 4)


def _put(facts: dict, path: str, value: object) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        facts = facts[parent]
    facts[last] = value


@pytest.mark.parametrize(
    ("where", "value"),
    [
        *(("intervention.layer", 99), ("intervention.layer", -1)),
        *(("intervention.strength", NAN), ("intervention.relative_strength", 0.0)),
        *(("reference.input_ids", []), ("reference.input_ids", [-3])),
        *(("provenance.settings", {}), ("provenance.settings.seed", "x")),
        ("provenance.settings.sampling", {"temperature": 0.0}),
        *(("provenance.settings.sampling", 7), ("provenance.settings.ce_budget", "x")),
        pytest.param("provenance.settings.precision", 10**400, id="beyond floating point"),
        *(("reference.token_ids", []), ("reference.token_ids", [-1] * 10)),
        *(("reference.log_probs", []), ("reference.log_probs", [NAN] * 10)),
        ("reference.unsteered_log_probs", [-1.0]),
        *(("budget.limit", 0.0), ("budget.limit", INFINITE), ("budget.limit", NAN)),
        *(("budget.confidence", 0.5), ("budget.confidence", 1.0)),
        *(("concept.name", 'joy"""\nimport os'), ("model.id", "a\u2028b"), ("model.id", "\x1b[2J")),
        *(("measured.judges", ["probe\n"]), ("vector.file", "../steering.safetensors")),
    ],
)
def test_a_config_that_no_calibration_writes_is_damaged(finished, tmp_path, where, value):
    folder = shutil.copytree(finished.directory, tmp_path / "copy")
    facts = json.loads((folder / "steering.json").read_text())
    _put(facts, where, value)
    (folder / "steering.json").write_text(json.dumps(facts))
    name = "provenance.settings" if where.startswith("provenance.settings") else where
    with pytest.raises(ArtefactError, match=rf"steering\.json is damaged: {name}"):
        calibrate.load(folder)


@pytest.mark.parametrize("name", ["input_ids", "token_ids"])
def test_a_reference_of_another_vocabulary_fails_verification(
    monkeypatch, artefact, tmp_path, name
):
    folder = shutil.copytree(artefact, tmp_path / "copy")
    facts = json.loads((folder / "steering.json").read_text())
    facts["reference"][name][-1] = 99_999
    (folder / "steering.json").write_text(json.dumps(facts))
    status, _, err = run(monkeypatch, "verify", folder, "--quick")
    assert status == 4
    assert "the reference's token ids must be the model's" in err


@pytest.mark.parametrize("content", ["", "{", "[1]", "7", "null", "{}"])
def test_a_probe_of_any_other_shape_is_damaged(finished, tmp_path, content):
    folder = shutil.copytree(finished.directory / "probe", tmp_path / "probe")
    (folder / "probe.json").write_text(content)
    with pytest.raises(ArtefactError, match="must hold a"):
        probes.load(folder)
