"""Harm that steering must not do: silence, replies that read worse, and questions forgotten."""

from __future__ import annotations

from calibrate.common.estimate import RatioEstimate
from calibrate.common.settings import Settings
from calibrate.judging.guard import Guarded
from calibrate.judging.presence import MAX_EMPTY, Presence
from calibrate.search.refusals import LESS, TooMuch


def is_silenced(presence: Presence) -> bool:
    """Whether most steered replies are empty."""
    return presence.empty > MAX_EMPTY


def reads_worse(drop: RatioEstimate, settings: Settings) -> bool:
    """Whether the drop of fluency may be larger than allowed."""
    most = settings.max_fluency_drop
    return most is not None and drop.upper(settings.confidence) > most


def forgets(guarded: Guarded | None, settings: Settings) -> bool:
    """Whether the guard's accuracy may drop by more than allowed."""
    most = settings.max_guard_drop
    return (
        guarded is not None and most is not None and guarded.drop_upper(settings.confidence) > most
    )


def require_replies(presence: Presence) -> None:
    """Raise TooMuch if steering silences the model."""
    if is_silenced(presence):
        raise TooMuch(
            [
                f"{presence.n_empty} of {len(presence.completions)} steered replies are empty; "
                "presence cannot be read from silence"
            ],
            [LESS, "try another --layer"],
        )


def require_fluency(drop: RatioEstimate, settings: Settings) -> None:
    """Raise TooMuch if the drop of fluency may be larger than allowed."""
    if reads_worse(drop, settings):
        upper = drop.upper(settings.confidence)
        raise TooMuch(
            [
                f"steered replies may be {upper:.3g} nat per token less likely to the unsteered "
                f"model ({settings.confidence:.0%} bound), above --max-fluency-drop "
                f"{settings.max_fluency_drop:g}"
            ],
            ["allow more with --max-fluency-drop", LESS],
        )


def require_guard(guarded: Guarded | None, settings: Settings) -> None:
    """Raise TooMuch if the guard's accuracy may drop by more than allowed."""
    if guarded is not None and forgets(guarded, settings):
        upper = guarded.drop_upper(settings.confidence)
        raise TooMuch(
            [
                f"the share of {guarded.name} questions that are answered rightly may drop by "
                f"{upper:.3g} ({settings.confidence:.0%} bound; {guarded.baseline.value:.3f} to "
                f"{guarded.accuracy.value:.3f}), above --max-guard-drop "
                f"{settings.max_guard_drop:g}"
            ],
            ["allow more with --max-guard-drop", LESS],
        )
