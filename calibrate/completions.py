"""Sample replies, steered or not, with noise that is shared across strengths.

Each draw is the argmax of log-probability plus Gumbel noise over the nucleus, which is exact
sampling. The noise of a token depends only on the seed, the prompt's text, the reply's index,
the step and the token's id, never on the batch or the strength: replies at two strengths
differ because of the strength (common random numbers).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList

from calibrate.cost import Meter
from calibrate.settings import Sampling
from calibrate.tokens import PAD, Prompt, TokenSequence

if TYPE_CHECKING:
    from calibrate.model import LoadedModel

# A nucleus nearly always fits in this many tokens, and finding them is fifty times faster than
# sorting the vocabulary; where it does not fit, the whole vocabulary is sorted.
NUCLEUS_GUESS = 1024

WORTH_SHARING = 8  # tokens a common prefix must have to be run on its own

# Generation runs one position per row and step, so it affords more rows than scoring, and on a
# CPU a step of 200 rows takes twice as long as one of 50.
ROWS_PER_BATCH_TOKEN = 12


@dataclass(frozen=True)
class Completion:
    """One sampled reply.

    prompt: the prompt's text; prompt_index: its place in the list it came from.
    sequence: the token ids of prompt and reply, the reply scored, its end token included.
    text: the reply, special tokens removed.
    """

    prompt: str
    prompt_index: int
    sequence: TokenSequence
    text: str


def sample(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    seed: int,
    per_prompt: int | Sequence[int] = 1,
    steering: AbstractContextManager[None] | None = None,
    share_prefix: bool = True,
) -> tuple[Completion, ...]:
    """Sample replies to every prompt, in the order of the prompts.

    per_prompt: replies to every prompt, or to each.
    steering: a context that steers the model while it generates.
    share_prefix: run what all prompts begin with (a chat template's system message) once and
        not per prompt. Must be False where steering treats a pass's last position differently.
    """
    counts = [per_prompt] * len(prompts) if isinstance(per_prompt, int) else per_prompt
    jobs = [(index, k) for index, count in enumerate(counts) for k in range(count)]
    jobs.sort(key=lambda job: len(prompts[job[0]].ids), reverse=True)
    longest = max((len(prompt.ids) for prompt in prompts), default=1)
    width = longest + sampling.max_new_tokens
    size = max(1, ROWS_PER_BATCH_TOKEN * loaded.batch_tokens // width)
    done: dict[tuple[int, int], Completion] = {}
    with steering or nullcontext():
        for first in range(0, len(jobs), size):
            part = jobs[first : first + size]
            rows = [prompts[index] for index, _ in part]
            keys = _keys(seed, [(prompts[index].text, k) for index, k in part])
            replies = _generate(loaded, rows, sampling, keys, share_prefix)
            for (index, k), ids in zip(part, replies, strict=True):
                done[index, k] = _completion(loaded, prompts[index], index, ids)
    return tuple(done[job] for job in sorted(done))


def draw(scores: torch.Tensor, sampling: Sampling, keys: torch.Tensor, step: int) -> torch.Tensor:
    """Draw one token per row from the nucleus of softmax(scores / temperature).

    scores: logits of shape (rows, vocabulary); keys: int64 tensor (rows,), a row's noise key.
    Returns: int64 tensor of shape (rows,).
    """
    tempered = scores.float() / sampling.temperature
    total = tempered.logsumexp(dim=-1, keepdim=True)
    vocabulary = tempered.shape[-1]
    guess = vocabulary if sampling.top_p >= 1 else min(NUCLEUS_GUESS, vocabulary)
    top = tempered.topk(guess, dim=-1)
    before = _mass_before(top.values - total)
    if guess < vocabulary and bool((before[:, -1] < sampling.top_p).any()):
        top = tempered.topk(vocabulary, dim=-1)
        before = _mass_before(top.values - total)
    # Float64 noise is made on the CPU, so that it is the same on every device.
    log_probs, ids = (top.values - total).double().cpu(), top.indices.cpu()
    noisy = log_probs + _gumbel(keys[:, None] + step * STEP_STRIDE, ids)
    choice = noisy.masked_fill((before >= sampling.top_p).cpu(), -torch.inf).argmax(dim=-1)
    return ids.gather(1, choice[:, None])[:, 0].to(scores.device)


class _Draw(LogitsProcessor):  # type: ignore[misc]
    """Leave only the drawn token possible, so that greedy decoding takes it."""

    def __init__(self, sampling: Sampling, keys: torch.Tensor, meter: Meter) -> None:
        self._sampling, self._keys, self._meter = sampling, keys, meter
        self._step = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self._step:  # the first token comes out of the prompt's own pass
            self._meter.count(len(scores))
        chosen = draw(scores, self._sampling, self._keys, self._step)
        self._step += 1
        return scores.fill_(-torch.inf).scatter_(1, chosen[:, None], 0.0)  # a copy of generate's


def _generate(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    keys: torch.Tensor,
    share_prefix: bool,
) -> list[list[int]]:
    """Return each row's new token ids, up to and including its end token."""
    sharing = share_prefix and _can_share(loaded, prompts, sampling)
    prefix = _common_prefix(prompts) if sharing else ()
    ids, mask = _padded(prompts, len(prefix), loaded.device)
    ends = _end_ids(loaded)
    loaded.meter.count(len(prefix) + ids[:, len(prefix) :].numel())
    out = loaded.model.generate(
        input_ids=ids,
        attention_mask=mask,
        past_key_values=_prefilled(loaded, prefix, len(prompts)),
        generation_config=GenerationConfig(
            do_sample=False,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=sorted(ends) or None,
            pad_token_id=min(ends, default=PAD),
        ),
        logits_processor=LogitsProcessorList([_Draw(sampling, keys, loaded.meter)]),
    )
    return [_until_end(row, ends) for row in out[:, ids.shape[1] :].tolist()]


def _completion(loaded: LoadedModel, prompt: Prompt, index: int, ids: list[int]) -> Completion:
    text = loaded.tokenizer.decode(ids, skip_special_tokens=True).strip()
    return Completion(prompt.text, index, prompt.followed_by(ids), text)


def _mass_before(log_probs: torch.Tensor) -> torch.Tensor:
    """Probability of all likelier tokens, for each token in descending order."""
    probabilities = log_probs.exp()
    return probabilities.cumsum(dim=-1) - probabilities


# SplitMix64 (Steele, Lea and Flood, 2014): a counter through two multiply-xorshift rounds. The
# constants are its own, written as signed integers because torch has no unsigned arithmetic.
GOLDEN = -7046029254386353131
ROUND_1, ROUND_2 = -4658895280553007687, -7723592293110705685
STEP_STRIDE = 1 << 32  # more than any vocabulary, so that steps never share a counter


def _gumbel(keys: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise, float64, a pure function of key and token id."""
    z = (keys + ids + 1) * GOLDEN
    z = (z ^ _shifted(z, 30)) * ROUND_1
    z = (z ^ _shifted(z, 27)) * ROUND_2
    z = z ^ _shifted(z, 31)
    uniform = (_shifted(z, 11).double() + 0.5) / 2**53
    return -torch.log(-torch.log(uniform))


def _shifted(z: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift; torch's own keeps the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _keys(seed: int, jobs: Sequence[tuple[str, int]]) -> torch.Tensor:
    """One noise key per row, int64, from the seed, the prompt's text and the reply's index."""
    hashes = [hashlib.sha256(f"{seed} {k} {text}".encode()).digest()[:8] for text, k in jobs]
    return torch.from_numpy(np.frombuffer(b"".join(hashes), dtype=np.int64).copy())


def _until_end(ids: list[int], ends: set[int]) -> list[int]:
    for position, token in enumerate(ids):
        if token in ends:
            return ids[: position + 1]
    return ids


def _end_ids(loaded: LoadedModel) -> set[int]:
    configured = loaded.model.generation_config.eos_token_id
    ends = set(configured if isinstance(configured, list) else [configured])
    return {int(end) for end in ends | {loaded.tokenizer.eos_token_id} if end is not None}


def _can_share(loaded: LoadedModel, prompts: Sequence[Prompt], sampling: Sampling) -> bool:
    """Whether padding behind a shared prefix leaves replies as they would be without.

    It would not where a sliding window counts the padding, nor where state is not a cache of
    keys and values.
    """
    config = loaded.model.config.get_text_config()
    longest = max(len(prompt.ids) for prompt in prompts) + sampling.max_new_tokens
    window = getattr(config, "sliding_window", None)
    stateful = getattr(loaded.model, "_is_stateful", False)
    return not stateful and (window is None or longest <= window)


def _common_prefix(prompts: Sequence[Prompt]) -> tuple[int, ...]:
    """The token ids all prompts begin with, if they are worth a pass of their own.

    At least one token of every prompt is left over, for its reply to follow.
    """
    first, last = min(prompt.ids for prompt in prompts), max(prompt.ids for prompt in prompts)
    most = min(len(prompt.ids) for prompt in prompts) - 1
    same = next(
        (i for i, pair in enumerate(zip(first, last, strict=False)) if len(set(pair)) > 1), most
    )
    length = min(same, most)
    return first[:length] if len(prompts) > 1 and length >= WORTH_SHARING else ()


@torch.no_grad()
def _prefilled(loaded: LoadedModel, prefix: tuple[int, ...], rows: int) -> DynamicCache | None:
    """Keys and values of a prefix, repeated for every row; None without a prefix."""
    if not prefix:
        return None
    cache = DynamicCache(config=loaded.model.config.get_text_config())
    ids = torch.tensor([prefix], device=loaded.device)
    loaded.model(input_ids=ids, past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(rows)
    return cache


def _padded(
    prompts: Sequence[Prompt], shared: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of shape (rows, positions), padded between the shared prefix and the rest."""
    width = max(len(prompt.ids) for prompt in prompts)
    ids = torch.full((len(prompts), width), PAD, dtype=torch.long)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        rest = width - len(prompt.ids) + shared
        ids[row, :shared] = torch.tensor(prompt.ids[:shared])
        ids[row, rest:] = torch.tensor(prompt.ids[shared:])
        mask[row, :shared] = 1
        mask[row, rest:] = 1
    return ids.to(device), mask.to(device)
