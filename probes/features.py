"""Features of finished texts: the token-mean residual stream of the unsteered model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calibrate.engine.pooling import pooled_residuals
from calibrate.models.model import LoadedModel
from calibrate.models.prompts import encode_alone


def text_features(model: LoadedModel, texts: Sequence[str], layers: Sequence[int]) -> np.ndarray:
    """Return the mean residual of every text after each of `layers`, in ascending order.

    A reply is read on its own, without its prompt: the concept must be in the reply, not in
    the question. One of a single token is read after a start token, where the tokenizer puts none
    there by itself. The features of an empty text are 0.

    Returns: float32 array of shape (n_layers, n_texts, hidden_size).
    """
    sequences = [encode_alone(model, text) for text in texts]
    features = np.zeros((len(layers), len(texts), model.hidden_size), dtype=np.float32)
    readable = [index for index, sequence in enumerate(sequences) if sequence.n_scored]
    for pooled in pooled_residuals(model, [sequences[index] for index in readable], layers):
        rows = [readable[row] for row in pooled.rows]
        features[:, rows] = pooled.means.numpy()
    return features
