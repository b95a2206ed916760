"""What a trial measures: parts of the corpus, rungs of prompts."""

from __future__ import annotations

import numpy as np
import pytest
import tiny

from calibrate.common.estimate import RatioEstimate
from calibrate.common.settings import Sampling, Settings
from calibrate.common.trial import PROPOSED_SHARE
from calibrate.engine.cross_entropy import delta_ce
from calibrate.engine.generation import sample_all
from calibrate.engine.site import Site
from calibrate.engine.unsteered import Corpus, run_unsteered
from calibrate.laws.pilot import run_pilots
from calibrate.models.model import preserving_model_state
from calibrate.search.objective import FIRST_PART, SearchObjective, _by_ratio, rung_sizes
from calibrate.texts.extraction import concept_vectors
from calibrate.texts.replies import sample_unsteered
from probes import Reader
from probes.judges import FunctionJudge

BRIGHTNESS = FunctionJudge(
    lambda texts, _: [sum(word in tiny.BRIGHT for word in t.split()) / 20 for t in texts]
)


@pytest.mark.parametrize(
    ("total", "sizes"),
    [(5, (5,)), (24, (24,)), (35, (35,)), (36, (24, 12)), (48, (24, 24)), (96, (24, 24, 48)),
     (110, (24, 24, 62)), (120, (24, 24, 48, 24)), (0, ())],
)  # fmt: skip
def test_rungs_double_and_leave_no_small_rest(total, sizes):
    assert rung_sizes(total, first=24) == sizes
    assert sum(sizes) == total


@pytest.fixture(scope="module")
def objective():
    loaded = tiny.loaded("gpt2")
    settings = Settings(ce_budget=0.2, sampling=Sampling(1.0, 1.0, 8), max_fluency_drop=5.0)
    with preserving_model_state(loaded):
        replies = sample_unsteered(loaded, tiny.prompts(320), settings)
        sequences = tuple(reply.sequence for reply in replies.completions["search"])
        corpus = Corpus(sequences, self_sampled=True)
        run = run_unsteered(loaded, corpus, [1], rung_sizes(len(sequences), FIRST_PART))
        vectors = concept_vectors(loaded, tiny.concept().split()["vector"], settings)
        pilots = run_pilots(loaded, run, [Site((vectors[1],))], (), settings)
        reader = Reader(BRIGHTNESS, "bright", "words")
        yield SearchObjective(loaded, reader, run, pilots, replies, settings)


def test_the_parts_of_a_run_are_the_whole_of_it(objective):
    pilot, run = objective.pilots["block 1"], objective.run
    assert [len(part.corpus.sequences) for part in run.parts] == [16, 16, 32, 32]
    whole, *parts = (
        delta_ce(objective.loaded, one, pilot.site, 0.5).sums for one in (run, *run.parts)
    )
    assert whole == pytest.approx(np.concatenate(parts), abs=1e-5)


@pytest.mark.parametrize("share", [0.3, 0.75, 0.95, 0.99, 1.0, 1.5])
def test_delta_ce_is_that_of_all_sequences_from_no_more_than_it_takes(objective, share):
    """Within three of its standard errors, and these are small."""
    pilot = objective.pilots["block 1"]
    strength = share * pilot.strength_at_budget.value
    rise = objective.delta_ce("block 1", strength)
    truth = delta_ce(objective.loaded, objective.run, pilot.site, strength).value
    assert abs(rise.value - truth) <= 3 * rise.standard_error + 1e-6
    assert rise.standard_error <= 0.03 * truth
    assert rise.n_sequences == (FIRST_PART if abs(share - 1) > 0.1 else rise.n_sequences)
    if share == 1.0:
        assert (rise.n_sequences, rise.standard_error) == (96, 0.0)


def test_rungs_are_disjoint_and_replies_are_those_of_all_prompts_together(objective):
    first, second = (objective.replies("block 1", 0.5, rung) for rung in (0, 1))
    assert set(first.scores) <= set(range(48))
    assert len(first.scores) + first.n_empty == 48
    assert set(second.scores) <= set(range(48, 96))
    assert len(second.scores) + second.n_empty == 48
    assert len(first.fluency_drop.sums) > 24
    again = objective.replies("block 1", 0.5, 1)
    assert again.scores == second.scores


def test_a_batch_is_sampled_in_one_go_and_comes_out_the_same(objective, monkeypatch):
    sizes = []

    def counted(loaded, requests, sampling, seed):
        sizes.append(len(requests))
        return sample_all(loaded, requests, sampling, seed)

    monkeypatch.setattr("calibrate.search.objective.sample_all", counted)
    alpha = objective.pilots["block 1"].strength_at_budget.value
    batch = [("block 1", share * alpha) for share in (PROPOSED_SHARE, 0.5)]
    alone = [objective.replies(*trial, 0) for trial in batch]
    assert sizes == [1, 1]
    objective.sample_ahead(batch)
    objective.sample_ahead(batch[1:])
    ahead = [objective.replies(*trial, 0) for trial in batch]
    assert sizes == [1, 1, 2]
    for together, by_itself in zip(ahead, alone, strict=True):
        assert together.scores == pytest.approx(by_itself.scores)


def test_a_ratio_of_either_sign_has_an_error_above_0():
    """On text the model did not write, sequences' ΔCE may sum to less than 0."""
    nearest = RatioEstimate(np.array([-0.3, 0.2, 0.5, 0.4]), np.ones(4))
    part = RatioEstimate(np.array([-0.6, 0.3]), np.ones(2))
    assert _by_ratio(part, nearest).standard_error > 0
