"""Judges that only the first asks of several processes which hold one model together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibrate.models.model import LoadedModel
from calibrate.models.ranks import Ranks
from probes.judges import Judge

OWN = "question"  # the judge that is the steered model itself, which needs all of its processes


@dataclass(frozen=True, eq=False)
class ReadOnce:
    """A judge that reads in the first process, which tells the others what it said."""

    judge: Judge
    ranks: Ranks

    def score(self, texts: Sequence[str], concept: str) -> np.ndarray:
        """Return the probability that each text expresses the concept, shape (n_texts,)."""
        said = np.asarray(self.judge.score(texts, concept)).tolist() if self.ranks.first else None
        return np.asarray(self.ranks.told(said))

    def __getattr__(self, name: str) -> Any:
        """What else a judge has, such as its identity."""
        return getattr(self.judge, name)


def read_once(judge: Judge, name: str, loaded: LoadedModel) -> Judge:
    """The judge, asked by the first process alone where several hold the model."""
    if loaded.ranks.alone or name == OWN:
        return judge
    return ReadOnce(judge, loaded.ranks)
