"""One strength that the study tried: what a front end shows, and the evidence keeps."""

from __future__ import annotations

from dataclasses import dataclass

PROPOSED_SHARE = 0.95  # of α_B: verification wants the upper bound, not the mean, in budget


@dataclass(frozen=True)
class Trial:
    """One strength the study tried.

    site: the block, and which positions were steered. share: strength / the site's α_B. delta_ce:
    nats per token on the first n_sequences of the search corpus; delta_ce_error: its standard
    error, 0 on the whole corpus. presence: on the first n_prompts of the search prompts, or None
    if ΔCE was beyond the budget. complete: False if the trial was pruned, for its ΔCE or since it
    was behind the best. fluency_drop: nats per token, if limited; fluency_drop_upper: its one-sided
    bound. empty: the share of its replies that are empty, which presence leaves out.
    """

    number: int
    site: str
    share: float
    strength: float
    delta_ce: float
    delta_ce_error: float
    n_sequences: int
    presence: float | None
    n_prompts: int
    complete: bool
    fluency_drop: float | None
    token_forwards: int
    seconds: float
    empty: float = 0.0
    fluency_drop_upper: float | None = None
