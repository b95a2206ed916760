"""Questions that run once for all their answers, against every answer run with its question."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch

from calibrate.common.errors import InputError
from calibrate.engine import forks as forking
from calibrate.engine.forks import Fork, fork_states, score_ways
from calibrate.engine.loading import load_model

STRENGTH = 2.0


def some_forks(n=12):
    """Beginnings that are alike at first, each with one to four ways of 1 to 5 tokens."""
    rng, made = np.random.default_rng(0), []

    def ids(length):
        return tuple(int(token) for token in rng.integers(5, 40, length))

    begun = ids(9)
    for place in range(n):
        ways = tuple(ids(rng.integers(1, 6)) for _ in range(1 + place % 4))
        made.append(Fork((*begun, *ids(rng.integers(1, 8))), ways))
    return made


def read_alone(loaded, fork, way, shift, positions):
    """What the unembedding reads where the way's tokens are predicted, by one plain pass."""
    read = []
    handles = [loaded.unembedding.register_forward_pre_hook(lambda _, args: read.append(args[0]))]
    first = len(fork.beginning) - 1

    def steer(_module, _args, output):
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        hidden[:, 0 if positions == "all" else first :] += STRENGTH * shift
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    if shift is not None:
        handles.append(loaded.blocks[0].register_forward_hook(steer))
    with torch.no_grad():
        loaded.model(input_ids=torch.tensor([[*fork.beginning, *way]]))
    for handle in handles:
        handle.remove()
    return read[0][0, first:-1]


def all_states(loaded, forks, steered=None):
    """What `fork_states` yields batch by batch, in the order of the forks."""
    found = {}
    for part, states in fork_states(loaded, forks, steered):
        found |= zip(part, states, strict=True)
    return [found[fork] for fork in forks]


@pytest.mark.parametrize("architecture", [*tiny.CONFIGS])
@pytest.mark.parametrize("positions", [None, "all", "last"])
def test_ways_score_as_they_do_alone(architecture, positions):
    loaded = tiny.loaded(architecture, batch_tokens=64)
    assert loaded.capabilities.forking.works
    shift = (
        None if positions is None else torch.randn(32, generator=torch.Generator().manual_seed(3))
    )
    forks = some_forks()
    steered = None if shift is None else (tiny.site(shift, 0, positions), STRENGTH)
    for fork, found in zip(forks, all_states(loaded, forks, steered), strict=True):
        assert set(found) == {*fork.ways}
        for way, states in found.items():
            expected = read_alone(loaded, fork, way, shift, positions)
            torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["gemma3", "mistral"])
def test_near_the_end_of_a_window_ways_score_as_they_do_alone(architecture):
    """Padding of a short beginning counts where a batch is wider than each of its forks."""
    loaded = tiny.loaded(architecture)
    window = loaded.model.config.sliding_window
    ids = tuple(range(5, 5 + window))
    forks = [Fork(ids[:-2], (ids[-2:],)), Fork(ids[:10], (ids[-6:],))]
    for fork, found in zip(forks, all_states(loaded, forks), strict=True):
        for way, states in found.items():
            expected = read_alone(loaded, fork, way, None, None)
            torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-4)


def test_the_likelihood_of_a_way_is_that_of_its_tokens():
    loaded, forks = tiny.loaded(spread=0.6), some_forks()
    forks.append(Fork(forks[0].beginning, likeliest_and_not(loaded, forks[0].beginning)))
    shift = torch.randn(32, generator=torch.Generator().manual_seed(3))
    how = tiny.site(shift, 0), STRENGTH
    for fork, scores in zip(forks, score_ways(loaded, forks, how), strict=True):
        for way, score in scores.items():
            read = read_alone(loaded, fork, way, shift, "all")
            predicted = loaded.logits(read).double().log_softmax(dim=-1)
            of_tokens = predicted.gather(1, torch.tensor(way)[:, None])
            assert score.log_prob == pytest.approx(float(of_tokens.sum()), abs=1e-4)
            assert score.likeliest == (predicted.argmax(dim=-1).tolist() == list(way))
    likeliest = score_ways(loaded, forks[-1:])[0]
    assert [score.likeliest for score in likeliest.values()] == [True, False]


def likeliest_and_not(loaded, beginning):
    """What a model goes on with, in two tokens, and the same with another second one."""
    ids = list(beginning)
    for _ in range(2):
        with torch.no_grad():
            ids.append(int(loaded.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return (*ids[-2:],), (ids[-2], ids[-1] % 30 + 1)


def test_a_beginning_runs_once_for_all_its_ways():
    loaded, forks = tiny.loaded(), some_forks()
    _ = loaded.capabilities.forking
    costs = []
    for way in (all_states, forking._whole):
        spent = loaded.meter.tokens
        way(loaded, forks, None)
        costs.append(loaded.meter.tokens - spent)
    assert costs[0] < 0.7 * costs[1]


class TakesTurns(torch.nn.Module):
    """A block that goes wrong where several rows follow a beginning that is in the cache."""

    def __init__(self, block):
        super().__init__()
        self.block, self.cached = block, 0

    def forward(self, hidden, *args, **kwargs):
        cache = kwargs.get("past_key_values") or kwargs.get("cache")
        out = self.block(hidden, *args, **kwargs)
        repeated = (
            cache is not None and len(hidden) > 2 and cache.get_seq_length() > hidden.shape[1]
        )
        return out + 1.0 if repeated else out


def test_a_model_that_scores_forks_otherwise_runs_every_way_whole():
    made = tiny.model()
    made.model.layers[0] = TakesTurns(made.model.layers[0])
    with pytest.warns(match="goes without forking, so every answer runs with its question"):
        works = (loaded := load_model(made, tiny.tokenizer())).capabilities.forking.works
    assert not works
    plain, forks = tiny.loaded(), some_forks()
    for one, other in zip(all_states(loaded, forks), all_states(plain, forks), strict=True):
        for way in one:
            torch.testing.assert_close(one[way], other[way], rtol=1e-4, atol=1e-4)


def test_the_states_of_more_questions_than_a_batch_holds_are_not_kept_together():
    loaded, forks = tiny.loaded(batch_tokens=64), some_forks(40)
    sizes = [len(part) for part, _ in fork_states(loaded, forks)]
    assert sum(sizes) == len(forks)
    assert max(sizes) * 9 <= 64  # nine tokens are common to all beginnings


def test_the_caches_of_a_batch_are_bounded_though_its_ways_are_short():
    """Every way has the keys and values of its beginning to itself."""
    loaded = tiny.loaded(batch_tokens=100)
    begun = [tuple(range(5, 35))[place:] for place in range(3)]
    forks = [Fork(ids, tuple((5 + k, 6) for k in range(20))) for ids in begun]
    assert [len(part) for part, _ in fork_states(loaded, forks)] == [1, 1, 1]


def test_a_way_without_tokens_is_refused():
    with pytest.raises(InputError, match="at least one token to the model, and one of 2 is none"):
        Fork((5, 6), ((7, 8), ()))
