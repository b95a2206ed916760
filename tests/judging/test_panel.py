"""Judges other than the probe, and what keeps every judge honest."""

from __future__ import annotations

import random
import sys
import types
import warnings
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from answering import answering as serving
from answering import listed
from answering import said as says
from refused import Refused, each
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

import calibrate
from calibrate.common.errors import Infeasible, InputError, ModelError
from calibrate.common.settings import Settings
from calibrate.engine.generation import Request
from calibrate.engine.loading import load_model
from calibrate.engine.site import Site
from calibrate.judging import panel as panels
from calibrate.judging.choice import Lesson, choose_audit, judge_name
from calibrate.judging.digest import judge_digest
from calibrate.judging.graded_replies import graded_replies
from calibrate.judging.panel import judge_again, judge_from_texts, make_judges
from calibrate.judging.presence import measure_presence
from calibrate.judging.teaching import JudgeInputs
from calibrate.models.prompts import encode_prompt
from calibrate.texts.concept import Concept, read_concept
from calibrate.texts.extraction import concept_vectors
from calibrate.texts.replies import sample_unsteered
from probes import Example, GradedText, Reader, classifier
from probes.classifier import fit_embedding, fit_graded_embedding
from probes.judges import FunctionJudge, ScaledJudge, judge_function
from probes.question import Question
from probes.scale import Scale


def counting(texts, concept):
    """Share of bright words: a judge anyone could write."""
    return [np.mean([word in tiny.BRIGHT for word in text.split()]) for text in texts]


def never_dull(texts, concept):
    """Share of words that are not dull."""
    return [np.mean([word not in tiny.DULL for word in text.split()]) for text in texts]


@pytest.fixture(scope="module")
def examples():
    return [
        Example(text, positive, f"{index}")
        for positive, words in ((True, tiny.BRIGHT), (False, tiny.DULL))
        for index, text in enumerate(tiny.texts(words, 30))
    ]


@pytest.fixture(scope="module")
def material(tiny_options):
    """A model with its concept, replies and vector: what judges are made from."""
    loaded = load_model(tiny.model("gpt2"), tiny_options["tokenizer"])
    settings = Settings(sampling=tiny_options["sampling"])
    with torch.no_grad():
        replies = sample_unsteered(loaded, tiny.prompts(60), settings)
        splits = tiny_options["concept"].split()
        vector = concept_vectors(loaded, splits["vector"], settings)[0]
    return loaded, JudgeInputs("bright", splits, replies, Site((vector,))), settings


def test_the_embedding_judge_reads_any_sentence_transformer(examples, tmp_path):
    """A bag of words stands for the encoder: sentence-transformers saves and loads it alike."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.modules import BoW

    encoder = sentence_transformers.SentenceTransformer(
        modules=[BoW(vocab=[*tiny.BRIGHT, *tiny.DULL, *tiny.PLAIN])]
    )
    encoder.save(str(tmp_path / "encoder"))
    judge = fit_embedding(examples, str(tmp_path / "encoder"))
    bright, dull = (
        judge.score(tiny.texts(words, 20, seed=9), "bright").mean()
        for words in (tiny.BRIGHT, tiny.DULL)
    )
    assert bright > 0.7
    assert dull < 0.3
    with pytest.raises(InputError, match="cannot load"):
        fit_embedding(examples, str(tmp_path / "nothing here"))


def test_the_embedding_judge_learns_the_graders_yes(monkeypatch):
    """Words stand for the encoder; the graders say yes to one bright word in three."""
    words = [*tiny.BRIGHT, *tiny.DULL]
    monkeypatch.setattr(
        classifier,
        "_encoder",
        lambda _: lambda texts: np.array([[t.split().count(w) for w in words] for t in texts]),
    )
    rng = random.Random(0)
    texts = [" ".join(rng.choices(words, k=9)) for _ in range(240)]
    bright = [sum(word in tiny.BRIGHT for word in text.split()) / 9 for text in texts]
    graded = [
        GradedText(text, grade=float(share > 1 / 2) + (share > 2 / 3), group=text)
        for text, share in zip(texts[:160], bright[:160], strict=True)
    ]
    judge = fit_graded_embedding(graded)
    said = judge.score(texts[160:], "bright")
    yes = np.array(bright[160:]) > 1 / 2
    assert said[yes].min() > said[~yes].max() - 0.2
    assert said.mean() == pytest.approx(yes.mean(), abs=0.08)


def test_the_second_judge_of_a_built_in_concept_learns_from_graded_replies(monkeypatch):
    learned = []
    monkeypatch.setattr(panels, "fit_graded_embedding", lambda texts, _: learned.append(texts))
    monkeypatch.setattr(panels, "fit_embedding", lambda texts, _: learned.append("written"))
    pack = read_concept("joy").split()["probe"]
    judge_from_texts("embedding", "joy", pack)
    judge_from_texts("embedding", "joy", tiny.concept().split()["probe"])  # a namesake
    judge_from_texts("embedding", "my joy", pack)
    assert learned[1:] == ["written", "written"]
    first = {one.text for one in graded_replies("joy")}
    assert len(learned[0]) > 100
    assert not first & {one.text for one in learned[0]}
    assert not {one.group for one in graded_replies("joy")} & {one.group for one in learned[0]}


def test_the_question_is_answered_by_the_probabilities_of_yes_and_no():
    """The double's tokenizer is given the words; the answer is recomputed from plain logits."""
    loaded = tiny.loaded()
    loaded.tokenizer.add_tokens(["yes", "no", "Yes", "No", "?", "text", "express", "bright"])
    loaded.model.resize_token_embeddings(len(loaded.tokenizer))
    loaded = load_model(loaded.model, loaded.tokenizer)
    judge = Question(loaded, "{text} express {concept} ?")
    texts = ["sun kite sun", "rain"]
    scores = judge.score(texts, "bright")
    for text, score in zip(texts, scores, strict=True):
        ids = loaded.tokenizer(f"{text} express bright ?\n")["input_ids"]
        p = loaded.model(input_ids=torch.tensor([ids])).logits[0, -1].softmax(dim=-1)
        yes, no = (
            sum(float(p[loaded.tokenizer.convert_tokens_to_ids(word)]) for word in words)
            for words in (("yes", "Yes"), ("no", "No"))
        )
        assert score == pytest.approx(yes / (yes + no), rel=1e-4)


def test_yes_and_no_that_begin_alike_are_refused():
    with pytest.raises(InputError, match="must tell yes from no"):
        Question(tiny.loaded()).score(["sun"], "bright")  # both are <unk> to this tokenizer


def marking_spaces():
    """A tokenizer that writes a space as ▁, and one before every text, as SentencePiece does."""
    words = ["<unk>", "▁", "▁▁", *(f"▁{w}" for w in ("yes", "no", "Yes", "No", "sun", "joy", "?"))]
    pieces = [(word, -1.0 - 0.01 * place) for place, word in enumerate(words)]
    letters = [(letter, -9.0) for letter in "yesnoYNu"]
    core = Tokenizer(models.Unigram([*pieces, *letters], unk_id=0))
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    core.decoder = decoders.Metaspace()
    made = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    assert made.tokenize(" yes")[0] == made.tokenize(" no")[0]
    return made


def test_a_token_of_a_space_alone_begins_neither_yes_nor_no():
    tokenizer = marking_spaces()
    loaded = load_model(tiny.model("llama"), tokenizer)
    (score,) = Question(loaded, "{text} {concept} ?").score(["sun"], "joy")
    ids = torch.tensor([tokenizer("sun joy ?\n")["input_ids"]])
    p = loaded.model(input_ids=ids).logits[0, -1].softmax(dim=-1)
    yes, no = (
        sum(float(p[tokenizer.convert_tokens_to_ids(f"▁{word}")]) for word in words)
        for words in (("yes", "Yes"), ("no", "No"))
    )
    assert score == pytest.approx(yes / (yes + no), rel=1e-4)


def test_a_function_is_a_judge_by_name(monkeypatch):
    module = types.ModuleType("house_judges")
    module.counting = counting
    module.table = {}
    monkeypatch.setitem(sys.modules, "house_judges", module)
    assert judge_function("house_judges:counting").score(["sun"], "bright") == [1.0]
    for name in ("house_judges:missing", "no_such_module:f"):
        with pytest.raises(InputError, match="must be a function that can be imported"):
            judge_function(name)
    with pytest.raises(InputError, match=r"or module:function, got 'embeding'.*embedding"):
        judge_function("embeding")
    with pytest.raises(InputError, match="must be a function, got dict"):
        judge_function("house_judges:table")


def test_an_unknown_judge_or_an_auditor_who_is_the_judge_is_refused_before_loading():
    for choice in (
        *({"judge": name} for name in ("prob", "probe", "lexicon", "none", "auto:x")),
        *({"audit": name} for name in ("no_such:judge", "lexicon")),
    ):
        with pytest.raises(InputError, match=r"judge must be auto|can be imported"):
            calibrate.calibrate("a model that does not exist", "joy", **choice)
    with pytest.raises(InputError, match="another than the judge, got 'question'"):
        calibrate.calibrate("nothing", "joy", judge="question", audit="question")


def test_a_teacher_is_checked_before_loading_and_is_not_the_auditor(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    for teacher, said in (
        ("openai:m", "needs its server's address"),
        ("gone.gguf", r"must be an existing file, got 'gone\.gguf'"),
    ):
        with pytest.raises((InputError, ModelError), match=said):
            calibrate.calibrate("nothing", "joy", teacher=teacher)
    with pytest.raises(InputError, match="another than the judge, got 'question:x'"):
        calibrate.calibrate("nothing", "joy", teacher="x", audit="question:x")


def test_code_tells_judges_of_the_same_name_apart(monkeypatch):
    def of(source):
        scope = {}
        exec(source, scope)
        return judge_digest(scope["judge"])

    body = "def judge(texts, _):\n return [float(any(w in {'a', 'b'} for w in t)) for t in texts]"
    assert of(body) == of("\n\n" + body)
    assert of(body) != of(body.replace("'b'", "'c'"))
    assert of(body) != of(body.replace("any", "all"))
    module = types.ModuleType("my_judges")
    exec(body, vars(module))
    monkeypatch.setitem(sys.modules, "my_judges", module)
    assert judge_digest("my_judges:judge") == judge_digest(FunctionJudge(module.judge)) == of(body)
    assert {judge_digest(each) for each in ("auto", "question", "openai:m", None)} == {None}

    class Mine:
        def score(self, texts, concept):
            return [0.5] * len(texts)

    assert judge_digest(Mine()) == judge_digest(Mine()) not in (None, of(body))


def test_a_models_files_and_a_servers_address_tell_judges_of_the_same_name_apart(
    tmp_path, monkeypatch
):
    path = tmp_path / "judge.gguf"
    marks = []
    for held in (b"one", b"two", b"two longer", b"one"):
        path.write_bytes(held)
        marks.append(judge_digest(f"question:{path}"))
    assert marks[0] == marks[3] is not None
    assert len({*marks}) == 3
    addresses, held = [], [{"id": "m", "meta": {"size": 1}}]

    def models():
        return listed(*held)

    with serving(says, models=models) as one, serving(says, models=models) as two:
        for server in (one, two):
            monkeypatch.setenv("OPENAI_BASE_URL", server.url)
            addresses.append(judge_digest("openai:m"))
        assert addresses[0] != addresses[1] == judge_digest("openai:m", two.url)
        held[0] = {"id": "m", "meta": {"size": 2}}
        assert judge_digest("openai:m", two.url) != addresses[1]


def test_judges_have_names():
    assert judge_name("auto") == "probe"
    assert judge_name("embedding") == "embedding"
    assert judge_name(counting) == f"{__name__}:counting"
    assert judge_name(FunctionJudge(counting)) == "probes.judges:FunctionJudge"


def answering(answers):
    """Put two texts before a judge that answers with this."""
    reader = Reader(FunctionJudge(lambda texts, concept: answers), "bright", "mine")
    return lambda _: reader.read(["sun", "rain"])


def failing(texts, concept):
    raise KeyError("no such\nconcept")


def all_alike(score, texts=("sun", "rain", "house")):
    reader = Reader(FunctionJudge(score), "bright", "mine")
    return lambda _: reader.require_distinctions(list(texts[:2]), list(texts[2:]))


def calibrating(**options):
    return lambda _: calibrate.calibrate("nothing", "joy", audit=None, **options)


MUST = "judge 'mine' must return 2 probabilities, got"
REFUSED = [
    Refused(
        "a judge with one answer for all",
        f"{MUST} an array of shape (1,) with values from 0.5 to 0.5",
        answering([0.5]),
    ),
    Refused("a judge that answers with a number", f"{MUST} an array of shape ()", answering(0.5)),
    Refused(
        "a judge whose answers are no probabilities",
        f"{MUST} an array of shape (2,) with values from 0.5 to 1.5",
        answering([0.5, 1.5]),
    ),
    Refused(
        "a judge that answers NaN",
        f"{MUST} an array of shape (2,) with values from nan to nan",
        answering([0.5, float("nan")]),
    ),
    Refused("a judge that answers None", f"{MUST} values such as 'None'", answering([None, 0.5])),
    Refused("a judge that answers nothing at all", f"{MUST} an array of shape ()", answering(None)),
    Refused(
        "a judge that answers in words", f"{MUST} values such as 'yes'", answering(["yes", "no"])
    ),
    Refused(
        "a judge with answers of several lengths",
        f"{MUST} ValueError: …",
        answering([[0.5], [0.5, 0.1]]),
    ),
    Refused(
        "a judge that fails",
        f"{MUST} KeyError: 'no such\\nconcept'",
        lambda _: Reader(FunctionJudge(failing), "bright", "mine").read(["sun", "rain"]),
    ),
    Refused(
        "a judge who says 0.5 of everything",
        "judge 'mine' must tell texts apart, got 0.5 for all of 3 texts, …; name another judge",
        all_alike(lambda texts, _: [0.5] * len(texts)),
    ),
    Refused(
        "a judge whose scores hardly differ",
        "judge 'mine' must tell texts apart, got 0.5003 to 0.5005 for all of 3 texts, …; "
        "name another judge",
        all_alike(lambda texts, _: [0.5 + len(text) / 1e4 for text in texts]),
    ),
    Refused(
        "a teacher of whom no probe learns",
        "--teacher needs --judge auto, got question; add it or leave --teacher out",
        calibrating(judge="question", teacher="openai:m"),
    ),
    Refused(
        "a judge's question that nobody is asked",
        "--judge-question needs a judge or a teacher that is asked, got probe; name one, …",
        calibrating(judge_question="Is {text} full of {concept}?"),
    ),
    Refused(
        "a server's address that nobody is asked at",
        "--judge-url needs a judge or a teacher on a server, got question; name one, …",
        calibrating(judge="question", judge_url="http://localhost:1/v1"),
    ),
]


@each(REFUSED)
def test_a_judge_who_cannot_judge_is_refused(row, tmp_path):
    row.check(tmp_path)


def test_a_judge_may_read_all_replies_alike_if_it_tells_written_texts_apart():
    seen = []
    reader = Reader(
        FunctionJudge(lambda texts, _: seen.extend(texts) or [float("sun" in t) for t in texts]),
        "bright",
        "mine",
    )
    reader.require_distinctions(["sun", "rain"], ["house", ""])
    assert seen == ["sun", "rain"]  # enough to know
    reader.require_distinctions(["rain"], ["house", "sun"])
    reader.require_distinctions([], ["", " "])  # nothing was said of anything


@pytest.mark.parametrize("role", ["judge", "audit"])
def test_a_calibration_with_a_judge_who_says_half_of_everything_is_refused(role, tiny_options):
    other = {} if role == "judge" else {"judge": counting}
    with pytest.raises(InputError, match=r"constant' must tell texts apart, got 0\.5 for all"):
        calibrate.calibrate(tiny.model("gpt2"), **{**tiny_options, **other, role: constant})


def constant(texts, concept):
    return np.full(len(texts), 0.5)


def test_an_empty_text_is_not_put_before_the_judge():
    seen = []
    reader = Reader(
        FunctionJudge(lambda texts, _: seen.extend(texts) or [1.0] * len(texts)), "", ""
    )
    assert reader.read(["", "sun", " \n"]).tolist() == [0.0, 1.0, 0.0]
    assert seen == ["sun"]


def test_without_the_probe_no_probe_is_fitted(material):
    loaded, stuff, settings = material
    panel = make_judges(loaded, stuff, never_dull, counting, None, settings)
    assert panel.probe is None
    assert panel.final is panel.reader
    assert panel.reader.name == f"{__name__}:never_dull"
    assert panel.auditor.read(["sun laugh", "rain"]).tolist() == [1.0, 0.0]


def test_without_a_teacher_a_probe_learns_from_the_written_texts_and_reads_everything(material):
    loaded, stuff, settings = material
    panel = make_judges(loaded, stuff, "auto", None, Lesson("written"), settings)
    learned, texts = panel.probe.learned, stuff.splits["probe"]
    assert (learned.source, learned.teacher) == ("written", None)
    assert learned.n_texts == {"positive": len(texts.positives), "negative": len(texts.negatives)}
    assert panel.final is panel.reader
    assert panel.reader.name == "probe"
    assert panel.auditor is None


def test_the_second_judge_is_the_embedding_unless_it_is_the_judge():
    assert choose_audit("auto", "auto") == "embedding"
    assert choose_audit("embedding", "auto") is None
    assert choose_audit("auto", "none") is None
    assert choose_audit("auto", None) is None
    assert choose_audit("auto", counting) is counting


def test_a_judge_is_made_again_from_its_name_or_says_why_not(monkeypatch):
    module = types.ModuleType("house_judges")
    module.counting = counting
    monkeypatch.setitem(sys.modules, "house_judges", module)
    loaded = tiny.loaded()
    assert judge_again(loaded, "house_judges:counting", "bright", "", Settings()).score(
        ["sun"], ""
    ) == [1.0]
    assert isinstance(judge_again(loaded, "question", "bright", "", Settings()), Question)
    with pytest.raises(InputError, match="not kept; calibrate anew with another --judge"):
        judge_again(loaded, "embedding", "bright", "", Settings())
    with pytest.raises(InputError, match="'embedding' was fitted on texts that are not kept"):
        judge_again(loaded, "embedding", "joy", "the hash of other texts", Settings())
    with pytest.raises(InputError, match=r"in memory, .* --judge module:function"):
        judge_again(loaded, "collections:Counter", "bright", "", Settings())


def test_a_scaled_judge_ranks_as_the_judge_does_and_answers_on_the_readers_scale():
    judge = ScaledJudge(FunctionJudge(lambda texts, _: [0.0, 0.5, 1.0]), Scale(2.0, -1.0))
    low, middle, high = judge.score(["a", "b", "c"], "")
    assert middle == pytest.approx(1 / (1 + np.e))  # sigmoid(2 · 0 - 1)
    assert 0 < low < 1e-6
    assert 1 - 1e-6 < high < 1


def test_a_planted_cheat_reads_the_vector_and_the_judge_does_not(finished):
    """At half the strength, on text that has not changed at all: every text reads higher."""
    config, probe = finished.result.config, finished.result.probe
    loaded = load_model(tiny.model("gpt2"), tiny.tokenizer())
    untouched = [one.unsteered for one in finished.result.evidence.completions if one.unsteered]
    honest = probe.score(untouched, loaded)
    strength = 0.5 * config.intervention.strength
    with config.steering_vector.apply(loaded.blocks, strength):
        cheat = probe.score(untouched, loaded)
    assert (cheat[honest > 0] > honest[honest > 0]).all()
    assert cheat.mean() > honest.mean() + 0.05


def test_presence_is_read_with_the_steering_taken_away(finished):
    """What the judge scores within a measurement is what it scores of the bare texts after it."""
    config, probe = finished.result.config, finished.result.probe
    loaded = load_model(tiny.model("gpt2"), tiny.tokenizer())
    prompts = [encode_prompt(loaded, text) for text in tiny.prompts(12)]
    push = Site((config.steering_vector,)).steering(config.intervention.strength)
    (measured,) = measure_presence(
        loaded,
        Reader(probe.on(loaded), "bright", "probe"),
        [Request(prompts, 1, push)],
        Settings().sampling,
        seed=0,
    )
    again = probe.score([one.text for one in measured.completions], loaded)
    assert measured.scores == pytest.approx(again, abs=1e-6)


def test_a_calibration_is_judged_and_audited_by_whom_one_likes(tiny_options, tmp_path):
    result = calibrate.calibrate(
        tiny.model("gpt2"),
        out=tmp_path / "out",
        **{**tiny_options, "judge": counting, "audit": never_dull},
    )
    measured = result.config.measured
    assert measured.judges == [f"{__name__}:counting", f"{__name__}:never_dull"]
    assert result.probe is None
    replies = result.evidence.completions
    assert [one.steered_presence for one in replies] == pytest.approx(
        [counting([one.steered], "")[0] if one.steered else 0.0 for one in replies]
    )
    assert measured.audit.judge == f"{__name__}:never_dull"
    assert measured.audit.change.low > 0
    assert measured.audit.agreement > 0.3
    assert measured.audit.opinion == "confirms"
    again = calibrate.Calibration.load(tmp_path / "out")
    assert again.probe is None
    report = (tmp_path / "out" / "report.html").read_text()
    assert f"Audit by {__name__}:never_dull" in report
    assert "the second judge confirms the change" in report
    assert f"changes of {measured.presence.detectable:.3f} or more would be seen" in report


def test_truncations_labelled_by_a_coin_are_not_told_apart(material):
    """Forty plain sentences, eight truncations each, which would tell each other's labels."""
    loaded, stuff, settings = material
    rng = random.Random(1)
    sentences = [tiny.text(tiny.PLAIN, rng, length=14) for _ in range(40)]
    cut = [" ".join(text.split()[: 7 + k]) for text in sentences for k in range(8)]
    heads = [rng.random() < 0.5 for _ in cut]
    sides = (
        [text for text, up in zip(cut, heads, strict=True) if up is side] for side in (True, False)
    )
    splits = Concept.from_texts("coin", *sides).split()
    coin = replace(stuff, concept="coin", splits=splits)
    with pytest.raises(Infeasible, match=r"the probe cannot tell 'coin' apart: its AUC is 0\."):
        make_judges(loaded, coin, "auto", None, Lesson("written"), settings)


@pytest.mark.parametrize(("skilled", "expected"), [(True, "embedding"), (False, None)])
def test_a_second_judge_that_cannot_tell_graded_replies_apart_reads_nothing(
    skilled, expected, monkeypatch
):
    graded = [
        GradedText(text, grade=float(grade), group=text)
        for grade, words in ((2, tiny.BRIGHT), (0, tiny.DULL))
        for text in tiny.texts(words, 10)
    ]
    monkeypatch.setattr(panels, "graded_replies", lambda _: graded)
    blind = FunctionJudge(lambda texts, _: [(len(text) % 7) / 7 for text in texts])
    judge = FunctionJudge(counting) if skilled else blind
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = panels._if_skilled(Reader(judge, "bright", "embedding"))
    assert (found and found.name) == expected
    assert bool(said) is not skilled
