"""Fit a probe: which blocks to read, and how, chosen by cross-validation grouped by prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import mannwhitneyu
from sklearn.metrics import roc_auc_score

from calibrate.alike import near_copies
from calibrate.errors import InputError
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

    Written texts that are near copies of each other share a group: of several the probe is fitted
    on none, or on all, and together they count once.
    Replies the model made on purpose are used only where a probe that has not seen them tells
    their labels apart: a small model that is asked for joy, or shown some, mostly replies as
    ever, and learning from such labels blurs all others.
    Raises: InputError if held-out texts are near copies of those it is fitted on.
    """
    examples, held_out = _grouped(examples, held_out)
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


def _grouped(
    examples: Sequence[Example], held_out: Sequence[Example]
) -> tuple[list[Example], list[Example]]:
    """Join the groups of near copies among the written texts."""
    written = [one for one in (*examples, *held_out) if one.kind == "written"]
    old = [example.group for example in written]
    joined: dict[int, str] = {}
    new: dict[str, str] = {}
    for was, number in zip(old, near_copies([one.text for one in written], old), strict=True):
        new[was] = joined.setdefault(number, was)
    fitted, tested = (
        [replace(one, group=new.get(one.group, one.group)) for one in part]
        for part in (examples, held_out)
    )
    both = {one.group for one in fitted if one.kind == "written"} & {one.group for one in tested}
    if both:
        raise InputError(
            "held-out texts must differ from those a probe is fitted on, got near copies or the "
            f"same group, such as {min(one.text for one in tested if one.group in both)[:60]!r}"
        )
    return fitted, tested


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
    """Of written positives scoring above written negatives by chance.

    Texts of one group are not independent: each group counts once a label, by its mean score.
    """
    of_group: dict[tuple[bool, str], list[float]] = {}
    for example, score in zip(examples, scores, strict=True):
        if example.kind == "written":
            of_group.setdefault((example.positive, example.group), []).append(float(score))
    up, down = (
        [np.mean(found) for (positive, _), found in of_group.items() if positive is label]
        for label in (True, False)
    )
    if not up or not down:
        return 1.0
    return float(mannwhitneyu(up, down, alternative="greater").pvalue)
