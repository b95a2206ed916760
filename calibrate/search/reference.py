"""The reference input of a config: its log-probabilities show whether steering works elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from calibrate.common.record import Reference
from calibrate.engine.site import Site
from calibrate.models.model import LoadedModel
from calibrate.texts.replies import UnsteeredReplies

REFERENCE_TOKENS = 20  # likeliest next tokens kept in the artefact's reference


def reference_of(
    loaded: LoadedModel,
    site: Site,
    strength: float,
    replies: UnsteeredReplies,
) -> Reference:
    """Return the likeliest next tokens after a verify prompt, unsteered and steered."""
    ids = replies.first_replies("verify")[0].sequence.ids
    unsteered = next_log_probs(loaded, ids)
    with site.apply(loaded.blocks, strength):
        steered = next_log_probs(loaded, ids)
    top = steered.topk(min(REFERENCE_TOKENS, len(steered))).indices
    return Reference(list(ids), top.tolist(), steered[top].tolist(), unsteered[top].tolist())


def next_log_probs(loaded: LoadedModel, ids: Sequence[int]) -> torch.Tensor:
    """Log-probabilities of the token after `ids`, float32 (vocabulary,)."""
    tokens = torch.tensor([list(ids)], device=loaded.device)
    loaded.meter.count(tokens.numel())
    logits = loaded.model(input_ids=tokens, use_cache=False).logits[0, -1]
    return torch.log_softmax(logits.float(), dim=-1).cpu()
