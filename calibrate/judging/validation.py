"""Validate a judge against people who grade the same texts.

    quality = hold_against(reader, read_graded("graded.jsonl"))
    quality.somewhat.auc          # Interval(value=0.91, low=0.86, high=0.95)
    quality.level.difference      # its presence minus the readers'

AUC measures whether the judge ranks texts as readers do, which is what choosing a strength needs;
the level, whether its presence equals theirs. A judge may be good at one and bad at the other.
Intervals come from resampled prompts. A measure that is equal in all resamples, such as a share of
0, has an interval of width 0, however few texts there are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from calibrate.common.estimate import Interval
from calibrate.judging.graded_texts import require_enough
from probes.graded import CLEARLY, SOMEWHAT, GradedText
from probes.judges import Reader
from probes.quality import area_under_curve, brier_score, calibration_error, resample

MAX_EXAMPLES = 3  # of each way to be wrong
UNDECIDED = 0.5  # a probability above it is a yes


@dataclass(frozen=True)
class Separation:
    """How well texts from some grade up are told from all others.

    auc: the judge's area under the ROC curve, or None, and then why_not says why.
    readers: that of the second reader's grades against the first's, on the texts both graded; a
        judge cannot be expected to do better. None without a second reader.
    n_positive: texts from that grade up.
    """

    auc: Interval | None
    why_not: str
    readers: Interval | None
    n_positive: int


@dataclass(frozen=True)
class Level:
    """Presence in texts of one condition, by the judge and by the readers.

    condition: its name; "" if texts have none, and for all texts together.
    judge: mean probability. readers: share of texts graded 1 or more. difference: the first minus
    the second.
    """

    condition: str
    n_texts: int
    judge: Interval
    readers: Interval
    difference: Interval


@dataclass(frozen=True)
class Misread:
    """A text on which the judge and the readers disagree."""

    text: str
    condition: str
    probability: float
    grade: float


@dataclass(frozen=True)
class JudgeQuality:
    """How well a judge agrees with people's grades; intervals are 95 %.

    n_texts, n_groups: graded texts, and prompts (or texts without one), which were resampled.
    somewhat: grades from 1 up against those below. clearly: grade 2 against those below; None if
        nothing is graded above 1, as with labels.
    brier, calibration_error: of the probability that a text is graded 1 or more.
    level: of all texts. levels: by condition; empty where there is one only.
    too_high, too_low: texts of the lowest grade to which the judge says yes, and of the highest to
        which it says no, the worst first.
    seconds_per_text: time the judge takes.
    """

    judge: str
    concept: str
    n_texts: int
    n_groups: int
    somewhat: Separation
    clearly: Separation | None
    brier: Interval
    calibration_error: Interval
    level: Level
    levels: tuple[Level, ...]
    too_high: tuple[Misread, ...]
    too_low: tuple[Misread, ...]
    seconds_per_text: float


@dataclass(frozen=True, eq=False)
class _Readings:
    """The judge's probabilities and the readers' grades, arrays of shape (n_texts,).

    second_grades: NaN where there are none.
    """

    texts: Sequence[GradedText]
    probabilities: np.ndarray
    grades: np.ndarray
    second_grades: np.ndarray
    groups: Sequence[str]

    def rows(self, kept: np.ndarray) -> _Readings:
        """The readings of some texts; kept: bool (n_texts,)."""
        texts = [text for text, keep in zip(self.texts, kept, strict=True) if keep]
        return _readings(texts, self.probabilities[kept])


def hold_against(
    reader: Reader,
    texts: Sequence[GradedText],
    clock: Callable[[], float] = time.perf_counter,
) -> JudgeQuality:
    """Have a judge read graded texts, and compare its probabilities with the grades.

    clock: seconds.
    Raises: ConceptError for fewer than MIN_GRADED texts; InputError if the judge fails.
    """
    require_enough(len(texts), f"judge {reader.name!r} must be held against")
    started = clock()
    probabilities = reader.read([text.text for text in texts])
    spent = clock() - started
    readings = _readings(texts, probabilities)
    truth = (readings.grades >= SOMEWHAT).astype(float)
    resampling = resample(readings.groups)
    brier, error = (
        resampling.interval(partial(measure, probabilities, truth))
        for measure in (brier_score, calibration_error)
    )
    too_high, too_low = _misread(readings)
    return JudgeQuality(
        judge=reader.name,
        concept=reader.concept,
        n_texts=len(texts),
        n_groups=len(set(readings.groups)),
        somewhat=_separation(readings, SOMEWHAT),
        clearly=_separation(readings, CLEARLY) if readings.grades.max() > SOMEWHAT else None,
        brier=brier,
        calibration_error=error,
        level=_level("", readings),
        levels=_levels(readings),
        too_high=too_high,
        too_low=too_low,
        seconds_per_text=spent / len(texts),
    )


def _readings(texts: Sequence[GradedText], probabilities: np.ndarray) -> _Readings:
    """Each text without a group gets its own, with a name that no file can contain."""
    return _Readings(
        texts,
        probabilities,
        np.array([text.grade for text in texts], dtype=float),
        np.array([np.nan if text.second is None else text.second for text in texts]),
        [text.group or f"\0{row}" for row, text in enumerate(texts)],
    )


def _separation(readings: _Readings, least: float) -> Separation:
    n_positive = int((readings.grades >= least).sum())
    grade = f"graded {least:g}{' or more' if least < CLEARLY else ''}"
    why_not = {0: f"no text is {grade}", len(readings.texts): f"every text is {grade}"}
    twice = readings.rows(~np.isnan(readings.second_grades))
    return Separation(
        _auc(readings, readings.probabilities, least),
        why_not.get(n_positive, ""),
        _auc(twice, twice.second_grades, least),
        n_positive,
    )


def _auc(readings: _Readings, scores: np.ndarray, least: float) -> Interval | None:
    """None where there are not texts on both sides of the grade."""
    truth = (readings.grades >= least).astype(float)
    if len(set(truth)) < 2:
        return None
    resampling = resample(readings.groups).having(truth)
    return resampling.interval(partial(area_under_curve, scores, truth))


def _levels(readings: _Readings) -> tuple[Level, ...]:
    of_text = np.array([text.condition for text in readings.texts])
    names = dict.fromkeys(of_text.tolist())
    if len(names) < 2:
        return ()
    return tuple(_level(name, readings.rows(of_text == name)) for name in names)


def _level(condition: str, readings: _Readings) -> Level:
    resampling = resample(readings.groups)
    share = (readings.grades >= SOMEWHAT).astype(float)
    scores = readings.probabilities
    judge, readers, difference = (
        resampling.interval(partial(_mean, values)) for values in (scores, share, scores - share)
    )
    return Level(condition, len(readings.texts), judge, readers, difference)


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    return float(np.average(values, weights=weights))


def _misread(readings: _Readings) -> tuple[tuple[Misread, ...], tuple[Misread, ...]]:
    texts = [
        Misread(text.text, text.condition, float(probability), float(grade))
        for text, probability, grade in zip(
            readings.texts, readings.probabilities, readings.grades, strict=True
        )
    ]
    least, most = (float(pick(readings.grades)) for pick in (np.min, np.max))
    high = [t for t in texts if t.probability > UNDECIDED and t.grade == least < SOMEWHAT]
    low = [t for t in texts if t.probability < UNDECIDED and t.grade == most >= SOMEWHAT]
    high.sort(key=lambda text: -text.probability)
    low.sort(key=lambda text: text.probability)
    return tuple(high[:MAX_EXAMPLES]), tuple(low[:MAX_EXAMPLES])
