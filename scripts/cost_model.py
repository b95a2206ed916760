"""What a calibration costs, from a model's config and a device's rates; writes docs/cost.md.

    python scripts/cost_model.py [--model smollm2 --model gemma3-270m] [--page]

Two real models are calibrated while every call of a block and of the unembedding is counted, by
stage. What the device does is measured on bare products of matrices, never on the models. From
these two, and the models' configs, follow the seconds of each stage, which are held against the
clock. The same calls are then put to larger models on other devices. Six minutes a model on one
core.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any

import click
import numpy as np
import torch
from cost_page import page
from cost_work import Device, Shape, Work
from kept import forget
from markdown_tables import DOCS
from records import page_option, read_records, write_records

from calibrate import calibrate, load_model
from calibrate.common.progress import Progress, Unit
from calibrate.models.model import LoadedModel

TARGET = DOCS / "cost.json"
MODELS = ("smollm2", "gemma3-270m")
OPTIONS: dict[str, Any] = {"concept": "joy", "min_gain": 0.0}
WIDTHS = (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)  # rows of the products that are timed
INNER, OUTER = 1024, 4096  # of the matrix


@click.command()
@click.option("--model", "models", multiple=True, default=MODELS, show_default=True)
@page_option
def main(models: tuple[str, ...], only_page: bool) -> None:
    if not only_page:
        write_records(TARGET, {**read_records(TARGET), "device": asdict(this_device())})
        for name in models:
            measured(name)
    (DOCS / "cost.md").write_text(page(read_records(TARGET)), encoding="utf-8")


def measured(name: str) -> None:
    """Count and time a model's calibration, and keep it beside what is known of others."""
    forget()  # the cache, so that every stage is seen
    loaded = load_model(name)
    shape, work = shape_of(loaded), counted(loaded)
    stages = {stage: asdict(one) for stage, one in work.items()}
    kept = read_records(TARGET)
    models = {**kept.get("models", {}), name: {"shape": asdict(shape), "stages": stages}}
    write_records(TARGET, {**kept, "models": models})


def shape_of(loaded: LoadedModel) -> Shape:
    config = loaded.model.config.get_text_config()
    return Shape(
        loaded.name,
        loaded.num_layers,
        loaded.hidden_size,
        config.intermediate_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        getattr(config, "head_dim", None) or loaded.hidden_size // config.num_attention_heads,
        loaded.vocabulary_size,
    )


class Stages(Progress):
    """Knows which stage a calibration is in."""

    def __init__(self) -> None:
        self.work: dict[str, Work] = {"before": Work()}
        self.now = self.work["before"]

    def began(self, stage: str, total: int | None = None, unit: Unit = "tokens") -> None:
        self.now = self.work.setdefault(stage, Work())


def counted(loaded: LoadedModel) -> dict[str, Work]:
    """What each stage of a calibration asks of the model, and how long it takes."""
    stages = Stages()
    with counting(loaded, stages):
        config = calibrate(loaded, progress=stages, **OPTIONS).config
    for stage, cost in config.cost.items():
        if stage in stages.work:
            stages.work[stage].seconds = cost.seconds
            stages.work[stage].token_forwards = cost.token_forwards
    return {stage: work for stage, work in stages.work.items() if work.seconds}


@contextmanager
def counting(loaded: LoadedModel, stages: Stages) -> Iterator[None]:
    """Count the calls of every block's feed-forward part, which only runs where the block does."""

    def block(_module: Any, args: Any) -> None:
        rows, width = args[0].shape[:2]
        (stages.now.steps if width == 1 else stages.now.texts).count(rows * width)

    def logits(_module: Any, args: Any) -> None:
        stages.now.logits.count(args[0].numel() // args[0].shape[-1])

    with ExitStack() as stack:
        for each in loaded.blocks:
            stack.callback(each.mlp.register_forward_pre_hook(block).remove)
        stack.callback(loaded.unembedding.register_forward_pre_hook(logits).remove)
        yield


def this_device() -> Device:
    """The rates of the device that this runs on, by products of its own."""
    matrix = torch.randn(OUTER, INNER)
    rates = {}
    for width in WIDTHS:
        rows = torch.randn(width, INNER)
        seconds = timed(lambda rows=rows: torch.nn.functional.linear(rows, matrix))
        rates[width] = 2 * width * INNER * OUTER / seconds
    array = torch.randn(64, 50_000)
    bandwidth = 2 * array.nbytes / timed(lambda: array.exp())
    return Device("one core of this machine", rates, call_seconds(), bandwidth, 4)


def call_seconds() -> float:
    """What a block takes whose weights are nearly nothing: norms, rotary angles, Python."""
    from transformers import LlamaConfig, LlamaForCausalLM

    layers = 8
    small = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1}
    config = LlamaConfig(vocab_size=8, num_hidden_layers=layers, **small)
    model, ids = LlamaForCausalLM(config).eval(), torch.zeros(1, 1, dtype=torch.long)
    with torch.no_grad():
        return timed(lambda: model(ids, use_cache=True)) / layers


def timed(work: Callable[[], Any], repeats: int = 15) -> float:
    """The median seconds of some work."""
    work()
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return float(np.median(found))


if __name__ == "__main__":
    main()
