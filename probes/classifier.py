"""A judge that does not use the steered model: a linear read-out of a sentence embedding.

It learns from graded replies, or from a concept's written texts of either label.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from calibrate.common.errors import InputError
from calibrate.models.embedded import encoder_directory
from calibrate.models.quiet import quiet_transformers
from probes.encoder import SentenceEncoder
from probes.examples import Example
from probes.graded import GradedText
from probes.readout import Readout, fit_readout
from probes.ridge import fit_ridge
from probes.scale import Scale, fit_platt
from probes.student import targets

Featurise = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True, eq=False)
class TextClassifier:
    """A calibrated read-out of a text's features."""

    featurise: Featurise
    readout: Readout

    def score(self, texts: Sequence[str], concept: str) -> np.ndarray:
        """Return the probability that each text expresses the concept it was fitted for."""
        return self.readout(self.featurise(texts))


def fit_embedding(examples: Sequence[Example], model: str | None = None) -> TextClassifier:
    """Fit a judge that reads a sentence embedding, by logistic regression on written texts.

    model: what sentence-transformers loads, a directory or a hub id; None for all-MiniLM-L6-v2,
        which needs no further package.
    Raises: InputError if sentence-transformers is needed and not installed, or cannot load the
        model; ModelError if all-MiniLM-L6-v2 cannot be fetched.
    """
    featurise = _encoder(model)
    features = featurise([example.text for example in examples])
    return TextClassifier(featurise, fit_readout(examples, features))


def fit_graded_embedding(texts: Sequence[GradedText], model: str | None = None) -> TextClassifier:
    """Fit a judge that reads a sentence embedding, as `probes.student` fits a probe.

    texts: that readers graded. model, Raises: as `fit_embedding`.
    """
    featurise = _encoder(model)
    features = featurise([text.text for text in texts])
    groups = [text.group for text in texts]
    ridge = fit_ridge(features, targets(texts), groups, np.ones(len(texts)))
    scale = fit_platt(ridge.out_of_fold, np.array([text.says_yes for text in texts])) or Scale()
    readout = Readout(scale.slope * ridge.weights, scale.slope * ridge.bias + scale.offset)
    return TextClassifier(featurise, readout)


def _encoder(model: str | None) -> Featurise:
    if model is None:
        return SentenceEncoder(encoder_directory())
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise InputError(
            "the embedding judge needs sentence-transformers for another model: pip install "
            "'steering-calibrate[embedding]'"
        ) from error
    try:
        with quiet_transformers():
            encoder = SentenceTransformer(
                model, trust_remote_code=False, model_kwargs={"use_safetensors": True}
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"sentence-transformers cannot load {model!r} ({error}); give a directory or a "
            "hub id: embedding:MODEL"
        ) from error

    def featurise(texts: Sequence[str]) -> np.ndarray:
        return np.asarray(
            encoder.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        )

    return featurise
