"""A concept that the model writes from a description."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tiny
from refused import Refused, each

from calibrate.common.errors import ConceptError
from calibrate.common.settings import Sampling, Settings
from calibrate.models.prompts import encode_prompt
from calibrate.texts import describe
from calibrate.texts.concept import MIN_TEXTS
from calibrate.texts.describe import describe_concept

ASKED = "clearly expresses this: sunny"
OPPOSITE = "clearly expresses the opposite of: sunny"


def described(monkeypatch, bright, dull):
    """What is made of replies by a writer that does as its system message says.

    bright, dull: these many texts, from the number of questions; "" for no reply.
    """
    systems = {}

    def encoded(writer, question, *, system):
        prompt = encode_prompt(writer, question, system=system)
        systems[prompt.ids] = system
        return prompt

    def sample(_writer, prompts, *_):
        (system,) = {systems[prompt.ids] for prompt in prompts}
        assert (ASKED in system) != (OPPOSITE in system)
        replies = (bright if ASKED in system else dull)(len(prompts))
        return [SimpleNamespace(text=text, answered=True) for text in replies]

    monkeypatch.setattr(describe, "encode_prompt", encoded)
    monkeypatch.setattr(describe, "sample", sample)
    return describe_concept(tiny.loaded(chat=True), "light", "sunny")


def bright(n):
    return tiny.texts(tiny.BRIGHT, n)


def dull(n):
    return tiny.texts(tiny.DULL, n)


def test_what_was_asked_for_is_positive_and_its_opposite_negative(monkeypatch):
    concept = described(monkeypatch, bright, dull)
    positives, negatives = concept.texts.positives, concept.texts.negatives
    assert concept.name == "light"
    assert len(positives) >= MIN_TEXTS
    assert [text.text for text in positives] == bright(len(positives))
    assert [text.text for text in negatives] == dull(len(negatives))


def test_both_answers_to_a_question_share_it_and_their_split(monkeypatch):
    concept = described(monkeypatch, bright, dull)
    pairs = list(zip(concept.texts.positives, concept.texts.negatives, strict=True))
    assert all(one.prompt and one.prompt == other.prompt for one, other in pairs)
    assert all(one.key == other.key for one, other in pairs)
    asked = [
        {text.prompt for text in (*part.positives, *part.negatives)}
        for part in concept.split().values()
    ]
    assert sum(map(len, asked)) == len(set().union(*asked)) == len(pairs)


def test_pairs_with_a_reply_missing_or_said_twice_are_left_out(monkeypatch):
    def with_faults(n):
        return ["", bright(n)[1], *dull(n)[2:]]

    concept = described(monkeypatch, bright, with_faults)
    assert not {*bright(2)} & {text.text for text in concept.texts.positives}
    assert "" not in {text.text for text in concept.texts.negatives}


def thinking_for(monkeypatch, most):
    """A writer that thinks for 100 tokens before it writes, given so many; its lengths."""
    lengths = []

    def sample(_writer, prompts, sampling, _seed):
        lengths.append(sampling.max_new_tokens)
        texts = bright(len(prompts)) if len(lengths) == 1 else dull(len(prompts))
        done = sampling.max_new_tokens > 100
        return [SimpleNamespace(text=text if done else "", answered=done) for text in texts]

    monkeypatch.setattr(describe, "sample", sample)
    settings = Settings(sampling=Sampling(max_new_tokens=most))
    describe_concept(tiny.loaded(chat=True), "light", "sunny", settings)
    return lengths


def test_a_model_that_thinks_first_writes_as_long_as_replies_may_be(monkeypatch):
    assert thinking_for(monkeypatch, 512) == [512, 512]


def thinking_too_long(_folder):
    with pytest.MonkeyPatch.context() as patch:
        thinking_for(patch, 8)


def too_few(_folder):
    with pytest.MonkeyPatch.context() as patch:
        described(patch, bright, lambda n: [*dull(5), *[""] * (n - 5)])


REFUSED = [
    Refused(
        "texts from a description by a model without a chat template",
        "--describe needs a model with a chat template to write the texts, and … has none; write "
        "them elsewhere and give them with --positives and --negatives",
        lambda _: describe_concept(tiny.loaded(), "light", "sunny"),
        ConceptError,
    ),
    Refused(
        "a description for a model that thinks for longer than a text",
        "most replies must get from the thought to the answer, but … of … think for all of their "
        "48 tokens; allow more with --reply-tokens, or try --chat-template-kwargs "
        "'{\"enable_thinking\": false}'",
        thinking_too_long,
    ),
    Refused(
        "a description of which the model makes too little",
        f"… wrote only 5 usable pairs of texts for 'sunny', and {MIN_TEXTS} are needed; describe "
        "it in other words",
        too_few,
        ConceptError,
    ),
]


@each(REFUSED)
def test_what_no_concept_can_be_written_of_is_refused(row, tmp_path):
    row.check(tmp_path)
