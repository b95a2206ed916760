"""Fit a probe: which blocks to read, and how, chosen by cross-validation grouped by prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import mannwhitneyu

from calibrate.model import borrowed
from probes.examples import MODEL_MADE, Example, Kind
from probes.features import text_features
from probes.probe import Probe, ProbeQuality
from probes.quality import Quality, quality
from probes.readout import example_weights, fit_readout

if TYPE_CHECKING:
    from calibrate.model import LoadedModel

DEPTHS = (0.3, 0.45, 0.6, 0.75)  # blocks read, as shares of the depth: one of them, or all
DIFFERS = 0.05  # p-value below which model-made replies of two labels count as different


def fit_probe(
    concept: str,
    examples: Sequence[Example],
    held_out: Sequence[Example],
    model: LoadedModel,
) -> Probe:
    """Fit a probe on `examples` and test it on the written texts `held_out`.

    Replies the model made on purpose, of either label, are used only where a probe of the
    written texts alone tells the two labels apart.
    """
    layers = sorted({round(depth * (model.num_layers - 1)) for depth in DEPTHS})
    texts = [example.text for example in [*examples, *held_out]]
    with borrowed(model):
        features = text_features(model, texts, layers)
    fitting, testing = features[:, : len(examples)], features[:, len(examples) :]
    used = _measurably_different(examples, fitting[len(layers) // 2])
    examples = [examples[int(row)] for row in used]
    fitting = fitting[:, used]
    choices = [*([index] for index in range(len(layers))), list(range(len(layers)))]
    fitted = [fit_readout(examples, _beside(fitting[choice])) for choice in choices]
    best = int(np.argmin([one.loss for one in fitted]))
    chosen, found = choices[best], fitted[best]
    tested = found.readout(_beside(testing[chosen]))
    return Probe(
        concept=concept,
        layers=tuple(layers[index] for index in chosen),
        weights=found.readout.weights.reshape(len(chosen), -1),
        bias=found.readout.bias,
        threshold=_threshold(found.out_of_fold, examples),
        model_id=model.name,
        tokenizer_sha256=model.identity.tokenizer_sha256,
        quality=ProbeQuality(
            texts=_quality(held_out, tested),
            replies=_replies_quality(examples, found.out_of_fold),
            p_value=_p_value([*examples, *held_out], np.concatenate([found.out_of_fold, tested])),
            n_examples=dict(Counter(f"{e.kind} {'+' if e.positive else '-'}" for e in examples)),
        ),
    )


def _beside(features: np.ndarray) -> np.ndarray:
    """Features (n_layers, n_texts, hidden) as (n_texts, n_layers · hidden)."""
    return np.concatenate(list(features), axis=1)


def _measurably_different(examples: Sequence[Example], features: np.ndarray) -> np.ndarray:
    """Rows to fit on: without the model-made kinds whose labels a probe cannot tell apart."""
    kinds = np.array([example.kind for example in examples])
    written = np.flatnonzero(kinds == "written")
    readout = fit_readout([examples[int(row)] for row in written], features[written]).readout
    probabilities = readout(features)
    dropped = [
        kind
        for kind in MODEL_MADE
        if (kinds == kind).any() and _p_value(examples, probabilities, kind) >= DIFFERS
    ]
    return np.flatnonzero(~np.isin(kinds, dropped))


def _quality(examples: Sequence[Example], probabilities: np.ndarray) -> Quality:
    return quality(
        probabilities,
        [example.positive for example in examples],
        [example.group for example in examples],
        example_weights(examples),
    )


def _replies_quality(examples: Sequence[Example], out_of_fold: np.ndarray) -> Quality | None:
    """On the model's own replies, out of fold; None where none of them is positive."""
    rows = [row for row, one in enumerate(examples) if one.kind in (*MODEL_MADE, "own")]
    chosen = [examples[row] for row in rows]
    if not any(example.positive for example in chosen):
        return None
    return _quality(chosen, out_of_fold[rows])


def _threshold(probabilities: np.ndarray, examples: Sequence[Example]) -> float:
    """The probability that separates the labels best (Youden's index), out of fold."""
    order = np.argsort(-probabilities)
    signs = np.where([example.positive for example in examples], 1, -1)
    best = int(np.argmax(np.cumsum((signs * example_weights(examples))[order])))
    below = probabilities[order[best + 1]] if best + 1 < len(order) else 0.0
    return float((probabilities[order[best]] + below) / 2)


def _p_value(examples: Sequence[Example], scores: np.ndarray, kind: Kind = "written") -> float:
    """Of the positives of one kind scoring above its negatives by chance."""
    chosen = np.array([example.kind == kind for example in examples])
    positive = np.array([example.positive for example in examples])
    up, down = scores[chosen & positive], scores[chosen & ~positive]
    if len(up) == 0 or len(down) == 0:
        return 1.0
    return float(mannwhitneyu(up, down, alternative="greater").pvalue)
