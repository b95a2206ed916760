"""What a trial of the study measures on a model: ΔCE first, then replies in rungs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, pairwise

from calibrate.common.cost import Meter
from calibrate.common.estimate import RatioEstimate
from calibrate.common.settings import Settings
from calibrate.engine.cross_entropy import SUFFIX_SHARE, delta_ce
from calibrate.engine.generation import Completion, Request, sample_all
from calibrate.engine.unsteered import UnsteeredRun
from calibrate.judging.fluency import Fluency, measure_fluency
from calibrate.judging.presence import read
from calibrate.laws.pilot import Pilot
from calibrate.models.model import LoadedModel
from calibrate.search.objective_types import Replied, Rise
from calibrate.texts.replies import UnsteeredReplies
from probes import Reader

FIRST_RUNG = 48  # prompts of the first rung; every later one doubles the total
FIRST_PART = 16  # sequences of a corpus's first part, on which the pilot's derivatives are taken
EXTRA_TRIALS = 1  # trials beyond one for each site, as a rule
CLEAR = 3.0  # standard errors from which ΔCE is clearly within or beyond the budget


def rung_sizes(total: int, first: int = FIRST_RUNG) -> tuple[int, ...]:
    """Cut a total into rungs: `first` first, each of the others as large as all before it.

    The last may be up to half larger, so that no small remainder is left.
    """
    sizes: list[int] = []
    while sum(sizes) < total:
        wanted = sum(sizes) or first
        rest = total - sum(sizes)
        sizes.append(rest if rest < 1.5 * wanted else wanted)
    return tuple(sizes)


def expected_tokens(
    sites: int, n_prompts: int, reply: float, corpus: float, settings: Settings
) -> float:
    """Token-forwards of the study, no trial cut short.

    reply: tokens of the longest reply and its prompt. corpus: of the search corpus.
    """
    trials = min(settings.trials, sites + EXTRA_TRIALS)
    read = settings.sampling.max_new_tokens
    return trials * (n_prompts * (reply + read) + corpus * SUFFIX_SHARE)


def _by_ratio(rise: RatioEstimate, nearest: RatioEstimate) -> Rise:
    """The rise over all sequences, from that over some and another strength's over all."""
    n, total = len(rise.counts), nearest.value
    if n == len(nearest.counts):
        return Rise(rise.value, 0.0, n)
    ratio = RatioEstimate(rise.sums, nearest.sums[:n])
    return Rise(ratio.value * total, abs(total * ratio.standard_error), n)


@dataclass(eq=False)
class SearchObjective:
    """Measures a model on the search split (`calibrate.search.objective_types.Objective`)."""

    loaded: LoadedModel
    reader: Reader
    run: UnsteeredRun
    pilots: Mapping[str, Pilot]
    unsteered: UnsteeredReplies
    settings: Settings
    _ahead: dict[tuple[str, float], list[Completion]] = field(default_factory=dict, init=False)

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

        The pilot's pass nearest to the budget ran on all sequences, so that only the ratio to it is
        measured: sequences differ in their ΔCE, but hardly in its ratio between two strengths (a
        ratio estimator; Cochran, "Sampling Techniques", 1977, chapter 6).
        """
        pilot = self.pilots[site]
        measured: list[RatioEstimate] = []
        for part in self.run.parts:
            measured.append(delta_ce(self.loaded, part, pilot.site, strength))
            rise = _by_ratio(RatioEstimate.joined(measured), pilot.nearest)
            if abs(rise.value - self.settings.ce_budget) > CLEAR * rise.standard_error:
                break
        return rise

    def sample_ahead(self, batch: Sequence[tuple[str, float]]) -> None:
        """Sample the first rung of several trials in one go, since large batches cost least."""
        missing = [trial for trial in batch if trial not in self._ahead]
        if missing:
            self._ahead.update(self._sampled(missing, 0))

    def replies(self, site: str, strength: float, rung: int) -> Replied:
        """Read one reply to each search prompt of a rung.

        Every trial samples with the same noise; what was sampled ahead is used.
        """
        trial = site, strength
        ahead = rung == 0 and trial in self._ahead
        replies = self._ahead[trial] if ahead else self._sampled([trial], rung)[trial]
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
                steering=self.pilots[site].site.steering(strength),
            )
            for site, strength in trials
        ]
        drawn = sample_all(self.loaded, requests, self.settings.sampling, self.settings.seed)
        first = prompts.start
        return {
            trial: [replace(reply, prompt_index=first + reply.prompt_index) for reply in replies]
            for trial, replies in zip(trials, drawn, strict=True)
        }

    @cached_property
    def _fluency(self) -> Fluency:
        return measure_fluency(self.loaded, self.unsteered.first_replies("search"))
