"""Sample replies, steered or not: requests, batches and completions."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from calibrate.common.errors import InputError
from calibrate.common.settings import Sampling
from calibrate.engine.decoding import Row, decode
from calibrate.engine.memory import in_parts_that_fit
from calibrate.engine.sampling import noise_key
from calibrate.models.model import LoadedModel
from calibrate.models.steering import Steering
from calibrate.models.thought import thought_length
from calibrate.models.tokens import WORTH_SHARING, Prompt, TokenSequence

# Generation runs one position per row and step, so it affords more rows than scoring, and on a
# CPU a step of 200 rows takes twice as long as one of 50.
ROWS_PER_BATCH_TOKEN = 12

MIN_ALIKE = 4  # different prompts that must begin alike for a batch of their own


@dataclass(frozen=True)
class Completion:
    """One sampled reply.

    prompt: the prompt's text; prompt_index: its place in the list it came from.
    sequence: the token ids of prompt and reply, the reply scored, its end token included.
    text: the answer, special tokens removed: what follows the thought, if the model thinks first.
    thought: how many of the reply's tokens are thought; None if it never gets to the answer.
    """

    prompt: str
    prompt_index: int
    sequence: TokenSequence
    text: str
    thought: int | None = 0

    @property
    def ids(self) -> tuple[int, ...]:
        """The reply's own token ids, thought and end token included."""
        return self.sequence.ids[self.sequence.start :]

    @property
    def answered(self) -> bool:
        """Whether the reply gets as far as the answer."""
        return self.thought is not None

    @property
    def spoken(self) -> bool:
        """Whether it says anything, even if only in thought."""
        return bool(self.text) or not self.answered


@dataclass(frozen=True, eq=False)
class Request:
    """Replies wanted to some prompts.

    per_prompt: number of replies to every prompt, or to each. steering: what steers them, if
    anything. first: number of the first reply to a prompt; those before it exist already.
    """

    prompts: Sequence[Prompt]
    per_prompt: int | Sequence[int] = 1
    steering: Steering | None = None
    first: int = 0

    @property
    def jobs(self) -> list[tuple[int, int]]:
        """Every reply wanted, as the prompt's index and the reply's own."""
        counts = self.per_prompt
        if isinstance(counts, int):
            counts = [counts] * len(self.prompts)
        return [(index, self.first + k) for index, count in enumerate(counts) for k in range(count)]


def sample(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    seed: int,
    per_prompt: int | Sequence[int] = 1,
    steering: Steering | None = None,
    within: AbstractContextManager[None] | None = None,
) -> tuple[Completion, ...]:
    """Sample replies to every prompt, in the order of the prompts.

    steering: what steers these replies. within: a context in which the model is steered by other
        means, at all positions alike.
    """
    with within or nullcontext():
        request = Request(prompts, per_prompt, steering)
        (completions,) = sample_all(loaded, [request], sampling, seed)
    return completions


def sample_all(
    loaded: LoadedModel, requests: Sequence[Request], sampling: Sampling, seed: int
) -> list[tuple[Completion, ...]]:
    """Sample what several requests want, in the same batches, since large ones cost least.

    Replies to one prompt share their noise across requests.
    Returns: for every request its replies, in the order of its prompts.
    Raises: InputError if a prompt and its longest reply do not fit the context together.
    """
    jobs = [
        _Job(place, index, k, request.prompts[index], request.steering)
        for place, request in enumerate(requests)
        for index, k in request.jobs
    ]
    for job in jobs:
        require_room(loaded, job.prompt, sampling)
    completions: dict[tuple[int, int, int], Completion] = {}

    def generated(part: Sequence[_Job]) -> list[list[int]]:
        rows = [
            Row(job.prompt, noise_key(seed, job.prompt.text, job.k), job.steering) for job in part
        ]
        return decode(loaded, rows, sampling)

    for batch in _batched(loaded, jobs, sampling):
        for part, replies in in_parts_that_fit(generated, batch):
            for job, ids in zip(part, replies, strict=True):
                completion = completed(loaded, job.prompt, job.index, ids)
                completions[job.place, job.index, job.k] = completion
    return [
        tuple(completions[place, index, k] for index, k in request.jobs)
        for place, request in enumerate(requests)
    ]


def require_room(loaded: LoadedModel, prompt: Prompt, sampling: Sampling) -> None:
    """Raise InputError where a prompt and its longest reply do not fit the context together."""
    longest = len(prompt.ids) + sampling.max_new_tokens
    if longest > loaded.context_length:
        raise InputError(
            f"a prompt and its reply must fit the model's context of {loaded.context_length} "
            f"tokens together, got {len(prompt.ids)} and {sampling.max_new_tokens}: "
            f"{prompt.text[:60]!r}; shorten the prompt, or ask for fewer tokens"
        )


@dataclass(frozen=True, eq=False)
class _Job:
    """One reply: the request it is for, its prompt and number there, and what it takes."""

    place: int
    index: int
    k: int
    prompt: Prompt
    steering: Steering | None


def _batched(loaded: LoadedModel, jobs: Sequence[_Job], sampling: Sampling) -> Iterator[list[_Job]]:
    """Cut jobs into batches that fit, longest prompts first.

    Prompts that begin alike, as with a chat template, are kept together, since a batch runs its
    common prefix once; all others form batches of their own.
    """
    different = {job.prompt.ids for job in jobs}
    beginnings = Counter(ids[:WORTH_SHARING] for ids in different)
    groups: dict[tuple[int, ...], list[_Job]] = defaultdict(list)
    for job in jobs:
        beginning = job.prompt.ids[:WORTH_SHARING]
        groups[beginning if beginnings[beginning] >= MIN_ALIKE else ()].append(job)
    for group in groups.values():
        group.sort(key=lambda job: -len(job.prompt.ids))
        width = len(group[0].prompt.ids) + sampling.max_new_tokens
        size = max(1, ROWS_PER_BATCH_TOKEN * loaded.batch_tokens // width)
        for first in range(0, len(group), size):
            yield group[first : first + size]


def completed(loaded: LoadedModel, prompt: Prompt, index: int, ids: Sequence[int]) -> Completion:
    """A reply of these token ids to the prompt at this place of its list."""
    thought = thought_length(loaded.tokenizer, ids, prompt.opened)
    answer = [] if thought is None else ids[thought:]
    text = loaded.tokenizer.decode(answer, skip_special_tokens=True).strip()
    return Completion(prompt.text, index, prompt.followed_by(ids), text, thought)
