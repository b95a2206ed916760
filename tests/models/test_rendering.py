"""Prompts are rendered once, in one way, and what was asked is in them."""

from __future__ import annotations

import json
import runpy
import warnings
from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest
import tiny
import torch
from refused import Refused, each
from tokenizers import processors
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

import calibrate
from calibrate.artefact.sections import RenderingSection
from calibrate.common.errors import CalibrateWarning, InputError, ModelError
from calibrate.common.settings import Sampling
from calibrate.deploy.chat import open_steered
from calibrate.deploy.export import FORMATS, export
from calibrate.deploy.verify import as_calibrated, check_directory, open_model
from calibrate.engine.generation import sample
from calibrate.engine.loading import load_model
from calibrate.models.prompts import encode_empty, encode_prompt, encode_reply, encode_text
from calibrate.models.rendering import render, settle
from calibrate.models.settled_template import with_settled_template
from calibrate.pipelines.hub import card
from calibrate.texts.extraction import extract_vectors

PARTS = (
    "{% for m in messages %}<user> {% if m.content is not string %}{% for p in m.content %}"
    "{{ p.text }} {% endfor %}{% endif %}{% endfor %}<reply>"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'user' %}<user> {{ m.content }} "
    "{% elif m.role == 'assistant' %}<reply> {{ m.content }} {% endif %}{% endfor %}<reply>"
)
NO_HISTORY = "<user> {{ messages[-1].content }} <reply>"
REFUSES_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    + NO_SYSTEM
)
DATED = "today {{ strftime_now('%d %b %Y') }} " + tiny.CHAT_TEMPLATE
THINKING = (
    NO_SYSTEM + "{% if enable_thinking is defined and not enable_thinking %} <none>{% endif %}"
)
TRIMMING = NO_SYSTEM.replace("m.content", "m.content | trim")
ESCAPING = NO_SYSTEM.replace("m.content", "m.content | tojson")
SEPARATED = "{% for m in messages %}{{ m.content }} {{ eos_token }} {% endfor %}"


def tokenizer(template):
    made = tiny.tokenizer(chat=True)
    made.chat_template = template
    return made


def loaded_with(template, **options):
    return load_model(tiny.model("llama"), tokenizer(template), **options)


def text_of(loaded, prompt, **options):
    return render(loaded.tokenizer, loaded.rendering, prompt, **options)


@pytest.mark.parametrize(
    "template",
    [tiny.CHAT_TEMPLATE, PARTS, NO_SYSTEM, REFUSES_SYSTEM, NO_HISTORY, TRIMMING, ESCAPING, DATED],
)
@pytest.mark.filterwarnings("ignore::calibrate.common.errors.CalibrateWarning")
def test_everything_that_is_said_is_in_the_prompt(template):
    loaded = loaded_with(template)
    for asked in ("the house", 'a "road"\nwith two ends'):
        text = text_of(loaded, asked, system="be brief", history=[("one stone", "two stone")])
        shown = text.replace("\\n", "\n").replace('\\"', '"')
        for said in (asked, "be brief", "one stone", "two stone"):
            assert said in shown
        assert text != text_of(loaded, asked)
    assert text_of(loaded, "the house") != text_of(loaded, "the road")


def test_content_is_given_as_parts_where_the_template_wants_parts():
    with pytest.warns(CalibrateWarning, match="list of parts"):
        loaded = loaded_with(PARTS)
    assert loaded.rendering.content == "parts"
    assert encode_prompt(loaded, "sun song").ids != encode_prompt(loaded, "rain mud").ids
    assert tiny.VOCABULARY.index("song") in encode_prompt(loaded, "sun song").ids


@pytest.mark.parametrize("template", [NO_SYSTEM, REFUSES_SYSTEM, NO_HISTORY])
def test_a_system_message_leads_the_prompt_where_there_is_no_system_role(template):
    loaded = loaded_with(template)
    assert loaded.rendering.system == "folded"
    with pytest.warns(CalibrateWarning, match="no system role"):
        text = text_of(loaded, "the house", system="be brief")
    assert text.index("be brief") < text.index("the house")


def test_earlier_turns_stand_in_the_prompt_where_the_template_drops_them():
    loaded = loaded_with(NO_HISTORY)
    assert loaded.rendering.history == "folded"
    with pytest.warns(CalibrateWarning, match="no place for earlier turns"):
        text = text_of(loaded, "the house", history=[("a road", "two stone")])
    assert text.index("a road") < text.index("two stone") < text.index("the house")


def test_an_ordinary_template_leaves_nothing_to_be_said():
    with warnings.catch_warnings():
        warnings.simplefilter("error", CalibrateWarning)
        loaded = loaded_with(tiny.CHAT_TEMPLATE)
        encode_prompt(loaded, "the house", system="sun", history=[("a", "b")])


@pytest.mark.parametrize("as_list", [False, True])
def test_of_several_templates_the_default_is_used(as_list):
    several = {"default": NO_SYSTEM, "tool_use": "{{ tools | length }}"}
    if as_list:
        several = [{"name": name, "template": text} for name, text in several.items()]
    loaded, plain = loaded_with(several), loaded_with(NO_SYSTEM)
    assert encode_prompt(loaded, "the house").ids == encode_prompt(plain, "the house").ids
    assert loaded.identity.chat_template_sha256 == plain.identity.chat_template_sha256


def test_variables_reach_the_template_and_unknown_ones_are_named():
    loaded = loaded_with(THINKING, chat_template_kwargs={"enable_thinking": False})
    assert text_of(loaded, "the house").endswith("<none>")
    assert not text_of(loaded_with(THINKING), "the house").endswith("<none>")
    with pytest.warns(CalibrateWarning, match="knows nothing of 'enable_thinkin'"):
        loaded_with(THINKING, chat_template_kwargs={"enable_thinkin": False})


class Tomorrow(datetime):
    """A clock that has gone on."""

    @classmethod
    def now(cls, tz=None):
        return cls(2031, 5, 6)


def test_the_date_of_a_template_is_frozen(monkeypatch):
    loaded = loaded_with(DATED, template_date="2026-01-31")
    assert loaded.rendering.date == "2026-01-31"
    text = text_of(loaded, "the house")
    assert text.startswith("today 31 Jan 2026 ")
    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    assert text_of(loaded, "the house") == text
    assert "06 May 2031" in loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": "the house"}], tokenize=False
    )


def test_no_date_is_recorded_where_the_template_does_not_show_it():
    assert loaded_with(tiny.CHAT_TEMPLATE).rendering.date is None
    hidden = "{% if tools %}{{ strftime_now('%d %b %Y') }}{% endif %}" + tiny.CHAT_TEMPLATE
    assert loaded_with(hidden).rendering.date is None


def ending(chat=False):
    """A tokenizer that puts </s> after every text, asked for special tokens or not."""
    made = tiny.tokenizer(chat=chat)
    if chat:
        made._tokenizer.post_processor = processors.Sequence(
            [processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 2)])]
        )
        plain = type(made).__call__
        made.__class__ = type(
            "Ending",
            (type(made),),
            {"__call__": lambda self, text, **_: plain(self, text, add_special_tokens=True)},
        )
    else:
        made._tokenizer.post_processor = processors.TemplateProcessing(
            "<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return made


@pytest.mark.parametrize("chat", [False, True])
def test_no_end_token_stands_where_a_text_goes_on_or_is_averaged(chat):
    with pytest.warns(CalibrateWarning, match="puts an end token after every text"):
        loaded = load_model(tiny.model("llama"), ending(chat))
    for ids in (
        encode_prompt(loaded, "the house").ids,
        encode_text(loaded, "sun song").ids,
        encode_reply(loaded, "the house", "sun song").ids,
    ):
        assert 2 not in ids


def test_the_vector_is_the_same_with_a_tokenizer_that_ends_every_text():
    plain = load_model(tiny.model("llama"), tiny.tokenizer(bos=True))
    with pytest.warns(CalibrateWarning):
        ended = load_model(tiny.model("llama"), ending())
    vectors = [
        extract_vectors(
            loaded,
            [encode_text(loaded, text) for text in tiny.texts(tiny.BRIGHT, 6)],
            [encode_text(loaded, text) for text in tiny.texts(tiny.DULL, 6)],
        )
        for loaded in (plain, ended)
    ]
    for one, other in zip(*vectors, strict=True):
        assert torch.equal(one.values, other.values)


def test_an_end_token_that_the_template_itself_writes_stays():
    loaded = loaded_with(SEPARATED)
    assert encode_prompt(loaded, "the house").ids[-1] == 2


@pytest.fixture(scope="module")
def dated(tmp_path_factory, tiny_options):
    """A calibration of a model on disk, with variables and a date for its template."""
    folder = tmp_path_factory.mktemp("dated")
    template = DATED.replace("today", "{{ mood }} today")
    tiny.model("gpt2").save_pretrained(folder / "model")
    tokenizer(template).save_pretrained(folder / "model")
    options = {**tiny_options, "tokenizer": None, "chat_template_kwargs": {"mood": "calm"}}
    today = datetime.now().date().isoformat()
    result = calibrate.calibrate(str(folder / "model"), out=folder / "bright", **options)
    return result, folder / "bright", options, today


def test_the_config_records_what_the_template_was_given(dated):
    result, directory, _, today = dated
    recorded = calibrate.load(directory).rendering
    assert recorded.kwargs == {"mood": "calm"}
    assert recorded.date == today
    assert (recorded.content, recorded.system, recorded.strips_end) == ("text", "role", False)
    assert result.config.version == 2


def test_every_later_command_renders_as_the_calibration_did(dated, monkeypatch):
    """On another day, and without naming the variables again."""
    result, directory, options, _ = dated
    config = result.config
    monkeypatch.setattr("calibrate.models.rendering.day_of", Someday)
    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    prompt = result.evidence.splits.prompts["verify"][0]
    reference = config.reference.input_ids
    bare = load_model(config.model.id)
    assert bare.rendering.date == "2031-05-06"
    with open_steered(directory) as opened:
        places = [open_model(config), as_calibrated(config, bare), opened.loaded]
    for loaded in places:
        ids = encode_prompt(loaded, prompt).ids
        assert list(ids) == reference[: len(ids)]
    assert check_directory(directory).passed
    assert check_directory(directory, bare).passed
    assert calibrate.calibrate(config.model.id, out=directory, **options).config == config


def as_any_program(folder, **options):
    """A prompt as any program renders it that loads a tokenizer."""
    conversation = [{"role": "user", "content": "the house"}]
    return AutoTokenizer.from_pretrained(folder).apply_chat_template(
        conversation, tokenize=False, add_generation_prompt=True, **options
    )


def test_a_folded_checkpoint_renders_as_the_calibration_did(dated, monkeypatch, tmp_path):
    """On another day, and whatever a request gives."""
    result = dated[0]
    loaded = open_model(result.config)
    plain = loaded.tokenizer.chat_template
    written = result.export("folded", tmp_path / "folded", loaded)
    assert loaded.tokenizer.chat_template == plain
    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    expected = text_of(loaded, "the house")
    assert "calm today" in expected
    assert as_any_program(tmp_path / "folded") == expected
    assert as_any_program(tmp_path / "folded", mood="wild") == expected
    assert not any("chat template" in line for line in written.serve)


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("folded", "snippet")])
def test_other_exports_say_what_the_template_must_be_given(name, dated, finished, tmp_path):
    result, _, _, today = dated
    target = tmp_path / {"lm-eval": "v.pt", "svec": "v.svec"}.get(name, "v")
    said = result.export(name, target, open_model(result.config)).serve[-1]
    assert said == (
        f'the chat template must be given chat_template_kwargs {{"mood": "calm"}} and {today} as '
        "its date of today, as for the calibration"
    )
    again = finished.result.export(
        name, tmp_path / f"again{target.suffix}", load_model(tiny.model("gpt2"), tiny.tokenizer())
    )
    assert not any("chat template" in line for line in again.serve)


def test_a_model_card_says_what_the_template_must_be_given(dated, finished):
    assert 'given chat_template_kwargs {"mood": "calm"} and' in card(dated[0], "me/x", {}, [])
    assert "chat_template_kwargs" not in card(finished.result, "me/x", {}, [])


VALUES = {
    "a flag": False,
    "nothing": None,
    "numbers": [-3, 0.5, 1e-07, 12345678901234567890],
    "quotes and backslashes": 'it\'s "so" \\ or \\n',
    "lines and signs": "one\n\ttwo\x00 \u2028 😀 é",
    "Jinja's own signs": "%} }} {{ x }} {# y #} -%}",
    "things inside": {"a": {"b": None, "c": [True, {}]}, "d e": "f'"},
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize(
    "template",
    [
        "{{ value | tojson }} {{ value }}",
        "{% if value is defined and value is none %}none{% endif %}",
        "{% macro said() %}{{ value }}{% endmacro %}{% for m in [1, 2] %}{{ said() }}{% endfor %}",
        "\n  {% for m in messages %}{{ value }}{% endfor %}",
        "{% set value = value or 'else' %}{{ value }}",
    ],
)
@pytest.mark.filterwarnings("ignore::calibrate.common.errors.CalibrateWarning")
def test_a_variable_at_the_head_of_a_template_is_as_good_as_given(value, template):
    given = {"value": value, "not-a-name": 1}
    loaded = loaded_with(template + NO_SYSTEM, chat_template_kwargs=given)
    again = with_settled_template(loaded.tokenizer, loaded.rendering)
    expected = text_of(loaded, "the house")
    assert render(again, replace(loaded.rendering, kwargs={}), "the house") == expected
    assert render(again, replace(loaded.rendering, kwargs={"value": "x"}), "the house") == expected


@pytest.mark.parametrize("as_list", [False, True])
def test_of_several_templates_the_one_in_use_is_settled(as_list):
    several = {"tool_use": NO_SYSTEM, "default": THINKING}
    if as_list:
        several = [{"name": name, "template": text} for name, text in several.items()]
    loaded = loaded_with(several, chat_template_kwargs={"enable_thinking": False})
    again = with_settled_template(loaded.tokenizer, loaded.rendering)
    assert again.chat_template["tool_use"] == NO_SYSTEM
    assert render(again, settle(again), "the house").endswith("<none>")


class Someday:
    """A calendar that has gone on."""

    fromisoformat = staticmethod(lambda text: datetime.fromisoformat(text).date())
    today = staticmethod(lambda: Tomorrow.now().date())


def test_other_variables_are_another_calibration(dated):
    result, directory, options, _ = dated
    with pytest.raises(calibrate.ArtefactError, match="made with other settings"):
        calibrate.calibrate(
            result.config.model.id,
            out=directory,
            **{**options, "chat_template_kwargs": {"mood": "wild"}},
        )


def test_an_interrupted_study_keeps_its_date(tiny_options, tmp_path, monkeypatch):
    class Interrupting(calibrate.calibration.Progress):
        def tried(self, trial):
            raise KeyboardInterrupt

    options = {**tiny_options, "tokenizer": tokenizer(DATED), "out": tmp_path / "out"}
    with pytest.raises(KeyboardInterrupt):
        calibrate.calibrate(tiny.model("gpt2"), progress=Interrupting(), **options)
    before = datetime.now().date().isoformat()
    monkeypatch.setattr("calibrate.models.rendering.day_of", Someday)
    config = calibrate.calibrate(tiny.model("gpt2"), **options).config
    assert config.rendering.date == before


def test_a_config_of_version_1_still_loads(finished, tmp_path):
    finished.result.save(tmp_path)
    path = tmp_path / "steering.json"
    facts = json.loads(path.read_text())
    facts["version"] = 1
    for section, names in (("measured", ["long_run"]), (None, ["rendering"])):
        for name in names:
            (facts if section is None else facts[section]).pop(name)
    for name in ("unanswered", "unanswered_baseline"):
        facts["measured"]["presence"].pop(name)
    path.write_text(json.dumps(facts))
    config = calibrate.load(tmp_path)
    assert config.version == 1
    assert config.rendering is None
    assert config.measured.long_run is None
    report = check_directory(tmp_path, load_model(tiny.model("gpt2"), tiny.tokenizer()))
    assert report.passed
    assert "long run" not in [check.name for check in report.checks]


def refused(template, **options):
    def act(_folder):
        loaded_with(template, **options)

    return act


def longer_than_the_context(_folder):
    loaded = tiny.loaded()
    sample(loaded, [encode_prompt(loaded, "the house")], Sampling(max_new_tokens=127), 0)


REFUSED = [
    Refused(
        "a template that needs a variable nobody gave",
        "the chat template of … must render a conversation, but fails ('persona' is undefined); "
        "give the variables it needs with --chat-template-kwargs, or mend the template",
        refused(NO_SYSTEM + "{{ persona.name }}"),
    ),
    Refused(
        "a template with a fault in it",
        "the chat template of … must render a conversation, but fails (…); give the variables it "
        "needs with --chat-template-kwargs, or mend the template",
        refused("{% for m in messages %}{{ m.content }"),
    ),
    Refused(
        "a template that calls what is not there",
        "the chat template of … must render a conversation, but fails (…); give the variables it "
        "needs with --chat-template-kwargs, or mend the template",
        refused("{{ messages.nothing() }}"),
    ),
    Refused(
        "a template that drops the user's message",
        "the chat template of … must put the user message into the prompt, but '…' is not in what "
        "it makes; mend the template, or remove it to use the model as a base model",
        refused("<user> hello <reply>"),
    ),
    Refused(
        "several chat templates, none of them called default",
        "a tokenizer with several chat templates must call one of them default, got rag, tool_use; "
        "set tokenizer.chat_template to the one that is served",
        refused({"rag": NO_SYSTEM, "tool_use": NO_SYSTEM}),
        ModelError,
    ),
    Refused(
        "template variables for a model without a template",
        "--chat-template-kwargs needs a chat template, and this tokenizer has none, got "
        '{"mood": "calm"}; leave the option out',
        refused(None, chat_template_kwargs={"mood": "calm"}),
    ),
    Refused(
        "template variables that are no JSON",
        "--chat-template-kwargs must be a JSON object, got … (…)",
        refused(NO_SYSTEM, chat_template_kwargs={"today": datetime.now()}),
    ),
    Refused(
        "template variables that rendering sets by itself",
        "--chat-template-kwargs takes the template's own variables, got add_generation_prompt, "
        "which rendering sets by itself; leave that out",
        refused(NO_SYSTEM, chat_template_kwargs={"add_generation_prompt": False}),
    ),
    Refused(
        "random negatives, and a template that refuses an empty turn",
        "the chat template of … must render a conversation, but fails (say something); give the "
        "variables it needs with --chat-template-kwargs, or mend the template; use --negatives "
        "contrastive",
        lambda _: encode_empty(
            loaded_with(
                "{% if not messages[0].content %}{{ raise_exception('say something') }}{% endif %}"
                + NO_SYSTEM
            )
        ),
    ),
    Refused(
        "an empty prompt for a base model",
        "a prompt must have at least one token, got ''; write one",
        lambda _: encode_prompt(tiny.loaded(), ""),
    ),
    Refused(
        "a prompt and a reply that do not fit the context together",
        "a prompt and its reply must fit the model's context of 128 tokens together, got 2 and "
        "127: 'the house'; shorten the prompt, or ask for fewer tokens",
        longer_than_the_context,
    ),
    Refused(
        "a prompt longer than the context",
        "a text must fit the model's context of 128 tokens, got 200: 'sun …'…; shorten it or "
        "split it",
        lambda _: encode_prompt(tiny.loaded(), "sun " * 200),
    ),
]


@each(REFUSED)
def test_what_cannot_be_rendered_is_refused(row, tmp_path):
    row.check(tmp_path)


def test_a_fault_in_the_template_shows_at_once():
    with pytest.raises(InputError):
        settle(tokenizer("{{ nothing.at.all }}"))


def test_replies_to_a_template_of_parts_differ(tiny_options):
    """The whole way, with the template that used to make all prompts alike."""
    options = {**tiny_options, "tokenizer": tokenizer(PARTS)}
    with pytest.warns(CalibrateWarning):
        result = calibrate.calibrate(tiny.model("gpt2"), **options)
    unsteered = [one.unsteered for one in result.evidence.completions]
    assert len(set(unsteered)) > len(unsteered) / 2
    assert np.isfinite(result.config.measured.delta_ce.value)


@pytest.mark.parametrize(
    ("made", "options"),
    [
        (lambda: tokenizer(DATED), {"template_date": "2026-01-31"}),
        (lambda: tokenizer(THINKING), {"chat_template_kwargs": {"enable_thinking": False}}),
        (lambda: tokenizer(PARTS), {}),
        (lambda: ending(), {}),
        (lambda: tiny.tokenizer(bos=True), {}),
    ],
    ids=["dated", "variables", "parts", "ending", "base"],
)
@pytest.mark.filterwarnings("ignore::calibrate.common.errors.CalibrateWarning")
def test_a_snippet_renders_prompts_as_the_calibration_did(finished, tmp_path, made, options):
    loaded = load_model(tiny.model("gpt2"), made(), **options)
    facts = {"kwargs": {}, "date": None, "content": "text", "system": "role", "history": "turns"}
    facts |= {"kwargs": options.get("chat_template_kwargs", {})}
    facts |= {"date": options.get("template_date"), "strips_end": False}
    section = RenderingSection(**facts) if loaded.is_chat else None
    config = finished.result.config.model_copy(update={"rendering": section})
    export(config, "snippet", tmp_path / "code", loaded)
    code = runpy.run_path(str(tmp_path / "code" / "steer.py"))
    prompt = "the house and the road"
    assert tuple(code["prompt_ids"](loaded.tokenizer, prompt)) == encode_prompt(loaded, prompt).ids
