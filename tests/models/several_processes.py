"""Calibrate tiny models that one process holds, or several together: told how, and where to write.

    [torchrun …] several_processes.py FOLDER WAY ARCHITECTURE…

WAY is one, tensor (parallel), fsdp (2), offload (some blocks on disk), gpu, gpu-half (bfloat16),
gpu-offload (some blocks in memory), gpu-fsdp, interrupted (tensor parallel, begun twice) or
callback (fsdp, by the Trainer's callback). What was found is told in
FOLDER/WAY-ARCHITECTURE-RANK.json.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny
import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel, TrainerControl, TrainerState, TrainingArguments

import calibrate
from calibrate.common.progress import SILENT, Progress
from calibrate.common.settings import Sampling
from calibrate.models.architecture import find_blocks

OPTIONS: dict[str, Any] = {
    "layer": "search", "ce_budget": 0.4, "min_gain": 0.0, "trials": 4, "teacher": "none",
    "audit": "none", "guard": "none",
    "sampling": Sampling(temperature=1.0, top_p=1.0, max_new_tokens=12),
}  # fmt: skip


class Interrupting(Progress):
    """Interrupts every process after its second trial."""

    def __init__(self) -> None:
        self.n_tried = 0

    def tried(self, trial: object) -> None:
        self.n_tried += 1
        if self.n_tried == 2:
            raise KeyboardInterrupt


def sharded(architecture: str, device: str = "cpu") -> PreTrainedModel:
    """A tiny model in the shards of FSDP 2."""
    if not distributed.is_initialized():
        alone = (
            {}
            if "RANK" in os.environ
            else {"store": distributed.HashStore(), "rank": 0, "world_size": 1}
        )
        distributed.init_process_group("nccl" if device == "cuda" else "gloo", **alone)
    mesh = distributed.device_mesh.init_device_mesh(device, (distributed.get_world_size(),))
    model = tiny.model(architecture).to(device)
    for block in find_blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def spread(model: nn.Module, here: str, there: str, path: str = "") -> dict[str, str]:
    """All parts of a model but its blocks, and the first of these, here; the rest there."""
    places: dict[str, str] = {}
    for name, part in model.named_children():
        if isinstance(part, nn.ModuleList):
            places |= {f"{path}{name}.{n}": there if n else here for n in range(len(part))}
        elif any(isinstance(each, nn.ModuleList) for each in part.modules()):
            places |= spread(part, here, there, f"{path}{name}.")
        else:
            places[f"{path}{name}"] = here
    return places


def model_of(way: str, place: Path) -> Any:
    """The model as `calibrate` takes it."""
    if way.endswith("fsdp"):
        return sharded(place.name, "cuda" if way.startswith("gpu") else "cpu")
    if way in ("tensor", "interrupted"):
        return calibrate.load_model(place, tensor_parallel=True)
    if way.endswith("offload"):
        here, there = ("cuda:0", "cpu") if way.startswith("gpu") else ("cpu", "disk")
        places = spread(tiny.model(place.name), here, there)
        return calibrate.load_model(place, device_map=places, dtype="float32")
    device = "cuda" if way.startswith("gpu") else "cpu"
    dtype = "bfloat16" if way.endswith("half") else "float32"
    return calibrate.load_model(place, device=device, dtype=dtype)


def calibrated(way: str, place: Path, out: Path) -> dict[str, Any]:
    """What is found at one model."""
    model = model_of(way, place)
    prompts = out.parent / "prompts.txt"

    def run(progress: Progress = SILENT) -> Any:
        return calibrate.calibrate(
            model, tiny.concept(60), tokenizer=tiny.tokenizer() if way.endswith("fsdp") else None,
            prompts=prompts, out=out, progress=progress, **OPTIONS,
        )  # fmt: skip

    if way == "interrupted":
        try:
            run(Interrupting())
        except KeyboardInterrupt:
            distributed.barrier()
    started = time.perf_counter()
    run()
    config = run().config  # finished: every process finds what the first one wrote
    return {
        "strength": config.intervention.strength,
        "at_budget": config.range.strength_at_budget.value,
        "delta_ce": config.measured.delta_ce.value,
        "presence": config.measured.presence.value,
        "tokens": sum(stage.token_forwards for stage in config.cost.values()),
        "seconds": time.perf_counter() - started,
    }


def called_back(place: Path, out: Path) -> dict[str, Any]:
    """What the Trainer's callback finds on a sharded model, and whether it is as it was."""
    model = sharded(place.name).train()
    arguments = TrainingArguments(output_dir=str(out), report_to=[], use_cpu=True)
    callback = calibrate.CalibrationCallback(
        tiny.concept(60), every=2, prompts=out.parent / "prompts.txt", **OPTIONS
    )
    given = {"model": model, "processing_class": tiny.tokenizer()}
    first = int(os.environ["RANK"]) == 0
    state = TrainerState(global_step=2, max_steps=2, is_world_process_zero=first)
    before = sum(float(weight.detach().full_tensor().sum()) for weight in model.parameters())
    callback.on_train_begin(arguments, state, TrainerControl(), **given)
    callback.on_step_end(arguments, state, TrainerControl(), **given)
    loss = model(torch.tensor([[5, 9, 12]]), labels=torch.tensor([[5, 9, 12]])).loss
    loss.backward()
    after = sum(float(weight.detach().full_tensor().sum()) for weight in model.parameters())
    (step,) = callback.history
    return {
        "strength": step.result.config.intervention.strength,
        "unchanged": before == after and model.training,
        "trains": all(weight.grad is not None for weight in model.parameters()),
    }


def main() -> None:
    """Calibrate each architecture, and tell."""
    folder, way, *architectures = sys.argv[1:]
    rank = os.environ.get("RANK", "0")
    for architecture in architectures:
        place, out = Path(folder) / architecture, Path(folder) / f"{way}-{architecture}"
        found = called_back(place, out) if way == "callback" else calibrated(way, place, out)
        told = Path(folder) / f"{way}-{architecture}-{rank}.json"
        told.write_text(json.dumps(found))
    if distributed.is_initialized():
        distributed.destroy_process_group()


main()
