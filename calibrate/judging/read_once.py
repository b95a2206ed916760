"""Judges that only the first asks of several processes which hold one model together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibrate.judging.asked import is_asked
from calibrate.models.model import LoadedModel
from calibrate.models.ranks import Ranks
from probes.judges import Judge

OWN = "question"  # the judge that is the steered model itself, which needs all of its processes


@dataclass(frozen=True, eq=False)
class ReadOnce:
    """A judge that reads in the first process, which tells the others what it said.

    judge: None where another process reads.
    """

    judge: Judge | None
    ranks: Ranks

    def score(self, texts: Sequence[str], concept: str) -> np.ndarray:
        """Return the probability that each text expresses the concept, shape (n_texts,)."""
        first = self.judge if self.ranks.first else None
        said = None if first is None else np.asarray(first.score(texts, concept)).tolist()
        return np.asarray(self.ranks.told(said))

    def __getattr__(self, name: str) -> Any:
        """What else a judge has, such as its identity."""
        return getattr(self.judge, name)


def read_once(make: Callable[[], Judge], name: str, loaded: LoadedModel) -> Judge:
    """The judge, asked by the first process alone where several hold the model.

    make: makes it; one that is another model, or on a server, is made by the first alone.
    """
    if loaded.ranks.alone or name == OWN:
        return make()
    elsewhere = is_asked(name) and not loaded.ranks.first
    return ReadOnce(None if elsewhere else make(), loaded.ranks)
