"""The long run: replies as long as they are served, read window by window.

The search reads short replies, and what steering does to a text shows later as well: loops begin
after a hundred tokens, a concept fades. So the verification has a few prompts answered at length,
unsteered and steered with the same noise, and reads along the replies:

    loops      share of the tokens that lie in a stretch said again at once (`judging.loops`)
    presence   of each window's own text, as the judge reads it
    log-prob   of each token under the unsteered model, nats

A strength whose replies loop by more than LOOP_MARGIN more than the unsteered ones is not shipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from calibrate.common.estimate import RatioEstimate
from calibrate.common.settings import SHORTEST_LONG_RUN, Sampling, Settings
from calibrate.engine.generation import Completion, Request, completed, sample_all
from calibrate.engine.unsteered import Corpus, run_unsteered, token_log_probs
from calibrate.judging.loops import looped
from calibrate.models.cache import load_or_compute
from calibrate.models.model import LoadedModel
from calibrate.models.steering import Steering
from calibrate.models.tokens import Prompt
from calibrate.texts.replies import REPLIES
from probes import Reader

PROMPTS = 24  # answered at length, once each: loops are rare, and cost nothing to count
READ = 8  # of these replies, read by the judge and the unsteered model
KINDS = 2  # of long replies, unsteered and steered
READINGS = 2  # of a long reply, by the judge and for its log-probability
WINDOW = 32  # tokens
MIN_READ = 8  # tokens of a window that a judge reads
LOOP_MARGIN = 0.05  # share of the tokens by which steered replies may loop more than unsteered ones


@dataclass(frozen=True, eq=False)
class Along:
    """Replies along their length, arrays of shape (n_windows,).

    loops: share of the tokens in loops, in [0, 1]. presence: of the windows' texts, NaN where
    there is none to read. log_prob: mean over tokens under the unsteered model, nats.
    n_replies: how many replies reach the window.
    """

    loops: np.ndarray
    presence: np.ndarray
    log_prob: np.ndarray
    n_replies: np.ndarray


@dataclass(frozen=True, eq=False)
class LongRun:
    """What long replies are like, unsteered and steered.

    n_tokens: how long they may be. loops, loops_baseline: mean share of a reply's tokens in loops,
    over prompts. excess: the paired difference.
    """

    n_tokens: int
    loops: RatioEstimate
    loops_baseline: RatioEstimate
    excess: RatioEstimate
    steered: Along
    unsteered: Along


@dataclass(frozen=True, eq=False)
class LongReplies:
    """The same prompts answered at length, unsteered first, then steered in any way.

    prompts: a few of those of the verification. sampling: with replies as long as they are served.
    """

    loaded: LoadedModel
    prompts: tuple[Prompt, ...]
    sampling: Sampling
    seed: int
    unsteered: tuple[Completion, ...]

    @property
    def n_tokens(self) -> int:
        """How long the replies may be."""
        return self.sampling.max_new_tokens

    def steered(self, push: Steering) -> tuple[Completion, ...]:
        """The replies under steering, with the same noise."""
        (replies,) = sample_all(
            self.loaded, [Request(self.prompts, push=push)], self.sampling, self.seed
        )
        return replies

    def excess(self, steered: Sequence[Completion]) -> RatioEstimate:
        """By how much the share of tokens in loops is higher, prompt by prompt."""
        return _loop_share(steered).difference(_loop_share(self.unsteered))

    def read(self, reader: Reader, steered: Sequence[Completion]) -> LongRun:
        """Read both along their length."""
        return LongRun(
            n_tokens=self.n_tokens,
            loops=_loop_share(steered),
            loops_baseline=_loop_share(self.unsteered),
            excess=self.excess(steered),
            steered=read_along(self.loaded, reader, steered[:READ]),
            unsteered=read_along(self.loaded, reader, self.unsteered[:READ]),
        )


def answer_at_length(
    loaded: LoadedModel, prompts: Sequence[Prompt], settings: Settings
) -> LongReplies | None:
    """Have the first PROMPTS prompts answered at length, unsteered.

    Returns: None where no long run is asked for, or the context has no room for one.
    """
    chosen = tuple(prompts[:PROMPTS])
    wanted = max(settings.long_run, settings.sampling.max_new_tokens) if settings.long_run else 0
    room = loaded.context_length - max(len(prompt.ids) for prompt in chosen)
    if min(wanted, room) < SHORTEST_LONG_RUN:
        return None
    sampling = replace(settings.sampling, max_new_tokens=min(wanted, room))
    return unsteered_at_length(loaded, chosen, sampling, settings.seed)


def expected_tokens(n_prompts: int, settings: Settings) -> int:
    """Token-forwards of the long run, if there is room for it and it is asked for."""
    longest = max(settings.long_run, settings.sampling.max_new_tokens) if settings.long_run else 0
    return KINDS * longest * (min(PROMPTS, n_prompts) + READINGS * min(READ, n_prompts))


def unsteered_at_length(
    loaded: LoadedModel, prompts: tuple[Prompt, ...], sampling: Sampling, seed: int
) -> LongReplies:
    """Have prompts answered unsteered; the replies are kept for the next concept."""

    def sampled() -> list[list[int]]:
        (drawn,) = sample_all(loaded, [Request(prompts)], sampling, seed)
        return [list(one.ids) for one in drawn]

    facts = ["long run", [asdict(prompt) for prompt in prompts], asdict(sampling), seed]
    said = load_or_compute(loaded, REPLIES, facts, sampled)
    replies = tuple(
        completed(loaded, prompt, index, ids)
        for index, (prompt, ids) in enumerate(zip(prompts, said, strict=True))
    )
    return LongReplies(loaded, prompts, sampling, seed, replies)


def read_along(loaded: LoadedModel, reader: Reader, completions: Sequence[Completion]) -> Along:
    """Read replies window by window, with the unsteered model."""
    spoken = [one for one in completions if one.sequence.n_scored]
    run = run_unsteered(
        loaded, Corpus(tuple(one.sequence for one in spoken), self_sampled=False), []
    )
    loops = [looped(one.ids) for one in spoken]
    per_token = token_log_probs(loaded, run)
    texts = [list(_texts(loaded, one)) for one in spoken]
    scores = iter(reader.read([text for row in texts for text in row if text]))
    presence = [np.array([next(scores) if text else np.nan for text in row]) for row in texts]
    n_windows = max((len(row) for row in texts), default=0)
    return Along(
        loops=_by_window(loops, n_windows, _window),
        presence=_by_window(presence, n_windows, lambda row, at: row[at : at + 1]),
        log_prob=_by_window(per_token, n_windows, _window),
        n_replies=np.array([sum(len(row) > at for row in texts) for at in range(n_windows)]),
    )


def _loop_share(completions: Sequence[Completion]) -> RatioEstimate:
    """Mean share of a reply's tokens in loops; an empty reply has none."""
    shares = [float(looped(one.ids).sum()) / max(len(one.ids), 1) for one in completions]
    return RatioEstimate(np.array(shares), np.ones(len(shares)))


def _texts(loaded: LoadedModel, completion: Completion) -> Iterator[str]:
    """The text of each window; empty where it is thought, or too short to be read."""
    ids = completion.ids
    thought = len(ids) if completion.thought is None else completion.thought
    for first in range(0, len(ids), WINDOW):
        part = ids[max(first, thought) : first + WINDOW]
        enough = len(part) >= MIN_READ
        yield loaded.tokenizer.decode(part, skip_special_tokens=True).strip() if enough else ""


def _window(values: np.ndarray, at: int) -> np.ndarray:
    return values[at * WINDOW : (at + 1) * WINDOW]


def _by_window(
    rows: Sequence[np.ndarray], n_windows: int, cut: Callable[[np.ndarray, int], np.ndarray]
) -> np.ndarray:
    """Mean of the replies' values in each window, NaN where there are none."""
    joined = [np.concatenate([cut(row, at) for row in rows]) for at in range(n_windows)]
    known = [values[~np.isnan(values.astype(float))] for values in joined]
    return np.array([values.mean() if len(values) else np.nan for values in known])
