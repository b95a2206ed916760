"""Choose the judges, and what the probe learns from, before anything is measured."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from calibrate.common.errors import CalibrateWarning, InputError, ModelError
from calibrate.common.progress import SILENT, Progress
from calibrate.common.settings import Settings
from calibrate.judging.asked import ASKED, TEACHER, check_asked
from calibrate.judging.graded_replies import is_built_in
from calibrate.models.embedded import encoder_directory, is_at_hand
from calibrate.models.llama_cpp import is_installed
from calibrate.texts.concept import Concept
from probes.judges import NAMED, Judge, judge_function
from probes.probe import Source

JudgeChoice = str | Judge | Callable[[Sequence[str], str], Any]

AUTO, NOBODY = "auto", "none"
SECOND = "embedding"  # the default auditor, unless it is the judge


@dataclass(frozen=True)
class Lesson:
    """What a probe will learn from (`probes.probe.Learned`).

    teacher: the name of the judge that grades the model's replies and reads the final ones, if any.
    """

    source: Source
    teacher: str | None = None


def judge_name(judge: JudgeChoice) -> str:
    """A judge's name in the artefact."""
    if isinstance(judge, str):
        return "probe" if judge == AUTO else judge
    named = judge if hasattr(judge, "__qualname__") else type(judge)
    return f"{named.__module__}:{named.__qualname__}"


def is_known(name: str) -> bool:
    """Whether a judge's name is of a kind that is made here, and not of somebody's function."""
    return name == AUTO or name.partition(":")[0] in set(NAMED) - {AUTO}


def check_judges(judge: JudgeChoice, audit: JudgeChoice | None, settings: Settings) -> None:
    """Refuse a judge that does not exist, or an auditor that is the judge.

    Raises: InputError.
    """
    for choice in (judge, None if audit == NOBODY else audit):
        if isinstance(choice, str) and not is_known(choice):
            judge_function(choice)
    check_asked([choice for choice in (judge, audit) if isinstance(choice, str)], settings)
    if audit is not None and audit != AUTO and judge_name(audit) == judge_name(judge):
        raise InputError(f"the auditor must be another than the judge, got {judge_name(audit)!r}")


def check_fetching(judge: JudgeChoice, teacher: str | None, fetch: bool) -> None:
    """Raise InputError for a teacher that may be fetched, but that nobody would learn from."""
    if not fetch:
        return
    if judge != AUTO:
        raise InputError(
            f"--fetch-teacher needs --judge auto, got {judge_name(judge)}; add it or leave "
            "--fetch-teacher out"
        )
    if teacher == NOBODY:
        raise InputError(
            f"--fetch-teacher needs a teacher, got --teacher {NOBODY}; leave one of them out"
        )


def check_reading(
    concept: Concept,
    judge: JudgeChoice | None,
    teacher: str | None,
    settings: Settings,
    audit: JudgeChoice | None = None,
) -> None:
    """Refuse a judge, a teacher or an auditor that would fail, and what none of them would heed.

    judge: None if nobody reads replies.
    Raises: InputError.
    """
    readers = [judge, _asked_teacher(concept, teacher) if judge == AUTO else None]
    for reader in readers:
        if reader is not None:
            check_judges(reader, audit, settings)
    _require_heeded(judge, [*readers, audit], teacher, settings)


def _require_heeded(
    judge: JudgeChoice | None,
    readers: Sequence[JudgeChoice | None],
    teacher: str | None,
    settings: Settings,
) -> None:
    """Refuse a teacher that nobody learns from, and settings that none of the readers heeds."""
    named = "nobody" if judge is None else judge_name(judge)
    if teacher not in (None, NOBODY) and judge != AUTO:
        raise InputError(
            f"--teacher needs --judge auto, got {named}; add it or leave --teacher out"
        )
    kinds = {reader.partition(":")[0] for reader in readers if isinstance(reader, str)}
    if settings.judge_question is not None and kinds.isdisjoint(ASKED):
        raise InputError(
            f"--judge-question needs a judge or a teacher that is asked, got {named}; name one, as "
            "in --judge question, or leave --judge-question out"
        )
    if settings.judge_url is not None and "openai" not in kinds:
        raise InputError(
            f"--judge-url needs a judge or a teacher on a server, got {named}; name one, as in "
            "--judge openai:MODEL, or leave --judge-url out"
        )


def choose_lesson(
    concept: Concept, judge: JudgeChoice, teacher: str | None = None, fetch: bool = False
) -> Lesson | None:
    """Return what the probe will learn from, or None if no probe is the judge.

    teacher: an embedded model, a hub id, a .gguf file, openai:MODEL, or "none". If None, built-in
        concepts use the graded replies that come with them, and others TEACHER, if it is installed
        or may be fetched.
    fetch: whether TEACHER may be fetched.

    Raises: InputError if it may be fetched, but llama.cpp is missing.
    Warns with CalibrateWarning if the probe has to learn from written texts alone.
    """
    if judge != AUTO:
        return None
    if teacher in (None, NOBODY) and is_built_in(concept):
        return Lesson("graded")
    if fetch and teacher is None and not is_installed():
        raise InputError(
            "--fetch-teacher needs llama.cpp to run the teacher: pip install "
            "'steering-calibrate[llama-cpp]'"
        )
    asked = _asked_teacher(concept, teacher, fetch)
    if asked is not None:
        return Lesson("taught", asked)
    warnings.warn(
        f"nobody has graded replies for {concept.name!r}, so the probe learns from its written "
        "texts alone, and its level is a guess; fetch a teacher with --fetch-teacher (1.1 GB), "
        "name one with --teacher, or grade some yourself afterwards with: calibrate grade",
        CalibrateWarning,
        stacklevel=2,
    )
    return Lesson("written")


def choose_judges(
    concept: Concept,
    judge: JudgeChoice,
    audit: JudgeChoice | None,
    teacher: str | None,
    fetch: bool,
    settings: Settings,
    progress: Progress = SILENT,
) -> tuple[JudgeChoice | None, Lesson | None, list[str]]:
    """Return who audits, what the probe learns from, and who reads the final replies, by name.

    Raises and warns as `check_judges`, `check_fetching`, `choose_audit` and `choose_lesson` do;
        InputError as well for a teacher and settings that none of them would heed.
    """
    check_judges(judge, audit, settings)
    check_fetching(judge, teacher, fetch)
    auditor = choose_audit(judge, audit, progress)
    lesson = choose_lesson(concept, judge, teacher, fetch)
    final = _final_reader(judge, lesson)
    check_judges(final, auditor, settings)
    _require_heeded(judge, [judge, auditor, final], teacher, settings)
    return auditor, lesson, [judge_name(name) for name in (final, auditor) if name is not None]


def asked_reader(
    judge: JudgeChoice, teacher: str | None, lesson: Lesson | None
) -> JudgeChoice | None:
    """Who was asked for, to read the final replies; None where that is left open.

    judge, teacher: as `calibrate` takes them. lesson: as chosen for them.
    """
    left_open = judge == AUTO and teacher is None
    return None if left_open else _final_reader(judge, lesson)


def _final_reader(judge: JudgeChoice, lesson: Lesson | None) -> JudgeChoice:
    """Who reads the final replies: the teacher where there is one."""
    return judge if lesson is None or lesson.teacher is None else lesson.teacher


def wants_fetching(judge: JudgeChoice, teacher: str | None, concept: Concept | None) -> bool:
    """Whether TEACHER would be used, but is not on this machine.

    concept: None for one whose texts are not written yet.
    """
    useful = judge == AUTO and teacher is None and (concept is None or not is_built_in(concept))
    return useful and is_installed() and not is_at_hand(TEACHER)


def choose_audit(
    judge: JudgeChoice, audit: JudgeChoice | None, progress: Progress = SILENT
) -> JudgeChoice | None:
    """Return the auditor: the one `audit` names, SECOND for "auto", None for "none" and None.

    Warns with CalibrateWarning if SECOND is wanted but its encoder cannot be fetched.
    """
    if audit != AUTO:
        return None if audit == NOBODY else audit
    if judge_name(judge) == SECOND:
        return None
    try:
        encoder_directory(progress)
    except ModelError as error:
        warnings.warn(
            f"no second judge reads the final replies, since its encoder cannot be had: {error}",
            CalibrateWarning,
            stacklevel=2,
        )
        return None
    return SECOND


def _asked_teacher(concept: Concept, teacher: str | None, fetch: bool = False) -> str | None:
    """The judge that the teacher is, by name; None where nobody teaches."""
    if teacher is None and not is_built_in(concept) and is_installed():
        teacher = TEACHER if fetch or is_at_hand(TEACHER) else None
    if teacher is None or teacher == NOBODY:
        return None
    return teacher if _is_at_address(teacher) else f"question:{teacher}"


def _is_at_address(teacher: str) -> bool:
    return teacher.partition(":")[0] in ASKED
