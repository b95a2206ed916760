"""The sentence encoder all-MiniLM-L6-v2: the mean of its last hidden states, of length 1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from calibrate.common.errors import ModelError
from calibrate.models.quiet import quiet_transformers

LONGEST = 256  # tokens of a text, as in its training
BATCH = 32


class SentenceEncoder:
    """Reads texts into vectors, (n_texts, 384), whose dot products are similarities."""

    def __init__(self, directory: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        with quiet_transformers():
            try:
                self._tokenizer = AutoTokenizer.from_pretrained(directory)
                self._model = AutoModel.from_pretrained(directory, use_safetensors=True).eval()
            except (OSError, ValueError) as error:
                raise ModelError(f"the sentence encoder cannot be read: {error}") from error

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return the texts' vectors."""
        parts = [self._encoded(texts[n : n + BATCH]) for n in range(0, len(texts), BATCH)]
        return np.concatenate(parts) if parts else np.zeros((0, self._model.config.hidden_size))

    @torch.no_grad()
    def _encoded(self, texts: Sequence[str]) -> np.ndarray:
        batch = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=LONGEST, return_tensors="pt"
        )
        states = self._model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None].to(states.dtype)
        mean = (states * mask).sum(1) / mask.sum(1)
        vectors: np.ndarray = torch.nn.functional.normalize(mean, dim=1).numpy()
        return vectors
