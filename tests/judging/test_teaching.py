"""A teacher grades a model's own replies: which, how many, what is kept, and who reads what."""

from __future__ import annotations

import io
import itertools
import json
import random
import warnings
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from rich.console import Console

import calibrate
import probes
from calibrate.cli.tables import summary
from calibrate.common.errors import CalibrateWarning, InputError
from calibrate.common.settings import Settings
from calibrate.engine.loading import load_model
from calibrate.engine.site import Site
from calibrate.judging import choice, panel, teaching
from calibrate.judging.choice import Lesson, choose_lesson, wants_fetching
from calibrate.judging.graded_replies import is_built_in
from calibrate.judging.panel import train_probe
from calibrate.judging.teaching import MAX_GRADED, JudgeInputs, own_replies, taught_texts
from calibrate.models.prompts import encode_prompt
from calibrate.texts.concept import Concept, Texts, read_concept
from calibrate.texts.extraction import concept_vectors
from calibrate.texts.replies import sample_unsteered
from probes import GradedText, Reader
from probes.judges import ScaledJudge
from probes.scale import Scale
from probes.student import fit_student, read_features

TEACHER = "question:qwen2.5-1.5b"


class Teacher:
    """Says how many of the words are bright, and keeps count of what it was asked."""

    def __init__(self, noise=0.0):
        self.noise, self.asked = noise, []

    def score(self, texts, _concept):
        self.asked.append(list(texts))
        shares = np.array([np.mean([w in tiny.BRIGHT for w in t.split()]) for t in texts])
        rng = np.random.default_rng(len(self.asked))
        return np.clip(1.5 * shares + self.noise * rng.normal(size=len(texts)), 0, 1)

    @property
    def texts(self):
        return [text for batch in self.asked for text in batch]


def reader(teacher, name="a teacher", concept="bright"):
    return Reader(teacher, concept, name)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, where verdicts and graded replies would be kept."""
    monkeypatch.setenv("STEERING_CALIBRATE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def drawn(tiny_options):
    """A model, and its material."""
    loaded = load_model(tiny.model("gpt2"), tiny_options["tokenizer"])
    settings = Settings(sampling=tiny_options["sampling"])
    with torch.no_grad():
        replies = sample_unsteered(loaded, tiny.prompts(100), settings)
        splits = tiny_options["concept"].split()
        vector = concept_vectors(loaded, splits["vector"], settings)[1]
    return loaded, JudgeInputs("bright", splits, replies, Site((vector,))), settings


@pytest.fixture
def made(cache, drawn):
    """The same, as if loaded by name, so that what is made of it from here on is kept."""
    loaded, material, settings = drawn
    return replace(loaded, by_name=True), material, settings


CONDITIONS = {
    "plain",
    *(f"{way} {label}" for way in ("asked", "primed", "broken", "written") for label in "+-"),
    *(f"steered {share:+g}" for share in teaching.STEERED),
}


def test_the_pool_has_replies_of_every_condition(made):
    pool = own_replies(*made)
    count = Counter(one.condition for one in pool)
    assert set(count) == CONDITIONS
    assert count["plain"] == max(count.values())
    assert len({one.text for one in pool}) == len(pool)
    assert all(one.text.strip() and one.grade is None and one.taught is None for one in pool)
    prompts = {prompt.text for prompt in made[1].replies.prompts["probe"]}
    assert {one.group for one in pool if not one.condition.startswith("written")} <= prompts


def test_the_pool_without_enough_written_texts_has_no_primed_replies(made):
    loaded, material, settings = made
    few = replace(material.splits["probe"], positives=material.splits["probe"].positives[:1])
    pool = own_replies(
        loaded, replace(material, splits={**material.splits, "probe": few}), settings
    )
    assert {one.condition for one in pool} == CONDITIONS - {"primed +"}


def test_texts_whose_prompts_leave_no_room_for_a_reply_are_not_shown(made, monkeypatch):
    """All texts are short, and fit four times over; half of the prompts are not, and do not."""
    loaded, material, settings = made
    shown = []

    def encoded(*arguments, history=(), **options):
        shown.extend(history)
        return encode_prompt(*arguments, history=history, **options)

    def with_prompts(texts):
        lengths = itertools.cycle((4, loaded.context_length // 2))
        return tuple(
            replace(one, prompt="the " * length)
            for one, length in zip(texts, lengths, strict=False)
        )

    probe = material.splits["probe"]
    texts = Texts(with_prompts(probe.positives), with_prompts(probe.negatives))
    monkeypatch.setattr(teaching, "encode_prompt", encoded)
    pool = own_replies(
        loaded, replace(material, splits={**material.splits, "probe": texts}), settings
    )
    assert {one.condition for one in pool} == CONDITIONS
    assert {prompt for prompt, _ in shown} == {"the " * 4}
    long = replace(settings, sampling=replace(settings.sampling, max_new_tokens=100))
    shown.clear()
    own_replies(loaded, material, long)
    assert not shown  # a reply of 100 tokens leaves room for none, nor for some that are asked


def test_the_harder_it_is_steered_the_more_the_teacher_says_yes(made):
    """What is steered is steered along the vector, by shares of the residual stream's length."""
    said = {}
    for one in own_replies(*made):
        said.setdefault(one.condition, []).append(Teacher().score([one.text], "")[0])
    means = {condition: np.mean(scores) for condition, scores in said.items()}
    assert means["steered -0.1"] < means["steered +0.3"]
    assert means["plain"] < means["steered +0.3"]
    assert means["broken -"] < means["plain"] < means["broken +"]
    assert means["written -"] < means["plain"] < means["written +"]


def test_grading_stops_once_the_level_is_known(made):
    loaded, material, settings = made
    teacher = Teacher()
    texts = taught_texts(loaded, material, reader(teacher), settings)
    sizes = [len(batch) for batch in teacher.asked]
    assert sizes[0] == teaching.FIRST
    assert set(sizes[1:]) <= {teaching.MORE}
    assert len(texts) == sum(sizes) < min(MAX_GRADED, len(own_replies(*made)))
    assert [one.taught for one in texts] == pytest.approx(Teacher().score(teacher.texts, ""))


def test_a_teacher_whose_level_stays_unknown_grades_the_most(made, monkeypatch):
    loaded, material, settings = made
    monkeypatch.setattr(teaching, "LEVEL_ERROR", 0.0)
    teacher = Teacher(noise=0.5)
    texts = taught_texts(loaded, material, reader(teacher), settings)
    pool = own_replies(*made)
    assert len(texts) == len(teacher.texts) == min(MAX_GRADED, len(pool))
    assert len(set(teacher.texts)) == len(teacher.texts)
    assert set(teacher.texts) <= {one.text for one in pool}


def test_later_rounds_take_what_the_probe_is_least_sure_of_and_some_by_chance(made, monkeypatch):
    loaded, material, settings = made
    monkeypatch.setattr(teaching, "LEVEL_ERROR", 0.0)
    monkeypatch.setattr(teaching, "MAX_GRADED", teaching.FIRST + teaching.MORE)
    teacher = Teacher()
    texts = taught_texts(loaded, material, reader(teacher), settings)
    pool, (first, second) = own_replies(*made), teacher.asked
    rows = {one.text: row for row, one in enumerate(pool)}
    features = read_features(loaded, pool)
    student = fit_student(texts[: len(first)], features[:, [rows[t] for t in first]])

    def doubt(text):
        score = np.sum(student.weights * features[:, rows[text]]) + student.bias
        return -abs(float(score))

    half = teaching.MORE // 2
    drawn, unsure = second[:half], second[half:]
    rest = {one.text for one in pool} - set(first) - set(second)
    assert len(unsure) == teaching.MORE - half
    assert min(map(doubt, unsure)) >= max(map(doubt, rest))
    assert min(map(doubt, drawn)) < min(map(doubt, unsure))


def test_the_level_is_always_estimated_by_replies_drawn_by_chance(made, monkeypatch):
    """Those the probe was least sure of count among them only where chance takes them too."""
    loaded, material, settings = made
    rounds = []

    def never_known(student, graded, random_rows):
        rounds.append(tuple(random_rows))
        assert graded.keys() >= {*random_rows}
        return 1.0

    monkeypatch.setattr(teaching, "_level_error", never_known)
    monkeypatch.setattr(teaching, "MAX_GRADED", teaching.FIRST + 2 * teaching.MORE)
    taught_texts(loaded, material, reader(Teacher()), settings)
    order = list(range(len(own_replies(*made))))
    random.Random(settings.seed).shuffle(order)
    sizes = [len(rows) for rows in rounds]
    assert len(sizes) > 1
    assert rounds == [tuple(order[:size]) for size in sizes]


def test_what_was_graded_is_kept_and_not_asked_again(made):
    loaded, material, settings = made
    first, again = Teacher(), Teacher()
    graded = taught_texts(loaded, material, reader(first), settings)
    spent = loaded.meter.tokens
    assert taught_texts(loaded, material, reader(again), settings) == graded
    assert (again.asked, loaded.meter.tokens) == ([], spent)


def asks_again(name):
    """A change after which what was graded is of no use: of the reader, material or settings."""
    changes = {
        "another teacher": lambda r, m, s: (replace(r, name="another"), m, s),
        "the teacher on another scale": lambda r, m, s: (
            replace(r, judge=ScaledJudge(r.judge, Scale(2.0, 0.0))),
            m,
            s,
        ),
        "another question": lambda r, m, s: (_asking(r, "Is {text} {concept}?"), m, s),
        "another concept": lambda r, m, s: (
            replace(r, concept="dull"),
            replace(m, concept="dull"),
            s,
        ),
        "other texts": lambda r, m, s: (
            r,
            replace(m, splits={**m.splits, "probe": m.splits["vector"]}),
            s,
        ),
        "another seed": lambda r, m, s: (r, m, replace(s, seed=1)),
    }
    return changes[name]


def _asking(one, question):
    one.judge.question = question
    return one


@pytest.mark.parametrize(
    "change",
    [
        "another teacher",
        "the teacher on another scale",
        "another question",
        "another concept",
        "other texts",
        "another seed",
    ],
)
def test_where_anything_else_is_asked_for_it_is_graded_anew(made, change):
    loaded, material, settings = made
    taught_texts(loaded, material, reader(Teacher()), settings)
    teacher = Teacher()
    one, material, settings = asks_again(change)(reader(teacher), material, settings)
    taught_texts(loaded, material, one, settings)
    assert teacher.asked


def test_a_teacher_who_says_no_to_everything_is_refused(made):
    class Refusing(Teacher):
        def score(self, texts, _concept):
            return np.full(len(texts), 0.01)

    loaded, material, settings = made
    with pytest.raises(InputError, match="the grader says no to all 96; name another --teacher"):
        train_probe(loaded, material, Lesson("taught", "x"), reader(Refusing()), settings)


# -- a calibration with a teacher


@pytest.fixture(scope="module")
def taught(tiny_options, tmp_path_factory):
    """A calibration in which the double stands for the model that would be asked."""
    teacher, folder = Teacher(), tmp_path_factory.mktemp("taught")
    options = {**tiny_options, "teacher": "some-model"}
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setenv("STEERING_CALIBRATE_CACHE", str(folder / "cache"))
        patch.setattr(panel, "asked_judge", lambda *_, **__: teacher)
        result = calibrate.calibrate(tiny.model("gpt2"), out=folder / "out", **options)
    return result, teacher, folder / "out"


def test_the_student_reads_the_study_and_the_teacher_the_final_replies(taught):
    result, teacher, directory = taught
    measured, evidence = result.config.measured, result.evidence
    assert measured.judges == ["question:some-model"]
    final = [one for one in evidence.completions if one.steered.strip()]
    assert {one.steered for one in final} <= set(teacher.texts)
    assert [one.steered_presence for one in final] == pytest.approx(
        Teacher().score([one.steered for one in final], "").tolist()
    )
    learned = probes.load(directory / "probe").learned
    assert learned == result.probe.learned
    assert (learned.source, learned.teacher) == ("taught", "question:some-model")
    assert learned.n_texts["teacher"] <= MAX_GRADED
    assert learned.n_texts["readers"] == 0
    facts = json.loads((directory / "steering.json").read_text())["measured"]["presence"]["scale"]
    assert (facts["source"], facts["teacher"]) == ("taught", "question:some-model")
    assert measured.presence.clear is None  # a teacher does not tell somewhat from clearly


def test_the_teacher_is_asked_about_far_fewer_replies_than_a_study_reads(taught):
    """Lessons and final replies only; every trial reads the search prompts' replies."""
    result, teacher, _ = taught
    evidence, measured = result.evidence, result.config.measured
    final = len(evidence.completions) * 2  # steered and not
    controls = 4 * measured.presence.n_prompts  # a random vector, a prompt, the long run
    lessons = result.probe.learned.n_texts["teacher"]
    assert len(teacher.texts) <= lessons + final + controls


def test_the_summary_says_what_the_probe_learned_from(taught):
    result, _, _ = taught
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(summary(result.config, result.evidence, None))
    assert "a teacher's, learned from" in console.export_text()


# -- what a probe learns from


@pytest.fixture
def nobody_at_hand(monkeypatch):
    """llama.cpp is installed, and the teacher would have to be fetched."""
    monkeypatch.setattr(choice, "is_installed", lambda: True)
    monkeypatch.setattr(choice, "is_at_hand", lambda _: False)


BRIGHT = tiny.concept()


def test_a_built_in_concept_comes_with_graded_replies(nobody_at_hand):
    assert choose_lesson(read_concept("joy"), "auto") == Lesson("graded")
    assert choose_lesson(read_concept("joy"), "auto", "none") == Lesson("graded")
    assert not wants_fetching("auto", None, read_concept("joy"))


def test_a_file_of_the_same_name_is_not_the_built_in_concept(nobody_at_hand):
    joy = read_concept("joy")
    namesake = Concept.from_texts("joy", tiny.texts(tiny.BRIGHT, 40), tiny.texts(tiny.DULL, 40))
    assert is_built_in(joy)
    assert not is_built_in(namesake)
    assert not is_built_in(replace(joy, name="my joy"))
    assert choose_lesson(namesake, "auto", fetch=True) == Lesson("taught", TEACHER)


def test_other_concepts_are_taught_where_the_teacher_is_at_hand(nobody_at_hand, monkeypatch):
    monkeypatch.setattr(choice, "is_at_hand", lambda name: name == "qwen2.5-1.5b")
    assert choose_lesson(BRIGHT, "auto") == Lesson("taught", TEACHER)
    assert not wants_fetching("auto", None, BRIGHT)


def test_or_where_it_may_be_fetched(nobody_at_hand):
    assert choose_lesson(BRIGHT, "auto", fetch=True) == Lesson("taught", TEACHER)
    assert wants_fetching("auto", None, BRIGHT)
    assert wants_fetching("auto", None, None)  # texts that are still to be written


@pytest.mark.parametrize(
    ("teacher", "name"),
    [
        ("gemma3-270m", "question:gemma3-270m"),
        ("./judge.gguf", "question:./judge.gguf"),
        ("openai:gpt-4o", "openai:gpt-4o"),
        ("question", "question"),
    ],
)
def test_or_by_whom_one_names(nobody_at_hand, teacher, name):
    assert choose_lesson(BRIGHT, "auto", teacher) == Lesson("taught", name)
    assert choose_lesson(read_concept("joy"), "auto", teacher) == Lesson("taught", name)
    assert not wants_fetching("auto", teacher, BRIGHT)


def test_where_nobody_teaches_the_written_texts_are_left_and_a_warning_says_so(nobody_at_hand):
    for teacher in (None, "none"):
        with pytest.warns(CalibrateWarning, match=r"'bright', .* --fetch-teacher \(1\.1 GB\)"):
            assert choose_lesson(BRIGHT, "auto", teacher) == Lesson("written")


def test_without_llama_cpp_the_teacher_is_of_no_use(monkeypatch):
    """Half a second a reply in llama.cpp is many times that in transformers."""
    monkeypatch.setattr(choice, "is_installed", lambda: False)
    monkeypatch.setattr(choice, "is_at_hand", lambda _: True)
    with pytest.warns(CalibrateWarning, match="its level is a guess"):
        assert choose_lesson(BRIGHT, "auto") == Lesson("written")
    with pytest.raises(InputError, match=r"--fetch-teacher needs llama\.cpp"):
        choose_lesson(BRIGHT, "auto", fetch=True)
    assert not wants_fetching("auto", None, BRIGHT)


def test_where_no_probe_judges_nothing_is_learned_and_nothing_fetched(nobody_at_hand):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_lesson(BRIGHT, "embedding", fetch=True) is None
        assert choose_lesson(BRIGHT, Teacher()) is None
    assert not wants_fetching("embedding", None, BRIGHT)


def test_a_probe_of_a_built_in_concept_learns_from_the_graded_replies(made, monkeypatch):
    loaded, material, settings = made
    rng = np.random.default_rng(0)
    replies = tuple(
        GradedText(
            " ".join(rng.choice(tiny.BRIGHT if k < 4 * grade else tiny.PLAIN) for k in range(8)),
            grade,
            group=str(number),
        )
        for number, grade in enumerate(rng.integers(0, 3, size=90).tolist())
    )
    monkeypatch.setattr(panel, "graded_replies", lambda name: {"bright": replies}[name])
    probe = train_probe(loaded, material, Lesson("graded"), None, settings)
    assert (probe.learned.source, probe.learned.teacher) == ("graded", None)
    assert probe.learned.n_texts == {"readers": 90, "teacher": 0}
    bright, plain = (
        probe.score(tiny.texts(words, 20, seed=9), loaded).mean()
        for words in (tiny.BRIGHT, tiny.PLAIN)
    )
    assert bright > plain + 0.3
