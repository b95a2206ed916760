"""What a calibration will cost, before it starts: token-forwards by stage, and minutes.

Token-forwards are estimated high: every reply as long as it may be, no trial cut short. Pilots and
trials are counted at a mean depth, since only the blocks after the steered one run. The time comes
from the speed of one small pass. Replies that the verification takes beyond its first look are not
counted: it takes them only where the limits leave room.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from calibrate.common.cost import Limits
from calibrate.common.errors import InputError
from calibrate.common.settings import Settings
from calibrate.engine.forward import final_hidden
from calibrate.judging import guard as guarding
from calibrate.judging import teaching
from calibrate.judging.asked import is_asked
from calibrate.judging.choice import Lesson
from calibrate.laws import pilot
from calibrate.models.model import LoadedModel, preserving_model_state
from calibrate.models.prompts import encode_prompt
from calibrate.models.tokens import batches, common_prefix
from calibrate.search import block_ranking, confirmation, objective, verification
from calibrate.search.long_run import KINDS
from calibrate.search.long_run import READ as LONG_READ
from calibrate.search.sites import most_blocks
from calibrate.texts import extraction, replies
from calibrate.texts.concept import Concept, split_prompts
from calibrate.texts.guard import Guard

SLOWER = 1.4  # how much slower a token-forward is on average than in one large batch


@dataclass(frozen=True)
class Forecast:
    """How many single blocks are carried into the study, and what that costs.

    tokens: token-forwards by stage. seconds: in all.
    """

    blocks: int
    tokens: dict[str, int]
    seconds: float


def questions_ahead(
    judges: Sequence[str], concept: Concept, prompts: Sequence[str], settings: Settings
) -> int:
    """About how many questions will be put to a judge and an auditor, where they are asked.

    Estimated high: every trial reads all its replies. Questions to the steered model itself are
    not counted.
    """
    counts = {split: len(texts) for split, texts in split_prompts(prompts).items()}
    held_out = concept.split()["held_out"]
    distinguished = len(held_out.positives) + len(held_out.negatives)
    read_long = min(LONG_READ, counts["verify"]) if settings.long_run else 0
    final = counts["verify"] * (1 + replies.VERIFY_COMPLETIONS)
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
    guard: Guard | None = None,
) -> Forecast:
    """Return what lies ahead, with as many blocks as the limits allow.

    Raises: InputError if not even one block fits the limits, or a text or a prompt does not fit
        the model's context.
    """
    speed = loaded.ranks.told(_tokens_per_second(loaded, prompts))
    for blocks in range(most_blocks(settings, loaded.num_layers), 0, -1):
        tokens = _tokens(loaded, concept, prompts, settings, has_corpus, lesson, guard, blocks)
        total = sum(tokens.values())
        if limits.allow(total, total / speed):
            return Forecast(blocks, tokens, total / speed)
    raise _too_little("one block, one trial and the verification", total, total / speed)


def require_room(
    limits: Limits,
    loaded: LoadedModel,
    concept: Concept,
    prompts: Sequence[str],
    settings: Settings,
    has_corpus: bool,
    guard: Guard | None = None,
) -> None:
    """Refuse limits within which an earlier calibration cannot be confirmed.

    guard: questions, where they are put.
    Raises: InputError.
    """
    if limits == Limits():
        return
    tokens = round(_tokens_to_confirm(loaded, concept, prompts, settings, has_corpus, guard))
    seconds = tokens / loaded.ranks.told(_tokens_per_second(loaded, prompts))
    if not limits.allow(tokens, seconds):
        raise _too_little("confirming the calibration to start with", tokens, seconds)


def _too_little(what: str, tokens: int, seconds: float) -> InputError:
    return InputError(
        f"the limits must allow for {what}: about {tokens:,} token-forwards and "
        f"{seconds / 60:.1f} minutes; raise --max-tokens or --max-minutes, or give fewer --prompts"
    )


def _tokens_to_confirm(
    loaded: LoadedModel,
    concept: Concept,
    prompts: Sequence[str],
    settings: Settings,
    has_corpus: bool,
    guard: Guard | None,
) -> float:
    """Token-forwards of a calibration that begins with an earlier one, and finds that it holds."""
    chosen, split = confirmation.fewer_prompts(prompts), concept.split()
    searched, verified = len(chosen["search"]), len(chosen["verify"])
    reply = _prompt_tokens(loaded, prompts)[1] + settings.sampling.max_new_tokens
    corpus, held_out = (
        replies.expected_corpus_tokens(n, reply, has_corpus) for n in (searched, verified)
    )
    texts = sum(extraction.expected_tokens(loaded, split[part]) for part in ("vector", "held_out"))
    first = corpus * min(objective.FIRST_PART, searched) / searched
    asked = guarding.expected_tokens(loaded, guard)
    return (
        (searched + verified) * reply
        + texts
        + pilot.expected_tokens(1, corpus, first)
        + confirmation.expected_tokens(verified, reply, held_out, settings, asked)
    )


def _prompt_tokens(loaded: LoadedModel, prompts: Sequence[str]) -> tuple[int, float]:
    """How many tokens all prompts begin with, and how many more they have on average."""
    encoded = [encode_prompt(loaded, text).ids for text in prompts]
    shared = len(common_prefix(encoded, min(map(len, encoded)) - 1))
    return shared, sum(map(len, encoded)) / len(prompts) - shared


def _tokens(
    loaded: LoadedModel,
    concept: Concept,
    prompts: Sequence[str],
    settings: Settings,
    has_corpus: bool,
    lesson: Lesson | None,
    guard: Guard | None,
    blocks: int,
) -> dict[str, int]:
    """Token-forwards of each stage, by its name."""
    counts = {split: len(texts) for split, texts in split_prompts(prompts).items()}
    searched, verified = counts["search"], counts["verify"]
    shared, prompt = _prompt_tokens(loaded, prompts)
    longest = settings.sampling.max_new_tokens
    reply = prompt + longest
    split = concept.split()
    texts = {name: extraction.expected_tokens(loaded, part) for name, part in split.items()}
    written = texts["probe"] + texts["held_out"]
    n_texts = len(split["probe"].positives) + len(split["probe"].negatives)
    corpus, held_out = (
        replies.expected_corpus_tokens(n, reply, has_corpus) for n in (searched, verified)
    )
    first = corpus * min(objective.FIRST_PART, searched) / searched
    sites = blocks * len(settings.position_choices)
    stages = {
        "unsteered replies": replies.expected_tokens(counts, reply),
        "steering vectors": texts["vector"],
        "blocks": block_ranking.expected_tokens(
            searched, shared + reply, shared + prompt, n_texts, texts["probe"], settings
        ),
        "judges": teaching.expected_tokens(loaded, concept.name, lesson, written, reply, longest),
        "pilot": pilot.expected_tokens(sites, corpus, first),
        "study": objective.expected_tokens(sites, searched, reply, corpus, settings),
        "verification": verification.expected_tokens(
            verified, reply, held_out, settings, guarding.expected_tokens(loaded, guard)
        ),
    }
    return {stage: round(tokens) for stage, tokens in stages.items()}


def _tokens_per_second(loaded: LoadedModel, prompts: Sequence[str]) -> float:
    """The speed of one small pass over prompts, divided by SLOWER."""
    sequences = [encode_prompt(loaded, prompt).followed_by([0]) for prompt in prompts[:8]]
    batch = next(batches(sequences, loaded.scoring_tokens, loaded.device))
    with preserving_model_state(loaded):
        final_hidden(loaded, batch)  # the first pass of a process warms up
        started = time.perf_counter()
        final_hidden(loaded, batch)
        return batch.n_tokens / (time.perf_counter() - started) / SLOWER
