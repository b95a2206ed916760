"""Questions a model should still answer: their files, their scores by hand, and the limit."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch

import calibrate
from calibrate.common.errors import CalibrateWarning, ConceptError, Infeasible, InputError
from calibrate.common.estimate import RatioEstimate
from calibrate.common.settings import Settings
from calibrate.deploy.checks import check_guard
from calibrate.deploy.frontier import open_guard
from calibrate.deploy.verify import check_directory
from calibrate.engine.loading import load_model
from calibrate.judging.guard import Guarded, answered, measure_guard, put
from calibrate.models.prompts import encode_continuations, encode_reply
from calibrate.models.rendering import Rendering
from calibrate.models.tokens import TokenSequence
from calibrate.search.harm import require_guard
from calibrate.texts.guard import Guard, GuardItem, guard_again, read_guard
from calibrate.texts.guard_choice import choose_guard

TRAINED = Path(__file__).parents[1] / "trained"
WORDS = [*tiny.BRIGHT, *tiny.DULL, *tiny.PLAIN]


def questions(n=40):
    rng = np.random.default_rng(0)
    items = []
    for _ in range(n):
        words = rng.permutation(WORDS)
        choices = (words[0], f"{words[1]} {words[2]}", words[3], f"{words[4]} {words[5]}")
        items.append(GuardItem(" ".join(words[6:10]), choices, int(rng.integers(4))))
    return items


def log_prob(loaded, sequence, shift=None):
    hook = torch.no_grad() if shift is None else tiny.hand_written_hook(loaded.blocks[1], shift)
    with hook:
        logits = loaded.model(input_ids=torch.tensor([sequence.ids])).logits[0].double()
    rows = logits[sequence.start - 1 : -1].log_softmax(dim=-1)
    labels = torch.tensor(sequence.ids[sequence.start :])
    return float(rows.gather(1, labels[:, None]).sum()), bool((rows.argmax(-1) == labels).all())


def in_one_line(loaded, asked, answer):
    """As a base model is asked: the answer follows in the same line."""
    before, whole = (loaded.tokenizer(text)["input_ids"] for text in (asked, f"{asked} {answer}"))
    return TokenSequence(tuple(whole), start=len(before))


def test_a_cloze_goes_on_in_its_own_line():
    loaded = load_model(str(TRAINED / "gpt2-1layer"))
    question, answer = "the capital of France is", "Paris"
    (whole,) = put(loaded, Guard("one", (GuardItem(question, (answer,), 0),)))[0][1]
    start, ids = whole
    assert loaded.tokenizer.decode(ids) == f"{question} {answer}"
    assert loaded.tokenizer.decode(ids[start:]).strip() == answer


def test_choices_whose_tokens_reach_into_the_question_are_scored_from_one_place():
    class Merging:
        """Takes a question mark and what follows it for one token."""

        def __call__(self, text, add_special_tokens=True):
            return {"input_ids": [1, *merged(text)]}

    def merged(text):
        head, mark, tail = text.partition("?")
        return [ord(c) for c in head] + ([1000 + len(tail)] if mark else [])

    loaded = SimpleNamespace(
        tokenizer=Merging(),
        rendering=Rendering(),
        context_length=99,
        check_ids=lambda ids, text: None,
    )
    one, other = encode_continuations(loaded, "why?", [" a", " because"])
    assert one.start == other.start == 4
    assert (one.ids[4:], other.ids[4:]) == ((1002,), (1008,))


def test_plain_answers_are_kept_for_questions_as_they_are_put():
    tokenizer = tiny.tokenizer(chat=True)
    tokenizer.chat_template = "{{ mood }} {% for m in messages %}{{ m.content }} {% endfor %}"
    guard = Guard("few", tuple(questions()))
    asked = [
        put(load_model(tiny.model(), tokenizer, chat_template_kwargs={"mood": mood}), guard)
        for mood in ("sun", "rain", "sun")
    ]
    assert asked[0] == asked[2] != asked[1]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("steered", [False, True])
def test_the_likeliest_choice_is_the_answer_as_worked_out_by_hand(chat, steered):
    loaded = load_model(tiny.model(spread=0.6), tiny.tokenizer(chat=chat))
    shift = torch.randn(32, generator=torch.Generator().manual_seed(3))
    items = questions()
    how = (tiny.site(shift, 1), 2.0) if steered else None
    found = answered(loaded, items, how)
    for item, right in zip(items, found, strict=True):
        scores = [
            log_prob(
                loaded,
                encode_reply(loaded, item.question, choice)
                if chat
                else in_one_line(loaded, f"Question: {item.question}\nAnswer:", choice),
                2.0 * shift if steered else None,
            )[0]
            for choice in item.choices
        ]
        assert right == (int(np.argmax(scores)) == item.answer)
    assert 0 < found.mean() < 1


def test_a_cloze_is_right_if_each_of_its_tokens_is_likeliest():
    loaded = load_model(tiny.model(spread=0.6), tiny.tokenizer())
    prompt = "the house road"
    words = []
    for _ in range(2):  # what the model itself goes on with
        ids = encode_reply(loaded, " ".join([prompt, *words]), " sun").ids[:-1]
        with torch.no_grad():
            best = int(loaded.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        words.append(loaded.tokenizer.decode([best]))
    other = next(word for word in WORDS if word != words[1])
    items = [
        GuardItem(prompt, (" ".join(words),), 0),
        GuardItem(prompt, (f"{words[0]} {other}",), 0),
    ]
    assert answered(loaded, items).tolist() == [True, False]


def test_the_built_in_guard_is_balanced_and_has_one_key_to_a_question():
    guard = read_guard()
    assert len(guard.items) == 240
    assert {len(item.choices) for item in guard.items} == {4}
    assert len({item.question for item in guard.items}) == 240
    answers = np.bincount([item.answer for item in guard.items], minlength=4)
    assert answers.min() >= 50
    lengths = np.array([[len(choice) for choice in item.choices] for item in guard.items])
    keys = np.array([item.answer for item in guard.items])
    for longest in (lengths, -lengths):  # "the longest" and "the shortest" know little
        best = longest == longest.max(axis=1, keepdims=True)
        guessed = (best[np.arange(240), keys] / best.sum(axis=1)).mean()
        assert 0.15 < guessed < 0.35
    assert guard_again(guard.name, guard.sha256, ()) == guard
    assert guard_again(guard.name, "another", ()) is None


def test_none_and_auto_are_names(tmp_path):
    assert choose_guard(None) is None
    assert choose_guard("none") is None
    assert choose_guard("auto") == read_guard()
    with pytest.raises(ConceptError, match="cannot read"):
        choose_guard(tmp_path / "nothing.jsonl")


GOOD = {"question": "Which is it?", "choices": ["a", "b"], "answer": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": ""}, "must have a text in 'question', got an empty one"),
        ({"question": None}, "must have a text in 'question', got null"),
        ({"question": "\ud83d"}, "text in 'question', got half a character"),
        ({"choices": ["a", "b\0"]}, "text in 'choices', got one with a NUL in it"),
        ({"choices": ["a"]}, "at least two"),
        ({"choices": "ab"}, "at least two"),
        ({"choices": ["a", "a"]}, "there once"),
        ({"choices": ["a", ""]}, "must have a text in 'choices', got an empty one"),
        ({"choices": []}, "at least two, got 0"),
        ({"answer": 2}, "number of a choice"),
        ({"answer": -1}, "number of a choice"),
        ({"answer": True}, "number of a choice"),
        ({"answer": "c"}, "number of a choice"),
        ({"answer": None}, "number of a choice"),
        ({"choices": None, "answer": None}, "must have a text in 'answer', got null"),
        ({"choices": [24, 26], "answer": 25}, "number of a choice.*got 25"),
        ({"choices": ["1", "2", "3"], "answer": 2}, "2 is the number of one and the text of anoth"),
        ({"choices": [1, 2, 3], "answer": 1}, 'give it as text, "1"'),
        ({"choices": None, "options": ["a", "b"]}, "must be called choices, got options"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, change, message):
    path = tmp_path / "guard.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in (GOOD, GOOD | change)))
    with pytest.raises(ConceptError, match=message) as refused:
        read_guard(path)
    assert "2" in str(refused.value)


def test_few_questions_are_refused_and_answers_may_be_named(tmp_path):
    path = tmp_path / "guard.jsonl"
    rows = [GOOD | {"question": f"Which is {n}?", "answer": "b"} for n in range(25)]
    path.write_text("\n".join(map(json.dumps, rows)))
    guard = read_guard(path)
    assert (guard.name, len(guard.items), guard.items[0].answer) == ("guard.jsonl", 25, 1)
    path.write_text("\n".join(map(json.dumps, rows[:3] * 20)))
    with pytest.raises(ConceptError, match="at least 20 different questions, got 3"):
        read_guard(path)


def test_a_question_has_one_answer(tmp_path):
    path = tmp_path / "guard.jsonl"
    rows = [GOOD | {"question": f"Which is {n}?"} for n in range(25)]
    path.write_text("\n".join(map(json.dumps, [*rows, rows[3] | {"answer": 0}])))
    with pytest.raises(ConceptError, match=r"one answer, but 'Which is 3\?' has two"):
        read_guard(path)


def test_a_limit_needs_questions():
    with pytest.raises(InputError, match=r"--max-guard-drop 0\.1 must have questions"):
        choose_guard("none", 0.1)
    assert choose_guard("none") is None


@pytest.mark.parametrize(
    ("n", "most", "said"),
    [
        (20, 0.05, r"20 mine questions can show to be kept, which is 0\.14 or more.* give 59 ques"),
        (58, 0.05, "give 59 questions, or a larger limit"),
        (59, 0.05, None),
        (20, 0.14, None),
        (240, 0.0, r"240 mine questions .* is 0\.012 or more.*; give a larger limit"),
    ],
)
def test_a_limit_needs_as_many_questions_as_can_show_it(n, most, said):
    """And with that many a calibration that changes no answer keeps to it."""
    guard = Guard("mine", tuple(GuardItem(f"is it {n}?", ("a", "b"), 0) for n in range(n)))
    settings = Settings(max_guard_drop=most)
    unchanged = guarded(n // 2, n // 2, n)
    if said is None:
        assert choose_guard(guard, most) == guard
        require_guard(unchanged, settings)
    else:
        with pytest.raises(InputError, match=said):
            choose_guard(guard, most)
        with pytest.raises(Infeasible):
            require_guard(unchanged, settings)


@pytest.mark.parametrize("n", [20, 240])
@pytest.mark.parametrize(("lost", "gained"), [(0.01, 0), (0.05, 0), (0.2, 0), (0.1, 0.05)])
def test_the_bound_on_the_drop_holds_where_few_answers_change_or_none(n, lost, gained):
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        drawn = rng.random(n)
        change = (drawn < lost).astype(float) - ((drawn >= lost) & (drawn < lost + gained))
        before = RatioEstimate((change >= 0).astype(float), np.ones(n))
        after = RatioEstimate((change <= 0).astype(float), np.ones(n))
        held += Guarded("", "", after, before).drop_upper(0.95) >= lost - gained
    assert held / 400 > 0.925  # three standard errors below 95 %


def test_a_model_that_only_guesses_has_nothing_to_forget():
    assert read_guard().guessed == pytest.approx(0.25)
    loaded = load_model(tiny.model(spread=0.6), tiny.tokenizer())
    site = tiny.site(torch.zeros(32), 1)
    items = [
        GuardItem(f"{one} {other}", (one, other), answer)
        for one, other in zip(WORDS[:4], WORDS[4:8], strict=True)
        for answer in (0, 1)
    ]
    right = [item for item, known in zip(items, answered(loaded, items), strict=True) if known]
    with pytest.warns(CalibrateWarning, match="50% of the both questions .* guessing 50%: they"):
        measure_guard(loaded, Guard("both", tuple(items)), site, 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure_guard(loaded, Guard("known", tuple(right)), site, 0.0)


def guarded(before, after, n=200):
    def share(k):
        return RatioEstimate((np.arange(n) < k).astype(float), np.ones(n))

    return Guarded("built-in", "hash", share(after), share(before))


def test_only_a_drop_that_surely_keeps_to_the_limit_passes():
    allowed = Settings(max_guard_drop=0.05)
    require_guard(guarded(100, 99), allowed)
    require_guard(guarded(100, 60), Settings())
    with pytest.raises(Infeasible, match=r"--max-guard-drop 0\.05"):
        require_guard(guarded(100, 92), allowed)  # four in a hundred, but it may be more
    with pytest.raises(InputError, match="guard's accuracy"):
        Settings(max_guard_drop=1.5)


def known_by(loaded, n=80):
    """Questions whose keys are what the plain model says."""
    rng, known = np.random.default_rng(0), []
    for _ in range(n):
        question, choices = " ".join(rng.choice(WORDS, 4)), tuple(rng.permutation(WORDS)[:4])
        items = [GuardItem(question, choices, answer) for answer in range(4)]
        known.append(items[answered(loaded, items).argmax()])
    return Guard("known.jsonl", tuple(known))


def test_too_large_a_strength_forgets_and_the_plain_answers_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("STEERING_CALIBRATE_CACHE", str(tmp_path))
    loaded = load_model(tiny.model(spread=0.6), tiny.tokenizer())
    guard = known_by(loaded)
    shift = torch.randn(32, generator=torch.Generator().manual_seed(3))
    weak = measure_guard(loaded, guard, tiny.site(shift, 1), 0.01)
    spent = loaded.meter.tokens
    strong = measure_guard(loaded, guard, tiny.site(shift, 1), 50.0)
    first = loaded.meter.tokens - spent
    assert abs(weak.drop.value) < 0.05
    assert strong.drop.value > 0.2
    spent = loaded.meter.tokens
    measure_guard(loaded, guard, tiny.site(shift, 1), 50.0)
    assert loaded.meter.tokens - spent == first  # the plain ones were kept both times


def test_a_guard_file_goes_through_calibration_gate_and_refusal(tiny_options, tmp_path):
    rows = [
        {"question": item.question, "choices": list(item.choices), "answer": item.answer}
        for item in questions(40)
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    options = tiny_options | {"guard": path, "out": tmp_path / "out"}
    model = tiny.model("gpt2")
    result = calibrate.calibrate(model, **options)
    section = result.config.measured.guard
    assert (section.name, section.n_questions) == ("mine.jsonl", 40)
    assert section.baseline - section.accuracy.value == pytest.approx(section.drop.value)
    assert len(result.evidence.guard) == 40
    path.unlink()  # the artefact keeps what it needs
    loaded = load_model(model, tiny_options["tokenizer"])
    checks = {check.name: check for check in check_directory(tmp_path / "out", loaded).checks}
    assert checks["guard"].passed, checks["guard"].found
    known = known_by(loaded)  # so that any other answer is a drop
    with pytest.raises(Infeasible, match=r"--max-guard-drop 0\.04"):
        calibrate.calibrate(model, **(tiny_options | {"guard": known, "max_guard_drop": 0.04}))
    elsewhere = of_another_release(result.config, most=None)
    assert open_guard(elsewhere, result.evidence) is None
    (check,) = check_guard(elsewhere, result.evidence, loaded)
    assert check.passed
    held_to = of_another_release(result.config, most=0.5)
    (check,) = check_guard(held_to, result.evidence, loaded)
    assert not check.passed
    assert "asks none, though --max-guard-drop 0.5 was asked for" in check.found
    with pytest.raises(InputError, match="questions must be at hand, since --max-guard-drop 0"):
        open_guard(held_to, result.evidence)


def of_another_release(config, most):
    """A config whose guard had questions that are not at hand."""
    guard = config.measured.guard.model_copy(update={"sha256": "another"})
    settings = {**config.provenance.settings, "max_guard_drop": most}
    return config.model_copy(
        update={
            "measured": config.measured.model_copy(update={"guard": guard}),
            "provenance": config.provenance.model_copy(update={"settings": settings}),
        }
    )
