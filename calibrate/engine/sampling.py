"""Draw tokens with noise that is shared across strengths.

Each draw is the argmax of log-probability plus Gumbel noise over the nucleus, which is exact
sampling. The noise of a token depends only on the seed, the prompt's text, the reply's index,
the step and the token's id, never on the batch or the strength: replies at two strengths
differ because of the strength (common random numbers).
"""

from __future__ import annotations

import hashlib

import torch

from calibrate.common.settings import Sampling

# How many of the likeliest tokens are looked at: a nucleus mostly fits in the first number, and
# finding so few is many times faster than sorting; rows whose nucleus does not fit take more.
NUCLEUS_GUESSES = (128, 1024)


def draw(scores: torch.Tensor, sampling: Sampling, keys: torch.Tensor, step: int) -> torch.Tensor:
    """Draw one token per row from the nucleus of softmax(scores / temperature).

    scores: logits of shape (rows, vocabulary); keys: int64 tensor (rows,), a row's noise key.
    Returns: int64 tensor of shape (rows,).
    """
    tempered = scores.float() / sampling.temperature
    total = tempered.logsumexp(dim=-1, keepdim=True)
    counters = keys[:, None] + step * STEP_STRIDE
    if sampling.top_p < 1:
        return _from_nucleus(tempered, total, sampling.top_p, counters).to(scores.device)
    noise = _gumbel(counters, torch.arange(tempered.shape[-1]))
    return ((tempered - total).cpu() + noise).argmax(dim=-1).to(scores.device)


def _from_nucleus(
    tempered: torch.Tensor, total: torch.Tensor, top_p: float, counters: torch.Tensor
) -> torch.Tensor:
    """Draw from the likeliest tokens only, int64 tensor (rows,) on the CPU.

    total: log-sum-exp of each row of the tempered logits, (rows, 1). counters: of each row's noise.
    """
    vocabulary = tempered.shape[-1]
    chosen = torch.empty(len(tempered), dtype=torch.long)
    left = torch.arange(len(tempered))
    for guess in (*(each for each in NUCLEUS_GUESSES if each < vocabulary), vocabulary):
        here = slice(None) if len(left) == len(tempered) else left.to(tempered.device)
        top = tempered[here].topk(guess, dim=-1)
        # The rest is done on the CPU: the same on every device, and a GPU is waited for twice.
        log_probs, ids = (top.values - total[here]).cpu(), top.indices.cpu()
        before = _mass_before(log_probs)
        fits = (before[:, -1] >= top_p) | (guess == vocabulary)
        noisy = log_probs + _gumbel(counters[left], ids)
        best = noisy.masked_fill(before >= top_p, -torch.inf).argmax(dim=-1)
        chosen[left[fits]] = ids.gather(1, best[:, None])[fits, 0]
        left = left[~fits]
        if not len(left):
            break
    return chosen


def _mass_before(log_probs: torch.Tensor) -> torch.Tensor:
    """Probability of all likelier tokens, for each token in descending order."""
    probabilities = log_probs.exp()
    return probabilities.cumsum(dim=-1) - probabilities


# SplitMix64 (Steele, Lea and Flood, 2014): a counter through two multiply-xorshift rounds. The
# constants are its own, written as signed integers because torch has no unsigned arithmetic.
GOLDEN = -7046029254386353131
ROUND_1, ROUND_2 = -4658895280553007687, -7723592293110705685
STEP_STRIDE = 1 << 32  # more than any vocabulary, so that steps never share a counter


def _gumbel(counters: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise, float64, a pure function of a row's counter and a token's id."""
    z = (counters + ids + 1) * GOLDEN
    z = (z ^ _shifted(z, 30)) * ROUND_1
    z = (z ^ _shifted(z, 27)) * ROUND_2
    z = z ^ _shifted(z, 31)
    uniform = (_shifted(z, 11).double() + 0.5) / 2**53
    return -torch.log(-torch.log(uniform))


def _shifted(z: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift; torch's own keeps the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def noise_key(seed: int, text: str, k: int) -> int:
    """A row's noise key, 64 bits, from the seed, the prompt's text and the reply's index."""
    digest = hashlib.sha256(f"{seed} {k} {text}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)
