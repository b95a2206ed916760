"""What a trial measures: parts of the corpus, rungs of prompts."""

from __future__ import annotations

import pytest
import tiny

from calibrate.cross_entropy import Corpus, delta_ce, run_unsteered
from calibrate.model import borrowed
from calibrate.pilot import run_pilots
from calibrate.replies import sample_unsteered
from calibrate.search import FIRST_RUNG, SearchObjective, rung_sizes
from calibrate.settings import Sampling, Settings
from calibrate.vector import concept_vectors
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
    assert rung_sizes(total) == sizes
    assert sum(sizes) == total


@pytest.fixture(scope="module")
def objective():
    loaded = tiny.loaded("gpt2")
    settings = Settings(ce_budget=0.2, sampling=Sampling(1.0, 1.0, 8), max_fluency_drop=5.0)
    with borrowed(loaded):
        replies = sample_unsteered(loaded, tiny.prompts(160), settings)
        sequences = tuple(reply.sequence for reply in replies.completions["search"])
        corpus = Corpus(sequences, self_sampled=True)
        run = run_unsteered(loaded, corpus, [1], rung_sizes(len(sequences)))
        vectors = concept_vectors(loaded, tiny.concept().split()["vector"], settings)
        pilots = run_pilots(loaded, run, [vectors[1]], (), settings)
        reader = Reader(BRIGHTNESS, "bright", "words")
        yield SearchObjective(loaded, reader, run, pilots, replies, settings)


def test_the_parts_of_a_run_are_the_whole_of_it(objective):
    pilot, run = objective.pilots["block 1"], objective.run
    assert [len(part.corpus.sequences) for part in run.parts] == [24, 24]
    measured = [
        delta_ce(objective.loaded, one, pilot.vector.values, 1, 0.5) for one in (run, *run.parts)
    ]
    assert measured[0].sums[:24] == pytest.approx(measured[1].sums, abs=1e-5)
    assert measured[0].sums[24:] == pytest.approx(measured[2].sums, abs=1e-5)


def test_delta_ce_is_measured_on_no_more_than_it_takes(objective):
    at_budget = objective.pilots["block 1"].strength_at_budget.value
    clear, close = (objective.delta_ce("block 1", share * at_budget) for share in (0.3, 1.0))
    assert len(clear.counts) == FIRST_RUNG
    assert len(close.counts) == 48
    assert close.value == pytest.approx(0.2, rel=0.02)
    assert len(objective.delta_ce("block 1", 3 * at_budget).counts) == FIRST_RUNG


def test_rungs_are_disjoint_and_replies_are_those_of_all_prompts_together(objective):
    first, second = (objective.replies("block 1", 0.5, rung) for rung in (0, 1))
    assert sorted(first.scores) == list(range(24))
    assert sorted(second.scores) == list(range(24, 48))
    assert len(first.fluency_drop.sums) > 12
    again = objective.replies("block 1", 0.5, 1)
    assert again.scores == second.scores
