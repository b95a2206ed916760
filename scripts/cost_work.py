"""What a calibration asks of a model, and how long a device takes for it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

SWEPT = 7  # times that a pass reads or writes each number of a distribution, over the vocabulary
# And in a block, for each token: norms, rotary angles and sums over the hidden size; SwiGLU.
SWEPT_HIDDEN, SWEPT_INNER = 24, 5


@dataclass(frozen=True)
class Shape:
    """What counts of a model's config. Numbers of weights a block follow from it."""

    name: str
    layers: int
    hidden: int
    inner: int
    heads: int
    shared_heads: int
    head_size: int
    vocabulary: int

    @property
    def block(self) -> int:
        """Weights of a block: four projections of attention, three of the feed-forward part."""
        attention = 2 * self.heads + 2 * self.shared_heads
        return self.hidden * (attention * self.head_size + 3 * self.inner)

    @property
    def weights(self) -> int:
        return self.layers * self.block + self.hidden * self.vocabulary


@dataclass
class Calls:
    """Calls of one kind: how many there were, and how many tokens they held together."""

    calls: int = 0
    tokens: int = 0

    def count(self, tokens: int) -> None:
        self.calls += 1
        self.tokens += tokens


@dataclass
class Work:
    """What a stage asked of the model: of blocks, over texts and token by token; of logits."""

    seconds: float = 0.0
    token_forwards: int = 0
    texts: Calls = field(default_factory=Calls)
    steps: Calls = field(default_factory=Calls)
    logits: Calls = field(default_factory=Calls)


@dataclass(frozen=True)
class Device:
    """What a device does.

    rates: FLOP/s of a product with so many rows, by that number. call: seconds that a block takes
    whatever it is given. bandwidth: bytes/s of passes over a large array. size: bytes of a weight.
    """

    name: str
    rates: dict[int, float]
    call: float
    bandwidth: float
    size: int

    def rate(self, rows: float) -> float:
        widths = sorted(self.rates)
        logs = [np.log(self.rates[width]) for width in widths]
        return float(np.exp(np.interp(np.log(max(rows, 1)), np.log(widths), logs)))


def seconds_of(work: Work, shape: Shape, device: Device, blocks: float = 1.0) -> float:
    """What a stage takes, by its calls.

    blocks: of this model for each of the one whose calls were counted.
    """
    total = 0.0
    swept = 4 * (SWEPT_HIDDEN * shape.hidden + SWEPT_INNER * shape.inner) / device.bandwidth
    for kind in (work.texts, work.steps):
        if kind.calls:
            each = 2 * shape.block / device.rate(kind.tokens / kind.calls) + swept
            total += blocks * (each * kind.tokens + kind.calls * device.call)
    if work.logits.calls:
        rows = work.logits.tokens / work.logits.calls
        total += 2 * shape.hidden * shape.vocabulary * work.logits.tokens / device.rate(rows)
        total += SWEPT * 4 * shape.vocabulary * work.logits.tokens / device.bandwidth
    return total
