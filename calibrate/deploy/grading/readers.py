"""What people's grades say: presence before and after, and how far the judge is to be trusted.

The prompt is the unit, since the replies to one prompt are not independent. Several people's grades
of a reply are averaged. The judge read every reply, people some: `judging.ppi` combines both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from calibrate.artefact.grades import GRADES_FILE, Grades
from calibrate.artefact.measured_sections import AgreementSection, ReadersSection, ShareSection
from calibrate.common.errors import ArtefactError, InputError
from calibrate.common.estimate import Interval
from calibrate.deploy.grading.blind import FEWEST, Pair, ReadingRoom
from calibrate.judging.ppi import ADDED_CHANGE, Corrected, auc, corrected_share
from probes.graded import CLEARLY, SOMEWHAT


@dataclass(frozen=True, eq=False)
class Graded:
    """The pairs of which both replies are graded, with what everyone says of them.

    somewhat, clearly: arrays of shape (n_graded, 2), the share of graders who give the plain and
    the steered reply 1 or more, or 2. scores: the judge's probabilities of the same replies.
    others: array of shape (n_others, 2), its means over the replies to the other prompts.
    """

    somewhat: np.ndarray
    clearly: np.ndarray
    scores: np.ndarray
    others: np.ndarray


def graded_pairs(room: ReadingRoom, grades: Grades) -> Graded:
    """Return what is graded.

    Raises: ArtefactError for grades of replies that are not in the calibration; InputError if too
        few prompts have both replies graded.
    """
    _require_known(room, grades)
    given = _by_reply(grades)
    complete = [pair for pair in room.pairs if all(one.id in given for one in pair.replies)]
    if len(complete) < FEWEST:
        raise InputError(
            f"both replies to at least {FEWEST} prompts must be graded, got {len(complete)}; grade "
            f"more: calibrate grade {room.directory}"
        )
    others = [pair.means for pair in room.pairs if pair not in complete]
    return Graded(
        somewhat=_shares(complete, given, SOMEWHAT),
        clearly=_shares(complete, given, CLEARLY),
        scores=np.array([pair.scores for pair in complete]),
        others=np.array(others).reshape(-1, 2),
    )


def infer(room: ReadingRoom, grades: Grades) -> ReadersSection:
    """Return what the grades say, with intervals at the calibration's confidence.

    Raises: as `graded_pairs`.
    """
    pairs, confidence = graded_pairs(room, grades), room.config.budget.confidence
    read_alike = auc(pairs.scores.ravel(), pairs.somewhat.ravel() >= 0.5, confidence)
    return ReadersSection(
        graders=_active(grades),
        n_replies=pairs.somewhat.size,
        n_prompts=len(pairs.somewhat),
        n_judged=len(pairs.others),
        presence=_change(pairs.somewhat, pairs, confidence),
        clearly=_change(pairs.clearly, pairs, confidence),
        judge_auc=read_alike,
        judge_level=_level(pairs, confidence),
        agreement=_agreement(grades),
    )


def _require_known(room: ReadingRoom, grades: Grades) -> None:
    known = {reply.id for pair in room.pairs for reply in pair.replies}
    unknown = [key for said in grades.by_grader.values() for key in said if key not in known]
    if unknown:
        raise ArtefactError(
            f"{room.directory / GRADES_FILE} must grade this calibration's replies, got "
            f"{len(unknown)} grades of others ({unknown[0]!r}, say); move it away"
        )


def _by_reply(grades: Grades) -> dict[str, list[int]]:
    given: dict[str, list[int]] = {}
    for grader in grades.by_grader.values():
        for reply, grade in grader.items():
            if grade is not None:
                given.setdefault(reply, []).append(grade)
    return given


def _shares(pairs: Sequence[Pair], given: Mapping[str, Sequence[int]], least: float) -> np.ndarray:
    return np.array(
        [[np.mean([grade >= least for grade in given[one.id]]) for one in p.replies] for p in pairs]
    )


def _change(graded: np.ndarray, pairs: Graded, confidence: float) -> ShareSection:
    before, after = (
        corrected_share(graded[:, which], pairs.scores[:, which], pairs.others[:, which])
        for which in (0, 1)
    )
    named = {"before": before, "after": after, "change": after.minus(before)}
    return ShareSection(**{name: one.interval(confidence) for name, one in named.items()})


def _level(found: Graded, confidence: float) -> Interval:
    """How much more presence the judge reads than people do, in the same replies."""
    excess = (found.scores - found.somewhat).mean(axis=1)
    none = np.zeros(0)
    mean = Corrected(excess, none, 0.0, n_fitted=1, low=-1.0, high=1.0, added=ADDED_CHANGE)
    return mean.interval(confidence)


def _active(grades: Grades) -> list[str]:
    """Those who graded anything, by name."""
    return sorted(
        name
        for name, said in grades.by_grader.items()
        if any(one is not None for one in said.values())
    )


def _agreement(grades: Grades) -> list[AgreementSection]:
    sections = []
    for pair in combinations(_active(grades), 2):
        first, second = (grades.of(name) for name in pair)
        both = [
            (one >= SOMEWHAT, other >= SOMEWHAT)
            for key, one in first.items()
            if one is not None and (other := second.get(key)) is not None
        ]
        if both:
            sections.append(_agreed(pair, np.array(both)))
    return sections


def _agreed(graders: tuple[str, str], both: np.ndarray) -> AgreementSection:
    """both: bool array of shape (n_replies, 2), what each says."""
    alike = float((both[:, 0] == both[:, 1]).mean())
    yes = both.mean(axis=0)
    chance = float(yes.prod() + (1 - yes).prod())
    kappa = None if chance == 1 else (alike - chance) / (1 - chance)
    return AgreementSection(graders=graders, n_replies=len(both), alike=alike, kappa=kappa)
