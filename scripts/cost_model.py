"""What a calibration costs, from a model's config and a device's rates; writes docs/cost.md.

    python scripts/cost_model.py [--model smollm2 --model gemma3-270m] [--page]
    python scripts/cost_model.py --device cuda --dtype bfloat16 --model llama-8b

Models are calibrated while every call of a block and of the unembedding is counted, by stage. What
the device does is measured on bare products of matrices, never on the models. From these two, and
the models' configs, follow the seconds of each stage, which are held against the clock. The same
calls are then put to larger models on other devices. Six minutes a model on one core. `llama-8b`
has that shape and random weights: it loses its budget as a model does, and never raises a concept.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import click
import numpy as np
import torch
from cost_page import CORE, WIDTHS, page
from cost_work import Device, Shape, Work
from kept import forget
from markdown_tables import DOCS
from records import page_option, read_records, write_records
from transformers import LlamaConfig, LlamaForCausalLM

from calibrate import Sampling, calibrate, load_model
from calibrate.common.cost import Meter
from calibrate.common.errors import Infeasible
from calibrate.common.progress import Progress, Unit
from calibrate.engine.sampling import draw
from calibrate.models.model import DEFAULT_BATCH_TOKENS, LoadedModel

TARGET = DOCS / "cost.json"
MODELS = ("smollm2", "gemma3-270m")
OPTIONS: dict[str, Any] = {"concept": "joy", "min_gain": 0.0}
RANDOM = "llama-8b"
MOST = {"cpu": 2048, "cuda": 16_384}  # rows
STREAMED = {"cpu": 64 << 20, "cuda": 512 << 20}  # bytes of matrices in turn: no cache holds them
DRAWN = 8  # tokens that are drawn at a time
SMALL_BLOCKS = {
    "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1, "num_key_value_heads": 1,
    "head_dim": 64, "num_hidden_layers": 8, "vocab_size": 8,
}  # fmt: skip
ROWS = {"cpu": 64, "cuda": 1024}  # of the array that passes go over


@click.command()
@click.option("--model", "models", multiple=True, default=MODELS, show_default=True)
@click.option("--device", type=click.Choice(tuple(MOST)), default="cpu", show_default=True)
@click.option("--dtype", default="float32", show_default=True)
@click.option("--batch-tokens", default=DEFAULT_BATCH_TOKENS, show_default=True)
@page_option
def main(
    models: tuple[str, ...], device: str, dtype: str, batch_tokens: int, only_page: bool
) -> None:
    if not only_page:
        for name in models:
            forget()  # the cache, so that every stage is seen
            keep(f"{name}, {device}, {batch_tokens}", measured(name, device, dtype, batch_tokens))
    (DOCS / "cost.md").write_text(page(read_records(TARGET)), encoding="utf-8")


def keep(name: str, facts: dict[str, Any]) -> None:
    """Write facts beside what is known of other runs."""
    write_records(TARGET, {**read_records(TARGET), name: facts})


def measured(name: str, device: str, dtype: str, batch_tokens: int) -> dict[str, Any]:
    """What a model's calibration asked and took, and the device's rates before and after it."""
    loaded = loaded_on(name, device, dtype, batch_tokens)
    before = device_of(loaded)
    stages = {stage: asdict(one) for stage, one in counted(loaded).items()}
    return {
        "device": asdict(mean_of([before, device_of(loaded)])),
        "batch_tokens": batch_tokens,
        "shape": asdict(shape_of(loaded, name)),
        "stages": stages,
    }


def loaded_on(name: str, device: str, dtype: str, batch_tokens: int) -> LoadedModel:
    """A model there; the large one of random weights has smollm2's tokenizer and vocabulary.

    Its tokens outweigh what blocks add to them, and its logits spread as a trained model's, so that
    a probe finds words, replies end at no token in particular, and steering costs cross-entropy.
    """
    if name != RANDOM:
        return load_model(name, device=device, dtype=dtype, batch_tokens=batch_tokens)
    small = load_model("smollm2", device="cpu")
    config = LlamaConfig(
        hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=small.vocabulary_size, tie_word_embeddings=False,
        initializer_range=0.007,
    )  # fmt: skip
    with torch.device(device):
        model = LlamaForCausalLM._from_config(config, dtype=getattr(torch, dtype)).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(600)
        model.get_output_embeddings().weight.mul_(8)
    return load_model(model, small.tokenizer, batch_tokens=batch_tokens)


def shape_of(loaded: LoadedModel, name: str) -> Shape:
    config = loaded.model.config.get_text_config()
    return Shape(
        name,
        loaded.num_layers,
        loaded.hidden_size,
        config.intermediate_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        getattr(config, "head_dim", None) or loaded.hidden_size // config.num_attention_heads,
        loaded.vocabulary_size,
        normed(loaded),
    )


def normed(loaded: LoadedModel) -> float:
    """Numbers that a block's norms read for a token, each head's included, in hidden sizes."""
    config = loaded.model.config.get_text_config()
    heads = {"q_norm": config.num_attention_heads, "k_norm": config.num_key_value_heads}
    norms = [
        part.weight.numel() * heads.get(name.split(".")[-1], 1)
        for name, part in loaded.blocks[0].named_modules()
        if "norm" in name and getattr(part, "weight", None) is not None
    ]
    return float(sum(norms)) / loaded.hidden_size


class Stages(Progress):
    """Knows which stage a calibration is in, and what each has taken, those in it included."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self.work: dict[str, Work] = {}
        self._open: list[tuple[float, int]] = []
        self.now = Work()

    def began(self, stage: str, total: int | None = None, unit: Unit = "tokens") -> None:
        self.now = self.work.setdefault(stage, Work())
        self._open.append((time.perf_counter(), self._meter.tokens))

    def ended(self, stage: str) -> None:
        started, tokens = self._open.pop()
        self.work[stage].seconds += time.perf_counter() - started
        self.work[stage].token_forwards += self._meter.tokens - tokens
        click.echo(f"{stage}: {self.work[stage].seconds:.1f} s")


def counted(loaded: LoadedModel) -> dict[str, Work]:
    """What each stage of a calibration asks of the model, and how long it takes."""
    stages = Stages(loaded.meter)
    with counting(loaded, stages), suppress(Infeasible):
        calibrate(loaded, progress=stages, **OPTIONS)
    return stages.work


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
            feed_forward: Any = each.mlp
            stack.callback(feed_forward.register_forward_pre_hook(block).remove)
        stack.callback(loaded.unembedding.register_forward_pre_hook(logits).remove)
        yield


def device_of(loaded: LoadedModel) -> Device:
    """The rates of the device that a model is on, by products of matrices of the model's size."""
    device, dtype, shape = loaded.device.type, loaded.dtype, shape_of(loaded, loaded.name)
    size = dtype.itemsize * shape.hidden * shape.inner
    matrices = torch.randn(
        STREAMED[device] // size + 1, shape.inner, shape.hidden, device=device, dtype=dtype
    )
    rates = {}
    for width in WIDTHS:
        if width <= MOST[device]:
            rows = torch.randn(width, shape.hidden, device=device, dtype=dtype)
            seconds = timed(partial(products, rows, matrices), device)
            rates[width] = 2 * width * matrices.numel() / seconds
    array = torch.randn(ROWS[device], 50_000, device=device)
    bandwidth = 2 * array.nbytes / timed(lambda: array.exp(), device)
    logits, keys = 4 * torch.randn(DRAWN, 100_000, device=device), torch.arange(DRAWN)
    drawing = timed(lambda: draw(logits, Sampling(), keys, 1), device) / logits.numel()
    queued = device == "cuda"
    name = f"{torch.cuda.get_device_name()}, {dtype}".replace("torch.", "") if queued else CORE
    call = call_seconds(loaded)
    return Device(name, rates, call, bandwidth, dtype.itemsize, drawing, queued)


def products(rows: torch.Tensor, matrices: torch.Tensor) -> None:
    for one in matrices:
        rows @ one.T


def mean_of(seen: list[Device]) -> Device:
    """A device's rates over the times it was looked at."""

    def mean(numbers: Iterable[float]) -> float:
        return float(np.mean(list(numbers)))

    return replace(
        seen[0],
        rates={width: mean(one.rates[width] for one in seen) for width in seen[0].rates},
        call=mean(one.call for one in seen),
        bandwidth=mean(one.bandwidth for one in seen),
        draw=mean(one.draw for one in seen),
    )


def call_seconds(loaded: LoadedModel) -> float:
    """What a block of this kind of model takes whose weights are nearly nothing."""
    config = copy.deepcopy(loaded.model.config.get_text_config())
    for name, value in SMALL_BLOCKS.items():
        setattr(config, name, value)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: config.num_hidden_layers]
    model = type(loaded.model)(config).eval().to(loaded.device, loaded.dtype)
    ids = torch.zeros(1, 1, dtype=torch.long, device=loaded.device)
    with torch.no_grad():
        return timed(lambda: model(ids, use_cache=True), loaded.device.type) / len(
            model.model.layers
        )


def timed(work: Callable[[], Any], device: str, repeats: int = 15) -> float:
    """The median seconds of some work; a GPU is given ten at a time, and waited for."""
    at_once, wait = (10, torch.cuda.synchronize) if device == "cuda" else (1, int)
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        for _ in range(at_once):
            work()
        wait()
        found.append((time.perf_counter() - started) / at_once)
    return float(np.median(found[1:]))


if __name__ == "__main__":
    main()
