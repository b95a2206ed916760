"""What a trial of the study measures on a model: ΔCE first, then replies in rungs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise

from calibrate.common.cost import Meter
from calibrate.common.estimate import RatioEstimate
from calibrate.common.settings import Settings
from calibrate.engine.cross_entropy import delta_ce
from calibrate.engine.generation import Completion, Request, sample_all
from calibrate.engine.unsteered import UnsteeredRun
from calibrate.judging.fluency import Fluency, measure_fluency
from calibrate.judging.presence import read
from calibrate.laws.pilot import Pilot
from calibrate.models.model import LoadedModel
from calibrate.search.objective_types import Replied, Rise
from calibrate.search.trials import SUGGESTED_SHARE
from calibrate.texts.replies import UnsteeredReplies
from probes import Reader

FIRST_RUNG = 48  # prompts of the first rung; every later one doubles the total
FIRST_PART = 16  # sequences of a corpus's first part, on which the pilot's derivatives are taken
CLEAR = 3.0  # standard errors from which ΔCE is clearly within or beyond the budget


def rung_sizes(total: int, first: int = FIRST_RUNG) -> tuple[int, ...]:
    """Cut a total into rungs: `first` first, each of the others as large as all before it.

    The last may be up to half larger, so that no small rest is left.
    """
    sizes: list[int] = []
    while sum(sizes) < total:
        wanted = sum(sizes) or first
        rest = total - sum(sizes)
        sizes.append(rest if rest < 1.5 * wanted else wanted)
    return tuple(sizes)


def _by_ratio(found: RatioEstimate, nearest: RatioEstimate) -> Rise:
    """The rise over all sequences, from some of them and from another strength's over all."""
    n, total = len(found.counts), nearest.value
    if n == len(nearest.counts):
        return Rise(found.value, 0.0, n)
    ratio = RatioEstimate(found.sums, nearest.sums[:n])
    return Rise(ratio.value * total, abs(total) * ratio.standard_error, n)


@dataclass(frozen=True, eq=False)
class SearchObjective:
    """Measures a model on the search split (`calibrate.search.study.Objective`)."""

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

    def delta_ce(self, site: str, strength: float) -> Rise:
        """ΔCE on the search corpus, from as many of its parts as it takes to be clear.

        The pilot's pass nearest to the budget ran on the same sequences, so that only the ratio to
        it is measured: sequences differ in how much they rise, and hardly in how they rise with
        the strength (a ratio estimator; Cochran, "Sampling Techniques", 1977, chapter 6).
        """
        pilot, vector = self.pilots[site], self.pilots[site].vector
        measured: list[RatioEstimate] = []
        for part in self.run.parts:
            rise = delta_ce(
                self.loaded, part, vector.values, vector.layer, strength, pilot.positions
            )
            measured.append(rise)
            found = _by_ratio(RatioEstimate.joined(measured), pilot.nearest)
            if abs(found.value - self.settings.ce_budget) > CLEAR * found.standard_error:
                break
        return found

    def replies(self, site: str, strength: float, rung: int) -> Replied:
        """Read one reply to each search prompt of a rung.

        They are sampled with the noise of every other trial. The first rung of all sites at the
        share the laws suggest is sampled in one go, since large batches cost least.
        """
        trial = site, strength
        if rung == 0 and trial in self._suggested and trial not in self._ahead:
            ahead = self._suggested[self._suggested.index(trial) :]
            self._ahead.update(self._sampled(ahead, rung))
        if rung == 0 and trial in self._ahead:
            replies = self._ahead[trial]
        else:
            replies = self._sampled([trial], rung)[trial]
        presence = read(self.reader, replies)
        drop = None
        if self.settings.max_fluency_drop is not None and presence.by_prompt:
            drop = measure_fluency(self.loaded, replies).drop_from(self._fluency)
        seen = drop if drop is not None and len(drop.sums) else None
        return Replied(presence.by_prompt, seen, presence.n_empty)

    def _sampled(
        self, trials: Sequence[tuple[str, float]], rung: int
    ) -> dict[tuple[str, float], list[Completion]]:
        """Replies to the prompts of a rung, at several sites and strengths."""
        prompts = self.rungs[rung]
        requests = [
            Request(
                self.unsteered.prompts["search"][prompts],
                push=self.pilots[site].vector.push(strength, self.pilots[site].positions),
            )
            for site, strength in trials
        ]
        drawn = sample_all(self.loaded, requests, self.settings.sampling, self.settings.seed)
        return {
            trial: [replace(one, prompt_index=one.prompt_index + prompts.start) for one in replies]
            for trial, replies in zip(trials, drawn, strict=True)
        }

    @cached_property
    def _suggested(self) -> list[tuple[str, float]]:
        """The trials the laws suggest, in the order they are run."""
        return [
            (site, SUGGESTED_SHARE * pilot.strength_at_budget.value)
            for site, pilot in self.pilots.items()
        ]

    @cached_property
    def _ahead(self) -> dict[tuple[str, float], list[Completion]]:
        """Replies of the first rung that were sampled before their trial was run."""
        return {}

    @cached_property
    def _fluency(self) -> Fluency:
        return measure_fluency(self.loaded, self.unsteered.first_replies("search"))
