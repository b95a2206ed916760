"""What a calibration asks of a model, and how long a device takes for it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

SWEPT = 7  # times that a pass reads or writes each number of a distribution, over the vocabulary
# And in a block, for each token: every norm; rotary angles and sums over the hidden size; SwiGLU.
SWEPT_NORM, SWEPT_HIDDEN, SWEPT_INNER = 8, 8, 5


@dataclass(frozen=True)
class Shape:
    """What counts of a model's config. Numbers of weights a block follow from it.

    normed: numbers that a block's norms read for a token, in hidden sizes.
    """

    name: str
    layers: int
    hidden: int
    inner: int
    heads: int
    shared_heads: int
    head_size: int
    vocabulary: int
    normed: float = 2.0

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
    draw: seconds for each number of the logits that a token is drawn from. queued: whether it
    computes while Python prepares what comes next, as a GPU does.
    """

    name: str
    rates: dict[int, float]
    call: float
    bandwidth: float
    size: int
    draw: float
    queued: bool = False

    def rate(self, rows: float) -> float:
        widths = sorted(self.rates)
        logs = [np.log(self.rates[width]) for width in widths]
        return float(np.exp(np.interp(np.log(max(rows, 1)), np.log(widths), logs)))


def seconds_of(work: Work, shape: Shape, device: Device, counted: Shape | None = None) -> float:
    """What a stage takes, by its calls.

    counted: the model whose calls were counted, if not this one: it may have fewer blocks.
    """
    counted = counted or shape
    floats = (SWEPT_NORM * shape.normed + SWEPT_HIDDEN) * shape.hidden + SWEPT_INNER * shape.inner
    total = 0.0
    for kind in (work.texts, work.steps):
        if kind.calls:
            each = 2 * shape.block / device.rate(kind.tokens / kind.calls)
            busy = (each + 4 * floats / device.bandwidth) * kind.tokens
            called = kind.calls * device.call
            spent = max(busy, called) if device.queued else busy + called
            total += spent * shape.layers / counted.layers
    drawn = work.steps.tokens / counted.layers
    if work.logits.calls:
        rate = device.rate(work.logits.tokens / work.logits.calls)
        swept = SWEPT * 4 * (work.logits.tokens - drawn) / device.bandwidth
        total += shape.vocabulary * (
            2 * shape.hidden * work.logits.tokens / rate + swept + device.draw * drawn
        )
    return total
