"""Appoint the judges: who reads presence, and who audits.

The probe, the default, is fitted on the kinds of text it will judge: written texts that did not
make the steering vector; the model's own plain replies; replies made on purpose, after written
texts of either label (*primed*) or when asked in plain words (*asked*), where those measurably
differ; and degenerate text, over-steered replies included. Without the model's own replies it
would learn to tell people from models; without degenerate text, word salad would pass for joy.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import probes
from calibrate.cache import Form, recalled
from calibrate.completions import Request, sample_all
from calibrate.concept import Text, Texts
from calibrate.embedded import encoder_directory
from calibrate.errors import Infeasible, InputError
from calibrate.loading import load_model
from calibrate.rendering import encode_prompt, encode_text
from calibrate.replies import UnsteeredReplies
from calibrate.settings import Settings
from calibrate.tokens import Prompt
from calibrate.vector import SteeringVector
from probes import Example, Kind, Probe, Reader, degenerate_examples, fit_probe
from probes.classifier import fit_embedding, fit_lexicon
from probes.judges import NAMED, FunctionJudge, Judge, judge_function
from probes.probe import FACTS_FILE
from probes.question import Question

if TYPE_CHECKING:
    from calibrate.model import LoadedModel

JudgeChoice = str | Judge | Callable[[Sequence[str], str], Any]

SHOTS = 2  # written texts shown before a primed reply
PURPOSE_PROMPTS = 12  # prompts answered once for each label and way of asking
OPENER = "Say something."  # stands before a written text that replies to nothing
OVERSTEERED = 1.0  # ‖αv‖ / ‖h‖ of over-steered replies; a budget of 0.1 nat allows about a tenth
OVERSTEERED_PROMPTS = 8  # replied to with either sign
LEAST_AUC = 0.7  # below this on held-out texts, a probe cannot tell the concept
MOST_P_VALUE = 0.01  # above this, it may have told the written texts apart by chance

PROBE = Form[Probe]("probe", Probe.files, FACTS_FILE, probes.load)


@dataclass(frozen=True, eq=False)
class Panel:
    """Who reads presence, who audits the final replies (or nobody), and the probe if there is one.

    The probe is there if it is either of the two.
    """

    reader: Reader
    auditor: Reader | None
    probe: Probe | None


@dataclass(frozen=True, eq=False)
class Material:
    """What judges are made from.

    splits: the concept's texts; `probe` trains, `held_out` tests, `vector` is not touched.
    replies: their "probe" split gives the negatives that matter most.
    vector: with which text is over-steered.
    """

    concept: str
    splits: Mapping[str, Texts]
    replies: UnsteeredReplies
    vector: SteeringVector


def judge_name(judge: JudgeChoice) -> str:
    """The name a judge goes by in the artefact."""
    if isinstance(judge, str):
        return judge
    named = judge if hasattr(judge, "__qualname__") else type(judge)
    return f"{named.__module__}:{named.__qualname__}"


def check_judges(judge: JudgeChoice, audit: JudgeChoice | None) -> None:
    """Refuse at once a judge that does not exist, or an auditor who is the judge.

    Raises: InputError.
    """
    for choice in (judge, audit):
        if isinstance(choice, str) and choice.partition(":")[0] not in NAMED:
            judge_function(choice)
    if audit is not None and judge_name(audit) == judge_name(judge):
        raise InputError(f"the auditor must be another than the judge, got {judge_name(audit)!r}")


def appoint(
    loaded: LoadedModel,
    material: Material,
    judge: JudgeChoice,
    audit: JudgeChoice | None,
    settings: Settings,
) -> Panel:
    """Make the judge and the auditor.

    Raises: InputError for a judge that cannot be made, or reads all texts alike; Infeasible if the
        probe is one of the two and cannot tell the held-out texts apart.
    """
    chosen = [judge] if audit is None else [judge, audit]
    probe = train_probe(loaded, material, settings) if "probe" in chosen else None
    readers = [_reader(loaded, one, probe, material, settings) for one in chosen]
    for reader in readers:
        _require_distinctions(reader, material)
    return Panel(readers[0], readers[1] if audit is not None else None, probe)


def _require_distinctions(reader: Reader, material: Material) -> None:
    """Refuse a judge to whom held-out texts and unsteered replies are all the same."""
    texts, said = material.splits["held_out"], material.replies.completions["search"]
    written = [text.text for text in (*texts.positives, *texts.negatives)]
    reader.require_distinctions(written, [completion.text for completion in said])


def train_probe(loaded: LoadedModel, material: Material, settings: Settings) -> Probe:
    """Fit the concept's probe, and keep it for the next time.

    Raises: Infeasible if it cannot tell the held-out texts apart.
    """
    concept = material.concept

    def fitted() -> Probe:
        examples = [
            *_plain_examples(loaded, material, settings),
            *_made_on_purpose(loaded, material, settings),
        ]
        return fit_probe(concept, examples, _written(material.splits["held_out"]), loaded)

    probe = recalled(loaded, PROBE, _probe_request(material, settings), fitted)
    auc, p_value = probe.quality.texts.auc.value, probe.quality.p_value
    if auc < LEAST_AUC or p_value > MOST_P_VALUE:
        raise Infeasible(
            [
                f"the probe cannot tell {concept!r} apart: its AUC on held-out texts is {auc:.2f} "
                f"(p = {p_value:.2g}); at least {LEAST_AUC} is needed, with p below {MOST_P_VALUE}"
            ],
            ["give more texts, or negatives that match the positives in everything else"],
        )
    return probe


def _probe_request(material: Material, settings: Settings) -> list[Any]:
    """Everything beside the model that a probe depends on."""
    return [
        material.concept,
        {name: asdict(texts) for name, texts in material.splits.items()},
        [prompt.ids for prompt in material.replies.prompts["probe"]],
        [reply.sequence.ids for reply in material.replies.first_replies("probe")],
        hashlib.sha256(material.vector.values.numpy().tobytes()).hexdigest(),
        material.vector.residual_norm,
        settings.seed,
        asdict(settings.sampling),
    ]


def asked_prompts(
    loaded: LoadedModel, prompts: Sequence[Prompt], concept: str, positive: bool
) -> list[Prompt]:
    """The prompts again, after a request in plain words to express the concept, or its opposite."""
    wanted = concept if positive else f"the opposite of {concept}"
    system = f"Whatever you are asked, let your answer clearly express this: {wanted}."
    return [encode_prompt(loaded, prompt.text, system=system) for prompt in prompts]


def oversteered(vector: SteeringVector, sign: int, prompts: Sequence[Prompt]) -> Request:
    """Replies of which little is left, since the vector drowns the residual stream."""
    return Request(prompts, push=vector.push(sign * OVERSTEERED / vector.relative(1.0)))


def _reader(
    loaded: LoadedModel,
    choice: JudgeChoice,
    probe: Probe | None,
    material: Material,
    settings: Settings,
) -> Reader:
    judge = _judge(loaded, choice, probe, material, settings)
    return Reader(judge, material.concept, judge_name(choice))


def _judge(
    loaded: LoadedModel,
    choice: JudgeChoice,
    probe: Probe | None,
    material: Material,
    settings: Settings,
) -> Judge:
    if not isinstance(choice, str):
        return choice if hasattr(choice, "score") else FunctionJudge(choice)
    kind, _, model = choice.partition(":")
    if kind not in NAMED:
        return judge_function(choice)
    if kind == "probe" and probe is not None:
        return probe.on(loaded)
    if kind == "question":
        return Question(load_model(model) if model else loaded)
    examples = _plain_examples(loaded, material, settings)
    if kind == "lexicon":
        return fit_lexicon(examples)
    return fit_embedding(examples, model or encoder_directory())


def _plain_examples(
    loaded: LoadedModel, material: Material, settings: Settings
) -> tuple[Example, ...]:
    """Written texts, the model's own replies, and both broken."""
    written = _written(material.splits["probe"])
    own = [
        Example(completion.text, False, "own", completion.prompt)
        for completion in material.replies.first_replies("probe")
        if completion.text
    ]
    positives = [example for example in written if example.positive]
    broken = degenerate_examples([*positives, *own], loaded.tokenizer, settings.seed)
    return (*written, *own, *broken)


def _written(texts: Texts) -> list[Example]:
    return [
        Example(text.text, positive, "written", text.group or text.text, text.prompt is None)
        for positive, group in ((True, texts.positives), (False, texts.negatives))
        for text in group
    ]


def _made_on_purpose(
    loaded: LoadedModel, material: Material, settings: Settings
) -> Iterator[Example]:
    """Replies after SHOTS written texts or a plain request, of either label; and salad."""
    prompts = material.replies.prompts["probe"]
    wanted: list[tuple[Request, bool, Kind]] = []
    for positive in (True, False):
        primed = _primed(loaded, material, positive, settings)
        asked = asked_prompts(loaded, prompts[:PURPOSE_PROMPTS], material.concept, positive)
        wanted += [(Request(primed), positive, "primed"), (Request(asked), positive, "asked")]
        salad = oversteered(material.vector, 1 if positive else -1, prompts[:OVERSTEERED_PROMPTS])
        wanted.append((salad, False, "degenerate"))
    requests = [request for request, _, _ in wanted]
    sampled = sample_all(loaded, requests, settings.sampling, settings.seed)
    for replies, (_, positive, kind) in zip(sampled, wanted, strict=True):
        for reply in replies:
            if reply.text:
                yield Example(reply.text, positive, kind, reply.prompt)


def _primed(
    loaded: LoadedModel, material: Material, positive: bool, settings: Settings
) -> list[Prompt]:
    """Prompts after SHOTS written texts of one label; none where there are too few texts."""
    rng, texts = random.Random(settings.seed), material.splits["probe"]
    shown = _as_turns(loaded, texts.positives if positive else texts.negatives)
    prompts = material.replies.prompts["probe"][:PURPOSE_PROMPTS]
    if len(shown) < SHOTS:
        return []
    return [
        encode_prompt(loaded, prompt.text, history=rng.sample(shown, SHOTS)) for prompt in prompts
    ]


def _as_turns(loaded: LoadedModel, texts: Sequence[Text]) -> list[tuple[str, str]]:
    """Replies as they are; where there are too few, every text after a neutral opener.

    Texts so long that SHOTS of them and a prompt would not fit the context are left out.
    """
    longest = loaded.context_length // (2 * SHOTS)
    texts = [text for text in texts if len(encode_text(loaded, text.text).ids) <= longest]
    replies = [(text.prompt, text.text) for text in texts if text.prompt]
    if len(replies) >= 2 * SHOTS:
        return replies
    return [(text.prompt or OPENER, text.text) for text in texts]
