"""The unsteered replies: sampled once, cached, and used four ways on disjoint prompts.

probe prompts    training texts for the probe of a concept without graded replies
search prompts   corpus for the pilot and the study, and presence before steering
verify prompts   corpus and baseline for the verification
the empty prompt random negatives for the steering vector, if requested
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from calibrate.common.errors import ConceptError, InputError
from calibrate.common.settings import Settings
from calibrate.engine.generation import Completion, Request, completed, sample, sample_all
from calibrate.engine.unsteered import Corpus
from calibrate.models.cache import CacheFormat, load_or_compute
from calibrate.models.model import LoadedModel
from calibrate.models.prompts import encode_empty, encode_prompt, encode_text
from calibrate.models.tokens import Prompt, TokenSequence
from calibrate.texts.concept import split_prompts

VERIFY_COMPLETIONS = 2  # replies to each verify prompt; the baseline and the final presence
MAX_UNANSWERED = 0.5  # share of replies that may end while still thinking
MAX_CORPUS_TOKENS = 8192  # used from each half of a corpus file, search and verification
LEAST_SEQUENCES = 2  # of a corpus file, for its cross-entropy to have an error

REPLIES_FILE = "replies.json"


def _load_ids(folder: Path) -> list[list[int]]:
    replies = json.loads((folder / REPLIES_FILE).read_text())
    if not isinstance(replies, list) or not all(isinstance(ids, list) for ids in replies):
        raise ValueError(f"{folder} must hold lists of token ids")
    return replies


REPLIES = CacheFormat[list[list[int]]](
    "replies", lambda ids: {REPLIES_FILE: json.dumps(ids).encode()}, REPLIES_FILE, _load_ids
)


@dataclass(frozen=True)
class UnsteeredReplies:
    """Encoded prompts and the model's plain replies to them, by split.

    prompts: by split, "probe", "search" and "verify".
    completions: by split, in the order of the prompts; per_verify_prompt each for "verify".
    """

    prompts: dict[str, tuple[Prompt, ...]]
    completions: dict[str, tuple[Completion, ...]]

    def first_replies(self, split: str) -> tuple[Completion, ...]:
        """The first reply to each prompt, where that is not empty."""
        first = {reply.prompt_index: reply for reply in reversed(self.completions[split])}
        return tuple(reply for _, reply in sorted(first.items()) if reply.spoken)


def sample_unsteered(
    loaded: LoadedModel,
    prompts: Sequence[str],
    settings: Settings,
    splits: Sequence[str] = ("probe", "search", "verify"),
    per_verify_prompt: int = VERIFY_COMPLETIONS,
) -> UnsteeredReplies:
    """Sample the model's plain replies to every prompt of some splits.

    Raises: ConceptError if the model has nothing to say to most prompts; InputError if most
        replies end before the model has finished thinking.
    """
    chosen = {split: texts for split, texts in split_prompts(prompts).items() if split in splits}
    replies = sample_splits(loaded, chosen, settings, per_verify_prompt)
    require_spoken(replies)
    require_answers([reply for part in replies.completions.values() for reply in part], settings)
    return replies


def sample_splits(
    loaded: LoadedModel,
    prompts: Mapping[str, Sequence[str]],
    settings: Settings,
    per_verify_prompt: int = VERIFY_COMPLETIONS,
) -> UnsteeredReplies:
    """Sample the model's plain replies to the prompts of each split."""
    encoded = {
        split: tuple(encode_prompt(loaded, text) for text in texts)
        for split, texts in prompts.items()
    }
    drawn = _sampled_together(loaded, encoded, settings, per_verify_prompt)
    return UnsteeredReplies(encoded, drawn)


def require_spoken(replies: UnsteeredReplies) -> None:
    """Raise ConceptError if the model has nothing to say to most prompts of a split."""
    for split, prompts in replies.prompts.items():
        spoken = len(replies.first_replies(split))
        if spoken < len(prompts) / 2:
            raise ConceptError(
                f"the model must reply to the {split} prompts, but it had nothing to say to "
                f"{len(prompts) - spoken} of {len(prompts)}; give others with --prompts"
            )


def expected_tokens(counts: Mapping[str, int], reply: float) -> float:
    """Upper bound on the token-forwards of sampling the replies.

    counts: prompts by split. reply: tokens of the longest reply and its prompt.
    """
    return reply * (sum(counts.values()) + (VERIFY_COMPLETIONS - 1) * counts["verify"])


def expected_corpus_tokens(n_replies: int, reply: float, has_corpus: bool) -> float:
    """Upper bound on the tokens of a split's corpus: of a corpus file, or else of the replies."""
    return MAX_CORPUS_TOKENS if has_corpus else n_replies * reply


def require_answers(completions: Sequence[Completion], settings: Settings) -> None:
    """Raise InputError if most replies end before the model has finished thinking."""
    unanswered = sum(not reply.answered for reply in completions)
    if unanswered > MAX_UNANSWERED * len(completions):
        raise InputError(
            f"most replies must get from the thought to the answer, but {unanswered} of "
            f"{len(completions)} think for all of their {settings.sampling.max_new_tokens} tokens; "
            "allow more with --reply-tokens, or try --chat-template-kwargs "
            "'{\"enable_thinking\": false}'"
        )


def _sampled_together(
    loaded: LoadedModel,
    prompts: Mapping[str, Sequence[Prompt]],
    settings: Settings,
    per_verify_prompt: int,
) -> dict[str, tuple[Completion, ...]]:
    """Sample every split's replies in the same batches, since large batches are cheapest."""
    places = [(split, index) for split, texts in prompts.items() for index in range(len(texts))]
    request = Request(
        [prompts[split][index] for split, index in places],
        [per_verify_prompt if split == "verify" else 1 for split, _ in places],
    )

    def sampled() -> list[list[int]]:
        (drawn,) = sample_all(loaded, [request], settings.sampling, settings.seed)
        return [list(reply.ids) for reply in drawn]

    encoded = [asdict(prompt) for prompt in request.prompts]
    key = [encoded, request.per_prompt, asdict(settings.sampling), settings.seed]
    replies = load_or_compute(loaded, REPLIES, key, sampled)
    completions: dict[str, list[Completion]] = {split: [] for split in prompts}
    for (place, _), ids in zip(request.jobs, replies, strict=True):
        split, index = places[place]
        completions[split].append(completed(loaded, prompts[split][index], index, ids))
    return {split: tuple(drawn) for split, drawn in completions.items()}


def build_corpora(
    loaded: LoadedModel, replies: UnsteeredReplies, texts: Mapping[str, Sequence[str]] | None
) -> dict[str, Corpus]:
    """Return the corpora ΔCE is measured on, "search" and "verify".

    texts: a corpus's texts by split (`concept.read_corpus`), or None to use the replies.
    Raises: InputError if too few of a split's texts can be used.
    """
    if texts is None:
        return {
            split: Corpus(
                tuple(completion.sequence for completion in replies.first_replies(split)),
                self_sampled=True,
            )
            for split in ("search", "verify")
            if split in replies.completions
        }
    return {
        split: Corpus(corpus_texts(loaded, part), self_sampled=False)
        for split, part in texts.items()
    }


def random_negatives(loaded: LoadedModel, n: int, settings: Settings) -> tuple[TokenSequence, ...]:
    """Sample n texts of the model's own from an empty prompt.

    Raises: InputError if it has nothing to say.
    """
    completions = sample(
        loaded, [encode_empty(loaded)], settings.sampling, settings.seed, per_prompt=n
    )
    said = tuple(completion.sequence for completion in completions if completion.text)
    if not said:
        raise InputError(
            f"random negatives must be the model's own texts, but all {n} samples from an empty "
            "prompt are empty; use --negatives contrastive"
        )
    return said


def corpus_texts(loaded: LoadedModel, texts: Sequence[str]) -> tuple[TokenSequence, ...]:
    """The first texts that fit into MAX_CORPUS_TOKENS together, without those of one token.

    Raises: InputError if fewer than LEAST_SEQUENCES are left.
    """
    chosen: list[TokenSequence] = []
    total = 0
    for text in texts:
        sequence = encode_text(loaded, text)
        total += len(sequence.ids)
        if chosen and total > MAX_CORPUS_TOKENS:
            break
        if sequence.n_scored:
            chosen.append(sequence)
    if len(chosen) < LEAST_SEQUENCES:
        other = "shorter" if chosen and total > MAX_CORPUS_TOKENS else "longer"
        raise InputError(
            f"cross-entropy must be measured on {LEAST_SEQUENCES} texts or more, of at least two "
            f"tokens each, got {len(chosen)} in the first {MAX_CORPUS_TOKENS:,} tokens of "
            f"{len(texts)} texts; give {other} ones with --corpus"
        )
    return tuple(chosen)
