"""Make the judges: of replies in the study, of the final replies, and the auditor.

By default a probe reads the replies of the study. It learns from the first available of these:

    graded    the graded replies that come with every built-in concept
    taught    the model's own replies, graded by a teacher, which also reads the final replies
    written   the concept's texts of either label; the level of presence is then a guess

A second judge, the auditor, also reads the final replies. By default it is a sentence encoder. For
built-in concepts it learns from graded replies that no probe has seen; if it cannot tell the
concept in those the probe learned from, there is no auditor. For others it learns from the
concept's written texts, as a "written" probe does.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

import probes
from calibrate.common.errors import CalibrateWarning, Infeasible, InputError
from calibrate.common.progress import SILENT, Progress
from calibrate.common.settings import Settings
from calibrate.judging.asked import ASKED, TEACHER, asked_judge
from calibrate.judging.choice import SECOND, JudgeChoice, Lesson, judge_name
from calibrate.judging.graded_replies import (
    graded_replies,
    second_replies,
    teacher_scale,
    written_scale,
)
from calibrate.judging.read_once import read_once
from calibrate.judging.teaching import JudgeInputs, replies_request, taught_texts
from calibrate.models.cache import CacheFormat, load_or_compute
from calibrate.models.embedded import is_at_hand
from calibrate.models.model import LoadedModel
from calibrate.texts.concept import Texts, built_in_concepts, read_concept
from probes import Example, Probe, Reader, fit_written_probe, learn_probe
from probes.classifier import fit_embedding, fit_graded_embedding
from probes.graded import graded_lines
from probes.judges import NAMED, FunctionJudge, Judge, ScaledJudge, judge_function
from probes.probe import FACTS_FILE
from probes.quality import area_under_curve

MIN_AUC = 0.7  # below this a judge cannot tell the concept
MAX_P_VALUE = 0.01  # above this, a probe may have told the written texts apart by chance

PROBE = CacheFormat[Probe]("probe", Probe.files, FACTS_FILE, probes.load)


@dataclass(frozen=True, eq=False)
class Panel:
    """The judges of a calibration.

    reader: of the many replies of the study. final: of the final replies, whose presence is
    reported; the reader again, or the teacher. auditor: a second judge of those, or None. probe:
    the reader's, if it is one.
    """

    reader: Reader
    final: Reader
    auditor: Reader | None
    probe: Probe | None

    @property
    def names(self) -> list[str]:
        """The names of those that read the final replies."""
        return [judge.name for judge in (self.final, self.auditor) if judge is not None]


def make_judges(
    loaded: LoadedModel,
    material: JudgeInputs,
    judge: JudgeChoice,
    audit: JudgeChoice | None,
    lesson: Lesson | None,
    settings: Settings,
    progress: Progress = SILENT,
) -> Panel:
    """Make the judge, the reader of the final replies, and the auditor.

    Raises: InputError for a judge that cannot be made, or scores all texts alike; Infeasible if the
        probe cannot tell the concept.
    """

    def made(choice: JudgeChoice) -> Reader:
        texts = material.splits["probe"]
        return reader_of(loaded, choice, material.concept, texts, settings, progress)

    probe = final = None
    if lesson is not None:
        teacher = None if lesson.teacher is None else made(lesson.teacher)
        probe = train_probe(loaded, material, lesson, teacher, settings)
        reader = Reader(probe.on(loaded), material.concept, "probe")
        final = teacher
    else:
        reader = made(judge)
    auditor = None if audit is None else made(audit)
    for candidate in (reader, auditor):
        if candidate is not None:
            _require_distinctions(candidate, material)
    if auditor is not None and audit == SECOND and lesson == Lesson("graded"):
        auditor = _if_skilled(auditor)
    return Panel(reader, final or reader, auditor, probe)


def _if_skilled(auditor: Reader) -> Reader | None:
    """The auditor, if it ranks replies as readers do: none is better than one that guesses."""
    texts = [text for text in graded_replies(auditor.concept) if text.grade is not None]
    yes = np.array([text.says_yes for text in texts], dtype=float)
    scores = auditor.read([text.text for text in texts])
    auc = area_under_curve(scores, yes, np.ones(len(yes)))
    if auc >= MIN_AUC:
        return auditor
    warnings.warn(
        f"no second judge reads the final replies: {auditor.name} cannot tell {auditor.concept!r} "
        f"in replies that readers graded (AUC {auc:.2f}, {MIN_AUC} is needed); name another with "
        "--audit",
        CalibrateWarning,
        stacklevel=2,
    )
    return None


def _require_distinctions(reader: Reader, material: JudgeInputs) -> None:
    """Refuse a judge that scores held-out texts and unsteered replies all alike."""
    texts, replies = material.splits["held_out"], material.replies.completions["search"]
    written = [text.text for text in (*texts.positives, *texts.negatives)]
    reader.require_distinctions(written, [reply.text for reply in replies])


def _asked(
    name: str, load: Callable[[], LoadedModel], settings: Settings, progress: Progress, **place: Any
) -> Judge:
    """A judge that is asked, on the readers' scale if it was validated against them."""
    judge = asked_judge(name, load, settings, progress, **place)
    validated = name == f"question:{TEACHER}" and settings.judge_question is None
    return ScaledJudge(judge, teacher_scale()) if validated else judge


def train_probe(
    loaded: LoadedModel,
    material: JudgeInputs,
    lesson: Lesson,
    teacher: Reader | None,
    settings: Settings,
) -> Probe:
    """Fit the concept's probe, or load it from the cache.

    Raises: Infeasible if it cannot tell the concept.
    """
    concept = material.concept
    if lesson.source == "written":
        request = [asdict(lesson), *replies_request(material, settings)]
        fit = partial(_written_probe, loaded, material)
    else:
        if teacher is None:
            texts = graded_replies(concept)
        else:
            texts = taught_texts(loaded, material, teacher, settings)
        request = [asdict(lesson), concept, graded_lines(texts)]
        fit = partial(learn_probe, concept, texts, loaded, teacher=lesson.teacher)
    probe = load_or_compute(loaded, PROBE, request, fit)
    _require_skill(probe)
    return probe


def _require_skill(probe: Probe) -> None:
    learned = probe.learned
    by_chance = learned.p_value is not None and learned.p_value > MAX_P_VALUE
    if learned.quality.auc.value >= MIN_AUC and not by_chance:
        return
    chance = "" if learned.p_value is None else f" (p = {learned.p_value:.2g})"
    raise Infeasible(
        [
            f"the probe cannot tell {probe.concept!r} apart: its AUC is "
            f"{learned.quality.auc.value:.2f}{chance}; at least {MIN_AUC} is needed"
            + (f", with p below {MAX_P_VALUE}" if chance else "")
        ],
        ["give more texts, or negatives that match the positives in everything else"],
    )


def _written_probe(loaded: LoadedModel, material: JudgeInputs) -> Probe:
    own = [reply.text for reply in material.replies.first_replies("probe") if reply.text]
    return fit_written_probe(
        material.concept,
        written_examples(material.splits["probe"]),
        written_examples(material.splits["held_out"]),
        own,
        loaded,
        written_scale(),
    )


def judge_again(
    loaded: LoadedModel,
    name: str,
    concept: str,
    sha256: str,
    settings: Settings,
    texts: Texts | None = None,
) -> Judge:
    """The judge of a finished calibration, made again from its name.

    concept, sha256: the concept's name, and the hash of its texts. texts: its "probe" split, where
        those are at hand; a built-in concept's always are.
    Raises: InputError for a judge that its name is not enough to make.
    """
    kind, _, _ = name.partition(":")
    if name == f"question:{TEACHER}" and not is_at_hand(TEACHER):
        raise InputError(f"judge {name!r} is not at hand; calibrate with --fetch-teacher once")
    if kind in ASKED:
        place = {**loaded.place, "trust_remote_code": False}  # it was given for another's code
        return _asked(name, lambda: loaded, settings, SILENT, **place)
    if kind in NAMED:
        if concept in built_in_concepts() and read_concept(concept).data_sha256 == sha256:
            texts = read_concept(concept).split()["probe"]
        if texts is None:
            fitted = f"judge {name!r} was fitted on texts that are not kept"
            raise InputError(f"{fitted}; calibrate anew with another --judge")
        return judge_from_texts(name, concept, texts)
    judge = judge_function(name)
    if isinstance(judge.function, type):
        raise InputError(
            f"judge {name!r} was an object in memory, of which the class is known only; calibrate "
            "anew with --judge module:function"
        )
    return judge


def reader_of(
    loaded: LoadedModel,
    choice: JudgeChoice,
    concept: str,
    texts: Texts,
    settings: Settings,
    progress: Progress = SILENT,
) -> Reader:
    """A judge that was asked for, any but the probe.

    concept, texts: the concept's name and "probe" split.
    Raises: InputError for one that cannot be made.
    """

    def made() -> Judge:
        judge = judge_without_texts(choice, lambda: loaded, settings, progress, **loaded.place)
        return judge_from_texts(str(choice), concept, texts) if judge is None else judge

    name = judge_name(choice)
    return Reader(read_once(made, name, loaded), concept, name)


def judge_without_texts(
    choice: JudgeChoice,
    load: Callable[[], LoadedModel],
    settings: Settings,
    progress: Progress = SILENT,
    **place: Any,
) -> Judge | None:
    """Return a judge that needs no texts of the concept; None for one that does.

    load: returns the calibrated model, for judges that read with it. place: as `asked_judge`.
    Raises: InputError for a function that does not exist; ModelError for such a model.
    """
    if not isinstance(choice, str):
        return choice if hasattr(choice, "score") else FunctionJudge(choice)
    kind, _, _ = choice.partition(":")
    if kind not in NAMED:
        return judge_function(choice)
    if kind in ASKED:
        return _asked(choice, load, settings, progress, **place)
    return None


def judge_from_texts(choice: str, concept: str, texts: Texts) -> Judge:
    """Return a sentence encoder's judge, fitted on graded replies if the concept has any.

    texts: the concept's "probe" split, used if it has none.
    """
    _, _, model = choice.partition(":")
    graded = second_replies(concept, texts)
    if graded:
        return fit_graded_embedding(graded, model or None)
    return fit_embedding(written_examples(texts), model or None)


def written_examples(texts: Texts) -> list[Example]:
    """Texts of a concept as examples for a probe."""
    return [
        Example(text.text, positive, text.group or text.text, text.prompt is None)
        for positive, group in ((True, texts.positives), (False, texts.negatives))
        for text in group
    ]
