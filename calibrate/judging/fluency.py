"""How likely replies are under the unsteered model, and how much they repeat themselves.

The second half of what steering costs: ΔCE measures how predictions shift on fixed text; fluency
measures text generated under steering.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calibrate.common.estimate import RatioEstimate
from calibrate.engine.generation import Completion
from calibrate.engine.unsteered import Corpus, UnsteeredRun, log_probs, run_unsteered
from calibrate.judging.loops import longest_loop
from calibrate.models.model import LoadedModel


@dataclass(frozen=True, eq=False)
class Fluency:
    """The fluency of replies, empty ones left out.

    prompts: index of each reply's prompt, ascending. log_prob: per token under the unsteered
    model, over replies, nats. distinct_2: mean share of a reply's token pairs that are distinct,
    in [0, 1]. longest_loop: mean share of a reply's tokens that lie in its longest loop
    (`calibrate.judging.loops`), in [0, 1]. n_tokens: mean length.
    """

    prompts: tuple[int, ...]
    log_prob: RatioEstimate
    distinct_2: float
    longest_loop: float
    n_tokens: float

    def drop_from(self, before: Fluency) -> RatioEstimate:
        """How much less likely these replies are per token, nats, prompt by prompt."""
        shared = sorted(set(self.prompts) & set(before.prompts))
        return before._log_prob_on(shared).difference(self._log_prob_on(shared))

    def _log_prob_on(self, prompts: Sequence[int]) -> RatioEstimate:
        rows = [self.prompts.index(prompt) for prompt in prompts]
        return RatioEstimate(self.log_prob.sums[rows], self.log_prob.counts[rows])


def measure_fluency(
    loaded: LoadedModel, completions: Sequence[Completion], run: UnsteeredRun | None = None
) -> Fluency:
    """Measure finished replies, one per prompt.

    run: the unsteered pass over those that are not empty, if one was made.
    """
    spoken = [completion for completion in completions if completion.spoken]
    if run is None:
        sequences = tuple(completion.sequence for completion in spoken)
        run = run_unsteered(loaded, Corpus(sequences, self_sampled=False), [])
    log_prob = log_probs(loaded, run)
    return Fluency(
        prompts=tuple(completion.prompt_index for completion in spoken),
        log_prob=log_prob,
        distinct_2=float(np.mean([_distinct_pairs(reply.ids) for reply in spoken])),
        longest_loop=float(np.mean([longest_loop(reply.ids) for reply in spoken])),
        n_tokens=float(log_prob.counts.mean()),
    )


def _distinct_pairs(ids: Sequence[int]) -> float:
    pairs = list(itertools.pairwise(ids))
    return len(set(pairs)) / len(pairs) if pairs else 1.0
