"""Models that several processes hold together, or several devices, are calibrated as one is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from refused import Refused, each
from torch import distributed
from torch.distributed.fsdp import FullyShardedDataParallel
from transformers import LlamaConfig

from calibrate.common.cost import Allowance, Limits, Meter
from calibrate.common.errors import CalibrateWarning, ModelError
from calibrate.engine.loading import load_model
from calibrate.judging.read_once import read_once
from calibrate.models.placement import place, require_divisible
from calibrate.models.ranks import Ranks
from calibrate.search.storage import StudyStore, check_storage

SOME = ("llama", "gemma3", "gpt-neox")  # docs/devices.md has six
SCRIPT = Path(__file__).with_name("several_processes.py")


def done_by(folder, way, *architectures, processes=1):
    """The processes' end: their status, and all that they printed."""
    started = [sys.executable]
    if processes > 1:
        meeting = ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
        started += ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", *meeting]
    return subprocess.run(
        [*started, str(SCRIPT), str(folder), way, *architectures],
        capture_output=True, text=True, timeout=600, check=False, env=environment(way),
    )  # fmt: skip


def run(folder, way, *architectures, processes=1):
    """What each process found, by architecture and process."""
    done = done_by(folder, way, *architectures, processes=processes)
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        name: [
            json.loads((folder / f"{way}-{name}-{rank}.json").read_text())
            for rank in range(processes)
        ]
        for name in architectures
    }


def environment(way):
    """What a way runs in: one thread, as torchrun gives each process, and a GPU where it asks."""
    hidden = {} if way.startswith("gpu") else {"CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **hidden, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tiny models and prompts."""
    made = tmp_path_factory.mktemp("ranks")
    for name in SOME:
        tiny.model(name).save_pretrained(made / name)
        tiny.tokenizer().save_pretrained(made / name)
    (made / "prompts.txt").write_text("\n".join(tiny.prompts(100)))
    return made


@pytest.fixture(scope="module")
def alone(folder):
    return {name: found for name, (found,) in run(folder, "one", *SOME).items()}


def require_as_alone(found, alone):
    for name, ranks in found.items():
        for facts in ranks:
            expected = alone[name]
            assert facts["at_budget"] == pytest.approx(expected["at_budget"], rel=1e-4), name
            assert facts["strength"] == pytest.approx(expected["strength"], rel=1e-4), name
            assert facts["delta_ce"] == pytest.approx(expected["delta_ce"], abs=1e-5), name
            assert facts["tokens"] == expected["tokens"], name


@pytest.mark.slow
def test_models_shared_by_two_processes_give_what_one_gives(folder, alone):
    found = run(folder, "tensor", *SOME, processes=2)
    require_as_alone(found, alone)
    for name, ranks in found.items():
        assert ranks[0]["strength"] == ranks[1]["strength"], name
        assert (folder / f"tensor-{name}" / "steering.json").is_file()


@pytest.mark.slow
def test_models_in_shards_give_what_whole_ones_give(folder, alone):
    require_as_alone(run(folder, "fsdp", "llama", "gemma3", processes=2), alone)


@pytest.mark.slow
def test_blocks_on_disk_give_what_those_in_memory_give(folder, alone):
    require_as_alone(run(folder, "offload", "llama"), alone)


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
@pytest.mark.parametrize("way", ["gpu", "gpu-offload", "gpu-fsdp"])
def test_on_a_gpu_models_give_what_they_give_on_the_cpu(folder, alone, way):
    require_as_alone(run(folder, way, "llama", "gemma3"), alone)


@pytest.mark.slow
def test_an_interrupted_study_goes_on_in_every_process(folder, alone):
    temporary = Path(tempfile.gettempdir())
    before = set(temporary.glob("calibrate-rank-*"))
    found = run(folder, "interrupted", "llama", processes=2)
    assert len({facts["strength"] for facts in found["llama"]}) == 1
    assert found["llama"][0]["strength"] == pytest.approx(alone["llama"]["strength"], rel=1e-4)
    assert set(temporary.glob("calibrate-rank-*")) == before


@pytest.mark.slow
def test_a_sharded_training_is_calibrated_by_all_of_its_processes(folder, alone):
    found = run(folder, "callback", "llama", processes=2)["llama"]
    for facts in found:
        assert facts["strength"] == pytest.approx(alone["llama"]["strength"], rel=1e-4)
        assert facts["unchanged"]
        assert facts["trains"]


@pytest.mark.slow
def test_of_processes_at_the_command_line_one_speaks_and_writes(folder, tmp_path):
    concept = tmp_path / "bright.jsonl"
    texts = tiny.concept(60).texts
    rows = [
        {"text": text.text, "label": label}
        for label, group in (("positive", texts.positives), ("negative", texts.negatives))
        for text in group
    ]
    concept.write_text("\n".join(json.dumps(row) for row in rows))
    asked = [
        "--model", folder / "llama", "--concept", concept, "--prompts", folder / "prompts.txt",
        "--layer", "search", "--ce-budget", 0.4, "--min-gain", 0, "--trials", 4,
        "--teacher", "none", "--audit", "none", "--guard", "none", "--reply-tokens", 12,
        "--tensor-parallel", "--json", "--out", tmp_path / "out",
    ]  # fmt: skip
    printed = json.loads(commanded(2, *asked))  # one JSON, not two
    written = json.loads((tmp_path / "out" / "steering.json").read_text())
    assert printed["intervention"] == written["intervention"]
    reply = ["generate", tmp_path / "out", "--prompt", "the house", "--max-tokens", 8, "--json"]
    assert commanded(2, *reply, "--tensor-parallel") == commanded(1, *reply)


def commanded(processes, *asked):
    """What the command line prints, in one process or in several together."""
    command = [str(Path(sys.executable).with_name("calibrate"))]
    if processes > 1:
        meeting = ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "--no-python"]
        start = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
        command = [*start, *meeting, *command]
    done = subprocess.run(
        [*command, *map(str, asked)],
        capture_output=True, text=True, timeout=300, check=False, env=environment("tensor"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_one_process_alone_is_told_what_it_says_and_writes_where_it_is_told(tmp_path):
    ranks, tokens = Ranks.of(tiny.model()), torch.tensor([1, 2])
    assert ranks.alone
    assert ranks.first
    assert ranks.told({"a": 1}) == {"a": 1}
    assert ranks.told_tokens(tokens) is tokens
    assert ranks.directory(tmp_path, ["a"]) == tmp_path
    judge = object()
    assert read_once(lambda: judge, "module:function", tiny.loaded()) is judge


def test_only_the_first_process_makes_a_judge_that_is_another_model():
    made = []
    for name, by_all in (("question:m", False), ("openai:m", False), ("embedding", True)):
        for rank in range(2):
            loaded = replace(tiny.loaded(), ranks=Ranks(rank, 2))
            read_once(lambda where=(name, rank): made.append(where), name, loaded)
        assert ((name, 1) in made) == by_all
    assert [rank for _, rank in made] == [0, 0, 0, 1]


def test_minutes_are_counted_by_the_clock_that_is_given():
    meter, times = Meter(), iter([0.0, 30.0, 90.0])
    allowance = Allowance(meter, Limits(minutes=1), 0, clock=lambda: next(times))
    assert allowance.left_for(0)
    assert not allowance.left_for(0)


def placed(**options):
    """Where a model goes that is loaded like this."""
    return place(**{"device": "auto", "device_map": None, "tensor_parallel": False, **options})


@contextmanager
def two_processes():
    """As torchrun tells one of two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        yield


def both(_folder):
    with two_processes():
        placed(device_map="auto", tensor_parallel=True)


def dealt(heads, shared_heads):
    config = LlamaConfig(
        hidden_size=8 * heads, num_attention_heads=heads, num_key_value_heads=shared_heads
    )
    with two_processes():
        require_divisible(config)


def without_plan(folder):
    """Raise what both of two processes said that were to share an architecture without a plan."""
    tiny.model("gpt2").save_pretrained(folder / "gpt2")
    tiny.tokenizer().save_pretrained(folder / "gpt2")
    done = done_by(folder, "tensor", "gpt2", processes=2)
    said = re.findall(r"^(?:\[rank\d\]: *)?\S+\.ModelError: (.*)$", done.stderr, re.MULTILINE)
    assert said, done.stderr[-3000:]
    (message,) = {*said}
    raise ModelError(message)


def in_zero_3(_folder):
    model = tiny.model()
    next(model.parameters()).ds_id = 0  # as ZeRO-3 marks every weight
    load_model(model, tiny.tokenizer())


def in_fsdp_1(_folder):
    distributed.init_process_group("gloo", rank=0, world_size=1, store=distributed.HashStore())
    try:
        wrapped = FullyShardedDataParallel(tiny.model(), device_id=torch.device("cpu"))
        load_model(wrapped, tiny.tokenizer())
    finally:
        distributed.destroy_process_group()


def with_storage(_folder):
    check_storage(StudyStore("a", "b", url="sqlite:///nowhere/study.db"), Ranks(0, 2))


REFUSED = [
    Refused(
        "a map of devices there is not",
        "--device-map must be one of auto, balanced, balanced_low_0, sequential, got 'everywhere'",
        lambda _: placed(device_map="everywhere"),
    ),
    Refused(
        "a map and one device",
        "a model that is spread has no one --device, got 'cpu'; leave it out",
        lambda _: placed(device_map="auto", device="cpu"),
    ),
    Refused(
        "tensor parallelism in one process",
        "--tensor-parallel needs two processes or more, started together: torchrun …",
        lambda _: placed(tensor_parallel=True),
    ),
    Refused(
        "a map and tensor parallelism",
        "give either --device-map, which spreads a model from one process, or --tensor-parallel, …",
        both,
    ),
    Refused(
        "attention heads that cannot be dealt to the processes",
        "--tensor-parallel deals attention heads to processes, …, got 9 and 3 for 2; start 3 "
        "processes, or give --device-map auto",
        lambda _: dealt(9, 3),
        ModelError,
    ),
    Refused(
        "attention heads that cannot be dealt at all",
        "…, got 4 and 1 for 2; give --device-map auto",
        lambda _: dealt(4, 1),
        ModelError,
    ),
    Refused(
        "an architecture that transformers cannot share",
        "--tensor-parallel needs a plan of how to share …gpt2, and transformers has none for its "
        "architecture; give --device-map auto",
        without_plan,
        ModelError,
    ),
    Refused(
        "a model in DeepSpeed's ZeRO-3",
        "…ZeRO-3 keeps each only while it is used; train with ZeRO-1 or 2, or calibrate the …",
        in_zero_3,
        ModelError,
    ),
    Refused(
        "a model in FSDP 1",
        "…FullyShardedDataParallel shards their weights as one; shard it with fully_shard …",
        in_fsdp_1,
        ModelError,
    ),
    Refused(
        "a storage for workers, and a model that processes share",
        "--storage shares a study between workers…2 processes hold one; leave it out",
        with_storage,
    ),
]


@each(REFUSED)
def test_what_cannot_be_spread_is_refused(row, tmp_path):
    row.check(tmp_path)


def test_weights_that_wait_on_disk_are_warned_of(folder):
    parts = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head", "model.layers.0")
    places = {**dict.fromkeys(parts, "cpu"), "model.layers.1": "disk", "model.layers.2": "disk"}
    with pytest.warns(CalibrateWarning, match="2 of 7 parts of .* wait in memory or on disk"):
        load_model(str(folder / "llama"), device_map=places)
