"""What else would bring the concept: asking in words, any vector, and choosing among replies.

All on the frontier's prompts, by its judges, with its noise, and each with what it costs in the
frontier's own units. Best of n is chosen by the judge that reads presence, so that its presence is
that judge's own optimum; the second judge, which did not choose, tells what is left of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from calibrate.common.estimate import RatioEstimate
from calibrate.engine.divergence import Way, divergence
from calibrate.engine.generation import Completion, Request, sample_all
from calibrate.judging.presence import Presence, read
from calibrate.judging.teaching import asked_prompts
from calibrate.models.steering import Steering
from calibrate.models.tokens import Prompt
from calibrate.search.effect import LOOKS
from calibrate.search.frontier import Bench, Silenced

BEST_OF = (2, 4)  # plain replies to choose among
CE_TEMPERATURE = 1.0  # at which ΔCE is measured


@dataclass(frozen=True, eq=False)
class Rival:
    """Another way to the concept.

    presence, change: over prompts. audited: the change by the second judge. example: its reply to
    the first prompt. delta_ce: ΔCE, as the frontier has it. cost, cost_back: KL(plain‖rival) and
    KL(rival‖plain) at the replies' temperature. All three in nats a token, over replies; None for
    best of n, which has a bound (`laws.limit.best_of_cost`) instead.
    """

    name: str
    presence: RatioEstimate
    change: RatioEstimate
    audited: RatioEstimate | None
    example: str
    delta_ce: RatioEstimate | None = None
    cost: RatioEstimate | None = None
    cost_back: RatioEstimate | None = None


def measure_rivals(bench: Bench, strength: float) -> tuple[Rival, ...]:
    """Measure them; the steered ones at a strength of the frontier."""
    loaded, settings = bench.loaded, bench.settings
    plain = bench.replies.prompts["verify"]
    increase = settings.goal == "increase"
    asked = asked_prompts(loaded, plain, bench.reader.concept, increase)
    ways = {
        "asked in words": Way(asked),
        "asked and steered": Way(asked, bench.site, strength),
        "random vector": Way(plain, bench.site.random_like(settings.seed), strength),
    }
    more = max(BEST_OF) - LOOKS[0]
    requests = [
        *(Request(way.prompts, LOOKS[0], _steering(way)) for way in ways.values()),
        Request(plain, more, first=LOOKS[0]),
    ]
    *drawn, others = sample_all(loaded, requests, settings.sampling, settings.seed)
    measured = []
    for (name, way), replies in zip(ways.items(), drawn, strict=True):
        with suppress(Silenced):
            measured.append(_measured(bench, name, way, replies, plain))
    pool = read(bench.reader, [*bench.plain, *others])
    audited = None if bench.auditor is None else read(bench.auditor, pool.completions).scores
    return (*measured, *(_best_of(bench, n, pool, audited) for n in BEST_OF))


def _steering(way: Way) -> Steering | None:
    return None if way.site is None else way.site.steering(way.strength)


def _measured(
    bench: Bench,
    name: str,
    way: Way,
    replies: Sequence[Completion],
    plain: Sequence[Prompt],
) -> Rival:
    presence = read(bench.reader, replies)
    served = bench.settings.sampling.temperature
    change = bench.change(presence)
    before = [reply for reply in bench.replies.first_replies("verify") if reply.ids]
    after = [reply for reply in presence.first_replies if reply.ids]
    delta_ce, cost = divergence(bench.loaded, Way(plain), way, before, [CE_TEMPERATURE, served])
    (back,) = divergence(bench.loaded, way, Way(plain), after, [served])
    return Rival(
        name,
        presence.estimate,
        change,
        bench.audited(presence),
        presence.completions[0].text,
        delta_ce,
        cost,
        back,
    )


def _best_of(bench: Bench, n: int, pool: Presence, scores: np.ndarray | None) -> Rival:
    """The best of n plain replies, over all ways to draw n of those in the pool to a prompt.

    scores: of the pool's replies by the second judge, if there is one.
    """
    picks = {prompt: _picks(bench, pool, prompt, n) for prompt in bench.baseline.by_prompt}
    presence = _mean_of(pool.scores, picks)
    audited = None
    if scores is not None and bench.audited_baseline is not None:
        audited = _mean_of(scores, picks).difference(_of_prompts(bench.audited_baseline))
    change = presence.difference(_of_prompts(bench.baseline))
    first = picks.get(pool.completions[0].prompt_index, [])
    example = pool.completions[first[0]].text if first else ""
    return Rival(f"best of {n}", presence, change, audited, example)


def _picks(bench: Bench, judged: Presence, prompt: int, n: int) -> list[int]:
    """The reply the judge likes most, of every n non-empty ones to a prompt, as rows."""
    rows = [
        row
        for row, reply in enumerate(judged.completions)
        if reply.prompt_index == prompt and reply.text.strip()
    ]
    return [
        max(drawn, key=lambda row: bench.settings.sign * float(judged.scores[row]))
        for drawn in combinations(rows, min(n, len(rows)))
    ]


def _mean_of(scores: np.ndarray, picks: Mapping[int, Sequence[int]]) -> RatioEstimate:
    """Mean score of what was picked, over prompts."""
    return _over_prompts([float(scores[list(rows)].mean()) for rows in picks.values()])


def _of_prompts(presence: Presence) -> RatioEstimate:
    return _over_prompts(list(presence.by_prompt.values()))


def _over_prompts(values: Sequence[float]) -> RatioEstimate:
    return RatioEstimate(np.array(values), np.ones(len(values)))
