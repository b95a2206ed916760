"""Ranks of blocks, against differences of steered passes."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch

from calibrate.common.errors import CalibrateWarning, ConceptError, NumericalError
from calibrate.common.record import BlockRank
from calibrate.common.settings import Settings
from calibrate.engine.cross_entropy import steered_hidden
from calibrate.engine.site import Site
from calibrate.engine.unsteered import Corpus, run_unsteered
from calibrate.laws.log_odds import measure_log_odds
from calibrate.models.model import preserving_model_state
from calibrate.search import block_ranking as ranking
from calibrate.search.block_ranking import carried_blocks, rank_blocks
from calibrate.texts.extraction import concept_vectors, encode


def log_likelihood(loaded, texts, vector, strength):
    """Per token, of texts under steering: teacher-forced, block by block."""
    sequences = tuple(encode(loaded, text) for text in texts)
    run = run_unsteered(loaded, Corpus(sequences, self_sampled=False), [vector.layer])
    total = 0.0
    for one in run.batches:
        hidden = steered_hidden(loaded, one, tiny.site(strength * vector.values, vector.layer), 1.0)
        log_p = torch.log_softmax(loaded.logits(hidden), dim=-1)
        total += float(log_p.gather(1, one.batch.labels()[:, None]).sum())
    return total / run.corpus.n_scored


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "falcon"])
@pytest.mark.parametrize("positions", ["all", "last"])
def test_the_estimates_agree_with_steered_passes(architecture, positions, sequences, monkeypatch):
    monkeypatch.setattr(ranking, "MAX_SEQUENCES", 240)  # so that the oracle sees no noise
    loaded = tiny.loaded(architecture)
    splits = tiny.concept().split()
    settings = Settings(positions=positions)
    with preserving_model_state(loaded):
        vectors = concept_vectors(loaded, splits["vector"], settings)
        corpus = Corpus(tuple(sequences) * 20, self_sampled=True)
        ranks = rank_blocks(loaded, corpus, splits["probe"], vectors, settings)
        assert sorted(rank.layer for rank in ranks) == list(range(loaded.num_layers))
        for rank in ranks:
            vector = vectors[rank.layer]
            run = run_unsteered(loaded, Corpus(tuple(sequences), True), [rank.layer])
            odds = measure_log_odds(loaded, run, Site((vector,), positions), ())
            exact = np.sqrt(2 * settings.ce_budget / odds.law(1).curvature)
            assert rank.strength_at_budget == pytest.approx(exact, rel=0.25)
            if positions == "all":
                slopes = [
                    (log_likelihood(loaded, group, vector, step)
                     - log_likelihood(loaded, group, vector, -step)) / (2 * step)
                    for group in (splits["probe"].positives, splits["probe"].negatives)
                    for step in [0.01]
                ]  # fmt: skip
                gain = rank.strength_at_budget * (slopes[0] - slopes[1])
                assert rank.gain == pytest.approx(gain, rel=0.02, abs=1e-4)


def test_replies_count_where_both_labels_have_some(sequences):
    """Texts that reply to nothing are left out then, and nothing hangs on them."""
    from calibrate.texts.concept import Text, Texts

    loaded, settings = tiny.loaded(), Settings()
    with preserving_model_state(loaded):
        vectors = concept_vectors(loaded, tiny.concept().split()["vector"], settings)
        replies = [Text("sun laugh", "the road"), Text("rain mud", "the road")]
        more = Texts((replies[0], Text("song dance")), (replies[1], Text("the a house")))
        fewer = Texts((replies[0],), (replies[1],))
        corpus = Corpus(tuple(sequences), self_sampled=True)
        assert rank_blocks(loaded, corpus, more, vectors, settings) == rank_blocks(
            loaded, corpus, fewer, vectors, settings
        )


def test_to_decrease_a_concept_strengths_are_negative(sequences):
    loaded = tiny.loaded()
    splits = tiny.concept().split()
    with preserving_model_state(loaded):
        vectors = concept_vectors(loaded, splits["vector"], Settings())
        corpus = Corpus(tuple(sequences), self_sampled=True)
        up, down = (
            rank_blocks(loaded, corpus, splits["probe"], vectors, Settings(goal=goal))
            for goal in ("increase", "decrease")
        )
    assert [rank.layer for rank in up] == [rank.layer for rank in down]
    assert all(rank.strength_at_budget < 0 for rank in down)


def test_blocks_without_finite_derivatives_are_named_and_none_at_all_is_refused(
    sequences, monkeypatch
):
    loaded, curvature = tiny.loaded(), np.array([1.0, np.nan, np.inf])
    splits = tiny.concept().split()
    monkeypatch.setattr(ranking, "_curvature", lambda *_: curvature)
    with preserving_model_state(loaded):
        vectors = concept_vectors(loaded, splits["vector"], Settings())
        given = loaded, Corpus(tuple(sequences), True), splits["probe"], vectors, Settings()
        with pytest.warns(CalibrateWarning, match="NaN or infinity .* at blocks 1-2, not searched"):
            assert [rank.layer for rank in rank_blocks(*given)] == [0]
        curvature[0] = np.nan
        with pytest.raises(NumericalError, match="at all of them; use --dtype float32"):
            rank_blocks(*given)
        curvature[:] = 0.0
        with pytest.raises(ConceptError, match="got none that does; give texts that differ"):
            rank_blocks(*given)


def test_ranking_leaves_no_gradient_and_no_hook(sequences):
    loaded = tiny.loaded()
    splits = tiny.concept().split()
    with preserving_model_state(loaded):
        vectors = concept_vectors(loaded, splits["vector"], Settings())
        rank_blocks(loaded, Corpus(tuple(sequences), True), splits["probe"], vectors, Settings())
    assert all(parameter.grad is None for parameter in loaded.model.parameters())
    modules = list(loaded.model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def ranked(*layers):
    return [BlockRank(layer, 1.0, 1.0 - index / 100) for index, layer in enumerate(layers)]


def test_the_best_blocks_of_the_middle_and_the_last_third_are_carried():
    assert carried_blocks(ranked(28, 25, 27, 22, 15, 3, 9), 30) == (28, 15)
    assert carried_blocks(ranked(9, 15, 16, 14, 17, 20, 8, 21, 2, 25), 30) == (15, 20)
    assert carried_blocks(ranked(0, 2, 1), 3) == (2, 1)
    assert carried_blocks(ranked(0), 1) == (0,)
    assert carried_blocks([], 30) == ()
