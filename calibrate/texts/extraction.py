"""Steering vectors: the raw difference of means of the residual stream, at every block.

    v = mean over positive texts of the pooled residual - the same over negative texts

The pooled residual is the mean over a text's tokens, attention sinks excluded, or that of its last
token (arXiv:2602.02712, section 2; Rimsky et al., arXiv:2312.06681, for the last token).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from calibrate.common.errors import CalibrateWarning, ConceptError
from calibrate.common.settings import Settings
from calibrate.engine.pooling import Pooling, pooled_residuals
from calibrate.engine.site import SteeringVector
from calibrate.models.cache import CacheFormat, load_or_compute
from calibrate.models.model import LoadedModel, preserving_model_state
from calibrate.models.prompts import encode_reply, encode_text
from calibrate.models.tokens import TokenSequence
from calibrate.texts.concept import Text, Texts
from calibrate.texts.noise import sampling_noise
from calibrate.texts.replies import random_negatives

LEAST_TEXTS = 2  # of a label: the spread of one alone says nothing of how certain v is


def concept_vectors(
    loaded: LoadedModel, texts: Texts, settings: Settings
) -> tuple[SteeringVector, ...]:
    """Return the steering vectors of a concept's texts, one per block.

    With random negatives, as many samples of the model from an empty prompt as there are positives
    replace the negative texts. Vectors are cached (`calibrate.models.cache`).

    Raises: ConceptError if fewer than LEAST_TEXTS of a label are longer than one token, where a
        text's first is context alone.
    Warns with CalibrateWarning of texts that are left out for that.
    """
    texts = _readable(loaded, texts)

    def extracted() -> tuple[SteeringVector, ...]:
        positives = [encode(loaded, text) for text in texts.positives]
        groups = [text.key for text in texts.positives]
        if settings.negatives == "random":
            negatives = list(random_negatives(loaded, len(positives), settings))
            groups += [f"sample {number}" for number in range(len(negatives))]
        else:
            negatives = [encode(loaded, text) for text in texts.negatives]
            groups += [text.key for text in texts.negatives]
        return extract_vectors(
            loaded,
            positives,
            negatives,
            pooling=settings.pooling,
            normalize=settings.normalize,
            groups=groups,
        )

    names = ("negatives", "pooling", "normalize", "seed", "sampling")
    facts = asdict(settings)
    request = [asdict(texts), {name: facts[name] for name in names}]
    return load_or_compute(loaded, VECTORS, request, extracted)


def _readable(loaded: LoadedModel, texts: Texts) -> Texts:
    """The texts that have a token to average; a plain one's first is context, as a BOS is."""
    positives, negatives = (
        tuple(text for text in side if encode(loaded, text).n_scored)
        for side in (texts.positives, texts.negatives)
    )
    given = len(texts.positives) + len(texts.negatives)
    left_out = given - len(positives) - len(negatives)
    if not left_out:
        return texts
    if min(len(positives), len(negatives)) < LEAST_TEXTS:
        raise ConceptError(
            f"at least {LEAST_TEXTS} texts of either label must be longer than one token, since a "
            f"text's first is context alone, got {len(positives)} positives and {len(negatives)} "
            "negatives; give longer ones, or give them prompts that they reply to"
        )
    warnings.warn(
        f"{left_out} of {given} texts are one token long, of which a vector sees nothing, and are "
        "left out of it; give longer ones, or give them prompts that they reply to",
        CalibrateWarning,
        stacklevel=3,
    )
    return Texts(positives, negatives)


VECTORS_FILE = "vectors.safetensors"


def _vector_files(vectors: Sequence[SteeringVector]) -> dict[str, bytes]:
    tensors = {
        "values": torch.stack([vector.values for vector in vectors]),
        "residual_norms": torch.tensor([v.residual_norm for v in vectors], dtype=torch.float64),
        "n_sinks": torch.tensor([vector.n_sinks for vector in vectors]),
        "noises": torch.tensor([vector.noise for vector in vectors], dtype=torch.float64),
    }
    return {VECTORS_FILE: save(tensors)}


def _load_vectors(folder: Path) -> tuple[SteeringVector, ...]:
    tensors = load_file(folder / VECTORS_FILE)
    facts = (tensors[name].tolist() for name in ("residual_norms", "n_sinks", "noises"))
    return tuple(
        SteeringVector(values.clone(), layer, *of_layer)
        for layer, (values, *of_layer) in enumerate(zip(tensors["values"], *facts, strict=True))
    )


VECTORS = CacheFormat[tuple[SteeringVector, ...]](
    "vectors", _vector_files, VECTORS_FILE, _load_vectors
)


def encode(loaded: LoadedModel, text: Text) -> TokenSequence:
    """Encode a concept's text, as a reply if it has a prompt."""
    if text.prompt is not None:
        return encode_reply(loaded, text.prompt, text.text)
    return encode_text(loaded, text.text)


def expected_tokens(loaded: LoadedModel, texts: Texts) -> int:
    """Token-forwards of one pass over texts of a concept.

    Raises: InputError if one does not fit the model's context.
    """
    return sum(len(encode(loaded, text).ids) for text in texts.positives + texts.negatives)


def extract_vectors(
    loaded: LoadedModel,
    positives: Sequence[TokenSequence],
    negatives: Sequence[TokenSequence],
    *,
    pooling: Pooling = "mean",
    normalize: bool = False,
    groups: Sequence[str] | None = None,
) -> tuple[SteeringVector, ...]:
    """Return one steering vector per block, from one pass over the texts.

    normalize: scale every vector to length 1, so that α is the length of the shift.
    groups: of each text, positives first; those of one group, such as a matched pair, are not
        independent. Each text by itself if None.
    Raises: ConceptError if positives and negatives have the same mean at every block, or a text
        has no token to average.

    >>> from calibrate.models.prompts import encode_text
    >>> joyful = [encode_text(loaded, text) for text in positives]
    >>> others = [encode_text(loaded, text) for text in negatives]
    >>> [vector.layer for vector in calibrate.extract_vectors(loaded, joyful, others)]
    [0, 1, 2]
    """
    empty = sum(not sequence.n_scored for sequence in (*positives, *negatives))
    if empty:
        raise ConceptError(
            f"every text must have a token to average, beside its prompt or its first, which is "
            f"context alone, got {empty} without; leave them out, or give longer ones"
        )
    with preserving_model_state(loaded):
        positive = _summarise(loaded, positives, pooling)
        negative = _summarise(loaded, negatives, pooling)
    difference = (positive.mean - negative.mean).float()
    if not difference.any():
        raise ConceptError(
            "positives and negatives must differ, but their difference of means is zero; "
            "give texts that do not express the concept as negatives"
        )
    groups = groups or [str(index) for index in range(len(positives) + len(negatives))]
    vectors = []
    for layer, values in enumerate(difference):
        norms = torch.cat([positive.norms[layer], negative.norms[layer]])
        length = float(values.norm()) if normalize else 1.0
        noise = sampling_noise(positive.pooled[layer], negative.pooled[layer], groups)
        vectors.append(
            SteeringVector(
                values=values / values.norm() if normalize else values,
                layer=layer,
                residual_norm=float(norms.median()),
                n_sinks=int(positive.n_sinks[layer] + negative.n_sinks[layer]),
                noise=noise / length**2,
            )
        )
    return tuple(vectors)


@dataclass(frozen=True, eq=False)
class _Summary:
    mean: torch.Tensor  # (n_blocks, hidden), float64
    pooled: torch.Tensor  # (n_blocks, n_texts, hidden)
    norms: list[torch.Tensor]  # per block, (n_tokens,)
    n_sinks: torch.Tensor  # (n_blocks,)


def _summarise(
    loaded: LoadedModel, sequences: Sequence[TokenSequence], pooling: Pooling
) -> _Summary:
    total = torch.zeros(loaded.num_layers, 1, dtype=torch.float64)
    n_sinks = torch.zeros(loaded.num_layers, dtype=torch.long)
    norms: list[list[torch.Tensor]] = [[] for _ in loaded.blocks]
    by_text = torch.zeros(loaded.num_layers, len(sequences), loaded.hidden_size)
    for pooled in pooled_residuals(loaded, sequences, range(loaded.num_layers), pooling):
        total = total + pooled.means.double().sum(dim=1)
        by_text[:, list(pooled.rows)] = pooled.means
        n_sinks += pooled.n_sinks
        for of_layer, of_batch in zip(norms, pooled.norms, strict=True):
            of_layer.append(of_batch)
    joined = [torch.cat(of_layer) for of_layer in norms]
    return _Summary(total / len(sequences), by_text, joined, n_sinks)
