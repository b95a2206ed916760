"""Have an instruct model write a concept's texts from a description.

Every text answers a prompt of the built-in concepts' texts. The model answers each twice, once
for the concept and once for its opposite, so that positives and negatives match in topic.
"""

from __future__ import annotations

from dataclasses import replace

from calibrate.common.errors import ConceptError
from calibrate.common.settings import Sampling, Settings
from calibrate.engine.generation import sample
from calibrate.models.model import LoadedModel
from calibrate.models.prompts import encode_prompt
from calibrate.texts.concept import MIN_TEXTS, Concept, Text, built_in_concepts, read_concept
from calibrate.texts.replies import require_answers

POSITIVE = "Whatever you are asked, write a short reply that clearly expresses this: {}."
NEGATIVE = "Whatever you are asked, write a short reply that clearly expresses the opposite of: {}."
WRITING = Sampling(temperature=0.8, top_p=0.95, max_new_tokens=48)
QUESTIONS = 96


DEFAULTS = Settings()


def describe_concept(
    writer: LoadedModel, name: str, description: str, settings: Settings = DEFAULTS
) -> Concept:
    """Return a concept whose texts `writer` wrote.

    writer: a chat model; the better it follows instructions, the better the texts.
    settings: its seed, and how long a reply may be, where that is longer than a text as a rule is:
        a model that thinks first needs more.
    Raises: ConceptError if it is no chat model, or wrote too few usable texts; InputError if most
        replies end before it has finished thinking.
    """
    if not writer.is_chat:
        raise ConceptError(
            f"--describe needs a model with a chat template to write the texts, and {writer.name} "
            "has none; write them elsewhere and give them with --positives and --negatives"
        )
    questions = _questions()
    length = max(WRITING.max_new_tokens, settings.sampling.max_new_tokens)
    settings = replace(settings, sampling=replace(WRITING, max_new_tokens=length))
    pairs = zip(
        _written(writer, questions, POSITIVE.format(description), settings),
        _written(writer, questions, NEGATIVE.format(description), settings),
        questions,
        strict=True,
    )
    usable = [
        (Text(positive, question, question), Text(negative, question, question))
        for positive, negative, question in pairs
        if positive and negative and positive != negative
    ]
    if len(usable) < MIN_TEXTS:
        raise ConceptError(
            f"{writer.name} wrote only {len(usable)} usable pairs of texts for "
            f"{description!r}, and {MIN_TEXTS} are needed; describe it in other words"
        )
    positives, negatives = zip(*usable, strict=True)
    return Concept.from_texts(name, positives, negatives)


def _questions() -> list[str]:
    asked = {
        text.prompt
        for name in built_in_concepts()
        for text in read_concept(name).texts.positives
        if text.prompt
    }
    return sorted(asked)[:: max(1, len(asked) // QUESTIONS)]


def _written(
    writer: LoadedModel, questions: list[str], system: str, settings: Settings
) -> list[str]:
    prompts = [encode_prompt(writer, question, system=system) for question in questions]
    replies = sample(writer, prompts, settings.sampling, settings.seed)
    require_answers(replies, settings)
    return [reply.text for reply in replies]
