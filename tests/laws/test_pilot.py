"""The pilot's numbers against direct measurement on a small model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from scipy.optimize import brentq

from calibrate.common.errors import Infeasible
from calibrate.common.settings import Sampling, Settings
from calibrate.engine.cross_entropy import delta_ce, steered_hidden
from calibrate.engine.generation import sample
from calibrate.engine.site import Site, SteeringVector
from calibrate.engine.unsteered import Corpus, run_unsteered
from calibrate.laws import pilot as piloting
from calibrate.laws.log_odds import measure_log_odds
from calibrate.laws.pilot import TEST_SHARE, fit_pilot, run_pilot, run_pilots
from calibrate.laws.spending import MAX_PASSES, spend_budget
from calibrate.models.prompts import encode_prompt
from calibrate.models.tokens import TokenSequence
from calibrate.texts.concept_tokens import concept_token_ids


def setting(architecture="llama", sequences=(), self_sampled=True, sites=((1,),)):
    """A model, its unsteered run, and sites of these blocks with random vectors.

    Where labels are scored they are the model's own, drawn at a temperature of ½: likelier than
    the model thinks, so that there is a slope, as there is on real text.
    """
    loaded = tiny.loaded(architecture)
    if not self_sampled:
        prompts = [encode_prompt(loaded, text) for text in tiny.prompts(12)]
        drawn = sample(loaded, prompts, Sampling(temperature=0.5, max_new_tokens=10), seed=0)
        sequences = [completion.sequence for completion in drawn]
    firsts = [layers[0] for layers in sites]
    run = run_unsteered(loaded, Corpus(tuple(sequences), self_sampled), firsts)
    return loaded, run, [random_site(loaded, layers) for layers in sites]


def random_site(loaded, layers):
    return Site(
        tuple(
            SteeringVector(
                torch.randn(loaded.hidden_size, generator=torch.Generator().manual_seed(layer)),
                layer,
                residual_norm=5.0,
            )
            for layer in layers
        )
    )


def measured(loaded, run, site, strength):
    return delta_ce(loaded, run, site, strength).value


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("goal", ["increase", "decrease"])
@pytest.mark.parametrize("positions", ["all", "last"])
@pytest.mark.parametrize("layers", [(1,), (0, 1)])
def test_the_law_names_the_strength_that_spends_the_budget(
    architecture, goal, positions, layers, sequences
):
    loaded, run, (site,) = setting(architecture, sequences, sites=[layers])
    site, settings = replace(site, positions=positions), Settings(goal=goal)
    pilot = run_pilot(loaded, run, site, (), settings)
    truth = brentq(lambda a: measured(loaded, run, site, settings.sign * a) - 0.1, 1e-3, 20)
    assert pilot.strength_at_budget.value == pytest.approx(settings.sign * truth, rel=0.01)
    assert len(pilot.points) <= MAX_PASSES
    low, high = pilot.strength_at_budget.low, pilot.strength_at_budget.high
    assert low < pilot.strength_at_budget.value < high


def test_the_curvature_is_the_second_derivative_of_the_kl(sequences):
    loaded, run, (site,) = setting(sequences=sequences)
    pilot = run_pilot(loaded, run, site, (), Settings())
    step = 0.02
    rises = [measured(loaded, run, site, a) for a in (step, -step)]
    assert pilot.law.slope == 0
    assert pilot.law.curvature == pytest.approx(sum(rises) / step**2, rel=0.02)


def test_on_other_texts_the_slope_is_measured(sequences):
    loaded, run, (site,) = setting(sequences=sequences, self_sampled=False)
    pilot = run_pilot(loaded, run, site, (), Settings())
    step = 0.02
    plus, minus = (measured(loaded, run, site, a) for a in (step, -step))
    assert pilot.law.slope == pytest.approx((plus - minus) / (2 * step), abs=2e-3)
    assert abs(pilot.law.slope) > 1e-3


def test_on_other_texts_two_passes_make_up_for_a_slope_of_few_sequences():
    loaded, whole, (site,) = setting(self_sampled=False)
    run = run_unsteered(loaded, whole.corpus, [1], (2, len(whole.corpus.sequences) - 2))
    odds = measure_log_odds(loaded, run.first, site, ())
    wrong = replace(odds, slope=odds.slope - 0.05 * odds.counts)
    pilot = fit_pilot(loaded, run, site, wrong, (), Settings())
    assert len(pilot.points) > 1
    assert pilot.law.slope > wrong.law(1).slope
    named = pilot.strength_at_budget.value
    assert measured(loaded, run, site, named) == pytest.approx(0.1, rel=0.005)
    assert pilot.strength_at_budget.low < named < pilot.strength_at_budget.high


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("self_sampled", [True, False])
@pytest.mark.parametrize("back", [(1,), (2, 1)])
def test_the_plateau_is_where_the_rise_ends(architecture, self_sampled, back, sequences):
    """back: the steered blocks, counted from the end."""
    n_blocks = tiny.loaded(architecture).num_layers
    layers = [n_blocks - each for each in back]
    loaded, run, (site,) = setting(architecture, sequences, self_sampled, [layers])
    pilot = run_pilot(loaded, run, site, (), Settings())
    assert pilot.law.plateau == pytest.approx(measured(loaded, run, site, 1e6), rel=1e-3)


def test_the_concepts_gain_is_the_derivative_of_its_tokens_log_odds(sequences):
    loaded, run, (site,) = setting(sequences=sequences)
    tokens = (6, 9, 11)
    pilot = run_pilot(loaded, run, site, tokens, Settings())

    def mass(strength):
        total, count = 0.0, 0
        for sequence in sequences:
            with tiny.hand_written_hook(loaded.blocks[1], strength * site.total):
                logits = loaded.model(input_ids=torch.tensor([sequence.ids])).logits[0]
            p = logits.softmax(dim=-1)[sequence.start - 1 : -1, list(tokens)].sum(dim=-1)
            total, count = total + float(p.sum()), count + len(p)
        return total / count

    step = 0.01
    logits = [np.log(m / (1 - m)) for m in (mass(step), mass(-step))]
    assert pilot.mass_law.predict(0.0) == pytest.approx(mass(0.0), rel=1e-4)
    assert pilot.mass_law.gain == pytest.approx((logits[0] - logits[1]) / (2 * step), rel=0.02)


def test_the_mass_of_the_concept_is_measured_at_every_pilot_strength(sequences):
    loaded, run, (site,) = setting(sequences=sequences)
    tokens = (6, 9, 11)
    pilot = run_pilot(loaded, run, site, tokens, Settings())
    for point in pilot.points:
        hidden = [steered_hidden(loaded, one, site, point.strength) for one in run.batches]
        p = loaded.logits(torch.cat(hidden)).softmax(dim=-1)
        mass = float(p[:, list(tokens)].sum(dim=-1).mean())
        assert point.concept_mass == pytest.approx(mass, rel=1e-5)


def test_the_laws_go_through_the_pass_nearest_to_the_budget_and_are_tested_below_it(sequences):
    loaded, run, (site,) = setting(sequences=sequences)
    pilot = run_pilot(loaded, run, site, (6, 9, 11), Settings())
    last = pilot.points[-1]
    assert pilot.law.predict(last.strength) == pytest.approx(last.delta_ce)
    assert pilot.mass_law.predict(last.strength) == pytest.approx(last.concept_mass)
    test = TEST_SHARE * pilot.strength_at_budget.value
    ((strength, predicted, found),) = pilot.rise_goodness.points
    assert strength == test
    assert predicted == pytest.approx(pilot.law.predict(test))
    assert found == pytest.approx(measured(loaded, run, site, test))
    ((strength, predicted, _),) = pilot.mass_goodness.points
    assert (strength, predicted) == (test, pytest.approx(pilot.mass_law.predict(test)))


def test_derivatives_on_the_first_sequences_do_for_all(sequences):
    """The law of all sequences is anchored by a pass over all, at no more than three strengths."""
    loaded, whole, (site,) = setting(sequences=[*sequences] * 3)
    run = run_unsteered(loaded, whole.corpus, [1], (6, 30))
    assert len(run.first.corpus.sequences) == 6
    pilot = run_pilot(loaded, run, site, (6, 9), Settings())
    truth = brentq(lambda a: measured(loaded, whole, site, a) - 0.1, 1e-3, 20)
    assert pilot.strength_at_budget.value == pytest.approx(truth, rel=0.005)
    assert len(pilot.points) <= MAX_PASSES
    assert len(pilot.nearest.counts) == 36
    ((test, _, found),) = pilot.rise_goodness.points
    assert found == pytest.approx(measured(loaded, run.first, site, test))


def test_standard_errors_are_those_of_other_corpora(sequences):
    """The bootstrap's error of the curvature against its scatter over fresh corpora."""
    loaded = tiny.loaded()
    rng = np.random.default_rng(0)
    values = torch.randn(loaded.hidden_size, generator=torch.Generator().manual_seed(1))
    site = Site((SteeringVector(values, 1, residual_norm=5.0),))
    curvatures, errors = [], []
    for _ in range(24):
        fresh = tuple(
            TokenSequence(tuple(map(int, rng.integers(5, len(tiny.VOCABULARY), 10))), 3)
            for _ in range(16)
        )
        run = run_unsteered(loaded, Corpus(fresh, self_sampled=True), [1])
        pilot = run_pilot(loaded, run, site, (), Settings())
        curvatures.append(pilot.law.curvature)
        errors.append(pilot.errors["curvature"])
    assert np.mean(errors) == pytest.approx(np.std(curvatures, ddof=1), rel=0.4)


@pytest.mark.parametrize("share", [0.3, 3.0])
@pytest.mark.parametrize("goal", ["increase", "decrease"])
def test_a_strength_that_passes_put_elsewhere_than_the_law_is_within_its_interval(
    share, goal, sequences, monkeypatch
):
    def unsettled(*given):
        spent = spend_budget(*given)
        return replace(spent, strength=share * spent.strength)

    monkeypatch.setattr(piloting, "spend_budget", unsettled)
    loaded, run, (site,) = setting(sequences=sequences)
    found = run_pilot(loaded, run, site, (), Settings(goal=goal)).strength_at_budget
    assert found.low <= found.value <= found.high
    assert found.low < found.high


def test_a_budget_above_the_plateau_is_infeasible_with_the_way_out(sequences):
    loaded, run, (site,) = setting(sequences=sequences)
    for goal, sign in (("decrease", "negative"), ("increase", "positive")):
        with pytest.raises(Infeasible, match=f"no {sign} strength at .* levels off at") as caught:
            run_pilot(loaded, run, site, (), Settings(ce_budget=99.0, goal=goal))
    assert any("--ce-budget" in advice for advice in caught.value.advice)


def test_there_is_a_pilot_for_every_site_in_their_order(sequences):
    loaded, run, sites = setting(sequences=sequences, sites=((2,), (0, 1), (0, 2)))
    sites.append(replace(sites[0], positions="last"))
    pilots = run_pilots(loaded, run, sites, (), Settings())
    assert list(pilots) == ["block 2", "blocks 0-1", "blocks 0, 2", "block 2, last position"]
    for name, pilot in pilots.items():
        found = measured(loaded, run, pilot.site, pilot.strength_at_budget.value)
        assert found == pytest.approx(0.1, rel=0.01), name


def test_concept_tokens_are_frequent_in_positives_and_rare_elsewhere(loaded):
    positives, negatives = tiny.texts(tiny.BRIGHT, 30), tiny.texts(tiny.DULL, 30)
    ids = concept_token_ids(loaded, positives, negatives, tiny.prompts(30))
    words = {tiny.VOCABULARY[token] for token in ids}
    assert words
    assert words <= set(tiny.BRIGHT)
