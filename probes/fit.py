"""Fit a probe: which blocks to read, and how, chosen by cross-validation grouped by prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import mannwhitneyu
from sklearn.metrics import roc_auc_score

from calibrate.model import borrowed
from probes.examples import MODEL_MADE, Example
from probes.features import text_features
from probes.probe import Probe, ProbeQuality
from probes.quality import Quality, quality
from probes.readout import FittedReadout, averaged, example_weights, fit_readout

if TYPE_CHECKING:
    from calibrate.model import LoadedModel

DEPTHS = (0.3, 0.45, 0.6, 0.7)  # blocks read, as shares of the depth: one, or the mean of all
BELIEVED = 0.9  # AUC from which the labels of model-made replies are believed


def fit_probe(
    concept: str,
    examples: Sequence[Example],
    held_out: Sequence[Example],
    model: LoadedModel,
) -> Probe:
    """Fit a probe on `examples` and test it on the written texts `held_out`.

    Replies the model made on purpose are used only where a probe that has not seen them tells
    their labels apart: a small model that is asked for joy, or shown some, mostly replies as
    ever, and learning from such labels blurs all others.
    """
    layers = sorted({round(depth * (model.num_layers - 1)) for depth in DEPTHS})
    texts = [example.text for example in [*examples, *held_out]]
    with borrowed(model):
        features = text_features(model, texts, layers)
    fitting, testing = features[:, : len(examples)], features[:, len(examples) :]
    used = _believed(examples, fitting[len(layers) // 2])
    examples = [examples[int(row)] for row in used]
    fitting = fitting[:, used]
    alone = [fit_readout(examples, one) for one in fitting]
    choices: dict[tuple[int, ...], FittedReadout] = {
        **{(index,): found for index, found in enumerate(alone)},
        tuple(range(len(layers))): averaged(examples, alone),
    }
    chosen = min(choices, key=lambda choice: choices[choice].loss)
    found = choices[chosen]
    tested = found.readout(np.concatenate(list(testing[list(chosen)]), axis=1))
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


def _believed(examples: Sequence[Example], features: np.ndarray) -> np.ndarray:
    """Rows to fit on: without the model-made kinds whose labels a probe cannot tell apart."""
    kinds = np.array([example.kind for example in examples])
    labels = np.array([example.positive for example in examples])
    rest = np.flatnonzero(~np.isin(kinds, MODEL_MADE))
    probabilities = fit_readout([examples[int(row)] for row in rest], features[rest]).readout(
        features
    )
    doubted = [
        kind
        for kind in set(kinds) & set(MODEL_MADE)
        if len(set(labels[kinds == kind])) < 2
        or roc_auc_score(labels[kinds == kind], probabilities[kinds == kind]) < BELIEVED
    ]
    return np.flatnonzero(~np.isin(kinds, doubted))


def _quality(examples: Sequence[Example], probabilities: np.ndarray) -> Quality:
    return quality(
        probabilities,
        [example.positive for example in examples],
        [example.group for example in examples],
        example_weights(examples),
    )


def _replies_quality(examples: Sequence[Example], out_of_fold: np.ndarray) -> Quality:
    """Of the model's own replies among texts that express the concept, out of fold."""
    rows = [
        row
        for row, one in enumerate(examples)
        if one.kind in (*MODEL_MADE, "own") or (one.kind == "written" and one.positive)
    ]
    return _quality([examples[row] for row in rows], out_of_fold[rows])


def _threshold(probabilities: np.ndarray, examples: Sequence[Example]) -> float:
    """The probability that separates the labels best (Youden's index), out of fold."""
    order = np.argsort(-probabilities)
    signs = np.where([example.positive for example in examples], 1, -1)
    best = int(np.argmax(np.cumsum((signs * example_weights(examples))[order])))
    below = probabilities[order[best + 1]] if best + 1 < len(order) else 0.0
    return float((probabilities[order[best]] + below) / 2)


def _p_value(examples: Sequence[Example], scores: np.ndarray) -> float:
    """Of written positives scoring above written negatives by chance."""
    chosen = np.array([example.kind == "written" for example in examples])
    positive = np.array([example.positive for example in examples])
    up, down = scores[chosen & positive], scores[chosen & ~positive]
    if len(up) == 0 or len(down) == 0:
        return 1.0
    return float(mannwhitneyu(up, down, alternative="greater").pvalue)
