"""The second judge: it confirms, sees nothing, cannot tell, or stops what it contradicts."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
import tiny
from rich.console import Console

from calibrate.artefact.measured_sections import AuditSection
from calibrate.artefact.report.page import page
from calibrate.cli.tables import summary
from calibrate.common.errors import Infeasible
from calibrate.common.estimate import Interval
from calibrate.common.settings import Settings
from calibrate.engine.generation import Completion
from calibrate.judging.presence import read
from calibrate.models.tokens import TokenSequence
from calibrate.search.audit import audit
from probes import Reader
from probes.judges import FunctionJudge


def reader(name, score):
    """A judge that scores one text at a time."""
    judge = FunctionJudge(lambda texts, _: [score(text) for text in texts])
    return Reader(judge, "bright", name)


def bright(text):
    return np.mean([word in tiny.BRIGHT for word in text.split()])


def vowels(text):
    """Says nothing about the concept: how many of the letters are vowels."""
    return np.mean([letter in "aeiou" for letter in text])


BRIGHT, VOWELS = reader("bright", bright), reader("vowels", vowels)


def replies(texts):
    """One reply to each of as many prompts."""
    sequence = TokenSequence((0, 0), 1)
    return [Completion("", index, sequence, text) for index, text in enumerate(texts)]


def drawn(n, words=tiny.PLAIN, seed=0):
    rng = random.Random(seed)
    return [tiny.text(words, rng) for _ in range(n)]


def audited(auditor, judge, steered, unsteered, **options):
    parts = (read(judge, replies(texts)) for texts in (steered, unsteered))
    return audit(auditor, *parts, Settings(**options))


def test_an_auditor_who_sees_the_same_confirms_it():
    found = audited(BRIGHT, BRIGHT, drawn(60, tiny.BRIGHT), drawn(60))
    assert found.opinion == "confirms"
    assert found.agreement == pytest.approx(1.0)
    assert found.change.value > 0.3


def test_an_auditor_who_sees_the_opposite_stops_it():
    dull = reader("dull", lambda text: 1 - bright(text))
    with pytest.raises(Infeasible, match=r"judges disagree: .* but to dull by -0\.\d+ \(95%"):
        audited(dull, BRIGHT, drawn(60, tiny.BRIGHT), drawn(60))
    falls = audited(BRIGHT, BRIGHT, drawn(60), drawn(60, tiny.BRIGHT), goal="decrease")
    assert falls.opinion == "confirms"
    assert falls.change.value < 0


def test_replies_chosen_to_please_the_first_judge_alone_do_not_please_the_second():
    """Of eight texts without any change of concept the judge's favourite is taken."""
    words = (*tiny.BRIGHT, *tiny.PLAIN)
    unsteered = drawn(60, words, seed=1)
    chosen = [max(drawn(8, words, seed=100 + k), key=vowels) for k in range(60)]
    found = audited(BRIGHT, VOWELS, chosen, unsteered)
    assert found.opinion == "sees no change"
    honest = audited(BRIGHT, VOWELS, drawn(60, tiny.BRIGHT), drawn(60))
    assert honest.opinion == "confirms"


def test_too_few_replies_cannot_tell_whether_the_auditor_sees_it():
    words = (*tiny.BRIGHT, *tiny.PLAIN)
    chosen = [max(drawn(8, words, seed=100 + k), key=vowels) for k in range(8)]
    found = audited(BRIGHT, VOWELS, chosen, drawn(8, words, seed=1))
    assert found.opinion == "cannot tell"


def test_a_judge_with_a_narrow_scale_confirms_as_well_as_one_with_a_wide_one():
    """What counts is the change against the spread between replies, not its size."""
    narrow = reader("narrow", lambda text: 0.5 + 0.01 * bright(text))
    found = audited(narrow, BRIGHT, drawn(60, tiny.BRIGHT), drawn(60))
    assert found.opinion == "confirms"
    blind = reader("blind", lambda text: 0.5 + 0.01 * vowels(text[::-1][:3]))
    assert audited(blind, BRIGHT, drawn(60, tiny.BRIGHT), drawn(60)).opinion == "sees no change"


def test_an_auditor_who_says_the_same_of_all_sees_no_change():
    constant = reader("constant", lambda _: 0.5)
    found = audited(constant, BRIGHT, drawn(60, tiny.BRIGHT), drawn(60))
    assert found.opinion == "sees no change"
    assert found.agreement == 0.0


def test_the_summary_and_the_report_say_that_the_second_judge_sees_no_change(finished):
    config, evidence = finished.result.config, finished.result.evidence
    nothing = Interval(value=0.0, low=-0.01, high=0.01)
    second = AuditSection(
        value=0.1, low=0.1, high=0.1, baseline=0.1, change=nothing, judge="embedding",
        agreement=0.1, opinion="sees no change",
    )  # fmt: skip
    measured = config.measured.model_copy(update={"audit": second})
    told = config.model_copy(update={"measured": measured})
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(summary(told, evidence, None))
    says = "ranks replies as probe does: 0.10; the second judge sees no change"
    assert says in console.export_text()
    assert "<b>the second judge sees no change</b>" in page(told, evidence, {})
