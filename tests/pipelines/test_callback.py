"""A calibration beside a training: the training is as without it, and what was found is kept."""

from __future__ import annotations

import subprocess
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

import calibrate
from calibrate.common.errors import ArtefactError, InputError
from calibrate.models.ranks import Ranks
from calibrate.pipelines import callback as callbacks

pytestmark = pytest.mark.slow

STEPS = 4


@pytest.fixture(scope="module")
def options(tiny_options):
    return {name: value for name, value in tiny_options.items() if name != "concept"}


def rows(n=24):
    """Texts of bright words, to be learned."""
    tokenizer = tiny.tokenizer()
    found = []
    for text in tiny.texts(tiny.BRIGHT, n):
        ids = tokenizer(text)["input_ids"][:8]
        found.append({"input_ids": ids, "labels": list(ids)})
    return found


def trainer(folder, model=None, **more):
    """A Trainer of four steps, with dropout, so that random numbers matter."""
    settings = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "seed": 3,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    with learning():
        arguments = TrainingArguments(output_dir=str(folder), **(settings | more))
    return Trainer(
        tiny.model("gpt2") if model is None else model,
        arguments,
        train_dataset=rows(),
        data_collator=default_data_collator,
        processing_class=tiny.tokenizer(),
    )


@contextmanager
def learning():
    """With gradients, which the other tests go without; the old word is still the field's."""
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`gradient_checkpointing` is deprecated")
        yield


def callback(tiny_options, options, **more):
    return calibrate.CalibrationCallback(tiny_options["concept"], **{**options, **more})


def trained(run):
    """The losses and the weights of a training."""
    with learning():
        run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    return losses, {name: weight.clone() for name, weight in run.model.state_dict().items()}


def lora():
    torch.manual_seed(0)
    adapter = LoraConfig(r=2, target_modules=["c_attn"], lora_dropout=0.1, fan_in_fan_out=True)
    return get_peft_model(tiny.model("gpt2"), adapter)


@pytest.mark.parametrize(
    ("make", "more"),
    [
        (None, {}),
        (None, {"bf16": True, "gradient_accumulation_steps": 2}),
        (lora, {"gradient_checkpointing": True}),
    ],
    ids=["plain", "mixed precision", "LoRA with gradient checkpointing"],
)
def test_a_training_is_bit_for_bit_what_it_is_without(make, more, tiny_options, options, tmp_path):
    alone = trained(trainer(tmp_path / "alone", make and make(), **more))
    beside = trainer(tmp_path / "beside", make and make(), **more)
    found = callback(tiny_options, options, every=2).attach(beside)
    losses, weights = trained(beside)
    assert [one.step for one in found.history] == [2, 4]
    assert losses == alone[0]
    assert set(weights) == set(alone[1])
    assert all(torch.equal(weights[name], alone[1][name]) for name in weights)
    assert beside.model.training


@pytest.mark.parametrize("how", ["prepared by accelerate", "within autocast"])
def test_mixed_precision_is_measured_as_the_weights_are_kept(how, finished, tiny_options, options):
    model = tiny.model("gpt2")
    if how == "within autocast":
        with torch.autocast("cpu", torch.bfloat16):
            config = calibrate.calibrate(model, tiny_options["concept"], **options).config
    else:
        AcceleratorState._reset_state(reset_partial_state=True)  # an earlier Trainer's
        prepared = Accelerator(cpu=True, mixed_precision="bf16").prepare_model(model)
        forward = prepared.forward
        config = calibrate.calibrate(prepared, tiny_options["concept"], **options).config
        assert prepared.forward == forward
    assert config.intervention == finished.result.config.intervention
    assert config.measured == finished.result.config.measured


def test_each_calibration_may_begin_with_the_last(tiny_options, options, tmp_path):
    losses, _ = trained(trainer(tmp_path / "alone"))
    run = trainer(tmp_path / "beside")
    found = callback(tiny_options, options, every=2, start="last").attach(run)
    assert trained(run)[0] == losses
    first, second = (one.result.config for one in found.history)
    assert first.provenance.start is None
    assert second.provenance.start.fingerprint == first.provenance.fingerprint


class Reporter(TrainerCallback):
    """Stands for TensorBoard and its like: it keeps what it is told."""

    def __init__(self):
        self.heard = []

    def on_log(self, args, state, control, logs=None, **given):
        self.heard.append((state.global_step, dict(logs)))


@pytest.fixture(scope="module")
def run(tiny_options, options, tmp_path_factory):
    """A finished training with a calibration at each checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    run = trainer(folder, save_strategy="steps", save_steps=2)
    reporter = Reporter()
    run.add_callback(reporter)
    found = callback(tiny_options, options).attach(run)
    with learning():
        run.train()
    return folder, run, reporter, found


def test_each_checkpoint_has_its_artefact(run):
    folder, _, _, found = run
    assert [one.step for one in found.history] == [2, 4]
    strengths = []
    for one in found.history:
        kept = calibrate.load(folder / "steering" / f"step-{one.step}")
        assert kept == one.result.config
        strengths.append(kept.intervention.strength)
        assert (folder / f"checkpoint-{one.step}").is_dir()
    assert strengths[0] != strengths[1]


def test_what_was_found_is_told_to_whoever_reports(run):
    _, trained, reporter, found = run
    told = [(step, logs) for step, logs in reporter.heard if "steering/alpha" in logs]
    assert [step for step, _ in told] == [2, 4]
    first, last = (one.result.config for one in found.history)
    for (_, logs), config in zip(told, (first, last), strict=True):
        assert logs["steering/alpha"] == config.intervention.strength
        assert logs["steering/delta_ce"] == config.measured.delta_ce.value
        assert logs["steering/feasible"] == 1.0
    at_budget = [one.range.strength_at_budget.value for one in (first, last)]
    assert told[0][1]["steering/drift"] == 0.0
    assert told[1][1]["steering/drift"] == pytest.approx(at_budget[1] / at_budget[0] - 1)
    assert any("steering/alpha_B" in entry for entry in trained.state.log_history)


def test_the_strength_is_that_of_the_checkpoint_by_itself(run, tiny_options, options):
    """The saved weights, calibrated afterwards, give the same config."""
    folder, _, _, found = run
    checkpoint = folder / "checkpoint-2"
    alone = calibrate.calibrate(
        str(checkpoint), tiny_options["concept"], **{**options, "tokenizer": tiny.tokenizer()}
    ).config
    beside = found.history[0].result.config
    assert alone.intervention.strength == beside.intervention.strength
    assert alone.measured.presence.value == beside.measured.presence.value


def test_what_is_infeasible_is_logged_and_the_training_goes_on(tiny_options, options, tmp_path):
    run = trainer(tmp_path)
    found = callback(tiny_options, options, every=4, min_gain=0.9).attach(run)
    with (
        pytest.warns(calibrate.CalibrateWarning, match="no strength for 'bright' at step 4"),
        learning(),
    ):
        run.train()
    (step,) = found.history
    assert step.result is None
    assert step.reasons
    assert run.state.global_step == STEPS
    assert any(entry.get("steering/feasible") == 0.0 for entry in run.state.log_history)


def test_a_calibration_that_cannot_be_done_is_logged_and_the_training_goes_on(
    tiny_options, options, tmp_path
):
    losses, _ = trained(trainer(tmp_path / "alone"))
    run = trainer(tmp_path / "beside")
    thesis = tmp_path / "beside" / "steering" / "step-2" / "thesis.txt"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("years")
    found = callback(tiny_options, options, every=2).attach(run)
    with pytest.warns(
        calibrate.CalibrateWarning, match="no strength for 'bright' at step 2: --out"
    ):
        assert trained(run)[0] == losses
    failed, done = found.history
    assert failed.result is None
    assert "choose another --out" in failed.reasons[0]
    assert done.result is not None
    logged = [one["steering/feasible"] for one in run.state.log_history if "steering/alpha" in one]
    assert logged == [1.0]
    assert [path.name for path in thesis.parent.iterdir()] == ["thesis.txt"]


def test_what_one_of_several_processes_cannot_do_ends_the_training(
    tiny_options, options, tmp_path, monkeypatch
):
    """The others of those that hold one model are in the middle of it, and wait for the first."""

    def full(*_given, **_options):
        raise ArtefactError("the disk is full")

    monkeypatch.setattr(callbacks, "calibrate", full)
    monkeypatch.setattr(Ranks, "of", lambda model: Ranks(0, 2))
    run = trainer(tmp_path)
    callback(tiny_options, options, every=2).attach(run)
    with pytest.raises(ArtefactError, match="full"), learning():
        run.train()


FAILURES = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] can't allocate memory: you tried 10 bytes"),
    MemoryError("no room"),
    OSError(28, "No space left on device", "study.journal"),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_what_the_machine_cannot_do_is_logged_and_the_training_goes_on(
    failure, tiny_options, options, tmp_path, monkeypatch
):
    def short(*_given, **_options):
        raise failure

    monkeypatch.setattr(callbacks, "calibrate", short)
    run = trainer(tmp_path)
    found = callback(tiny_options, options, every=4).attach(run)
    with pytest.warns(calibrate.CalibrateWarning, match="'bright' at step 4"), learning():
        run.train()
    (step,) = found.history
    assert step.result is None
    assert str(failure.args[-1]) in step.reasons[0]
    assert run.state.global_step == STEPS


@pytest.mark.parametrize(
    ("failure", "ranks"), [(RuntimeError("a mistake"), Ranks()), (FAILURES[-1], Ranks(0, 2))]
)
def test_a_mistake_ends_the_training_and_so_does_a_disk_that_others_do_not_have(
    failure, ranks, tiny_options, options, tmp_path, monkeypatch
):
    def broken(*_given, **_options):
        raise failure

    monkeypatch.setattr(callbacks, "calibrate", broken)
    monkeypatch.setattr(Ranks, "of", lambda model: ranks)
    run = trainer(tmp_path)
    callback(tiny_options, options, every=2).attach(run)
    with pytest.raises(type(failure)), learning():
        run.train()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"judge": "no_such_module:score"}, "a function that can be imported"),
        ({"judge": "question:missing.gguf"}, "must be an existing file"),
        ({"audit": "no_such_module:score"}, "a function that can be imported"),
        ({"judge": "embedding", "audit": "embedding"}, "another than the judge"),
        ({"teacher": "openai:"}, "must name a model of the server"),
        ({"judge_url": "http://localhost:8080/v1"}, "needs a judge or a teacher on a server"),
        ({"prompts": "missing.txt"}, "missing.txt"),
        ({"corpus": "missing.txt"}, "missing.txt"),
        ({"guard": "missing.jsonl"}, "missing.jsonl"),
        ({"guard": "none", "max_guard_drop": 0.05}, "must have questions"),
        ({"start": "missing"}, "missing must hold a steering.json"),
        ({"beside": "missing", "start": "last"}, "either start or beside"),
        ({"mix": 0.5}, "--mix needs --beside"),
        ({"max_tokens": 0}, "--max-tokens must be above 0"),
        ({"reply_tokens": 0}, "max_new_tokens must be"),
        ({"other_budgets": [-0.05]}, "must be"),
        ({"every": "sometimes"}, "every must be"),
        ({"every": 0}, "every must be"),
        ({"every": True}, "every must be"),
        ({"ce_budgets": 0.2}, "did you mean ce_budget"),
        ({"ce_budget": -1}, "budget"),
        ({"model": "smollm2"}, "no option 'model'"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_the_training(wrong, says):
    with pytest.raises(InputError, match=says):
        calibrate.CalibrationCallback("joy", **wrong)


@pytest.mark.parametrize("every", ["save", "evaluate", STEPS + 1])
def test_a_training_that_would_never_calibrate_is_refused(every, tiny_options, options, tmp_path):
    run = trainer(tmp_path)
    callback(tiny_options, options, every=every).attach(run)
    with pytest.raises(InputError, match="never comes"):
        run.train()


def test_a_training_without_a_tokenizer_is_refused(tiny_options, options, tmp_path):
    run = trainer(tmp_path)
    run.processing_class = run.callback_handler.processing_class = None
    bare = {name: value for name, value in options.items() if name != "tokenizer"}
    callback(tiny_options, bare, every=2).attach(run)
    with pytest.raises(InputError, match="processing_class"):
        run.train()


def test_of_two_processes_one_calibrates_and_both_end_alike(tmp_path):
    script = Path(__file__).with_name("two_processes.py")
    (tmp_path / "prompts.txt").write_text("\n".join(tiny.prompts(100)))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    meeting = ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    done = subprocess.run(
        [*command, *meeting, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = sorted((tmp_path / f"rank-{rank}").read_text() for rank in (0, 1))
    assert [line.split()[0] for line in said] == ["0", "1"]
    assert said[0].split()[1] == said[1].split()[1]
    assert (tmp_path / "steering" / "step-2" / "steering.json").exists()
