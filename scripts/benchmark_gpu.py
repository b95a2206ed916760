"""Time the pilot on a large model of random weights, and write docs/benchmark-gpu.md.

    python scripts/benchmark_gpu.py [--layers 36 --hidden 4096 --tokens 262144 --dtype bfloat16]

The shape is that of Qwen3-8B, in bfloat16. Weights do not matter for speed. The grid and regula
falsi of docs/benchmark.md are extrapolated from one full pass. The defaults need a GPU of 40 GiB;
smaller numbers show on any machine that the script runs.
"""

from __future__ import annotations

import time
from dataclasses import replace

import click
import torch
from markdown_tables import DOCS, table
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

from calibrate import load_model
from calibrate.common.settings import Settings
from calibrate.engine.cross_entropy import delta_ce
from calibrate.engine.site import Site, SteeringVector
from calibrate.engine.unsteered import Corpus, UnsteeredRun, run_unsteered
from calibrate.laws.pilot import run_pilot
from calibrate.models.model import LoadedModel, preserving_model_state
from calibrate.models.tokens import TokenSequence
from calibrate.search.objective import FIRST_PART, rung_sizes

LENGTH, PROMPT = 512, 16  # tokens of a sequence, and how many of them are not scored
GRID, FALSI = 129, 6  # full passes beyond the unsteered one
BUDGET = 0.02  # nats per token: random weights have little to lose
MATRIX = 8192  # width of the matrices whose product shows the machine's rate


@click.command()
@click.option("--layers", default=36, show_default=True)
@click.option("--hidden", default=4096, show_default=True)
@click.option("--vocabulary", default=151_936, show_default=True)
@click.option("--tokens", default=262_144, show_default=True)
@click.option("--batch-tokens", default=16_384, show_default=True)
@click.option("--matrix", default=MATRIX, show_default=True)
@click.option("--device", default="cuda", show_default=True)
@click.option("--dtype", default="bfloat16", show_default=True)
def main(
    layers: int, hidden: int, vocabulary: int, tokens: int, batch_tokens: int, matrix: int,
    device: str, dtype: str,
) -> None:  # fmt: skip
    kind = getattr(torch, dtype)
    loaded = random_model(layers, hidden, vocabulary, batch_tokens, device, kind)
    layer, settings = layers // 2, Settings(ce_budget=BUDGET)
    ids = torch.randint(loaded.vocabulary_size, (tokens // LENGTH, LENGTH)).tolist()
    corpus = Corpus(tuple(TokenSequence(tuple(row), PROMPT) for row in ids), self_sampled=True)
    parts = rung_sizes(len(corpus.sequences), FIRST_PART)
    with preserving_model_state(loaded):
        warm = replace(corpus, sequences=corpus.sequences[:FIRST_PART])
        found = run_unsteered(loaded, warm, [layer])
        site = Site((random_vector(found, layer),))
        started = clock(device)
        run = run_unsteered(loaded, corpus, [layer], parts)
        unsteered = clock(device) - started
        before = loaded.meter.tokens
        pilot = run_pilot(loaded, run, site, (), settings)
        ours, spent = clock(device) - started, loaded.meter.tokens - before + tokens
        whole = replace(run, batches=tuple(replace(one, residuals={}) for one in run.batches))
        started = clock(device)
        delta_ce(loaded, whole, site, pilot.strength_at_budget.value)
        full = clock(device) - started
    work = 2 * sum(weight.numel() for weight in loaded.blocks.parameters()) * spent
    work += 2 * loaded.vocabulary_size * loaded.hidden_size * tokens * (2 + len(pilot.points))
    rows = [
        ["this project", f"{ours:.1f}", f"{spent / ours:,.0f}", "1.0"],
        *(
            [name, f"{unsteered + n * full:.1f}", f"{tokens / full:,.0f}",
             f"{(unsteered + n * full) / ours:.1f}"]
            for name, n in (("grid of 129, extrapolated", GRID),
                            ("regula falsi, extrapolated", FALSI))
        ),
    ]  # fmt: skip
    rate = matrix_rate(matrix, device, kind)
    text = HEADER.format(
        layers=layers, hidden=hidden, tokens=tokens, device=name_of(device), dtype=dtype,
        passes=len(pilot.points), share=work / ours / rate, rate=rate / 1e12,
    )  # fmt: skip
    headings = ["way", "seconds", "tokens a second", "seconds, times ours"]
    (DOCS / "benchmark-gpu.md").write_text(text + table(headings, rows), encoding="utf-8")


HEADER = """# What a strength costs on a large model

Written by `scripts/benchmark_gpu.py`: {layers} blocks of width {hidden}, random weights, {dtype},
{tokens:,} corpus tokens, {device}. Strengths that the pilot took: {passes}. It ran at {share:.0%}
of the {rate:.3g} TFLOPS that a large matrix product reaches here. Full passes are extrapolated from
one.

"""


def random_model(
    layers: int, hidden: int, vocabulary: int, batch_tokens: int, device: str, dtype: torch.dtype
) -> LoadedModel:
    config = Qwen3Config(
        hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
        num_attention_heads=hidden // 128, num_key_value_heads=max(hidden // 512, 1), head_dim=128,
        vocab_size=vocabulary, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    words = Tokenizer(WordLevel({"<s>": 0, "a": 1}, unk_token="<s>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<s>", eos_token="<s>")
    return load_model(model.eval(), tokenizer, batch_tokens=batch_tokens)


def random_vector(run: UnsteeredRun, layer: int) -> SteeringVector:
    """A direction as long as the residual stream is at its block."""
    norm = float(run.batches[0].residuals[layer].hidden.float().norm(dim=-1).median())
    values = torch.randn(run.batches[0].residuals[layer].hidden.shape[-1])
    return SteeringVector(norm * values / values.norm(), layer, norm)


def clock(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def matrix_rate(width: int, device: str, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large product."""
    a = torch.randn(width, width, device=device, dtype=dtype)
    a @ a
    started = clock(device)
    for _ in range(10):
        a @ a
    return 20 * width**3 / (clock(device) - started)


def name_of(device: str) -> str:
    return torch.cuda.get_device_name() if device.startswith("cuda") else device


if __name__ == "__main__":
    main()
