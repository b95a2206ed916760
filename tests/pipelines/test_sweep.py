"""Many calibrations: each as it is alone, whatever dies on the way."""

from __future__ import annotations

import csv
import json
import math
import shutil
import sys
import threading
import types
from concurrent.futures import Future
from dataclasses import replace

import psutil
import pytest
import tiny
import torch
from filelock import FileLock
from patience import PATIENCE
from test_cli import run

import calibrate
from calibrate.common.errors import ArtefactError, InputError
from calibrate.pipelines.sweep import pool as pools
from calibrate.pipelines.sweep import worker as workers
from calibrate.pipelines.sweep.cells import Cell, cells_of, read_plan
from calibrate.pipelines.sweep.ledger import SweepLedger
from calibrate.pipelines.sweep.report import Row, foretold, transfer_error, write_report
from calibrate.pipelines.sweep.run import Swept, sweep
from calibrate.pipelines.sweep.store import LOCK, Store
from calibrate.pipelines.sweep.worker import asked_of


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Two models, two concepts and prompts, as files."""
    folder = tmp_path_factory.mktemp("sweep")
    for name in ("gpt2", "llama"):
        tiny.model(name).save_pretrained(folder / name)
        tiny.tokenizer().save_pretrained(folder / name)
    texts = tiny.concept(60).texts
    for name, swapped in (("bright", False), ("dull", True)):
        rows = [
            {"text": text.text, "label": label}
            for label, group in (
                ("negative" if swapped else "positive", texts.positives),
                ("positive" if swapped else "negative", texts.negatives),
            )
            for text in group
        ]
        lines = "\n".join(json.dumps(row) for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    (folder / "prompts.txt").write_text("\n".join(tiny.prompts(100)))
    return folder


@pytest.fixture(scope="module")
def options(places):
    return {
        "prompts": str(places / "prompts.txt"),
        "layer": "search",
        "ce_budget": 0.4,
        "min_gain": 0.0,
        "trials": 4,
        "teacher": "none",
        "audit": "none",
        "guard": "none",
        "reply_tokens": 12,
    }


@pytest.fixture(scope="module")
def cells(places, options):
    models = [str(places / name) for name in ("gpt2", "llama")]
    concepts = [str(places / f"{name}.jsonl") for name in ("bright", "dull")]
    return cells_of(models, concepts, options=options)


@pytest.fixture(scope="module")
def alone(cells, tmp_path_factory):
    """What a serial loop of calibrations gives, by cell; None where infeasible.

    They have a cache of their own: a sweep that found their results would be compared with itself.
    """
    folder, found = tmp_path_factory.mktemp("alone"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEERING_CALIBRATE_CACHE", str(folder / "cache"))
        for cell in cells:
            try:
                result = calibrate.calibrate(
                    cell.model, cell.concept, out=folder / cell.name, **dict(cell.options)
                )
                found[cell.name] = result.config
            except calibrate.Infeasible:
                found[cell.name] = None
    assert any(found.values())
    return found


def require_as_alone(folder, alone):
    for name, config in alone.items():
        if config is None:
            assert not (folder / name / "steering.json").exists()
            continue
        found = calibrate.load(folder / name)
        for part in ("intervention", "measured", "laws", "range", "reference", "vector"):
            assert getattr(found, part) == getattr(config, part), (name, part)


@pytest.mark.slow
def test_every_cell_is_what_it_is_alone(cells, alone, tmp_path):
    heard = []
    swept = sweep(cells, tmp_path / "out", heard=lambda cell, one: heard.append((cell.name, one)))
    assert {one.status for one in swept.outcomes} <= {"done", "infeasible"}
    require_as_alone(tmp_path / "out", alone)
    begun = [name for name, outcome in heard if outcome is None]
    assert sorted(begun) == sorted(cell.name for cell in cells)
    rows = list(csv.DictReader((tmp_path / "out" / "cells.csv").open(encoding="utf-8")))
    assert [row["cell"] for row in rows] == [cell.name for cell in cells]
    for row in rows:
        config = alone[row["cell"]]
        if config is not None:
            assert float(row["strength"]) == config.intervention.strength
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert all(cell.name in page for cell in cells)


@pytest.mark.slow
def test_a_killed_worker_costs_one_try_and_no_result(cells, alone, tmp_path):
    killed = []

    def kill_first(cell, outcome):
        if not killed and outcome is None:
            killed.append(cell.name)
            (worker,) = [
                child
                for child in psutil.Process().children()
                if any("sweep.worker" in word for word in child.cmdline())
            ]
            worker.kill()

    # As many threads a worker as here: another number changes the last digits of sums.
    swept = sweep(cells, tmp_path / "out", heard=kill_first)
    tries = {one.cell: one.tries for one in swept.outcomes}
    assert tries.pop(killed[0]) == 2
    assert set(tries.values()) == {1}
    require_as_alone(tmp_path / "out", alone)


@pytest.mark.slow
def test_a_cell_that_kills_its_worker_is_named_and_the_rest_goes_on(cells, tmp_path, monkeypatch):
    asked = pools.Pool._asked

    def deadly(self, process, cell):
        if cell.name == cells[0].name:
            process.kill()
        return asked(self, process, cell)

    monkeypatch.setattr(pools.Pool, "_asked", deadly)
    swept = sweep(cells[:2], tmp_path / "out", workers=1)
    first, second = swept.outcomes
    assert (first.status, first.tries) == ("failed", 2)
    assert "its worker died 2 times" in first.reasons[0]
    assert second.status in ("done", "infeasible")
    assert not any("sweep.worker" in " ".join(c.cmdline()) for c in psutil.Process().children())


@pytest.mark.slow
def test_the_same_call_goes_on_and_touches_nothing_finished(cells, places, options, tmp_path):
    out = tmp_path / "out"
    missing = cells_of([cells[0].model], [str(tmp_path / "later.jsonl")], options=options)
    asked = [cells[0], *missing]
    swept = sweep(asked, out)
    assert [one.status for one in swept.outcomes] == ["done", "failed"]
    assert "concept must be a built-in name" in swept.outcomes[1].reasons[0]
    before = (out / cells[0].name / "steering.json").stat().st_mtime_ns
    shutil.copy(places / "bright.jsonl", tmp_path / "later.jsonl")
    begun = []
    swept = sweep(asked, out, heard=lambda cell, one: begun.append(cell.name))
    assert [one.status for one in swept.outcomes] == ["done", "done"]
    assert set(begun) == {missing[0].name}
    assert [one.status for one in sweep(asked[:1], out).outcomes] == ["done"]
    kept = json.loads((out / "sweep.json").read_text(encoding="utf-8"))["cells"]
    assert {one["cell"]: one["status"] for one in kept} == {cell.name: "done" for cell in asked}
    assert (out / cells[0].name / "steering.json").stat().st_mtime_ns == before
    changed = cells_of([cells[0].model], [cells[0].concept], options={**options, "trials": 3})
    assert changed[0].name == cells[0].name
    swept = sweep(changed, out)
    assert swept.outcomes[0].status == "failed"
    assert "other settings" in swept.outcomes[0].reasons[0]


@pytest.mark.slow
def test_the_command_says_what_became_of_each(places, options, tmp_path, capsys):
    settings = [f"--set={name}={value}" for name, value in options.items() if name != "layer"]
    command = [
        "sweep", "--model", str(places / "gpt2"), "--concept", str(places / "bright.jsonl"),
        "--layer", "search", *settings, "--out", str(tmp_path / "out"), "--json",
    ]  # fmt: skip
    status, out, _ = run(capsys, *command)
    events = [json.loads(line) for line in out.splitlines()]
    assert [event.get("status") for event in events] == ["waiting", "begins", "done", None]
    assert events[-1]["swept"] == {"done": 1, "infeasible": 0, "failed": 0}
    assert status == 0
    too_much = [word.replace("min_gain=0.0", "min_gain=0.9") for word in command]
    too_much[too_much.index(str(tmp_path / "out"))] = str(tmp_path / "hard")
    status, out, _ = run(capsys, *too_much)
    assert status == 3
    assert json.loads(out.splitlines()[2])["reasons"]
    lost = [word.replace("bright.jsonl", "lost.jsonl") for word in command]
    lost[lost.index(str(tmp_path / "out"))] = str(tmp_path / "lost")
    status, _, _ = run(capsys, *lost)
    assert status == 1


def test_cells_have_names_of_their_own():
    found = cells_of(["a/m", "b"], ["joy", "evil"], [0.05, 0.1], ["auto"], {"trials": 3})
    assert len(found) == 8
    assert found[0].name == "joy-m-ce_budget-0.05"
    assert dict(found[0].options) == {"ce_budget": 0.05, "layer": "auto", "trials": 3}
    assert len({cell.key for cell in found}) == 8
    assert len(cells_of(["m", "m"], ["joy"])) == 1
    with pytest.raises(InputError, match="names of their own"):
        cells_of(["a/m", "b/m"], ["joy"])


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"models": [], "concepts": ["joy"]}, "at least one model"),
        ({"models": ["m"], "concepts": []}, "at least one model and one concept"),
        ({"models": ["m"], "concepts": ["joy"], "budgets": [-1.0]}, "the budget must be"),
        ({"models": ["m"], "concepts": ["joy"], "layers": ["last"]}, "layer must be"),
        ({"models": ["m"], "concepts": ["joy"], "options": {"trails": 3}}, "did you mean trials"),
        ({"models": ["m"], "concepts": ["joy"], "options": {"out": "x"}}, "no option 'out'"),
        (
            {"models": ["m"], "concepts": ["joy"], "options": {"judge": len}},
            "must be numbers, words",
        ),
        *(
            ({"models": ["m"], "concepts": ["joy"], "options": {name: value}}, words)
            for name, value, words in (
                ("dtype", "float7", "dtype must be one of auto, .* got 'float7'"),
                ("device", 0, "device must be text, got 0"),
                ("device_map", ["auto"], r"device-map must be text or a table, .* got \['auto'\]"),
                ("batch_tokens", 0, "--batch-tokens must be a whole number"),
                ("batch_tokens", True, "--batch-tokens must be a whole number"),
                ("blocks", 3, "blocks must be text, got 3"),
                ("revision", 1234567, "revision must be text, in double quotes where it reads as"),
                ("trust_remote_code", "yes", "trust-remote-code must be true or false, got 'yes'"),
                ("chat_template_kwargs", "calm", "chat-template-kwargs must be a table, as JSON"),
                ("tensor_parallel", True, "a sweep has no option 'tensor_parallel'"),
            )
        ),
    ],
)
def test_what_no_cell_can_be_made_of_is_refused(asked, words):
    with pytest.raises(InputError, match=words):
        cells_of(**asked)


def test_a_cell_is_another_one_where_its_model_is_loaded_to_other_results():
    def cell(**options):
        (found,) = cells_of(["m"], ["joy"], options={"trials": 3, **options})
        return found

    plain = cell()
    assert plain.loading == ()
    for name, value in (
        ("device", "cpu"), ("device_map", "auto"), ("dtype", "bfloat16"), ("blocks", "h"),
        ("revision", "abc"),
    ):  # fmt: skip
        other = cell(**{name: value})
        assert other.loading == ((name, value),)
        assert dict(other.options) == {"trials": 3}
        assert other.key != plain.key
    for same in (cell(batch_tokens=64), cell(trust_remote_code=True)):
        assert same.key == plain.key
        assert same.held != plain.held
    assert cell(chat_template_kwargs={"mood": "calm"}).key != plain.key


def test_a_worker_loads_a_model_as_the_cells_say_once_for_all_that_say_the_same(
    places, tmp_path, monkeypatch
):
    found, loads = [], []

    def noted(model, concept, out, **options):
        found.append((model.dtype, model.batch_tokens, concept, options))

    monkeypatch.setattr(workers, "calibrate", noted)
    told = {"chat_template_kwargs": {"mood": "calm"}}
    half = {"dtype": "bfloat16", "batch_tokens": 64, "blocks": "transformer.h"}
    model = [str(places / "gpt2")]
    asked = [
        *cells_of(model, ["joy", "evil"], options={**half, **told}),
        *cells_of(model, ["joy"], options={"dtype": "float32"}),
        *cells_of(model, ["joy"], options={"blocks": "no.such.part"}),
    ]
    holder = workers.Holder()
    with Store(tmp_path / "out") as store:
        ended = [
            holder.run(json.loads(json.dumps(asked_of(cell, store))), lambda: loads.append(1))
            for cell in asked
        ]
    assert [one["status"] for one in ended] == ["done", "done", "done", "failed"]
    assert "no.such.part" in ended[-1]["reasons"][0]
    assert found == [
        (torch.bfloat16, 64, "joy", told),
        (torch.bfloat16, 64, "evil", told),
        (torch.float32, 2048, "joy", {}),
    ]
    assert len(loads) == 2


def test_the_command_passes_every_option_on(capsys, tmp_path, monkeypatch):
    heard = []

    def noted(cells, out, **_):
        heard.extend(cells)
        return Swept((), (), "report.html")

    monkeypatch.setattr("calibrate.pipelines.sweep.run.sweep", noted)
    settings = {
        "device-map": "auto", "dtype": "bfloat16", "batch-tokens": 64, "blocks": "model.layers",
        "revision": "main", "trust-remote-code": "true",
        "chat-template-kwargs": '{"enable_thinking": false}',
    }  # fmt: skip
    given = [f"--set={name}={value}" for name, value in settings.items()]
    status, _, err = run(capsys, "sweep", "--concept", "joy", *given, "--out", tmp_path / "out")
    assert (status, err) == (0, "")
    (cell,) = heard
    assert dict(cell.loading) == {
        "device_map": "auto", "dtype": "bfloat16", "batch_tokens": 64, "blocks": "model.layers",
        "revision": "main", "trust_remote_code": True,
    }  # fmt: skip
    assert dict(cell.options) == {"chat_template_kwargs": {"enable_thinking": False}}


def test_a_plan_is_read(tmp_path):
    plan = tmp_path / "plan.toml"
    plan.write_text(
        '[[sweep]]\nmodels = ["m", "n"]\nconcepts = ["joy"]\nce-budgets = [0.05]\nmin-gain = 0.02\n'
        '[[sweep]]\nmodels = ["m"]\nconcepts = ["evil"]\nlayers = [3, "auto"]\n'
    )
    found = read_plan(plan)
    assert [cell.name for cell in found] == [
        "joy-m", "joy-n", "evil-m-layer-3", "evil-m-layer-auto",
    ]  # fmt: skip
    assert dict(found[0].options) == {"ce_budget": 0.05, "min_gain": 0.02}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models = [", "must be a TOML file"),
        ('models = ["m"]', r"tables \[\[sweep\]\]"),
        ('[[sweep]]\nmodels = "m"\nconcepts = ["joy"]', "models must be a list"),
        ('[[sweep]]\nmodel = ["m"]\nconcepts = ["joy"]', "did you mean models"),
        ('[[sweep]]\nmodels = ["m"]\nconcepts = ["joy"]\nfoo = 3', "no option 'foo'"),
    ],
)
def test_a_plan_that_is_none_is_refused(text, words, tmp_path):
    (tmp_path / "plan.toml").write_text(text)
    with pytest.raises(InputError, match=words):
        read_plan(tmp_path / "plan.toml")


def test_a_directory_that_is_not_a_sweeps_is_left_alone(tmp_path):
    asked = cells_of(["m"], ["joy"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(ArtefactError, match="choose another --out"):
        sweep(asked, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtefactError, match="choose another --out"):
        sweep(asked, tmp_path / "file")
    with pytest.raises(InputError, match="--workers must be"):
        sweep(asked, tmp_path / "new", workers=0)


def ended(*given, **options):
    """What a sweep returns or raises; one that hangs fails its test, and holds up no other."""
    found = Future()

    def run_it():
        try:
            found.set_result(sweep(*given, **options))
        except Exception as error:
            found.set_exception(error)

    threading.Thread(target=run_it, daemon=True).start()
    return found.result(PATIENCE)


def test_a_worker_that_is_gone_before_it_is_asked_ends_no_sweep_in_waiting(tmp_path, monkeypatch):
    asked = pools.Pool._asked

    def gone(self, process, cell):
        process.kill()
        process.wait(PATIENCE)
        return asked(self, process, cell)

    monkeypatch.setattr(pools.Pool, "_asked", gone)
    swept = ended(cells_of(["m"], ["joy", "evil"]), tmp_path / "out", workers=1)
    assert [(one.status, one.tries) for one in swept.outcomes] == [("failed", 2)] * 2


def test_a_worker_that_cannot_start_ends_the_sweep_with_the_reason(tmp_path):
    out = tmp_path / "out"
    (out / "logs" / "worker-0.log").mkdir(parents=True)
    (out / "sweep.json").write_text('{"format": "steering-sweep", "version": 1, "cells": []}')
    with pytest.raises(ArtefactError, match=r"log .*worker-0.log be written.*choose another --out"):
        ended(cells_of(["m"], ["joy"]), out)


def test_two_sweeps_do_not_run_in_one_directory(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "sweep.json").write_text('{"format": "steering-sweep", "version": 1, "cells": []}')
    before = (out / "sweep.json").read_bytes()
    with FileLock(out / LOCK), pytest.raises(ArtefactError, match="another sweep runs"):
        sweep(cells_of(["m"], ["joy"]), out)
    assert (out / "sweep.json").read_bytes() == before  # the other one's
    assert not (out / "joy-m").exists()


def test_a_lock_that_a_sweep_left_does_not_take_the_place(tmp_path):
    (tmp_path / LOCK).touch()
    with Store(tmp_path) as store:
        assert store.is_free()
        (tmp_path / "thesis.txt").write_text("years")
        assert not store.is_free()


def test_strengths_are_foretold_by_the_other_models():
    rows = [
        Row("a", "m", "joy", "done", budget=0.1, relative=0.04),
        Row("b", "n", "joy", "done", budget=0.1, relative=0.01),
        Row("c", "o", "joy", "done", budget=0.1, relative=0.02),
        Row("d", "m", "evil", "done", budget=0.1, relative=-0.5),
        Row("e", "n", "joy", "failed"),
    ]
    guesses = [row.foretold for row in foretold(rows)]
    assert guesses[0] == pytest.approx(math.sqrt(0.01 * 0.02))
    assert guesses[1] == pytest.approx(math.sqrt(0.04 * 0.02))
    assert guesses[3:] == [None, None]
    factors = [0.04 / guesses[0], guesses[1] / 0.01, guesses[2] / 0.02]
    expected = sorted(max(f, 1 / f) for f in factors)[1] - 1
    assert transfer_error(foretold(rows)) == pytest.approx(expected)
    assert transfer_error(rows[:1]) is None


@pytest.mark.parametrize(
    ("field", "other"), [("goal", "decrease"), ("blocks", "search"), ("budget", 0.2)]
)
def test_strengths_of_another_request_foretell_nothing(field, other):
    rows = [
        Row("a", "m", "joy", "done", budget=0.1, relative=0.04),
        replace(Row("b", "n", "joy", "done", budget=0.1, relative=0.01), **{field: other}),
    ]
    assert [row.foretold for row in foretold(rows)] == [None, None]


def test_a_row_has_the_goal_and_the_blocks_that_were_asked_for(tmp_path):
    (cell,) = cells_of(["m"], ["joy"], layers=["3,4"], options={"goal": "decrease"})
    listed = Cell("x", "m", "joy", (("layer", [3, 4]),))
    with Store(tmp_path / "out") as store:
        cells = (cell, listed, Cell("y", "m", "joy"))
        rows = write_report(store, cells, SweepLedger(store, cells))
        (tmp_path / "out" / "cells.csv").write_text(EARLIER_TABLE)
        write_report(store, cells, SweepLedger(store, cells))  # an earlier release's is replaced
    assert [(row.goal, row.blocks) for row in rows] == [
        ("decrease", "3,4"), ("increase", "3,4"), ("increase", "auto"),
    ]  # fmt: skip


EARLIER_TABLE = (
    "cell,model,concept,status,reasons,where,budget,strength,strength_at_budget,relative,foretold,"
    "delta_ce,delta_ce_upper,presence,baseline,loops,token_forwards,seconds\n"
)


@pytest.mark.parametrize(
    "cell",
    [
        Cell("joy", "smollm2", "joy"),
        Cell("joy", "smollm2", "joy", (("goal", "increase"),)),
        Cell("joy", "smollm2", "joy", (("judge", "question"),)),
        Cell("joy", "smollm2", "joy", (("judge", "question:qwen2.5-1.5b"),)),
        Cell("joy", "smollm2", "joy", (("teacher", "openai:increase"),)),
        Cell("joy", "smollm2", "joy", (("teacher", "none"), ("guard", "auto"))),
        Cell("joy", "smollm2", "joy", (("guard", "lm-eval:question:200"),)),
    ],
    ids=str,
)
def test_what_has_a_name_of_its_own_is_no_directory_of_that_name(cell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = cell.key
    for name in ("joy", "smollm2", "increase", "question", "qwen2.5-1.5b", "200", "auto", "none"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "steering.json").write_text("{}")
    assert cell.key == before


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        (
            ("ce-budgets = [0.05]", "ce-budgets = [0.1]"),
            "with ce_budget=0.05 and with ce_budget=0.1",
        ),
        (('goal = "decrease"', "trials = 3"), "with goal=decrease, trials=None and with goal=None"),
    ],
)
def test_two_tables_of_one_name_say_what_they_differ_in(tables, says, tmp_path):
    plan = tmp_path / "plan.toml"
    plan.write_text(
        "".join(f'[[sweep]]\nmodels = ["m"]\nconcepts = ["joy"]\n{each}\n' for each in tables)
    )
    with pytest.raises(InputError, match=f"'joy-m' is two: {says}.*in one table"):
        read_plan(plan)


def test_a_model_whose_files_were_written_anew_is_another_cell(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"before")
    before = Cell("joy", str(tmp_path), "joy").key
    assert Cell("joy", str(tmp_path), "joy").key == before
    weights.write_bytes(b"after a training")
    assert Cell("joy", str(tmp_path), "joy").key != before
    assert Cell("joy", "smollm2", "joy").key == Cell("joy", "smollm2", "joy").key


@pytest.mark.parametrize(
    "option", ["concept", "prompts", "corpus", "guard", "lm-eval", "several tasks"]
)
def test_a_file_that_holds_something_else_makes_another_cell(tmp_path, option):
    file = tmp_path / "given.jsonl"

    def key():
        if option == "concept":
            return Cell("joy", "smollm2", str(file)).key
        tasks = {"lm-eval": f"lm-eval:{file}", "several tasks": f"lm-eval:arc_easy,{file}:200"}
        given = ("guard", tasks[option]) if option in tasks else (option, str(file))
        return Cell("joy", "smollm2", "joy", (given,)).key

    file.write_text("before")
    before = key()
    file.write_text("edited")
    edited = key()
    file.write_text("before")  # at another time
    assert before == key() != edited


@pytest.mark.parametrize("option", ["start", "beside"])
def test_an_earlier_calibration_that_is_written_anew_makes_another_cell(tmp_path, option):
    cell = Cell("joy", "smollm2", "joy", ((option, str(tmp_path)),))
    (tmp_path / "steering.json").write_text("{}")
    before = cell.key
    (tmp_path / "steering.json").write_text('{"strength": 2}')
    assert cell.key != before


def test_a_judge_of_another_code_makes_another_cell(monkeypatch):
    module = types.ModuleType("house_judges")
    monkeypatch.setitem(sys.modules, "house_judges", module)
    cell = Cell("joy", "smollm2", "joy", (("judge", "house_judges:score"),))
    unknown = cell.key
    module.score = lambda texts, concept: [0.0 for _ in texts]
    before = cell.key
    module.score = lambda texts, concept: [1.0 for _ in texts]
    assert len({unknown, before, cell.key}) == 3


def test_a_text_too_long_for_a_path_is_a_value_like_any_other():
    asked = (("judge_question", "Is it so? " * 1000),)
    assert Cell("joy", "smollm2", "joy", asked).key != Cell("joy", "smollm2", "joy").key
