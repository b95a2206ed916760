"""Whether presence changes enough, and how small a change could have been seen.

The paired change towards the goal, one value per prompt, is tested after each round of replies:

    ships       the interval's low end is above 0, and the change is at least `min_gain`
    refused     the interval's high end is below `min_gain`
    undecided   anything else: every prompt gets as many replies again

Testing growing data several times errs more often than testing once (Armitage, McPherson and Rowe,
1969, J. R. Stat. Soc. A 132), so each look gets an equal share of the error that `confidence`
allows (Bonferroni). A change of 0 then ships with a probability of at most (1 - confidence) / 2,
and a change of at least `min_gain` is refused as too small with at most the same. Reported
intervals have the confidence as given.

A refusal claims that there is no such change only if one would have been seen: if the smallest
change told from 0 with a probability of POWER is at most `min_gain`. Otherwise it says that the
data cannot tell, and how many replies or prompts could.
"""

from __future__ import annotations

import math
from typing import Literal

from calibrate.common.estimate import RatioEstimate
from calibrate.common.record import TestedStrength
from calibrate.common.settings import Settings
from calibrate.search.refusals import MORE, Neither, TooLittle
from calibrate.texts.concept import PROMPT_SHARES
from calibrate.texts.replies import VERIFY_COMPLETIONS

LOOKS = (VERIFY_COMPLETIONS, 2 * VERIFY_COMPLETIONS, 4 * VERIFY_COMPLETIONS)  # replies per prompt
POWER = 0.8  # probability of seeing a change that is there

Decision = Literal["ships", "refused", "undecided"]


def decide(change: RatioEstimate, settings: Settings) -> Decision:
    """Decide after one look.

    change: of presence, one value per prompt, negative where presence falls.
    """
    low, high = bounds(change, settings)
    if low > 0 and settings.sign * change.value >= settings.min_gain:
        return "ships"
    return "refused" if high < settings.min_gain else "undecided"


def bounds(change: RatioEstimate, settings: Settings) -> tuple[float, float]:
    """The interval that one look decides by, of the change towards the goal."""
    low, high = change.cautious_interval(_look_confidence(settings))
    return (low, high) if settings.goal == "increase" else (-high, -low)


def detectable(change: RatioEstimate, settings: Settings) -> float:
    """The smallest true change that one look tells from 0 with a probability of POWER."""
    return change.detectable(_look_confidence(settings), POWER)


def prompts_needed(change: RatioEstimate, gain: float, settings: Settings) -> int:
    """About how many verify prompts tell a change of `gain` from 0 with a probability of POWER.

    Each with as many replies as the prompts of `change` have, and as different from each other.
    gain: above 0.
    """
    return math.ceil(len(change.sums) * (detectable(change, settings) / gain) ** 2)


def require_effect(
    change: RatioEstimate,
    n_replies: int,
    settings: Settings,
    looped: TestedStrength | None = None,
) -> None:
    """Refuse a change that does not ship.

    change: at the last look, with n_replies to each prompt. looped: a larger strength within the
        budget whose long replies loop too much, if there is one.
    Raises: TooLittle, which says whether there is no such change or the data cannot tell; Neither
        where more strength loops.
    """
    decision = decide(change, settings)
    if decision == "ships":
        return
    reason, advice = _too_small(change, settings), _advice(settings)
    if decision == "undecided" and detectable(change, settings) <= settings.min_gain:
        reason = _not_seen(change, settings)
    elif decision == "undecided":
        reason = _cannot_tell(change, n_replies, settings)
        advice = [*_more_replies(change, n_replies, settings), *advice]
    if looped is None:
        raise TooLittle([reason], advice)
    raise Neither([reason, _loops(looped)], [each for each in advice if each != MORE])


def _loops(looped: TestedStrength) -> str:
    return (
        f"long replies already loop at strength {looped.strength:.3g}, within the same budget: "
        f"{looped.loop_excess:.1%} more of their tokens lie in loops than in unsteered ones"
    )


def _too_small(change: RatioEstimate, settings: Settings) -> str:
    most = bounds(change, settings)[1]
    return (
        f"no change worth having: within {settings.ce_budget:g} nat presence is {settings.goal}d "
        f"by at most {most:.3g}, below --min-gain {settings.min_gain:g} ({_seen(change, settings)})"
    )


def _not_seen(change: RatioEstimate, settings: Settings) -> str:
    return (
        f"within {settings.ce_budget:g} nat presence does not measurably {settings.goal} by "
        f"--min-gain {settings.min_gain:g}: {_seen(change, settings)}, where a change of "
        f"{detectable(change, settings):.2g} would be seen with a probability of {POWER:.0%}"
    )


def _cannot_tell(change: RatioEstimate, n_replies: int, settings: Settings) -> str:
    wanted = f"by --min-gain {settings.min_gain:g}" if settings.min_gain else "at all"
    return (
        f"it cannot be told whether presence {settings.goal}s {wanted}: {_seen(change, settings)} "
        f"in {n_replies} replies to each of {len(change.sums)} prompts, where only a change of "
        f"{detectable(change, settings):.2g} or more would be seen with a probability of "
        f"{POWER:.0%}"
    )


def _seen(change: RatioEstimate, settings: Settings) -> str:
    low, high = change.interval(settings.confidence)
    return (
        f"it changes by {change.value:+.3f}, {settings.confidence:.0%} interval {low:+.3f} to "
        f"{high:+.3f}"
    )


def _more_replies(change: RatioEstimate, n_replies: int, settings: Settings) -> list[str]:
    """Ways to decide; no number of prompts where no gain was asked for or seen."""
    advice = []
    if n_replies < LOOKS[-1]:
        advice.append(
            f"allow up to {LOOKS[-1]} replies a prompt with a higher --max-tokens or --max-minutes"
        )
    gain = settings.min_gain or max(settings.sign * change.value, 0.0)
    spread_known = math.isfinite(detectable(change, settings))
    if gain and spread_known:
        needed = prompts_needed(change, gain, settings)
        given = math.ceil(needed / PROMPT_SHARES["verify"])
        advice.append(
            f"give about {given:,} --prompts, of which {needed:,} are verified on: with "
            f"{n_replies} replies each they would tell a change of {gain:.2g}"
        )
    shown = _rounded_up(detectable(change, settings)) if spread_known else 1.0
    if shown < 1:  # a gain of presence
        advice.append(f"ask only for what these prompts can show, with --min-gain {shown:g}")
    return advice


def _advice(settings: Settings) -> list[str]:
    smaller = ["accept a smaller change with a lower --min-gain"] if settings.min_gain else []
    return [*smaller, MORE, "try another --layer"]


def _rounded_up(gain: float) -> float:
    return math.ceil(100 * gain) / 100


def _look_confidence(settings: Settings) -> float:
    return 1 - (1 - settings.confidence) / len(LOOKS)
