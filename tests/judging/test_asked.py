"""Judges that are asked: a GGUF in llama.cpp, a server at an address, kept verdicts."""

from __future__ import annotations

import logging
import math
import os
import socket
import subprocess
import sys
import textwrap
import threading
import traceback
import warnings

import numpy as np
import pytest
import tiny
import torch
from answering import answering, listed, refused, said
from patience import PATIENCE
from refused import Refused, each

import calibrate
from calibrate.common.errors import CalibrateWarning, InputError, ModelError
from calibrate.common.progress import Progress
from calibrate.common.settings import Settings
from calibrate.deploy.judge import open_judge
from calibrate.engine.loading import load_model
from calibrate.judging import asked
from calibrate.judging.asked import asked_judge, check_asked, is_asked
from calibrate.judging.panel import judge_again, reader_of
from calibrate.models.embedded import embedded_gguf, is_at_hand
from calibrate.models.llama_cpp import is_installed
from calibrate.search.forecast import questions_ahead
from calibrate.texts.concept import read_prompts
from probes import verdicts
from probes.address import check_address
from probes.asking import Asked, check_question, probability_of_yes
from probes.gguf_question import GgufQuestion
from probes.openai_question import OpenAIQuestion
from probes.question import Question
from probes.verdicts import Remembered

pytestmark = pytest.mark.slow

TEXTS = ("I am so happy today, what a delight!", "The committee met on Tuesday.")
KEY = "sk-nobody-may-ever-read-this"
needs_llama_cpp = pytest.mark.skipif(
    not is_installed(), reason="xllamacpp is not installed: pip install -e .[llama-cpp]"
)


@pytest.fixture(scope="module")
def gguf():
    """A small model's file, from the user's own cache."""
    if not is_at_hand("smollm2"):
        pytest.skip('smollm2\'s GGUF is not at hand: embedded_gguf("smollm2") fetches it')
    return embedded_gguf("smollm2")


@pytest.fixture(scope="module")
def smollm2(gguf):
    return load_model("smollm2")  # the same file, converted


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STEERING_CALIBRATE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def log_odds(probabilities):
    return np.log(probabilities) - np.log1p(-np.asarray(probabilities))


def test_yes_and_no_count_in_any_case_and_with_a_space():
    likely = [("Yes", math.log(0.2)), (" yes", math.log(0.1)), ("YES", math.log(0.1))]
    others = [("No", math.log(0.1)), ("The", math.log(0.5)), ("yesterday", math.log(0.3))]
    assert probability_of_yes([*likely, *others]) == pytest.approx(0.4 / 0.5)
    assert probability_of_yes(likely) == 1.0
    assert probability_of_yes([("The", -0.1), ("", -3.0)]) is None


def test_a_question_may_hold_braces_that_are_doubled():
    assert check_question("{{{text}}} {concept}?") == "{{{text}}} {concept}?"


# -- a GGUF in llama.cpp


@needs_llama_cpp
def test_llama_cpp_and_transformers_answer_alike(gguf, smollm2):
    """Eight-bit activations in one, float32 in the other: the log-odds agree within a quarter."""
    asked = GgufQuestion(gguf).score(TEXTS, "joy")
    expected = Question(smollm2).score(TEXTS, "joy")
    assert log_odds(asked) == pytest.approx(log_odds(expected), abs=0.25)


@needs_llama_cpp
def test_a_judge_named_by_a_gguf_file_answers_by_llama_cpp_and_is_remembered(gguf, cache):
    judge = asked_judge(f"question:{gguf}", None, Settings(judge_question="{text} {concept}?"))
    assert isinstance(judge, Remembered)
    assert isinstance(judge.judge, GgufQuestion)
    scores = judge.score(TEXTS, "joy")
    again = asked_judge(f"question:{gguf}", None, Settings(judge_question="{text} {concept}?"))
    assert (again.score(TEXTS, "joy") == scores).all()
    assert "_server" not in vars(again.judge)  # it was not even loaded


@needs_llama_cpp
def test_a_prompt_too_long_for_the_context_is_refused(gguf):
    with pytest.raises(InputError, match=r"at most 512 tokens, got .*; have shorter replies"):
        GgufQuestion(gguf, context=512).score(["joy " * 2000], "joy")


@needs_llama_cpp
def test_the_embedded_teacher_tells_joy_from_minutes():
    if not is_at_hand("qwen2.5-1.5b"):
        pytest.skip('the teacher is not at hand: embedded_gguf("qwen2.5-1.5b") fetches 1.1 GB')
    joyful, plain = GgufQuestion(embedded_gguf("qwen2.5-1.5b")).score(TEXTS, "joy")
    assert joyful > 0.9
    assert plain < 0.3


# -- a model in transformers

THINKS_FIRST = tiny.CHAT_TEMPLATE.replace(
    "<reply>{% endif",
    "<reply>{% if enable_thinking is defined and not enable_thinking %} <think> </think>{% endif %}"
    "{% endif",
)
SAID = "sun rain express joy ?"


@pytest.fixture(scope="module")
def thinker(tmp_path_factory):
    """A model's directory whose template lets it think first, unless it is told not to."""
    folder, tokenizer = tmp_path_factory.mktemp("thinker"), tiny.tokenizer(chat=True)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    tokenizer.add_tokens(["yes", "no", "Yes", "No", "?", "express", "joy"])
    tokenizer.chat_template = THINKS_FIRST
    model = tiny.model("llama")
    model.resize_token_embeddings(len(tokenizer))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # words of their own, where resizing gives all the same
        for rows in (model.get_input_embeddings(), model.get_output_embeddings()):
            new = rows.weight[len(tiny.VOCABULARY) :]
            new.copy_(torch.randn(new.shape, generator=generator))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_model_that_thinks_first_is_asked_to_answer_at_once(thinker, cache):
    settings = Settings(judge_question="{text} express {concept} ?")
    loaded = load_model(str(thinker))
    ids = loaded.tokenizer(f"<user> {SAID} <reply> <think> </think>", add_special_tokens=False)
    logits = loaded.model(input_ids=torch.tensor([ids["input_ids"]])).logits[0, -1].double()
    by_word = {
        word: float(
            logits[loaded.tokenizer.convert_tokens_to_ids([word, word.title()])].exp().sum()
        )
        for word in ("yes", "no")
    }
    expected = by_word["yes"] / (by_word["yes"] + by_word["no"])
    other = asked_judge(f"question:{thinker}", None, settings)
    itself = asked_judge("question", lambda: loaded, settings)
    for judge in (other, itself):
        assert judge.score(["sun rain"], "joy") == pytest.approx([expected], rel=1e-4)
    assert loaded.rendering.kwargs == {}  # what is steered still thinks


def test_the_judge_goes_where_the_steered_model_went(thinker, cache):
    name, texts = f"question:{thinker}", tiny.concept().texts
    steered = load_model(str(thinker), device="cpu", dtype="bfloat16")
    beside = reader_of(steered, name, "joy", texts, Settings()).judge
    alone = open_judge(name, "joy", device="cpu", dtype="float16").judge
    assert beside.judge.model.dtype == torch.bfloat16
    assert alone.judge.model.dtype == torch.float16
    in_memory = load_model(steered.model, steered.tokenizer)
    assert in_memory.place == {"device": steered.device}


def test_code_is_trusted_for_the_judge_that_is_asked_for_and_for_none_that_a_config_names(
    thinker, cache, monkeypatch
):
    trusted = []

    def loading(model, **options):
        trusted.append(options["trust_remote_code"])
        return load_model(model, **options)

    monkeypatch.setattr(asked, "load_model", loading)
    steered = load_model(str(thinker), trust_remote_code=True)
    reader_of(steered, f"question:{thinker}", "joy", tiny.concept().texts, Settings())
    judge_again(steered, f"question:{thinker}", "joy", "", Settings())
    assert trusted == [True, False]


# -- a server at an address


@needs_llama_cpp
def test_llama_cpps_own_server_answers_as_the_file_does(gguf):
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(gguf)
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 2048, 2, False, -1
    params.api_keys, params.ui = [KEY], False
    server = xllamacpp.Server(params)
    url = check_address(f"{server.listening_address}/v1/")
    with pytest.raises(InputError, match=rf"{url} wants a key \(401\); set OPENAI_API_KEY"):
        OpenAIQuestion("smollm2", url).score(TEXTS, "joy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", KEY)
        scores = OpenAIQuestion("smollm2", url).score(TEXTS, "joy")
    expected = GgufQuestion(gguf).score(TEXTS, "joy")
    assert log_odds(scores) == pytest.approx(log_odds(expected), abs=0.25)


def by_first_letter(body):
    """Likely yes to a text that begins with a capital, by log-probabilities."""
    text = body["messages"][0]["content"]
    p = 0.9 if text[0].isupper() else 0.2
    return said("Yes", {"Yes": math.log(p * 0.5), " no": math.log((1 - p) * 0.5), "I": -0.7})


def ask(url, **options):
    return OpenAIQuestion("m", url, "{text} {concept}", **options)


def test_questions_are_put_several_at_a_time_and_answers_find_their_texts():
    four = threading.Barrier(4, timeout=PATIENCE)

    def reply(body):
        """No answer leaves before four questions are there."""
        four.wait()
        return by_first_letter(body)

    with answering(reply) as server:
        texts = [*("Sun Rain House Moon".split()), *("a b c d".split())]
        scores = ask(server.url, at_once=4).score(texts, "joy")
    assert scores == pytest.approx([0.9] * 4 + [0.2] * 4)
    assert server.most_at_once == 4
    body = server.bodies[0]
    assert (body["max_tokens"], body["logprobs"], body["temperature"]) == (1, True, 0)
    assert server.keys == {"Bearer none"}


@pytest.mark.parametrize("way", ["says nothing of them", "refuses them", "has an empty list"])
def test_without_log_probabilities_the_word_counts_and_that_is_said_once(way):
    def reply(body):
        if way == "refuses them" and body.get("logprobs"):
            return refused(400, "logprobs is not supported here")
        happy = "happy" in body["messages"][0]["content"]
        top = {} if way == "has an empty list" else None
        return said(" **Yes**, it does" if happy else "No.", top)

    with answering(reply) as server, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        judge = ask(server.url)
        assert judge.score(TEXTS, "joy").tolist() == [1.0, 0.0]
        first = len(server.bodies)
        assert judge.score(TEXTS * 4, "joy").tolist() == [1.0, 0.0] * 4
    notes = [str(one.message) for one in caught if one.category is CalibrateWarning]
    assert len(notes) == 1
    assert "tells no log-probabilities" in notes[0]
    assert len(server.bodies) - first == 8  # none is asked for log-probabilities again


def test_an_answer_without_log_probabilities_among_others_with_them_counts_by_its_word_alone():
    """As a router gives it, one of whose servers tells none."""

    def reply(body):
        return said("No") if body["messages"][0]["content"][0] == "x" else by_first_letter(body)

    texts = ["Sun", "x", "rain", "Moon", "x", "stone"]
    with (
        answering(reply) as server,
        pytest.warns(CalibrateWarning, match="out of some answers") as caught,
    ):
        scores = ask(server.url, at_once=1).score(texts, "joy")
    assert scores == pytest.approx([0.9, 0.0, 0.2, 0.9, 0.0, 0.2])
    assert len(caught) == 1


def test_log_probabilities_that_come_late_end_the_reading_of_words():
    late = threading.Event()

    def reply(body):
        """The first answer with log-probabilities comes after one without."""
        content = body["messages"][0]["content"]
        if content[0] == "x":
            return said("No")
        late.wait(PATIENCE)
        return by_first_letter(body)

    def come(judge):
        for index, _ in judge.answers(["Sun joy", "x joy"]):
            late.set()
            yield index

    with answering(reply) as server:
        judge = ask(server.url, at_once=2)
        with pytest.warns(CalibrateWarning, match="tells no log-probabilities"):
            assert list(come(judge)) == [1, 0]
        assert judge.score(["Moon", "rain"], "joy") == pytest.approx([0.9, 0.2])


def test_a_stray_answer_that_is_neither_counts_as_no():
    def reply(body):
        stray = "Tuesday" in body["messages"][0]["content"]
        return said("Hm", {"Hm": -0.1}) if stray else by_first_letter(body)

    with answering(reply) as server, pytest.warns(CalibrateWarning, match="1 answers .*'Hm'"):
        assert ask(server.url).score(TEXTS, "joy") == pytest.approx([0.9, 0.0])


def test_a_stray_answer_is_not_kept_and_is_told_of_again(cache):
    answers = ["Hm", "Hm", "Yes"]

    def reply(body):
        return said(answers.pop(0), {"Hm": -0.1} if len(answers) else {"Yes": -0.1})

    with answering(reply) as server:
        judge = Remembered(ask(server.url))
        for expected in (0.0, 0.0):
            with pytest.warns(CalibrateWarning, match="1 answers .*'Hm'"):
                assert judge.score(["Sun"], "joy").tolist() == [expected]
        for _ in range(2):
            assert judge.score(["Sun"], "joy").tolist() == [1.0]
    assert len(server.prompts) == 3


@pytest.mark.parametrize("in_words", [False, True])
def test_a_newer_model_is_asked_without_what_it_refuses(in_words):
    """As OpenAI's do, which name the first thing only that they refuse."""

    def reply(body):
        for name in ("max_tokens", "temperature"):
            if name in body:
                return refused(400, f"Unsupported parameter: '{name}' is not supported")
        if in_words and body.get("logprobs"):
            return refused(400, "logprobs are not supported with reasoning models")
        return said("Yes") if in_words else by_first_letter(body)

    with answering(reply) as server, warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrateWarning)
        judge = ask(server.url, at_once=1)
        scores = judge.score(["Sun", "Moon"], "joy")
    assert scores == pytest.approx([1.0 if in_words else 0.9] * 2)
    taken = [body for body in server.bodies if not {"max_tokens", "temperature"} & body.keys()]
    assert len(server.bodies) - len(taken) == 2  # each is refused once
    room = [body["max_completion_tokens"] for body in taken if not body.get("logprobs")]
    assert all(one > 1000 for one in room)  # a thought counts
    assert bool(room) == in_words


def test_another_model_behind_the_same_address_and_name_is_another_judge(cache):
    """As a server that is started anew; the time it is asked at is all that always changes."""
    held, times = [{"size": 135}], iter(range(100))

    def models():
        entry = {"id": "model.gguf", "meta": held[0], "owned_by": "x", "created": next(times)}
        return listed(entry)

    with answering(by_first_letter, models=models) as server:
        for _ in range(2):
            Remembered(ask(server.url)).score(TEXTS, "joy")
        assert len(server.prompts) == 2
        held[0] = {"size": 360}
        Remembered(ask(server.url)).score(TEXTS, "joy")
        assert len(server.prompts) == 4


@pytest.mark.parametrize(
    "models",
    [
        lambda: (404, {}),
        lambda: (200, "<html>welcome</html>"),
        lambda: (200, {}),
        lambda: listed({"id": "m", "created": 1}, {"id": "other", "meta": {"size": 1}}),
    ],
)
def test_a_server_that_tells_nothing_of_its_model_is_known_by_address_and_name(models):
    with answering(by_first_letter, models=models) as server:
        assert ask(server.url).identity == f"openai {server.url} m"


def test_a_server_that_fails_now_and_then_is_asked_again():
    statuses = [503, 429, 200]

    def reply(body):
        status = statuses.pop(0)
        return by_first_letter(body) if status == 200 else refused(status)

    with answering(reply) as server:
        assert ask(server.url).score(["Sun"], "joy") == pytest.approx([0.9])
    assert len(server.bodies) == 3


def test_the_key_goes_to_the_server_and_nowhere_else(cache, monkeypatch, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    shown = []
    for status in (400, 401, 403, 404, 422):
        with answering(lambda _, s=status: refused(s, f"you sent me {KEY}")) as server:
            judge = Remembered(ask(server.url, retries=0))
            with pytest.raises(InputError) as caught:
                judge.score(TEXTS, "joy")
            assert server.keys == {f"Bearer {KEY}"}
        shown += traceback.format_exception(caught.value)
    with answering(by_first_letter) as server:
        judge = ask(server.url)
        Remembered(judge).score(TEXTS, "joy")
    shown += [repr(judge), judge.identity, caplog.text]
    shown += [path.read_bytes().decode("latin-1") for path in cache.rglob("*") if path.is_file()]
    assert not [one for one in shown if KEY in one]


# -- verdicts that are kept


class Counting(Asked):
    """Answers by length, and remembers what it was asked; fails after some answers."""

    def __init__(self, identity="counting", question="{text} {concept}", answers=100):
        self.identity, self.question, self.left = identity, question, answers
        self.asked = []

    def answers(self, prompts):
        for index, prompt in enumerate(prompts):
            if not self.left:
                raise InputError("no more")
            self.left -= 1
            self.asked.append(prompt)
            yield index, 1 / len(prompt)


def test_nothing_is_asked_twice_and_only_the_same_question_of_the_same_judge_is_the_same(cache):
    first, second = Counting(), Counting()
    scores = Remembered(first).score(["sun", "rain", "sun"], "joy")
    assert scores == pytest.approx([1 / 7, 1 / 8, 1 / 7])
    assert first.asked == ["sun joy", "rain joy"]
    assert (Remembered(second).score(["rain", "moon"], "joy") == [1 / 8, 1 / 8]).all()
    assert second.asked == ["moon joy"]
    for other in (Counting("another"), Counting(question="{text}, {concept}")):
        Remembered(other).score(["sun"], "joy")
        assert len(other.asked) == 1
    third = Counting()
    Remembered(third).score(["sun"], "grief")
    assert third.asked == ["sun grief"]


def test_what_was_answered_before_a_failure_is_kept(cache):
    with pytest.raises(InputError, match="no more"):
        Remembered(Counting(answers=2)).score(["sun", "rain", "moon"], "joy")
    after = Counting()
    Remembered(after).score(["sun", "rain", "moon"], "joy")
    assert after.asked == ["moon joy"]


def test_a_server_that_goes_away_loses_no_answer_that_it_gave(cache):
    given = []

    def reply(body):
        if len(given) >= 3:
            return refused(500)
        given.append(body["messages"][0]["content"])
        return by_first_letter(body)

    texts = [f"Text {number}" for number in range(9)]
    with answering(reply) as server:
        judge = ask(server.url, at_once=2, retries=0)
        with pytest.raises(InputError, match=r"fails \(500, 1 tries\); .* is kept"):
            Remembered(judge).score(texts, "joy")
        left = Counting(judge.identity)
        Remembered(left).score(texts, "joy")
    assert sorted(left.asked + given) == sorted(f"{text} joy" for text in texts)


def test_verdicts_outlive_a_process_that_is_killed(cache):
    code = textwrap.dedent(
        """
        import os
        from test_asked import Counting
        from probes.verdicts import Remembered

        class Killed(Counting):
            def answers(self, prompts):
                for one in super().answers(prompts):
                    yield one
                    if one[0] == 1:
                        os.kill(os.getpid(), 9)

        Remembered(Killed()).score(["sun", "rain", "moon"], "joy")
        """
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert killed.returncode == -9
    after = Counting()
    Remembered(after).score(["sun", "rain", "moon"], "joy")
    assert after.asked == ["moon joy"]


def test_only_the_latest_verdicts_stay(cache, monkeypatch):
    monkeypatch.setattr(verdicts, "MAX_VERDICTS", 3)
    Remembered(Counting()).score(["a", "b", "c", "d", "e"], "joy")
    after = Counting()
    Remembered(after).score(["c", "d", "e", "b"], "joy")
    assert after.asked == ["b joy"]


def test_a_file_that_is_no_database_costs_time_only(cache):
    cache.mkdir()
    (cache / verdicts.FILE).write_text("not a database " * 100)
    with pytest.warns(CalibrateWarning, match=r"cannot be kept in .*; delete the file"):
        assert Remembered(Counting()).score(["sun"], "joy") == pytest.approx([1 / 7])


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a directory")
    monkeypatch.setenv("STEERING_CALIBRATE_CACHE", str(tmp_path / "file"))
    with pytest.warns(CalibrateWarning, match="set STEERING_CALIBRATE_CACHE"):
        assert Remembered(Counting()).score(["sun"], "joy") == pytest.approx([1 / 7])


def test_long_questioning_tells_how_far_it_is(cache, monkeypatch):
    monkeypatch.setattr(verdicts, "PROGRESS_DELAY", -1)
    told = []

    class Watching(Progress):
        def asked(self, done, total):
            told.append((done, total))

    Remembered(Counting(), Watching()).score(["sun", "rain"], "joy")
    assert told == [(1, 2), (2, 2)]


# -- in a calibration


def brightness(body):
    """Yes by the share of bright words: the judge that `tiny_options` suits, at an address."""
    words = body["messages"][0]["content"].rsplit(" ", 1)[0].split()
    p = 0.02 + 0.96 * np.mean([word in tiny.BRIGHT for word in words])
    return said("Yes", {"Yes": math.log(p), "No": math.log(1 - p)})


def test_a_calibration_is_judged_at_an_address_and_forecasts_what_it_asks(cache, tiny_options):
    forecast = []

    class Watching(Progress):
        def to_ask(self, questions):
            forecast.append(questions)

    with answering(brightness) as server:
        options = {**tiny_options, "judge": "openai:m", "judge_url": server.url}
        options["judge_question"] = "{text} {concept}"
        first = calibrate.calibrate(tiny.model("gpt2"), progress=Watching(), **options)
        asked = len(server.prompts)
        again = calibrate.calibrate(tiny.model("gpt2"), **options)
    assert first.config.measured.judges == ["openai:m"]
    assert 0 < asked <= forecast[0]
    assert len(set(server.prompts)) == asked  # the second calibration asked nothing again
    assert len(server.prompts) == asked
    assert again.config.intervention.strength == first.config.intervention.strength


def test_only_judges_that_are_asked_are_forecast(tiny_options):
    assert [is_asked(name) for name in ("probe", "question", "question:x", "openai:x")] == [
        *(False, False, True, True)
    ]
    prompts = read_prompts(tiny_options["prompts"])
    ahead = [
        questions_ahead(judges, tiny_options["concept"], prompts, Settings())
        for judges in (["probe"], ["question"], ["probe", "openai:x"], ["openai:x"])
    ]
    assert ahead[:2] == [0, 0]
    assert 0 < ahead[2] < ahead[3]


# -- what is refused


def closed_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{opened.getsockname()[1]}/v1"


def served(reply, takes=0.0, **options):
    """Put two texts and two more before a server, without patience."""

    def act(_folder):
        with answering(reply, takes) as server:
            ask(server.url, **{"retries": 0, **options}).score([*TEXTS, "a", "b"], "joy")

    return act


def named(name, **settings):
    return lambda _: check_asked([name], Settings(**settings))


def broken_gguf(folder):
    path = folder / "broken.gguf"
    path.write_bytes(b"not a GGUF file at all")
    if not is_installed():
        pytest.skip("xllamacpp is not installed: pip install -e .[llama-cpp]")
    GgufQuestion(path).score(["sun"], "joy")


PLACES = "the judge's question must have the places {text} and {concept} and no others, got"
REFUSED = [
    Refused(
        "a judge openai without a model",
        "a judge openai must name a model of the server, as in openai:gpt-4o, got 'openai'",
        named("openai", judge_url="http://localhost/v1"),
    ),
    *(
        Refused(
            f"a judge {name!r} with an empty name",
            "a judge question: must name a model, as in question:qwen2.5-1.5b, got "
            f"{name!r}; the steered model itself is asked by question alone",
            named(name),
        )
        for name in ("question:", "question: ")
    ),
    Refused(
        "a judge openai without an address",
        "a judge openai:MODEL needs its server's address, and got none; give --judge-url, such as "
        "http://localhost:8080/v1, or set OPENAI_BASE_URL",
        named("openai:m"),
    ),
    *(
        Refused(
            f"a judge's address that is {what}",
            f"--judge-url must be an address such as http://localhost:8080/v1, got {url!r}",
            named("openai:m", judge_url=url),
        )
        for what, url in (
            ("none", "localhost"),
            ("a file's", "file:///etc/hostname"),
            ("of an impossible port", "http://localhost:99999/v1"),
        )
    ),
    *(
        Refused(
            f"a judge's address with a {what} in it",
            "--judge-url must hold nothing secret: no user, password or query, as for localhost; "
            "set OPENAI_API_KEY to the key",
            named("openai:m", judge_url=url),
        )
        for what, url in (
            ("password", "http://me:secret@localhost/v1"),
            ("key", "http://localhost/v1?api_key=secret"),
        )
    ),
    Refused(
        "a judge that is a GGUF file which is not there",
        "a .gguf model must be an existing file, got 'gone.gguf'",
        named("question:gone.gguf"),
        ModelError,
    ),
    Refused(
        "a judge that is a GGUF file of something else",
        "llama.cpp cannot load …broken.gguf; it must be a GGUF model file",
        broken_gguf,
        ModelError,
    ),
    *(
        Refused(
            f"a judge's question with {what}",
            f"{PLACES} {got}; write a brace that is meant as {{{{ or }}}}",
            lambda _, question=question: check_question(question),
        )
        for what, question, got in (
            ("no places", "Is it joyful?", "none"),
            ("one place", "Is this joyful: {text}?", "{text}"),
            ("a place too many", "{text} {concept} {mood}", "{concept}, {mood}, {text}"),
            ("places without names", "{} {}", "{}"),
            ("a brace left open", "{text} {concept} {", "…"),
            ("an attribute of a place", "{text.gone} {concept}", "{concept}, {text.gone}"),
        )
    ),
    Refused(
        "a judge's server that is gone",
        "http://127.0.0.1:…/v1 cannot be reached (1 tries); start the server; what it answered so "
        "far is kept, so start the same command again once it does",
        lambda _: ask(closed_port(), retries=0).score(TEXTS, "joy"),
    ),
    Refused(
        "a judge's server that is gone, of which it is to be told what model it has",
        "http://127.0.0.1:…/v1 cannot be reached (1 tries); start the server; what it answered so "
        "far is kept, so start the same command again once it does",
        lambda _: ask(closed_port(), retries=0).identity,
    ),
    Refused(
        "a judge's server that is slow",
        "http://127.0.0.1:…/v1 must answer within 0.2 s, and did not in 1 tries; what it answered "
        "so far is kept, …",
        served(by_first_letter, takes=1.0, timeout=0.2),
    ),
    Refused(
        "a judge's server that wants a key",
        "http://127.0.0.1:…/v1 wants a key (401); set OPENAI_API_KEY to one that it takes",
        served(lambda _: refused(401)),
    ),
    Refused(
        "a judge's server without that model",
        "http://127.0.0.1:…/v1 has no model 'm' (404); name one that http://…/v1/models lists, or "
        "check --judge-url, which as a rule ends in /v1",
        served(lambda _: refused(404)),
    ),
    Refused(
        "a judge's server that is overrun",
        "http://127.0.0.1:…/v1 has no room for more requests (429, 1 tries); what it answered so "
        "far is kept, …",
        served(lambda _: refused(429)),
    ),
    Refused(
        "a judge's server that fails",
        "http://127.0.0.1:…/v1 fails (500, 1 tries); look at its log; …",
        served(lambda _: refused(500)),
    ),
    Refused(
        "a judge's server that does not take the question",
        "http://127.0.0.1:…/v1 does not take the question (…too long…); name another model or "
        "server",
        served(lambda _: refused(400, "the prompt is\ntoo long")),
    ),
    *(
        Refused(
            f"a judge's server that sends {what}",
            "http://127.0.0.1:…/v1 must speak the OpenAI interface, and answers with something "
            "else; check --judge-url, which as a rule ends in /v1",
            served(lambda _, content=content: (200, content)),
        )
        for what, content in (
            ("a web page", "<html>welcome</html>"),
            ("a list", [1, 2]),
            ("an empty object", {}),
            ("no choices", {"choices": []}),
            ("a choice without a message", {"choices": [{"index": 0}]}),
            ("a number for a text", {"choices": [{"message": {"content": 7}}]}),
        )
    ),
    *(
        Refused(
            f"a judge's server that answers neither yes nor no, {how}",
            "judge openai:m must answer yes or no, got answers such as '…'; name an instruct model "
            "that does not think first, or ask otherwise with --judge-question",
            served(lambda _, top=top: said("<think> Well", top)),
        )
        for how, top in (("by tokens", {"<think>": -0.1, "Well": -3.0}), ("in words", None))
    ),
]


@each(REFUSED)
def test_it_is_refused(row, tmp_path):
    row.check(tmp_path)
