"""Fit a probe on texts graded by readers, by a teacher, or by both."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calibrate.common.errors import InputError
from calibrate.models.model import LoadedModel
from probes.graded import GradedText
from probes.probe import Learned, Probe
from probes.quality import Quality, quality
from probes.student import Student, fit_student, probe_layers, read_features


def learn_probe(
    concept: str,
    texts: Sequence[GradedText],
    model: LoadedModel,
    teacher: str | None = None,
) -> Probe:
    """Fit a probe of a model on graded texts.

    teacher: its name, if one graded.
    Raises: InputError if all texts have the same grade.

    >>> from calibrate.judging.graded_replies import graded_replies
    >>> probe = probes.learn_probe("joy", graded_replies("joy"), loaded)
    >>> probe.learned.source
    'graded'
    """
    student = fit_student(texts, read_features(model, texts))
    by_readers = any(text.grade is not None for text in texts)
    return Probe(
        concept=concept,
        layers=probe_layers(model.num_layers),
        weights=(student.yes.slope * student.weights).astype(np.float32),
        bias=student.yes.slope * student.bias + student.yes.offset,
        clearly=student.clearly_of_yes,
        model_id=model.name,
        tokenizer_sha256=model.identity.tokenizer_sha256,
        tokenization_sha256=model.identity.tokenization_sha256,
        learned=Learned(
            source="graded" if by_readers else "taught",
            teacher=teacher,
            n_texts={
                "readers": sum(text.grade is not None for text in texts),
                "teacher": sum(text.taught is not None for text in texts),
            },
            quality=_quality(texts, student),
        ),
    )


def _quality(texts: Sequence[GradedText], student: Student) -> Quality:
    """Quality out of fold, against readers' grades if there are any, else the teacher's."""
    rows = [row for row, text in enumerate(texts) if text.grade is not None] or range(len(texts))
    labels = [texts[row].says_yes for row in rows]
    if len(set(labels)) < 2:
        answer = "yes" if labels[0] else "no"
        raise InputError(
            f"graded texts must differ, but the grader says {answer} to all {len(labels)}; name "
            "another --teacher, or describe the concept in other words"
        )
    probabilities = student.yes(student.scores[list(rows)])
    return quality(probabilities, labels, [texts[row].group for row in rows])
