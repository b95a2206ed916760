"""The far end token by token: which tokens are left where steering drowns the input.

Far out the logits are norm(±v)·W_Uᵀ (Proposition 4.1 of arXiv:2602.02712), so that the likeliest
tokens there are known without a pass. In the paper's model they are those of the most extreme
log-odds; in a transformer only as far as the blocks behind the steered one leave v alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np

from calibrate.common.record import Section
from calibrate.engine.cross_entropy import measure_steered
from calibrate.engine.site import Site
from calibrate.engine.unsteered import UnsteeredRun
from calibrate.laws.log_odds import far_logits
from calibrate.models.model import LoadedModel

FAR, FAR_NORMALISED = 200.0, 2000.0  # the strengths of the paper, for v as it is and of length 1
LISTED = 10  # likeliest tokens
EXTREME = 0.01  # share of the vocabulary whose mean log-odds count as extreme, LISTED at least


class FarEnd(Section):
    """The likeliest tokens at a far strength of either sign.

    predicted: from norm(±v)·W_Uᵀ, the likeliest first; measured: in a pass at that strength, over
    contexts. shared: how many stand in both. total_variation: between the two distributions, in
    [0, 1]. extreme: share of the predicted tokens whose mean log-odds are among the EXTREME of
    the vocabulary, or the LISTED most extreme ones where those are more, at the end of the
    strength's sign.
    """

    strength: float
    predicted: list[str]
    measured: list[str]
    shared: int
    total_variation: float
    extreme: float


def measure_far_end(
    loaded: LoadedModel,
    run: UnsteeredRun,
    site: Site,
    strength: float,
    log_odds: np.ndarray,
    contexts: Sequence[int],
) -> FarEnd:
    """Compare the likeliest tokens far out with those foretold.

    log_odds: mean over contexts, (vocabulary,). contexts: indices of scored tokens.
    """
    sign = 1 if strength > 0 else -1
    foretold = far_logits(loaded, site, sign).softmax(dim=-1).cpu().double().numpy()
    steered = measure_steered(loaded, run, site, strength, watched=contexts).watched.mean(axis=0)
    predicted, measured = (np.argsort(-values)[:LISTED] for values in (foretold, steered))
    n_extreme = max(ceil(EXTREME * len(log_odds)), LISTED)
    at_the_end = np.argsort(-sign * log_odds)[:n_extreme]
    return FarEnd(
        strength=strength,
        predicted=[loaded.tokenizer.decode([int(token)]) for token in predicted],
        measured=[loaded.tokenizer.decode([int(token)]) for token in measured],
        shared=len(set(predicted.tolist()) & set(measured.tolist())),
        total_variation=float(0.5 * np.abs(foretold - steered).sum()),
        extreme=float(np.isin(predicted, at_the_end).mean()),
    )
