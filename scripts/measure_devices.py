"""Calibrate models that one process holds, and the same spread, and write docs/devices.md.

    python scripts/measure_devices.py [--page] [--real] [--gpu]

Six tiny architectures: alone, shared by two processes (tensor parallelism), sharded over two (FSDP
2), and with blocks on disk. With --real, smollm2 alone and shared by three processes. With --gpu,
the tiny architectures on the CPU and, in four ways, on the GPU; with both, smollm2 there. Three
minutes on two cores, and ten with --real; four on a GPU, and two with --real.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import torch
from markdown_tables import DOCS, table
from records import page_option, read_records, write_records

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

TARGET, REAL = DOCS / "devices.json", DOCS / "devices-real.json"
GPU, GPU_REAL = DOCS / "devices-gpu.json", DOCS / "devices-gpu-real.json"
WORKER = ROOT / "tests" / "models" / "several_processes.py"
ARCHITECTURES = ("llama", "mistral", "qwen3", "gemma2", "gemma3", "gpt-neox")
WAYS = {"one": 1, "tensor": 2, "fsdp": 2, "offload": 1}  # and their processes
GPU_WAYS = {"one": 1, "gpu": 1, "gpu-offload": 1, "gpu-fsdp": 1, "gpu-half": 1}
NAMES = {
    "tensor": "tensor parallelism, 2 processes",
    "fsdp": "FSDP 2, 2 processes",
    "offload": "two of three blocks on disk",
    "gpu": "on the GPU",
    "gpu-offload": "on the GPU, two of three blocks in memory",
    "gpu-fsdp": "on the GPU, FSDP 2 over NCCL, 1 process",
    "gpu-half": "on the GPU, in bfloat16",
}
SHARING = 3  # processes that share smollm2, whose heads two cannot
CALIBRATE = Path(sys.executable).with_name("calibrate")
FEWER = "--model smollm2 --concept joy --trials 3 --reply-tokens 16 --audit none --guard none"


@click.command()
@click.option("--real", is_flag=True, help="Calibrate smollm2, and not the tiny models.")
@click.option("--gpu", is_flag=True, help="On this machine's GPU.")
@page_option
def main(real: bool, gpu: bool, only_page: bool) -> None:
    if not only_page:
        if real and gpu:
            write_records(GPU_REAL, on_gpu())
        elif real:
            write_records(REAL, [calibrated(1), calibrated(SHARING)])
        else:
            write_records(GPU if gpu else TARGET, measured(GPU_WAYS if gpu else WAYS))
    tiny = [*read_records(TARGET), *read_records(GPU)]
    real_ones = [*read_records(REAL), *read_records(GPU_REAL)]
    (DOCS / "devices.md").write_text(page(tiny, real_ones), encoding="utf-8")


def measured(ways: dict[str, int]) -> list[dict[str, Any]]:
    """What each architecture gives, each way."""
    import tiny

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for architecture in ARCHITECTURES:
            tiny.model(architecture).save_pretrained(folder / architecture)
            tiny.tokenizer().save_pretrained(folder / architecture)
        (folder / "prompts.txt").write_text("\n".join(tiny.prompts(100)))
        for way, processes in ways.items():
            command = started(processes, str(WORKER))
            subprocess.run([*command, str(folder), way, *ARCHITECTURES], check=True)
            click.echo(way)
        told = {
            (way, one): json.loads((folder / f"{way}-{one}-0.json").read_text())
            for way in ways
            for one in ARCHITECTURES
        }
        return [
            {"way": way, "architecture": one, **facts, **gaps(facts, told["one", one])}
            for (way, one), facts in told.items()
            if way != "one"
        ]


def gaps(facts: dict[str, float], alone: dict[str, float]) -> dict[str, float]:
    """How far a spread model is off one that a process holds alone."""
    return {
        "at_budget_gap": abs(facts["at_budget"] / alone["at_budget"] - 1),
        "strength_gap": abs(facts["strength"] / alone["strength"] - 1),
        "delta_ce_gap": abs(facts["delta_ce"] - alone["delta_ce"]),
    }


def started(processes: int, *command: str) -> list[str]:
    """A command line that starts so many processes of a Python script."""
    if processes == 1:
        return [sys.executable, *command]
    meeting = ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    run = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    return [*run, *meeting, *command]


def on_gpu() -> list[dict[str, Any]]:
    """What the command line finds on smollm2 with a GPU, in both precisions."""
    return [
        {"device": torch.cuda.get_device_name(), "dtype": dtype}
        | calibrated(1, "--device", "cuda", "--dtype", dtype)
        for dtype in ("float32", "bfloat16")
    ]


def calibrated(processes: int, *more: str) -> dict[str, Any]:
    """What the command line finds on smollm2."""
    with tempfile.TemporaryDirectory() as folder:
        asked = [str(CALIBRATE), *FEWER.split(), *more, "--json", "--out", f"{folder}/out"]
        if processes > 1:
            asked = started(processes, "--no-python", *asked, "--tensor-parallel")
        done = subprocess.run(asked, check=True, stdout=subprocess.PIPE, text=True)
    config = json.loads(done.stdout)
    return {
        "processes": processes,
        "at_budget": config["range"]["strength_at_budget"]["value"],
        "strength": config["intervention"]["strength"],
        "delta_ce": config["measured"]["delta_ce"]["value"],
        "presence": config["measured"]["presence"]["value"],
        "seconds": sum(stage["seconds"] for stage in config["cost"].values()),
    }


def page(rows: list[dict[str, Any]], real: list[dict[str, Any]]) -> str:
    found = [
        [
            NAMES[row["way"]],
            row["architecture"],
            f"{row['at_budget']:.5f}",
            f"{row['at_budget_gap']:.1e}",
            f"{row['strength_gap']:.1e}",
            f"{row['delta_ce_gap']:.1e}",
        ]
        for row in rows
    ]
    shared = [
        [
            row.get("device", "cores of this machine"),
            row.get("dtype", "float32"),
            f"{row['processes']}",
            f"{row['at_budget']:.5f}",
            f"{row['strength']:.5f}",
            f"{row['delta_ce']:.5f}",
            f"{row['presence']:.4f}",
            f"{row['seconds']:.0f} s",
        ]
        for row in real
    ]
    return PAGE.format(
        tiny=table(
            ["how it is held", "architecture", "α_B", "α_B off by", "α off by", "ΔCE off by, nat"],
            found,
        ),
        real=table(["on", "dtype", "processes", "α_B", "α", "ΔCE", "presence", "seconds"], shared),
        fewer=FEWER,
        off="".join(off_a_cpu(real)),
        missing="" if any(row["way"] in GPU_WAYS for row in rows) else MISSING,
    )


def off_a_cpu(real: list[dict[str, Any]]) -> list[str]:
    """How far a GPU's α_B and presence are off those that one process finds on a CPU."""
    alone = next(row for row in real if "device" not in row and row["processes"] == 1)
    return [
        f"\nIn {row['dtype']} a GPU's α_B is off a CPU's by "
        f"{abs(row['at_budget'] / alone['at_budget'] - 1):.3%}, presence by "
        f"{abs(row['presence'] - alone['presence']):.4f}."
        for row in real
        if "device" in row
    ]


MISSING = """
The tiny architectures have not been measured on a GPU (`--gpu` without `--real`)."""


PAGE = """# One model on many devices

Written by `scripts/measure_devices.py`.

A model that one device cannot hold is calibrated as any other:

```bash
calibrate --model M --concept joy --device-map auto
torchrun --nproc-per-node 4 --no-python calibrate --model M --concept joy --tensor-parallel
torchrun --nproc-per-node 4 --no-python calibrate verify DIR --tensor-parallel
```

With `--tensor-parallel` each process holds a part of every block, by the plan that transformers has
for the architecture, and all of them run the same calibration in step. The first one writes, prints
and asks judges; what it draws, and its clock, it tells the others. An interrupted calibration goes
on with the same command, from the first one's journal. A study of several *workers*
(`--storage`) is something else, and refused beside it. The processes must be alike, in hardware and
in versions.

In a training, a model that `fully_shard` has sharded (FSDP 2) is calibrated where it is, by all
processes together, also by the `CalibrationCallback`; ZeRO-1 and 2 leave models whole. FSDP 1 and
ZeRO-3 are refused: they bring weights together in their own forward pass only, and calibrations run
blocks and the unembedding on their own.

`--device-map` deals blocks to the devices from one process, in every command that loads a model:
`verify`, `frontier`, `pick`, `judge`, `generate`, `chat`, `serve`, `export` and `push` as well. Of
these `verify` and `generate` also take `--tensor-parallel`; the others listen, ask or write, which
one process does, and refuse it. Weights that do not fit and wait in memory or on disk (`auto`
decides that) give the same result, and there is a warning: every pass brings them anew. The
forecast of time is made from a pass of the model as it is, so that it counts this in.

## What it gives

Calibrated once by one process that holds all of a tiny model, and once spread; differences are
relative, except those of ΔCE. All come from sums in another order, in float32. In half precision
replies differ sooner or later, as they do between two kinds of GPU.

{tiny}
A real model, smollm2, alone and shared by processes, on two cores that were busy with something
else, and on a GPU (`calibrate {fewer}`). Replies are drawn by the CPU's arithmetic wherever the
model is.{off}

{real}
What default options take on a GPU is in [cost.md](cost.md), the pilot of 8 billion weights in
[benchmark-gpu.md](benchmark-gpu.md).{missing}
Tests run calibrations on a stand-in for a GPU, which refuses to mix two devices as a GPU does, on
one that has no float64, as Apple's have none, and on a model dealt to two of them.
"""


if __name__ == "__main__":
    main()
