"""Have a teacher grade a model's own replies, for a probe to learn from.

Some replies are plain, some steered, from weakly to far too much. Others should express the concept
or its opposite: they follow written texts of that label (*primed*), or a request in plain words
(*asked*). A few written texts are added.

A teacher takes half a second per reply. So it grades FIRST replies, then MORE at a time, half of
them random and half those the probe is least sure of, until the probe's mean is known to within
LEVEL_ERROR of the teacher's. The grades are cached for the next calibration on the same model.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from calibrate.common.settings import Settings
from calibrate.engine.generation import Request, sample_all
from calibrate.engine.site import Site
from calibrate.judging.choice import Lesson
from calibrate.judging.graded_replies import graded_replies
from calibrate.models.cache import CacheFormat, load_or_compute
from calibrate.models.model import LoadedModel
from calibrate.models.prompts import encode_prompt, encode_text
from calibrate.models.tokens import Prompt
from calibrate.texts.concept import Text, Texts
from calibrate.texts.replies import UnsteeredReplies
from probes import GradedText, Reader
from probes.graded import graded_lines, read_graded_lines
from probes.judges import ScaledJudge
from probes.student import Student, fit_student, read_features
from probes.verdicts import Remembered

SHOTS = 2  # written texts shown before a primed reply
PURPOSE_PROMPTS = 12  # prompts of primed and asked replies, for each label
OPENER = "Say something."  # the prompt of a written text that has none
STEERED = (-0.1, 0.05, 0.1, 0.2, 0.3)  # ‖αv‖ / ‖h‖; a budget of 0.1 nat allows about 0.1
STEERED_PROMPTS = 24  # replied to at each of them
OVERSTEERED = 1.0  # ‖αv‖ / ‖h‖ at which replies break down
OVERSTEERED_PROMPTS = 8  # replied to with either sign
POOL = 240  # replies of all these kinds together, roughly
WRITTEN = 16  # written texts of each label

FIRST, MORE, MAX_GRADED = 96, 48, 240  # replies graded at first, in each later round, in all
LEVEL_ERROR = 0.05  # largest error of the probe's mean against the teacher's
ONE_SIDED_95 = 1.645  # standard errors to a one-sided 95 % bound

GRADED_FILE = "graded.jsonl"
TAUGHT = CacheFormat[tuple[GradedText, ...]](
    "taught",
    lambda texts: {GRADED_FILE: graded_lines(texts).encode()},
    GRADED_FILE,
    lambda folder: read_graded_lines(Path(folder) / GRADED_FILE),
)


@dataclass(frozen=True, eq=False)
class JudgeInputs:
    """What judges are made from.

    splits: the concept's texts; `probe` trains, `held_out` tests, `vector` is not used.
    replies: unsteered; a probe learns from those to the "probe" prompts.
    site: where further replies are steered for the probe to learn from.
    """

    concept: str
    splits: Mapping[str, Texts]
    replies: UnsteeredReplies
    site: Site


def taught_texts(
    loaded: LoadedModel, material: JudgeInputs, teacher: Reader, settings: Settings
) -> tuple[GradedText, ...]:
    """Return replies of the model with the teacher's probabilities, cached."""

    def graded() -> tuple[GradedText, ...]:
        pool = own_replies(loaded, material, settings)
        return tuple(_lessons(loaded, pool, teacher, settings.seed))

    request = [_teacher_request(teacher), *replies_request(material, settings)]
    return load_or_compute(loaded, TAUGHT, request, graded)


def expected_tokens(
    loaded: LoadedModel,
    concept: str,
    lesson: Lesson | None,
    written: int,
    reply: float,
    longest: int,
) -> float:
    """Token-forwards of making the probe: sampling its training texts, if needed, and reading them.

    written: tokens of the written texts that train and test it. reply, longest: tokens of the
    longest reply, with its prompt and without.
    """
    if lesson is None:
        return 0
    if lesson.source == "graded":
        return sum(len(encode_text(loaded, reply.text).ids) for reply in graded_replies(concept))
    return written if lesson.source == "written" else POOL * (reply + longest)


def _teacher_request(teacher: Reader) -> list[Any]:
    """Everything known that a teacher's answers depend on."""
    judge: object = teacher.judge
    scale = asdict(judge.scale) if isinstance(judge, ScaledJudge) else None
    judge = judge.judge if isinstance(judge, ScaledJudge) else judge
    judge = judge.judge if isinstance(judge, Remembered) else judge
    return [teacher.name, *(getattr(judge, fact, "") for fact in ("identity", "question")), scale]


def replies_request(material: JudgeInputs, settings: Settings) -> list[Any]:
    """Everything except the model that its replies, and what is fitted to them, depend on."""
    return [
        material.concept,
        {name: asdict(texts) for name, texts in material.splits.items()},
        [prompt.ids for prompt in material.replies.prompts["probe"]],
        [reply.sequence.ids for reply in material.replies.first_replies("probe")],
        hashlib.sha256(material.site.total.numpy().tobytes()).hexdigest(),
        material.site.residual_norm,
        settings.seed,
        asdict(settings.sampling),
    ]


def own_replies(
    loaded: LoadedModel, material: JudgeInputs, settings: Settings
) -> tuple[GradedText, ...]:
    """The model's replies in every condition, ungraded, without empty ones and copies."""
    wanted = dict(_wanted(loaded, material, settings))
    drawn = sample_all(loaded, list(wanted.values()), settings.sampling, settings.seed)
    plain = material.replies.first_replies("probe")
    replies = {"plain": plain, **dict(zip(wanted, drawn, strict=True))}
    sampled = [
        GradedText(reply.text, group=reply.prompt, condition=condition)
        for condition, completions in replies.items()
        for reply in completions
        if reply.text.strip()
    ]
    first: dict[str, GradedText] = {}
    for text in (*sampled, *_written(material)):
        first.setdefault(text.text, text)
    return tuple(first.values())


def _written(material: JudgeInputs) -> Iterator[GradedText]:
    """Some written texts of either label, since the model may hardly ever express the concept."""
    texts = material.splits["probe"]
    for label, side in (("+", texts.positives), ("-", texts.negatives)):
        for text in side[:WRITTEN]:
            yield GradedText(text.text, group=text.group or text.text, condition=f"written {label}")


def _wanted(
    loaded: LoadedModel, material: JudgeInputs, settings: Settings
) -> Iterator[tuple[str, Request]]:
    """The request for each condition, of prompts that leave room for a reply."""
    prompts, site = material.replies.prompts["probe"], material.site
    most = loaded.context_length - settings.sampling.max_new_tokens
    for share in STEERED:
        steering = site.steering(share / site.relative(1.0))
        yield f"steered {share:+g}", Request(prompts[:STEERED_PROMPTS], steering=steering)
    for positive, label in ((True, "+"), (False, "-")):
        asked = asked_prompts(loaded, prompts[:PURPOSE_PROMPTS], material.concept, positive)
        primed = _primed(loaded, material, positive, settings)
        for way, longer in (("asked", asked), ("primed", primed)):
            fitting = [prompt for prompt in longer if len(prompt.ids) <= most]
            yield f"{way} {label}", Request(fitting)
        sign = 1 if positive else -1
        yield f"broken {label}", oversteered(site, sign, prompts[:OVERSTEERED_PROMPTS])


def asked_prompts(
    loaded: LoadedModel, prompts: Sequence[Prompt], concept: str, positive: bool
) -> list[Prompt]:
    """The prompts with a system message that asks for the concept, or for its opposite."""
    wanted = concept if positive else f"the opposite of {concept}"
    system = f"Whatever you are asked, let your answer clearly express this: {wanted}."
    return [encode_prompt(loaded, prompt.text, system=system) for prompt in prompts]


def oversteered(site: Site, sign: int, prompts: Sequence[Prompt]) -> Request:
    """A request for broken replies, with a shift as large as the residual stream."""
    strength = sign * OVERSTEERED / site.relative(1.0)
    return Request(prompts, steering=site.steering(strength))


def _primed(
    loaded: LoadedModel, material: JudgeInputs, positive: bool, settings: Settings
) -> list[Prompt]:
    """Prompts after SHOTS written texts of one label; none where there are too few texts."""
    rng, texts = random.Random(settings.seed), material.splits["probe"]
    prompts = material.replies.prompts["probe"][:PURPOSE_PROMPTS]
    reply = max(len(prompt.ids) for prompt in prompts) + settings.sampling.max_new_tokens
    room = min(loaded.context_length // 2, loaded.context_length - reply)
    shown = _as_turns(loaded, texts.positives if positive else texts.negatives, room // SHOTS)
    if len(shown) < SHOTS:
        return []
    return [
        encode_prompt(loaded, prompt.text, history=rng.sample(shown, SHOTS)) for prompt in prompts
    ]


def _as_turns(loaded: LoadedModel, texts: Sequence[Text], longest: int) -> list[tuple[str, str]]:
    """Texts that are replies; if they are too few, all texts, with OPENER where a prompt lacks.

    longest: tokens of a prompt and its text, with what the template puts around them.
    """
    around = len(encode_prompt(loaded, OPENER).ids)  # and OPENER's own, for what ends the turn

    def tokens(text: Text) -> int:
        parts = (text.prompt or OPENER, text.text)
        return around + sum(len(encode_text(loaded, part).ids) for part in parts)

    texts = [text for text in texts if tokens(text) <= longest]
    replies = [(text.prompt, text.text) for text in texts if text.prompt]
    if len(replies) >= 2 * SHOTS:
        return replies
    return [(text.prompt or OPENER, text.text) for text in texts]


def _lessons(
    loaded: LoadedModel, pool: Sequence[GradedText], teacher: Reader, seed: int
) -> list[GradedText]:
    """Grade FIRST replies of the pool, then MORE at a time until the probe's mean is known."""
    features = read_features(loaded, pool)
    order = list(range(len(pool)))
    random.Random(seed).shuffle(order)
    graded: dict[int, GradedText] = {}

    def grade(rows: Sequence[int]) -> Student:
        scores = teacher.read([pool[row].text for row in rows])
        graded.update(
            {row: replace(pool[row], taught=float(p)) for row, p in zip(rows, scores, strict=True)}
        )
        return fit_student(list(graded.values()), features[:, list(graded)])

    random_rows = order[:FIRST]  # only what begins `order` estimates the mean without bias
    student = grade(random_rows)
    while len(graded) < min(MAX_GRADED, len(pool)):
        if _level_error(student, graded, random_rows) <= LEVEL_ERROR:
            break
        random_rows = order[: len(random_rows) + MORE // 2]
        drawn = [row for row in random_rows if row not in graded]
        rest = [row for row in order[len(random_rows) :] if row not in graded]
        unsure = sorted(rest, key=lambda row: abs(_score(student, features, row)))
        student = grade([*drawn, *unsure[: MORE - len(drawn)]])
    return list(graded.values())


def _level_error(
    student: Student, graded: Mapping[int, GradedText], random_rows: Sequence[int]
) -> float:
    """Upper bound on the error of the probe's mean, out of fold, against the teacher's."""
    of_row = dict(zip(graded, student.yes(student.scores), strict=True))
    gaps = np.array([of_row[row] - graded[row].taught for row in random_rows])
    return float(abs(gaps.mean()) + ONE_SIDED_95 * gaps.std(ddof=1) / np.sqrt(len(gaps)))


def _score(student: Student, features: np.ndarray, row: int) -> float:
    return float(np.sum(student.weights * features[:, row]) + student.bias)
