"""Judges that never look inside the steered model: a lexicon, and a sentence embedding.

Both are logistic regressions on features of the text, fitted on the same examples as the probe
and calibrated as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from calibrate.alike import unspaced, words
from calibrate.embedded import quiet_transformers
from calibrate.errors import InputError
from probes.examples import Example
from probes.readout import Readout, fit_readout

Featurise = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True, eq=False)
class TextClassifier:
    """Features of a text, and a calibrated read-out of them."""

    featurise: Featurise
    readout: Readout

    def score(self, texts: Sequence[str], concept: str) -> np.ndarray:
        """Return the probability that each text expresses the concept it was fitted for."""
        return self.readout(self.featurise(texts))


def fit_lexicon(examples: Sequence[Example]) -> TextClassifier:
    """Fit a judge that weighs words and word pairs by what the examples say of them.

    Where words are not set apart, as in Chinese, characters and pairs of them are weighed.
    Raises: InputError if the examples have no words.
    """
    texts = [example.text for example in examples]
    counts = Counter(term for text in texts for term in set(_terms(text)))
    common = sorted(term for term, count in counts.items() if count > 1) or sorted(counts)
    if not common:
        raise InputError(
            "the lexicon needs texts with words in them, got none; choose another judge with "
            "--judge"
        )
    vectoriser = TfidfVectorizer(analyzer=_terms, sublinear_tf=True, vocabulary=common)
    vectoriser.fit(texts)

    def featurise(texts: Sequence[str]) -> np.ndarray:
        features: np.ndarray = vectoriser.transform(texts).toarray()
        return features

    return _fitted(featurise, examples)


def _terms(text: str) -> list[str]:
    """The words of a text and their pairs, letters that stand alone left out."""
    found = [word for word in words(text) if len(word) > 1 or unspaced(word)]
    return found + [" ".join(pair) for pair in pairwise(found)]


def fit_embedding(examples: Sequence[Example], model: str | Path) -> TextClassifier:
    """Fit a judge that reads a sentence embedding.

    model: what sentence-transformers loads, a directory or a hub id.
    Raises: InputError if sentence-transformers is not installed, or cannot load the model.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise InputError(
            "the embedding judge needs sentence-transformers: pip install 'steering-calibrate"
            "[embedding]'"
        ) from error
    try:
        with quiet_transformers():
            encoder = SentenceTransformer(
                str(model), trust_remote_code=False, model_kwargs={"use_safetensors": True}
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"sentence-transformers cannot load {str(model)!r} ({error}); give a directory or a "
            "hub id: embedding:MODEL"
        ) from error

    def featurise(texts: Sequence[str]) -> np.ndarray:
        return np.asarray(
            encoder.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        )

    return _fitted(featurise, examples)


def _fitted(featurise: Featurise, examples: Sequence[Example]) -> TextClassifier:
    features = featurise([example.text for example in examples])
    return TextClassifier(featurise, fit_readout(examples, features).readout)
