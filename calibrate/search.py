"""What a trial of the study measures on a model: ΔCE first, then replies in rungs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from calibrate.completions import sample
from calibrate.cost import Meter
from calibrate.cross_entropy import UnsteeredRun, delta_ce
from calibrate.estimate import RatioEstimate
from calibrate.fluency import Fluency, measure_fluency
from calibrate.pilot import Pilot
from calibrate.replies import UnsteeredReplies
from calibrate.settings import Settings
from calibrate.study import Replied
from probes import Reader

if TYPE_CHECKING:
    from calibrate.model import LoadedModel

FIRST_RUNG = 24  # prompts, or sequences, of the first rung; every later one doubles the total
CLEAR = 0.99  # confidence at which ΔCE is clearly within or beyond the budget


def rung_sizes(total: int) -> tuple[int, ...]:
    """Cut a total into rungs: FIRST_RUNG first, each of the others as large as all before it.

    The last may be up to half larger, so that no small rest is left.
    """
    sizes: list[int] = []
    while sum(sizes) < total:
        wanted = sum(sizes) or FIRST_RUNG
        rest = total - sum(sizes)
        sizes.append(rest if rest < 1.5 * wanted else wanted)
    return tuple(sizes)


@dataclass(frozen=True, eq=False)
class SearchObjective:
    """Measures a model on the search split (`calibrate.study.Objective`)."""

    loaded: LoadedModel
    reader: Reader
    run: UnsteeredRun
    pilots: Mapping[str, Pilot]
    unsteered: UnsteeredReplies
    settings: Settings

    @property
    def meter(self) -> Meter:
        """Counts what is spent."""
        return self.loaded.meter

    @cached_property
    def rungs(self) -> tuple[slice, ...]:
        """The search prompts, rung by rung."""
        ends = [0, *accumulate(rung_sizes(len(self.unsteered.prompts["search"])))]
        return tuple(slice(first, last) for first, last in pairwise(ends))

    def delta_ce(self, site: str, strength: float) -> RatioEstimate:
        """ΔCE on the search corpus, part by part until it is clear of the budget."""
        pilot = self.pilots[site]
        measured: list[RatioEstimate] = []
        for part in self.run.parts:
            measured.append(
                delta_ce(
                    self.loaded,
                    part,
                    pilot.vector.values,
                    pilot.vector.layer,
                    strength,
                    pilot.positions,
                )
            )
            low, high = RatioEstimate.joined(measured).interval(CLEAR)
            if not low <= self.settings.ce_budget <= high:
                break
        return RatioEstimate.joined(measured)

    def replies(self, site: str, strength: float, rung: int) -> Replied:
        """Read one reply to each search prompt of a rung.

        They are sampled with the noise of every other trial.
        """
        pilot, prompts = self.pilots[site], self.rungs[rung]
        drawn = sample(
            self.loaded,
            self.unsteered.prompts["search"][prompts],
            self.settings.sampling,
            self.settings.seed,
            steering=pilot.vector.apply(self.loaded.blocks, strength, pilot.positions),
            share_prefix=pilot.positions == "all",
        )
        replies = [replace(one, prompt_index=one.prompt_index + prompts.start) for one in drawn]
        scores = self.reader.read([one.text for one in replies])
        by_prompt = {
            one.prompt_index: float(score) for one, score in zip(replies, scores, strict=True)
        }
        if self.settings.max_fluency_drop is None:
            return Replied(by_prompt)
        return Replied(by_prompt, measure_fluency(self.loaded, replies).drop_from(self._fluency))

    @cached_property
    def _fluency(self) -> Fluency:
        return measure_fluency(self.loaded, self.unsteered.first_replies("search"))
