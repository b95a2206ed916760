"""Where memory is short: halved batches, and residuals kept elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch

from calibrate.common.errors import ModelError
from calibrate.common.settings import Sampling
from calibrate.engine import decoding, forward, memory, pooling, unsteered
from calibrate.engine.cross_entropy import delta_ce
from calibrate.engine.generation import sample
from calibrate.engine.memory import ResidualStore, in_parts_that_fit
from calibrate.engine.pooling import pooled_residuals
from calibrate.engine.unsteered import Corpus, run_unsteered
from calibrate.models.prompts import encode_prompt
from calibrate.models.tokens import TokenSequence
from probes.question import Question

LAYER = 1


@pytest.fixture(scope="module")
def loaded():
    return tiny.loaded("llama")


@pytest.fixture
def sequences():
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, 12, size=9)
    return tuple(TokenSequence(tuple(rng.integers(1, 20, size=n).tolist()), 2) for n in lengths)


@pytest.fixture
def small_memory(monkeypatch):
    """A machine on which a pass of more than two rows does not fit."""
    seen = []

    def limited(work):
        def run(loaded, batch, *args, **kwargs):
            rows = batch.ids.shape[0] if hasattr(batch, "ids") else len(batch)
            seen.append(rows)
            if rows > 2:
                raise torch.OutOfMemoryError("out of memory")
            return work(loaded, batch, *args, **kwargs)

        return run

    smaller = limited(forward.forward)
    monkeypatch.setattr(forward, "forward", smaller)
    monkeypatch.setattr(pooling, "forward", smaller)
    monkeypatch.setattr("calibrate.engine.generation.decode", limited(decoding.decode))
    return seen


def on_the_cpu():
    torch.empty(1 << 58)


def on_mps():
    raise RuntimeError("MPS backend out of memory (MPS allocated: 9.0 GB, max allowed: 9.07 GB).")


def on_a_gpu():
    raise torch.OutOfMemoryError


def of_python():
    raise MemoryError


@pytest.mark.parametrize("run_out", [on_the_cpu, on_mps, on_a_gpu, of_python])
def test_what_does_not_fit_is_halved_and_stays_in_order(run_out):
    def work(rows):
        if len(rows) > 3:
            run_out()
        return sum(rows)

    parts = in_parts_that_fit(work, range(10))
    assert [row for rows, _ in parts for row in rows] == list(range(10))
    assert all(total == sum(rows) for rows, total in parts)


def test_another_error_is_not_taken_for_a_lack_of_memory():
    def work(rows):
        raise RuntimeError(f"{len(rows)} rows have no shape")

    with pytest.raises(RuntimeError, match="4 rows have no shape"):
        in_parts_that_fit(work, range(4))


def test_a_row_that_does_not_fit_is_an_error_with_a_way_out():
    def work(rows):
        raise torch.OutOfMemoryError

    with pytest.raises(ModelError, match="shorter texts"):
        in_parts_that_fit(work, range(4))


def test_halved_batches_measure_the_same(loaded, sequences, small_memory, monkeypatch):
    vector, corpus = torch.randn(loaded.hidden_size), Corpus(sequences, self_sampled=True)
    halved = run_unsteered(loaded, corpus, [LAYER])
    pooled = list(pooled_residuals(loaded, sequences, [LAYER]))
    assert max(small_memory) == len(sequences)
    assert len(halved.batches) > 1
    monkeypatch.undo()
    whole = run_unsteered(loaded, corpus, [LAYER])
    expected = list(pooled_residuals(loaded, sequences, [LAYER]))
    assert len(whole.batches) == 1
    found, right = (
        delta_ce(loaded, run, tiny.site(vector, LAYER), 0.3).sums for run in (halved, whole)
    )
    assert found == pytest.approx(right, rel=1e-4)
    means = torch.cat([one.means for one in pooled], dim=1)
    rows = [row for one in pooled for row in one.rows]
    assert torch.allclose(
        means[:, np.argsort(rows)], expected[0].means[:, np.argsort(expected[0].rows)], atol=1e-5
    )


def test_halved_batches_say_the_same(loaded, small_memory, monkeypatch):
    prompts = [encode_prompt(loaded, f"prompt {n}") for n in range(7)]
    halved = sample(loaded, prompts, Sampling(max_new_tokens=5), 0)
    assert max(small_memory) == len(prompts)
    monkeypatch.undo()
    assert halved == sample(loaded, prompts, Sampling(max_new_tokens=5), 0)


def test_halved_batches_answer_the_same(loaded, small_memory, monkeypatch):
    first = {"yes": [9], "no": [10, 11]}
    monkeypatch.setattr(Question, "_first_tokens", lambda _, word: first[word])
    judge, texts = Question(loaded, "{text} with {concept}"), tiny.prompts(7)
    halved = judge.score(texts, "rain")
    assert max(small_memory) == len(texts)
    for text, score in zip(texts, halved, strict=True):
        ids = encode_prompt(loaded, f"{text} with rain").ids
        p = loaded.model(input_ids=torch.tensor([ids])).logits[0, -1].softmax(dim=-1)
        assert score == pytest.approx(float(p[9] / (p[9] + p[10] + p[11])), rel=1e-4)


def test_residuals_beyond_the_limit_are_kept_in_a_file(loaded, sequences, monkeypatch):
    vector, corpus = torch.randn(loaded.hidden_size), Corpus(sequences, self_sampled=True)
    expected = delta_ce(
        loaded, run_unsteered(loaded, corpus, [LAYER]), tiny.site(vector, LAYER), 0.3
    )
    filed = []
    monkeypatch.setattr(unsteered, "ResidualStore", lambda: ResidualStore(most=0))
    in_file = memory._in_file
    monkeypatch.setattr(memory, "_in_file", lambda values: filed.append(1) or in_file(values))
    run = run_unsteered(loaded, corpus, [LAYER])
    assert filed
    assert np.array_equal(delta_ce(loaded, run, tiny.site(vector, LAYER), 0.3).sums, expected.sums)


def test_a_shelf_keeps_in_memory_up_to_its_limit(monkeypatch):
    filed = []
    monkeypatch.setattr(memory, "_in_file", lambda values: filed.append(values) or values)
    shelf, values = ResidualStore(most=100), torch.ones(10)
    for _ in range(4):
        assert torch.equal(shelf.keep(values), values)
    assert len(filed) == 2  # 40 bytes each: two fit
