"""The long run: replies as long as in use, read window by window.

The search reads short replies, but some effects of steering show later: loops begin after a
hundred tokens, a concept fades. So the verification has a few prompts answered at length,
unsteered and steered with the same noise, and reads each window of the replies:

    loops      share of the tokens that lie in a passage repeated at once (`judging.loops`)
    presence   of each window's own text, as the judge reads it
    log-prob   of each token under the unsteered model, nats

A strength is not shipped if the share of tokens in loops rises by more than LOOP_MARGIN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace

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

PROMPTS = 24  # answered at length, once each: loops are rare, and counting them is free
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
    """The same prompts answered at length, unsteered, and steered in any way.

    prompts: a few of those of the verification. sampling: with replies as long as in use. sampled:
    the steered replies that there are.
    """

    loaded: LoadedModel
    prompts: tuple[Prompt, ...]
    sampling: Sampling
    seed: int
    unsteered: tuple[Completion, ...]
    sampled: dict[Steering, tuple[Completion, ...]] = field(default_factory=dict)

    @property
    def n_tokens(self) -> int:
        """How long the replies may be."""
        return self.sampling.max_new_tokens

    def steered(self, steering: Steering, ahead: Sequence[Steering] = ()) -> tuple[Completion, ...]:
        """The replies under steering, with the same noise.

        ahead: by what they may be steered next; if anything is sampled, it is in the same batches,
            since a step of many rows takes hardly longer than one of few.
        """
        if steering not in self.sampled:
            wanted = list(dict.fromkeys([steering, *ahead]))
            requests = [Request(self.prompts, steering=each) for each in wanted]
            found = sample_all(self.loaded, requests, self.sampling, self.seed)
            self.sampled.update(zip(wanted, found, strict=True))
        return self.sampled[steering]

    def loops(self, steered: Sequence[Completion]) -> RatioEstimate:
        """The share of their tokens in loops, over prompts."""
        return _loop_share(steered)

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
    loaded: LoadedModel, prompts: Sequence[Prompt], settings: Settings, ahead: Steering
) -> LongReplies | None:
    """Have the first PROMPTS prompts answered at length, unsteered and by a first steering.

    Returns: None where no long run is asked for, or the context has no room for one.
    """
    chosen = tuple(prompts[:PROMPTS])
    wanted = _wanted_tokens(settings)
    room = loaded.context_length - max(len(prompt.ids) for prompt in chosen)
    if min(wanted, room) < SHORTEST_LONG_RUN:
        return None
    sampling = replace(settings.sampling, max_new_tokens=min(wanted, room))
    return unsteered_at_length(loaded, chosen, sampling, settings.seed, ahead)


def expected_tokens(n_prompts: int, settings: Settings) -> int:
    """Token-forwards of the long run, if there is room for it and it is asked for."""
    n_read = min(PROMPTS, n_prompts) + READINGS * min(READ, n_prompts)
    return KINDS * _wanted_tokens(settings) * n_read


def _wanted_tokens(settings: Settings) -> int:
    """How long the replies should be; 0 where no long run is asked for."""
    return max(settings.long_run, settings.sampling.max_new_tokens) if settings.long_run else 0


def unsteered_at_length(
    loaded: LoadedModel,
    prompts: tuple[Prompt, ...],
    sampling: Sampling,
    seed: int,
    ahead: Steering,
) -> LongReplies:
    """Have prompts answered unsteered; the replies are cached, for other concepts too.

    ahead: a steering by which they will be answered as well: large batches cost least.
    """
    steered: dict[Steering, tuple[Completion, ...]] = {}

    def sampled() -> list[list[int]]:
        requests = [Request(prompts), Request(prompts, steering=ahead)]
        drawn, steered[ahead] = sample_all(loaded, requests, sampling, seed)
        return [list(reply.ids) for reply in drawn]

    facts = ["long run", [asdict(prompt) for prompt in prompts], asdict(sampling), seed]
    all_ids = load_or_compute(loaded, REPLIES, facts, sampled)
    replies = tuple(
        completed(loaded, prompt, index, ids)
        for index, (prompt, ids) in enumerate(zip(prompts, all_ids, strict=True))
    )
    return LongReplies(loaded, prompts, sampling, seed, replies, steered)


def read_along(loaded: LoadedModel, reader: Reader, completions: Sequence[Completion]) -> Along:
    """Read replies window by window, with the unsteered model."""
    replies = [reply for reply in completions if reply.sequence.n_scored]
    corpus = Corpus(tuple(reply.sequence for reply in replies), self_sampled=False)
    log_probs = token_log_probs(loaded, run_unsteered(loaded, corpus, []))
    loops = [looped(reply.ids) for reply in replies]
    texts = [list(_texts(loaded, reply)) for reply in replies]
    scores = iter(reader.read([text for row in texts for text in row if text]))
    presence = [np.array([next(scores) if text else np.nan for text in row]) for row in texts]
    n_windows = max((len(row) for row in texts), default=0)
    return Along(
        loops=_by_window(loops, n_windows, _window),
        presence=_by_window(presence, n_windows, lambda row, at: row[at : at + 1]),
        log_prob=_by_window(log_probs, n_windows, _window),
        n_replies=np.array([sum(len(row) > at for row in texts) for at in range(n_windows)]),
    )


def _loop_share(completions: Sequence[Completion]) -> RatioEstimate:
    """Mean share of a reply's tokens in loops; an empty reply has none."""
    shares = [float(looped(reply.ids).sum()) / max(len(reply.ids), 1) for reply in completions]
    return RatioEstimate(np.array(shares), np.ones(len(shares)))


def _texts(loaded: LoadedModel, completion: Completion) -> Iterator[str]:
    """The text of each window; empty where it is reasoning, or too short to be read."""
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
