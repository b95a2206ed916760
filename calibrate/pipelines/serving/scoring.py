"""Log-probabilities of a text's tokens, steered: for harnesses that compare likelihoods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from calibrate.common.errors import InputError
from calibrate.engine.cross_entropy import states_by_sequence
from calibrate.models.model import LoadedModel
from calibrate.models.tokens import TokenSequence
from calibrate.pipelines.serving.catalogue import Choice


@dataclass(frozen=True)
class Scores:
    """Log-probabilities of each token of a text given those before it; None for the first.

    likeliest: the likeliest tokens' at each place, by token id.
    """

    log_probs: tuple[float | None, ...]
    likeliest: tuple[dict[int, float] | None, ...]


def require_scorable(choice: Choice) -> None:
    """Raise InputError where a text cannot be scored as a whole."""
    served = choice.served
    if served is not None and choice.strength and served.site.positions == "last":
        raise InputError(
            "logprobs need a calibration that steers all positions, and "
            f"{served.name} steers the last of each pass, which a whole text has one of"
        )


def score(
    loaded: LoadedModel, choice: Choice, texts: Sequence[tuple[int, ...]], n_likeliest: int
) -> list[Scores]:
    """Score some texts, given as token ids, under the steering that was chosen."""
    longer = [TokenSequence(ids, start=1) for ids in texts if len(ids) > 1]
    steered = None
    if choice.served is not None and choice.strength:
        steered = choice.served.site, choice.strength
    (states,) = states_by_sequence(loaded, longer, [steered]) if longer else ([],)
    found = iter(states)
    return [
        _scores(loaded, ids, next(found), n_likeliest) if len(ids) > 1 else Scores((None,), (None,))
        for ids in texts
    ]


def _scores(
    loaded: LoadedModel, ids: tuple[int, ...], hidden: torch.Tensor, n_likeliest: int
) -> Scores:
    log_probs = torch.log_softmax(loaded.logits(hidden), dim=-1)
    following = torch.tensor(ids[1:], device=log_probs.device)
    of_tokens = log_probs.gather(1, following[:, None])[:, 0].tolist()
    top = log_probs.topk(n_likeliest, dim=-1)
    likeliest = [
        dict(zip(tokens, values, strict=True))
        for tokens, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]
    return Scores((None, *of_tokens), (None, *likeliest))
