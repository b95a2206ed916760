"""What a calibration will cost, before it starts: token-forwards by stage, and minutes.

Token-forwards are reckoned on the large side: every reply as long as it may be, no trial cut short.
Pilots and trials are counted at a mean depth, since only the blocks after the steered one run. The
time comes from the speed of one pass made to see. Replies that the verification takes beyond its
first look are not counted: it takes them only where the limits leave room.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from calibrate.common.cost import Limits
from calibrate.common.errors import InputError
from calibrate.common.settings import Settings
from calibrate.engine.forward import final_hidden
from calibrate.judging.asked import is_asked
from calibrate.judging.choice import Lesson
from calibrate.judging.graded_replies import graded_replies
from calibrate.judging.teaching import POOL
from calibrate.models.model import LoadedModel, borrowed
from calibrate.models.prompts import encode_prompt, encode_text
from calibrate.models.tokens import batches, common_prefix
from calibrate.search.block_ranking import CARRIED, DRAWS, MOST_SEQUENCES, MOST_TEXTS, MOST_TOKENS
from calibrate.search.budget import LADDER
from calibrate.search.long_run import PROMPTS as LONG_PROMPTS
from calibrate.search.long_run import READ as LONG_READ
from calibrate.search.objective import FIRST_PART
from calibrate.texts.concept import Concept, split_prompts
from calibrate.texts.extraction import encode
from calibrate.texts.replies import MAX_CORPUS_TOKENS, VERIFY_COMPLETIONS

PASSES = 2  # strengths a pilot tries, as a rule at most
DERIVED = 3  # passes over the first sequences, for the derivative and for the test
AFTER = 0.55  # share of the blocks that come after a steered one, on average
BACKWARD = 2  # what a backward pass costs, in forward passes
KINDS = 2  # of long replies, unsteered and steered
READINGS = 2  # of a long reply, by the judge and for its log-probability
LAST_TRIALS = 1  # trials beyond one a site, as a rule
SLOWER = 1.4  # how much slower a token-forward is on average than in one large batch


@dataclass(frozen=True)
class Forecast:
    """How many blocks are carried into the study, and what that costs.

    tokens: token-forwards by stage. seconds: in all.
    """

    blocks: int
    tokens: dict[str, int]
    seconds: float


def questions_ahead(
    judges: Sequence[str], concept: Concept, prompts: Sequence[str], settings: Settings
) -> int:
    """About how many questions will be put to a judge and an auditor, where they are asked.

    Reckoned on the large side: nothing is known yet, and every trial reads all its replies. The
    steered model itself is not counted.
    """
    counts = {split: len(texts) for split, texts in split_prompts(prompts).items()}
    held_out = concept.split()["held_out"]
    distinguished = len(held_out.positives) + len(held_out.negatives)
    read_long = min(LONG_READ, counts["verify"]) if settings.long_run else 0
    final = counts["verify"] * (1 + VERIFY_COMPLETIONS)
    searched = counts["search"] * (1 + settings.trials)
    judged = distinguished + searched + final + KINDS * (counts["verify"] + read_long)
    reads = zip(judges, (judged, distinguished + final), strict=False)  # the second one audits
    return sum(count for name, count in reads if is_asked(name))


def forecast(
    limits: Limits,
    loaded: LoadedModel,
    concept: Concept,
    prompts: Sequence[str],
    settings: Settings,
    has_corpus: bool,
    lesson: Lesson | None = None,
) -> Forecast:
    """Return what lies ahead, with as many blocks as the limits allow.

    Raises: InputError if not even one block fits the limits, or a text or a prompt does not fit
        the model's context.
    """
    speed = _tokens_per_second(loaded, prompts)
    most = 1 if settings.layer is not None else min(CARRIED, loaded.num_layers)
    for blocks in range(most, 0, -1):
        tokens = _tokens(loaded, concept, prompts, settings, has_corpus, lesson, blocks)
        total = sum(tokens.values())
        if limits.allow(total, total / speed):
            return Forecast(blocks, tokens, total / speed)
    raise InputError(
        f"the limits must allow for one block, one trial and the verification: about {total:,} "
        f"token-forwards and {total / speed / 60:.1f} minutes; raise --max-tokens or "
        "--max-minutes, or give fewer --prompts"
    )


def _tokens(
    loaded: LoadedModel,
    concept: Concept,
    prompts: Sequence[str],
    settings: Settings,
    has_corpus: bool,
    lesson: Lesson | None,
    blocks: int,
) -> dict[str, int]:
    """Token-forwards of each stage, by its name."""
    counts = {split: len(texts) for split, texts in split_prompts(prompts).items()}
    encoded = [encode_prompt(loaded, prompt).ids for prompt in prompts]
    shared = len(common_prefix(encoded, min(map(len, encoded)) - 1))
    asked = sum(map(len, encoded)) / len(prompts) - shared
    said = settings.sampling.max_new_tokens
    texts = {
        name: sum(len(encode(loaded, text).ids) for text in part.positives + part.negatives)
        for name, part in concept.split().items()
    }
    corpus = {
        split: MAX_CORPUS_TOKENS if has_corpus else counts[split] * (asked + said)
        for split in ("search", "verify")
    }
    reply = asked + said
    sites = blocks * len(settings.position_choices)
    trials = min(settings.trials, sites + LAST_TRIALS)
    trial = counts["search"] * (reply + said) + corpus["search"] * AFTER
    judged = said + VERIFY_COMPLETIONS * said  # unsteered and steered replies are read
    controls = 2 * (reply + said)
    verify = counts["verify"] * (VERIFY_COMPLETIONS * reply + judged + reply + controls)
    part = concept.split()["probe"]
    per_text = texts["probe"] / (len(part.positives) + len(part.negatives))
    longest = shared + asked + MOST_TOKENS
    ranking = min(texts["probe"], 2 * MOST_TEXTS * min(per_text, longest))
    searched = counts["search"]
    differentiated = min(MOST_SEQUENCES, searched) * (shared + reply)
    ranked = differentiated * (1 + DRAWS * BACKWARD) + ranking * (1 + BACKWARD)
    first = corpus["search"] * min(FIRST_PART, searched) / searched
    piloted = sites * AFTER * (PASSES * corpus["search"] + DERIVED * first)
    long = max(settings.long_run, said) if settings.long_run else 0
    answered, read = (min(most, counts["verify"]) for most in (LONG_PROMPTS, LONG_READ))
    at_length = KINDS * long * (answered + READINGS * read)
    found = {
        "unsteered replies": reply * (sum(counts.values()) + counts["verify"]),
        "steering vectors": texts["vector"],
        "judges": _judges(loaded, concept.name, lesson, texts, reply, said),
        "blocks": ranked if settings.layer is None else 0,
        "pilot": corpus["search"] + piloted,
        "study": trials * trial,
        "verification": corpus["verify"] * (1 + len(LADDER) * AFTER) + verify + at_length,
    }
    return {stage: round(tokens) for stage, tokens in found.items()}


def _judges(
    loaded: LoadedModel,
    concept: str,
    lesson: Lesson | None,
    texts: Mapping[str, int],
    reply: float,
    said: int,
) -> float:
    """Token-forwards of the probe: what it learns from is sampled, if need be, and read."""
    if lesson is None:
        return 0
    if lesson.source == "graded":
        return sum(len(encode_text(loaded, one.text).ids) for one in graded_replies(concept))
    if lesson.source == "written":
        return texts["probe"] + texts["held_out"]
    return POOL * (reply + said)


def _tokens_per_second(loaded: LoadedModel, prompts: Sequence[str]) -> float:
    """The speed of one small pass over prompts, less what other passes lose against it."""
    sequences = [encode_prompt(loaded, prompt).followed_by([0]) for prompt in prompts[:8]]
    batch = next(batches(sequences, loaded.scoring_tokens, loaded.device))
    with borrowed(loaded):
        final_hidden(loaded, batch)  # the first pass of a process warms up
        started = time.perf_counter()
        final_hidden(loaded, batch)
        return batch.n_tokens / (time.perf_counter() - started) / SLOWER
