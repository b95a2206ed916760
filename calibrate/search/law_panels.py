"""What `calibrate laws` measures on request: presence in replies, and answers to questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from calibrate.common.settings import Settings
from calibrate.engine.generation import Completion, Request, sample
from calibrate.engine.site import Site
from calibrate.judging.fluency import Fluency, measure_fluency
from calibrate.judging.guard import guarded
from calibrate.judging.presence import MAX_EMPTY, Presence, measure_presence
from calibrate.laws.bench import name_of
from calibrate.laws.formulas import Goodness
from calibrate.laws.panels import AccuracyCurve, PresenceCurve
from calibrate.laws.presence import fit_both_ways, n_fitted
from calibrate.models.model import LoadedModel
from calibrate.models.tokens import Prompt
from calibrate.texts.guard import Guard
from probes import Probe, Reader

PROMPTS = 32  # of the verification, each replied to once at every strength
SIDE = 20  # strengths of either sign
REACHES = (2.0, 4.0, 8.0, 16.0, 32.0)  # shares of α_B at which degenerate text is looked for
DEGENERATE_DROP = 3.0  # nats per token that replies are less likely to the plain model
DEGENERATE_LOOP = 0.5  # share of a reply's tokens in its longest loop
LEAST_HEARD = 2  # replies that are not empty, for presence to have an error
GOOD_CURVE = 1.5  # largest misfit of presence, in standard errors
ACCURACY_SHARES = (0.5, 1.0, 2.0, 3.0, 5.0, 10.0)  # of α_B, of either sign


@dataclass(frozen=True, eq=False)
class ReadingBench:
    """What presence is read with: a judge, and the prompts that are replied to.

    probe: the judge's, if it is one.
    """

    loaded: LoadedModel
    reader: Reader
    probe: Probe | None
    prompts: tuple[Prompt, ...]
    settings: Settings

    def curve(self, site: Site, unit: float) -> PresenceCurve:
        """Presence at 2·SIDE + 1 strengths, up to where text degenerates on either side.

        unit: α_B, above 0.
        """
        ends = {sign: self._end(site, sign * unit) for sign in (1, -1)}
        sides = [np.linspace(0, ends[sign][0], SIDE + 1) for sign in (-1, 1)]
        strengths = np.union1d(*sides)
        read = self._replies(site, strengths)
        presence = np.array([each.estimate.value for each in read])
        error = np.array([each.estimate.standard_error for each in read])
        spoken = np.array([len(each.completions) - each.n_empty for each in read])
        heard = spoken >= LEAST_HEARD
        law, falls = fit_both_ways(
            *(column[heard].tolist() for column in (strengths, presence, spoken))
        )
        predicted = np.asarray(law.predict(strengths))
        low, high = (falls[sign] or sign * np.inf for sign in (-1, 1))
        covered = heard & (strengths > low) & (strengths < high)
        least = np.where(
            error > 0, error, 1 / np.maximum(spoken, 1)
        )  # all alike shows no certainty
        return PresenceCurve(
            judge=self.reader.name,
            n_replies=len(self.prompts),
            strengths=strengths.tolist(),
            presence=_where(heard, presence),
            error=_where(heard, error),
            fluency_drop=_where(
                heard, [self._drop(self._fluency(each.completions)) for each in read]
            ),
            law=predicted.tolist(),
            floor=law.floor,
            ceiling=law.ceiling,
            fall={name_of(sign): fall for sign, fall in falls.items()},
            degenerate={
                name_of(sign): end if found else None for sign, (end, found) in ends.items()
            },
            goodness=judge_curve(
                *(column[covered] for column in (strengths, predicted, presence, least))
            ),
        )

    def _end(self, site: Site, unit: float) -> tuple[float, bool]:
        """The first strength at which text has degenerated, and whether there is one."""
        for reach in REACHES:
            (presence,) = self._replies(site, [reach * unit])
            if self._is_degenerate(presence):
                return reach * unit, True
        return REACHES[-1] * unit, False

    def _replies(self, site: Site, strengths: Sequence[float] | np.ndarray) -> list[Presence]:
        requests = [Request(self.prompts, 1, site.steering(float(each))) for each in strengths]
        sampling, seed = self.settings.sampling, self.settings.seed
        return measure_presence(self.loaded, self.reader, requests, sampling, seed)

    def _is_degenerate(self, presence: Presence) -> bool:
        fluency = self._fluency(presence.completions)
        if fluency is None or presence.empty > MAX_EMPTY:
            return True
        return fluency.longest_loop > DEGENERATE_LOOP or self._drop(fluency) > DEGENERATE_DROP

    def _drop(self, fluency: Fluency | None) -> float:
        """How much less likely such replies are than plain ones, nats a token; 0 for silence."""
        if fluency is None or self._plain is None:
            return 0.0
        return fluency.drop_from(self._plain).value

    @cached_property
    def _plain(self) -> Fluency | None:
        sampling, seed = self.settings.sampling, self.settings.seed
        return self._fluency(sample(self.loaded, self.prompts, sampling, seed))

    def _fluency(self, replies: Sequence[Completion]) -> Fluency | None:
        spoken = any(reply.spoken for reply in replies)
        return measure_fluency(self.loaded, replies) if spoken else None


def judge_curve(
    strengths: np.ndarray, predicted: np.ndarray, measured: np.ndarray, errors: np.ndarray
) -> Goodness | None:
    """Judge a law of presence by the points it was fitted to; errors: standard ones.

    The squared misfits are shared among the points that are left over once every parameter has
    taken one; None if none is.
    """
    left = len(strengths) - n_fitted(strengths)
    if left <= 0:
        return None
    misfit = float(np.sqrt((((measured - predicted) / errors) ** 2).sum() / left))
    rows = zip(strengths, predicted, measured, strict=True)
    return Goodness.of([(float(a), float(b), float(c)) for a, b, c in rows], misfit, GOOD_CURVE)


def _where(heard: np.ndarray, values: np.ndarray | Sequence[float]) -> list[float | None]:
    """Values where enough is heard, None elsewhere."""
    return [float(value) if ok else None for value, ok in zip(values, heard, strict=True)]


def measure_accuracy(
    loaded: LoadedModel, site: Site, guard: Guard, unit: float, settings: Settings
) -> AccuracyCurve:
    """Put the guard's questions at strengths of both signs; unit: α_B, above 0."""
    shares = [*(-share for share in reversed(ACCURACY_SHARES)), 0.0, *ACCURACY_SHARES]
    strengths = [share * unit for share in shares]
    found = [guarded(loaded, guard, site, strength) for strength in strengths]
    return AccuracyCurve(
        guard=guard.name,
        n_questions=len(guard.items),
        chance=guard.guessed,
        strengths=strengths,
        accuracy=[each.accuracy.value for each in found],
        error=[each.accuracy.standard_error for each in found],
        drop_bound=[each.drop_upper(settings.confidence) for each in found],
    )
