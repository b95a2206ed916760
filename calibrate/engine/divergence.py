"""How far two ways of running a model are apart on replies that one of them drew.

    KL(mine‖other) = mean over replies of Σ over tokens of KL(p_mine ‖ p_other)

with both next-token distributions at the same temperature, before any top-p. A way of running it is
what comes before the replies (another system message, say) and what steers them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from calibrate.common.estimate import RatioEstimate
from calibrate.engine.cross_entropy import states_by_sequence
from calibrate.engine.generation import Completion
from calibrate.engine.site import Site
from calibrate.engine.unsteered import UnsteeredRun, logit_slices
from calibrate.models.devices import in_double
from calibrate.models.model import LoadedModel
from calibrate.models.tokens import Prompt


@dataclass(frozen=True, eq=False)
class Way:
    """One way of running the model.

    prompts: what comes before the replies, by the index of their prompt. site, strength: what
    steers them; None for nothing.
    """

    prompts: Sequence[Prompt]
    site: Site | None = None
    strength: float = 0.0


def divergence(
    loaded: LoadedModel,
    mine: Way,
    other: Way,
    replies: Sequence[Completion],
    temperatures: Sequence[float],
    run: UnsteeredRun | None = None,
) -> list[RatioEstimate]:
    """KL(mine‖other), nats a token over replies, at each temperature.

    replies: drawn by the first of the two ways, none of them empty. run: the unsteered pass over
        them after the prompts that both ways have, if one was made.
    """
    if mine.prompts is other.prompts:
        hidden = _hidden_states(loaded, [mine, other], replies, run)
    else:
        hidden = [_hidden_states(loaded, [way], replies)[0] for way in (mine, other)]
    counts = np.array([len(reply.ids) for reply in replies], dtype=float)
    sums = np.zeros((len(temperatures), len(replies)))
    for row, (before, after) in enumerate(zip(*hidden, strict=True)):
        for part in logit_slices(loaded, before):
            logits = [in_double(loaded.logits(states[part])) for states in (before, after)]
            for place, temperature in enumerate(temperatures):
                p, q = ((each / temperature).log_softmax(dim=-1) for each in logits)
                sums[place, row] += float((p.exp() * (p - q)).sum())
    return [RatioEstimate(each, counts) for each in sums]


def _hidden_states(
    loaded: LoadedModel,
    ways: Sequence[Way],
    replies: Sequence[Completion],
    run: UnsteeredRun | None = None,
) -> list[list[torch.Tensor]]:
    """Final hidden states at every token of each reply, by way; all ways have the same prompts."""
    prompts = ways[0].prompts
    sequences = [prompts[reply.prompt_index].followed_by(reply.ids) for reply in replies]
    steered = [None if way.site is None else (way.site, way.strength) for way in ways]
    return states_by_sequence(loaded, sequences, steered, run)
