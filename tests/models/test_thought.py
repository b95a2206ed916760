"""Where the answer begins, in replies of models that think first."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from refused import Refused, each

from calibrate.cli import talk
from calibrate.common.settings import Sampling, Settings
from calibrate.engine.generation import completed
from calibrate.engine.loading import load_model
from calibrate.models.prompts import encode_prompt, encode_reply
from calibrate.models.thought import opened_by, thought_length
from calibrate.texts.replies import require_answers, sample_unsteered

WORDS = {
    word: place
    for place, word in enumerate(
        "<think> </think> <|channel|> analysis final <|message|> <|end|> [THINK] [/THINK]".split()
    )
}


class Words:
    """A tokenizer of whole words; those in angle or square brackets are special."""

    def __init__(self):
        self.known = dict(WORDS)

    def __call__(self, text):
        return [self.known.setdefault(word, len(self.known)) for word in text.split()]

    def decode(self, ids, skip_special_tokens=False):
        words = list(self.known)
        said = [words[one] for one in ids]
        return " ".join(w for w in said if not (skip_special_tokens and w[0] in "<["))


@pytest.mark.parametrize(
    ("reply", "opened", "answer"),
    [
        ("the sun shines", "", "the sun shines"),
        ("<think> hm well </think> the sun", "", "the sun"),
        ("<think> </think> the sun", "", "the sun"),
        ("hm well </think> the sun", "</think>", "the sun"),
        ("[THINK] hm [/THINK] yes", "", "yes"),
        ("<think> one </think> <think> two </think> yes", "", "yes"),
        ("<think> hm well", "", None),
        ("hm well", "</think>", None),
        ("<think>", "", None),
        ("the tag <think> begins a thought", "", "the tag begins a thought"),
        ("", "", ""),
        ("<think> hm </think>", "", ""),
    ],
)
def test_the_answer_is_what_follows_the_thought(reply, opened, answer):
    tokenizer = Words()
    ids = tokenizer(reply)
    thought = thought_length(tokenizer, ids, opened)
    if answer is None:
        assert thought is None
    else:
        assert tokenizer.decode(ids[thought:], skip_special_tokens=True) == answer


class Joined(Words):
    """The same, without spaces between the words, as channel marks are written."""

    def decode(self, ids, skip_special_tokens=False):
        return super().decode(ids, skip_special_tokens).replace(" ", "")


def test_what_stands_before_the_channel_of_the_answer_is_thought():
    tokenizer = Joined()
    begun = "<|channel|> analysis <|message|> hm <|end|>"
    ids = tokenizer(f"{begun} <|channel|> final <|message|> yes")
    assert tokenizer.decode(ids[thought_length(tokenizer, ids) :]) == "yes"
    assert thought_length(tokenizer, tokenizer(begun)) is None


@pytest.mark.parametrize(
    ("prompt", "end"),
    [
        ("<user> hello <reply> <think>\n", "</think>"),
        ("<user> hello <reply> <think>\n\n</think>\n\n", ""),
        ("<user> hello <reply>", ""),
    ],
)
def test_a_prompt_may_begin_the_thought(prompt, end):
    assert opened_by(prompt) == end


def thinker(template=tiny.CHAT_TEMPLATE):
    """A random model whose tokenizer knows thoughts, and whose template may begin one."""
    tokenizer = tiny.tokenizer(chat=True)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    tokenizer.chat_template = template
    model = tiny.model("llama")
    model.resize_token_embeddings(len(tokenizer))
    return load_model(model, tokenizer)


def test_completions_hold_the_answer_and_whether_there_is_one():
    loaded = thinker(tiny.CHAT_TEMPLATE.replace("<reply>{% endif", "<reply> <think>{% endif"))
    prompt = encode_prompt(loaded, "the house")
    assert prompt.opened == "</think>"
    said = loaded.tokenizer("the sun </think> a song", add_special_tokens=False)["input_ids"]
    whole, cut = (completed(loaded, prompt, 0, ids) for ids in (said, said[:2]))
    assert (whole.text, whole.answered, whole.spoken) == ("a song", True, True)
    assert (cut.text, cut.answered, cut.spoken) == ("", False, True)
    assert whole.sequence.ids[whole.sequence.start :] == tuple(said)


def test_a_written_reply_stands_after_an_empty_thought():
    loaded = thinker(tiny.CHAT_TEMPLATE.replace("<reply>{% endif", "<reply> <think>{% endif"))
    prompt, sequence = encode_prompt(loaded, "the house"), encode_reply(loaded, "the house", "sun")
    decoded = loaded.tokenizer.convert_ids_to_tokens(sequence.ids[len(prompt.ids) :])
    assert decoded == ["</think>", "sun"]
    assert sequence.n_scored == 1


CHANNELS = (
    "{% for m in messages %}{% if m.role == 'user' %}<user> {{ m.content }} {% else %}"
    "<reply><|channel|>final<|message|>{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<reply>{% endif %}"
)


@pytest.mark.parametrize("named_already", [False, True])
def test_a_written_reply_stands_in_the_channel_of_answers(named_already):
    marks = ["<|channel|>", "<|message|>"]
    tokenizer = tiny.tokenizer(chat=True)
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    tokenizer.add_tokens(["final"])
    named = "<reply><|channel|>final<|message|>{% endif"
    tokenizer.chat_template = (
        CHANNELS.replace("<reply>{% endif", named) if named_already else CHANNELS
    )
    model = tiny.model("llama")
    model.resize_token_embeddings(len(tokenizer))
    loaded = load_model(model, tokenizer)
    prompt, sequence = encode_prompt(loaded, "the house"), encode_reply(loaded, "the house", "sun")
    after = tokenizer.convert_ids_to_tokens(sequence.ids[-5:])
    assert after == ["<reply>", "<|channel|>", "final", "<|message|>", "sun"]
    assert prompt.ids == sequence.ids[: len(prompt.ids)]
    assert sequence.n_scored == 1


def never_answering(_folder):
    """A model that can say nothing but one plain word, inside the thought its template begins."""
    loaded = thinker(tiny.CHAT_TEMPLATE.replace("<reply>{% endif", "<reply> <think>{% endif"))
    weight = loaded.unembedding.weight
    with torch.no_grad():
        weight[loaded.tokenizer.convert_tokens_to_ids("</think>")] = 0
        weight[2] = 0
    settings = Settings(sampling=Sampling(temperature=0.01, max_new_tokens=5))
    sample_unsteered(loaded, tiny.prompts(30), settings)


REFUSED = [
    Refused(
        "a model that thinks, and replies too short to get beyond the thought",
        "most replies must get from the thought to the answer, but … of … think for all of their "
        "5 tokens; allow more with --reply-tokens, or try --chat-template-kwargs "
        """'{"enable_thinking": false}'""",
        never_answering,
    ),
]


@each(REFUSED)
def test_replies_that_are_all_thought_are_refused(row, tmp_path):
    row.check(tmp_path)


def test_half_of_the_replies_may_end_in_the_thought():
    loaded = thinker()
    prompt = encode_prompt(loaded, "the house")
    open_, done = (
        completed(loaded, prompt, 0, loaded.tokenizer(text, add_special_tokens=False)["input_ids"])
        for text in ("<think> sun", "sun")
    )
    require_answers([open_, done], Settings())


def test_generate_says_that_a_model_is_still_thinking(capsys):
    loaded = thinker()
    prompt = encode_prompt(loaded, "the house")
    cut, done = (
        completed(loaded, prompt, 0, loaded.tokenizer(text, add_special_tokens=False)["input_ids"])
        for text in ("<think> sun", "<think> sun </think> a song")
    )
    talk._print_replies("the house", done, cut, 0.5, as_json=False)
    said = capsys.readouterr().out
    assert "a song" in said
    assert "still thinking after 2 tokens" in said
    talk._print_replies("the house", done, cut, 0.5, as_json=True)
    assert json.loads(capsys.readouterr().out) == {
        "prompt": "the house",
        "strength": 0.5,
        "unsteered": "a song",
        "steered": "",
        "answered": {"unsteered": True, "steered": False},
    }
