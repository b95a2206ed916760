"""Fit a probe on written texts alone, where there are no graded replies.

The probe learns from texts that people wrote, and reads a model's replies, which differ in more
than the concept. So the features of each are centred on their own mean. Written texts then cannot
give the score from which a reader says yes; the scale comes from how such probes of the built-in
concepts score graded replies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.stats import mannwhitneyu

from calibrate.common.alike import near_copies
from calibrate.common.errors import InputError
from calibrate.models.model import LoadedModel, preserving_model_state
from probes.examples import Example
from probes.features import text_features
from probes.probe import Learned, Probe
from probes.quality import quality
from probes.ridge import fit_ridge
from probes.scale import Scale
from probes.student import probe_layers


def fit_written_probe(
    concept: str,
    examples: Sequence[Example],
    held_out: Sequence[Example],
    replies: Sequence[str],
    model: LoadedModel,
    scale: Scale,
) -> Probe:
    """Fit a probe on written `examples`, and test it on `held_out` ones.

    replies: of the model, unsteered; they need no labels. scale: from a score, in standard
    deviations of plain replies from their mean, to a reader's yes.
    Near copies share a group.
    Raises: InputError if held-out texts are near copies of those it is fitted on.

    >>> from probes.scale import Scale
    >>> texts = [probes.Example(text, True, text) for text in positives]
    >>> texts += [probes.Example(text, False, text) for text in negatives]
    >>> probe = probes.fit_written_probe(
    ...     "joy", texts[::2], texts[1::2], replies, loaded, Scale(slope=3.0)
    ... )
    >>> probe.learned.source
    'written'
    """
    examples, held_out = _grouped(examples, held_out)
    layers = probe_layers(model.num_layers)
    texts = [*(one.text for one in (*examples, *held_out)), *replies]
    with preserving_model_state(model):
        features = np.concatenate(list(text_features(model, texts, layers)), axis=1)
    n, written = len(examples), len(examples) + len(held_out)
    fitting, testing, own = features[:n], features[n:written], features[written:]
    signs = np.array([1.0 if one.positive else -1.0 for one in examples])
    ridge = fit_ridge(
        fitting - _mean(fitting, signs), signs, [one.group for one in examples], _balanced(signs)
    )
    unit = float(((own - own.mean(axis=0)) @ ridge.weights).std()) + 1e-9
    tested = (testing - _mean(fitting, signs)) @ ridge.weights / unit
    labels = [one.positive for one in held_out]
    return Probe(
        concept=concept,
        layers=layers,
        weights=(scale.slope * ridge.weights / unit).reshape(len(layers), -1).astype(np.float32),
        bias=float(scale.offset - scale.slope * own.mean(axis=0) @ ridge.weights / unit),
        clearly=None,
        model_id=model.name,
        tokenizer_sha256=model.identity.tokenizer_sha256,
        tokenization_sha256=model.identity.tokenization_sha256,
        learned=Learned(
            source="written",
            teacher=None,
            n_texts=dict(Counter("positive" if one.positive else "negative" for one in examples)),
            quality=quality(scale(tested), labels, [one.group for one in held_out]),
            p_value=_p_value(
                [*examples, *held_out], np.concatenate([ridge.out_of_fold, tested * unit])
            ),
        ),
    )


def _mean(features: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """The mean of written texts, with equal weight for both labels."""
    middle: np.ndarray = np.average(features, axis=0, weights=_balanced(signs))
    return middle


def _balanced(signs: np.ndarray) -> np.ndarray:
    """Weights of mean 1 that give both labels equal weight."""
    counts = {sign: (signs == sign).sum() for sign in (-1.0, 1.0)}
    return np.array([len(signs) / 2 / counts[sign] for sign in signs])


def _grouped(
    examples: Sequence[Example], held_out: Sequence[Example]
) -> tuple[list[Example], list[Example]]:
    """Merge the groups of near copies."""
    written = [*examples, *held_out]
    old = [example.group for example in written]
    joined: dict[int, str] = {}
    new: dict[str, str] = {}
    for group, number in zip(old, near_copies([one.text for one in written], old), strict=True):
        new[group] = joined.setdefault(number, group)
    fitted, tested = (
        [replace(one, group=new[one.group]) for one in part] for part in (examples, held_out)
    )
    both = {one.group for one in fitted} & {one.group for one in tested}
    if both:
        raise InputError(
            "held-out texts must differ from those a probe is fitted on, got near copies or the "
            f"same group, such as {min(one.text for one in tested if one.group in both)[:60]!r}"
        )
    return fitted, tested


def _p_value(examples: Sequence[Example], scores: np.ndarray) -> float:
    """The p-value of positives scoring above negatives by chance.

    Texts of one group are not independent: each group counts once per label, by its mean score.
    """
    of_group: dict[tuple[bool, str], list[float]] = {}
    for example, score in zip(examples, scores, strict=True):
        of_group.setdefault((example.positive, example.group), []).append(float(score))
    up, down = (
        [np.mean(values) for (positive, _), values in of_group.items() if positive is label]
        for label in (True, False)
    )
    if not up or not down:
        return 1.0
    return float(mannwhitneyu(up, down, alternative="greater").pvalue)
