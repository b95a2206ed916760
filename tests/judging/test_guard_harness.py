"""The guard's questions from lm-evaluation-harness' tasks, against the harness' own scores."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import tiny

import calibrate
from calibrate.common.errors import InputError
from calibrate.deploy.verify import check_directory
from calibrate.engine.loading import load_model
from calibrate.judging.guard import answered
from calibrate.texts import harness
from calibrate.texts.guard_choice import check_guard_choice, choose_guard

WORDS = [*tiny.BRIGHT, *tiny.DULL, *tiny.PLAIN]
CHOICES = """
output_type: multiple_choice
doc_to_text: "{{question}} the"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc}]
"""
KINDS = {
    "choices": CHOICES,
    "named": CHOICES.replace("target: answer", 'target: "{{choices[answer]}}"'),
    "shots": CHOICES + "num_fewshot: 2\nfewshot_split: test\nfewshot_config: {sampler: first_n}\n",
    "cloze": """
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: " {{choices[0]}}"
metric_list: [{metric: acc}]
""",
}


@pytest.fixture
def installed(monkeypatch, tmp_path):
    pytest.importorskip("lm_eval.tasks", reason="needs lm-eval: pip install -e .[lm-eval]")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))


needs_harness = pytest.mark.usefixtures("installed")


def task_file(folder, kind, n=40, **change):
    """A task of the harness with its questions beside it."""
    rng, rows = np.random.default_rng(0), []
    for number in range(n):
        words = [str(word) for word in rng.permutation(WORDS)]
        choices = [words[0], f"{words[1]} {words[2]}", words[3]]
        row = {"question": " ".join(words[6:9]), "choices": choices, "answer": number % 3}
        rows.append(row | change)
    data, path = folder / f"{kind}.jsonl", folder / f"{kind}.yaml"
    data.write_text("\n".join(map(json.dumps, rows)))
    where = (
        f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
    )
    path.write_text(f"task: my_{kind}\n{where}{KINDS[kind]}")
    return path


@needs_harness
@pytest.mark.parametrize("kind", [*KINDS])
def test_questions_are_answered_as_the_harness_itself_finds(tmp_path, kind):
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model, tokenizer = tiny.model(spread=0.6), tiny.tokenizer(chat=True)
    path = task_file(tmp_path, kind)
    guard = choose_guard(f"lm-eval:{path}")
    found = answered(load_model(model, tokenizer), guard.items)
    scored = simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1),
        tasks=[str(path)],
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
    )
    theirs = [bool(sample["acc"]) for sample in scored["samples"][f"my_{kind}"]]
    assert found.tolist() == theirs
    assert len(guard.items) == 40


@needs_harness
def test_several_tasks_share_the_questions_and_the_same_ones_are_asked_each_time(tmp_path, capfd):
    paths = [task_file(tmp_path, "choices", 60), task_file(tmp_path, "shots", 30)]
    named = f"lm-eval:{paths[0]},{paths[1]}:45"
    guard = choose_guard(named)
    assert (guard.name, len(guard.items)) == ("lm-eval:choices.yaml,shots.yaml:45", 45)
    assert 20 < sum(item.question.count("\n") == 0 for item in guard.items) < 40
    assert choose_guard(named).sha256 == guard.sha256
    assert capfd.readouterr() == ("", "")


@needs_harness
def test_a_calibration_keeps_the_questions_and_the_gate_puts_them_again(tiny_options, tmp_path):
    path = task_file(tmp_path, "choices")
    model, out = tiny.model("gpt2"), tmp_path / "out"
    result = calibrate.calibrate(
        model, **(tiny_options | {"guard": f"lm-eval:{path}", "out": out, "trials": 1})
    )
    path.unlink()
    section = result.config.measured.guard
    assert (section.name, section.n_questions) == ("lm-eval:choices.yaml", 40)
    assert all(item.as_is for item in result.evidence.guard)
    checks = check_directory(out, load_model(model, tiny_options["tokenizer"])).checks
    (check,) = [check for check in checks if check.name == "guard"]
    assert check.passed, check.found


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lm-eval:", "must be followed by a task's name"),
        ("lm-eval:arc_easy,", "must be followed by a task's name"),
        ("lm-eval:arc_easy:5", "at least 20 questions, got 5"),
    ],
)
def test_what_names_no_task_is_refused(name, message):
    with pytest.raises(InputError, match=message):
        check_guard_choice(name)


@needs_harness
def test_a_task_that_the_harness_does_not_have_is_refused():
    with pytest.raises(InputError, match=r"got 'arc_eazy'; did you mean .*arc_easy"):
        choose_guard("lm-eval:arc_eazy")


@needs_harness
def test_tasks_without_published_answers_are_refused(tmp_path):
    path = task_file(tmp_path, "choices", answer=-1)
    with pytest.raises(InputError, match="one right choice, and one of lm-eval:my_choices has -1 "):
        choose_guard(f"lm-eval:{path}")


@needs_harness
def test_few_questions_and_answers_that_are_written_are_refused(tmp_path):
    with pytest.raises(InputError, match="at least 20 different questions, got 5"):
        choose_guard(f"lm-eval:{task_file(tmp_path, 'choices', 5)}")
    written = task_file(tmp_path, "cloze")
    written.write_text(written.read_text().replace("loglikelihood", "generate_until"))
    with pytest.raises(InputError, match=r"lm-eval:my_cloze is of another kind \(generate_until\)"):
        choose_guard(f"lm-eval:{written}")


@needs_harness
def test_questions_that_cannot_be_had_say_why(tmp_path):
    path = task_file(tmp_path, "choices")
    (tmp_path / "choices.jsonl").unlink()
    with pytest.raises(InputError, match=r"must be on this machine or on the Hub, and cannot"):
        choose_guard(f"lm-eval:{path}")


def test_without_the_harness_the_way_to_install_it_is_named(monkeypatch):
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"install it: pip install 'steering-calibrate\[lm-eval\]'"
    ):
        check_guard_choice("lm-eval:arc_easy")


def test_an_answer_of_several_is_one_if_it_is_alone():
    doc = SimpleNamespace()
    task = SimpleNamespace(task_name="some", doc_to_target=lambda _: [1])
    assert harness._answer(task, doc, ["a", "b"]) == 1
    task.doc_to_target = lambda _: [0, 1]
    with pytest.raises(InputError, match=r"has \[0, 1\] of 2"):
        harness._answer(task, doc, ["a", "b"])
