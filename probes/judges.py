"""What a judge of presence is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from calibrate.model import LoadedModel


class Judge(Protocol):
    """Reads finished texts; `probes.Probe` is the one that comes with the project."""

    def score(self, texts: Sequence[str | tuple[str, str]], model: LoadedModel) -> np.ndarray:
        """Return the probability that each text expresses the concept, shape (n_texts,).

        texts: texts alone, or (prompt, reply) pairs.
        """
        ...
