"""The page of `cost_model.py`: what was counted and timed, and the same calls on larger models."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from cost_work import Calls, Device, Shape, Work, seconds_of
from markdown_tables import table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from paper_models import MODELS as PAPERS

CORE = "one core"  # the CPU that the smallest models ran on
SMALL = {2048: "smollm2, cpu, 2048", 16_384: "smollm2, cuda, 16384"}  # runs, by --batch-tokens
ON_GPU = "llama-8b, cuda, 16384"  # the run that shows how long a GPU waits for a block's kernels
DRAWING = 12  # passes over a distribution that drawing a token from it takes
FORGOTTEN = 0.05  # of a run: stages below it are not held against the clock
WIDTHS = (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 16384)  # rows of products


def gpus(weights: int) -> int:
    """How many H100s hold these weights in half precision, and a quarter more: a power of two."""
    needed = 1.25 * 2 * weights / 80e9
    return 1 if needed <= 1 else 2 ** int(np.ceil(np.log2(needed)))


def h100(count: int, kept: dict[str, Any]) -> Device:
    """So many H100s that share a model, by published rates; their shares of a product are even.

    A product does 60 % of the peak in bfloat16, and 80 % of the memory's bandwidth where that
    bounds it. To queue a block's kernels takes what it took beside an H200, and two all-reduces of
    20 µs where shared.
    """
    peak, memory = 0.6 * 989e12 * count, 0.8 * 3.35e12 * count
    rates = {width: min(peak, width * memory) for width in WIDTHS}
    call = device_of(kept[ON_GPU]).call + (40e-6 if count > 1 else 0.0)
    draw = DRAWING * 4 * count / memory
    return Device(f"{count} × H100", rates, call, memory / count, 2, draw, queued=True)


LARGER = (  # published configs
    Shape("135 M (smollm2)", 30, 576, 1536, 9, 3, 64, 49_152),
    Shape("1 B (Llama 3.2)", 16, 2048, 8192, 32, 8, 64, 128_256),
    Shape("8 B (Llama 3.1)", 32, 4096, 14_336, 32, 8, 128, 128_256),
    Shape("70 B (Llama 3.1)", 80, 8192, 28_672, 64, 8, 128, 128_256),
    Shape("405 B (Llama 3.1)", 126, 16_384, 53_248, 128, 8, 128, 128_256),
)
NODES = 8  # GPUs of the cluster in the last table
ONCE = ("unsteered replies", "steering vectors", "judges")  # for all budgets of a cell


def device_of(facts: dict[str, Any]) -> Device:
    """The device that a run was on."""
    rates = {int(n): rate for n, rate in facts["device"]["rates"].items()}
    return Device(**{**facts["device"], "rates": rates})


def read(facts: dict[str, Any]) -> tuple[Shape, dict[str, Work]]:
    """What was kept of one model."""
    work = {
        stage: Work(
            one["seconds"], one["token_forwards"],
            Calls(**one["texts"]), Calls(**one["steps"]), Calls(**one["logits"]),
        )
        for stage, one in facts["stages"].items()
    }  # fmt: skip
    return Shape(**facts["shape"]), work


def page(kept: dict[str, Any]) -> str:
    held, worst = [], dict.fromkeys(kept, 0.0)
    for run, facts in kept.items():
        (shape, work), device = read(facts), device_of(facts)
        whole = sum(one.seconds for one in work.values())
        for stage, one in work.items():
            if one.seconds < FORGOTTEN * whole:
                continue
            foretold = seconds_of(one, shape, device)
            worst[run] = max(worst[run], abs(foretold / one.seconds - 1))
            flops = 2 * (shape.block * (one.texts.tokens + one.steps.tokens)
                         + shape.hidden * shape.vocabulary * one.logits.tokens)  # fmt: skip
            read_bytes = device.size * (
                shape.block * (one.texts.calls + one.steps.calls)
                + shape.hidden * shape.vocabulary * one.logits.calls
            )
            held.append([
                shape.name, device.name, f"{facts['batch_tokens']}", stage,
                f"{one.token_forwards:,}", f"{flops / 1e12:.2f}",
                f"{read_bytes / 1e9:.0f}", f"{one.seconds:.1f} s", f"{foretold:.1f} s",
                f"{foretold / one.seconds - 1:+.0%}",
            ])  # fmt: skip
    return PAGE.format(
        held=table(
            ["model", "on", "--batch-tokens", "stage", "token-forwards", "10¹² FLOP",
             "GB of weights read", "measured", "foretold", "off by"], held),
        worst="; ".join(f"{name} {off:.0%}" for name, off in worst.items() if off),
        wholes=wholes_table(kept),
        rates=rates_table(kept),
        larger=larger_table(kept),
        cluster=cluster_table(kept),
        batches=by_larger_batches(kept),
    )  # fmt: skip


def wholes_table(kept: dict[str, Any]) -> str:
    """Seconds of each whole calibration, loading left out."""
    rows = []
    for facts in kept.values():
        shape, work = read(facts)
        whole = sum(one.seconds for one in work.values())
        on = device_of(facts).name
        rows.append([shape.name, on, f"{facts['batch_tokens']}", f"{whole:.0f} s"])
    return table(["model", "on", "--batch-tokens", "a calibration"], rows)


def rates_table(kept: dict[str, Any]) -> str:
    devices = [device_of(facts) for facts in kept.values()]
    rows = [
        [
            f"10⁹ FLOP/s with {n} rows",
            *(f"{each.rates[n] / 1e9:,.0f}" if n in each.rates else "" for each in devices),
        ]
        for n in sorted({n for each in devices for n in each.rates})
    ]
    rows += [
        ["a block of hardly any weights, µs", *(f"{each.call * 1e6:.0f}" for each in devices)],
        ["passes over an array, GB/s", *(f"{each.bandwidth / 1e9:,.0f}" for each in devices)],
        ["drawing of a token, ns a number", *(f"{each.draw * 1e9:.1f}" for each in devices)],
    ]
    return table(["rate", *kept], rows)


def larger_table(kept: dict[str, Any]) -> str:
    """Seconds of each stage on larger models, with the calls that smollm2's calibration made."""
    rows = []
    for shape in LARGER:
        device = h100(gpus(shape.weights), kept)
        for batch_tokens, run in SMALL.items():
            small, work = read(kept[run])
            each = stages_on(device, shape, small, work)
            whole = sum(each.values())
            largest = max(each, key=lambda stage: each[stage])
            rows.append([
                shape.name, device.name, f"{batch_tokens}", f"{whole:.0f} s",
                f"{whole * gpus(shape.weights) / 60:.1f}", f"{largest} {each[largest] / whole:.0%}",
            ])  # fmt: skip
    heads = ["model", "on", "--batch-tokens", "a calibration", "GPU minutes", "most of it"]
    return table(heads, rows)


def stages_on(
    device: Device, shape: Shape, small: Shape, work: dict[str, Work]
) -> dict[str, float]:
    """Seconds of each stage that runs the model, with the calls that a smaller one's made."""
    return {
        stage: seconds_of(one, shape, device, small)
        for stage, one in work.items()
        if one.texts.calls + one.steps.calls
    }


def by_larger_batches(kept: dict[str, Any]) -> str:
    """By how much larger models' calibrations take more or less with more tokens a batch."""
    changes = []
    for shape in LARGER:
        device = h100(gpus(shape.weights), kept)
        few, many = (
            sum(stages_on(device, shape, *read(kept[run])).values()) for run in SMALL.values()
        )
        changes.append(many / few - 1)
    return f"{min(changes):+.0%} to {max(changes):+.0%}"


def cluster_table(kept: dict[str, Any]) -> str:
    """The paper's eleven models × eight concepts × three budgets on a cluster."""
    small, work = read(kept[SMALL[2048]])
    hours, replies = 0.0, 0.0
    for one in PAPERS:
        shape = Shape(
            one.name, one.layers, one.width, one.ffn, one.heads, one.heads // one.group, one.head,
            one.vocabulary,
        )  # fmt: skip
        each = stages_on(h100(1, kept), shape, small, work)
        again = sum(seconds for stage, seconds in each.items() if stage not in ONCE)
        shared = each.get("unsteered replies", 0.0)
        hours += (8 * (sum(each.values()) - shared + 2 * again) + shared) / 3600
        replies += 7 * shared / 3600
    return table(
        ["models × concepts × budgets", "GPU hours", f"hours on {NODES} H100s",
         "saved by sampling unsteered replies once a model"],
        [[f"{len(PAPERS)} × 8 × 3", f"{hours:.1f}", f"{hours / NODES:.1f}", f"{replies:.1f} h"]],
    )  # fmt: skip


PAGE = """# What a calibration costs

Written by `scripts/cost_model.py`.

## Foretold, and held against the clock

Calls of blocks and of the unembedding are counted in a calibration of joy, with default options but
`--min-gain 0`; llama-8b has random weights and the vocabulary of smollm2. Seconds
follow from the model's config and four rates of the device, none of them measured on the model:
FLOP/s of a product with so many rows, bytes/s of passes over an array, seconds of drawing a token
from random logits, and of a block of the model's kind whose weights are nearly nothing. What else
is not a product is counted as so many passes over norms, hidden size, inner size and vocabulary.

{held}
Stages that take more than 5 % of the run; the worst of each run: {worst}. What a stage does
beside the model, as fitting probes, reading sentences with the encoder and resampling, is not
foretold: on a GPU that is most of the judges' time. On the CPU each model had one core, and the
other was busy with another measurement; the GPU's machine had four. gemma3-270m's calibration ends
as infeasible, since its long replies loop, and has all stages; so does that of llama-8b, whose
weights are random.

{wholes}
{rates}
## Larger models

The calls that smollm2's calibrations made, put to larger models: more blocks, and larger ones.
H100s by published rates: 60 % of the bfloat16 peak of 989 TFLOP/s, 80 % of 3.35 TB/s, 40 µs of
all-reduces where GPUs share it. A block's kernels wait for Python as long as llama-8b's did here.

{larger}
Decoding replies token by token is bound by Python, which queues kernels, and by reading weights,
not by arithmetic; batches of 16,384 tokens in place of 2,048 change what a calibration takes by
{batches}. A batch that does not fit is halved.

Calibrations run without cuDNN's attention, which plans anew for every width that it has not met, so
for every token of a reply: with it, smollm2's spent 47 of its first 102 seconds there, in a profile
that it did not end in; without, 4 of 61, to its end.

## The paper's models

Each on one H100, but for the one-layer GPT that its authors trained. A model's unsteered replies
are sampled once for all its concepts, vectors and probes once for all budgets.

{cluster}"""
