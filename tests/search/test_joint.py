"""Two concepts under one budget: what they cost together, and a calibration of both."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch
from refused import Refused, each

import calibrate
from calibrate import calibration
from calibrate.common.errors import Infeasible, InputError
from calibrate.common.settings import Settings
from calibrate.deploy.beside import Beside, checked_mix, opened_beside
from calibrate.deploy.start import opened_start
from calibrate.engine.cross_entropy import delta_ce
from calibrate.engine.unsteered import Corpus, run_unsteered
from calibrate.laws.log_odds import measure_log_odds
from calibrate.laws.spending import SPENT
from calibrate.search.joint import mixed, mixed_with
from calibrate.search.refusals import TooLittle


def test_mixing_adds_both_each_at_its_blocks(loaded, parts):
    _, one, other = parts
    ids = torch.tensor([[7, 12, 20, 9, 30]])
    with mixed(one, 2.0, other, -0.5).apply(loaded.blocks, 1.5):
        together = loaded.model(input_ids=ids).logits
    with one.apply(loaded.blocks, 3.0), other.apply(loaded.blocks, -0.75):
        nested = loaded.model(input_ids=ids).logits
    assert torch.allclose(together, nested, atol=1e-5)
    assert mixed(one, 1.0, other, 1.0).layers == (0, 1)


def test_positions_must_be_the_same(parts):
    _, one, other = parts
    with pytest.raises(InputError, match="the same positions"):
        mixed(one, 1.0, replace(other, positions="last"), 1.0)


def test_the_mix_is_in_units_of_the_strengths_alone(loaded, parts):
    run, one, other = parts
    _, weight = mixed_with(loaded, run, one, other, 3.0, 0.25, Settings(ce_budget=0.05))
    assert delta_ce(loaded, run, one, 3.0 / weight / 3).value == pytest.approx(0.05, rel=0.02)


def test_on_text_with_a_slope_the_unit_alone_is_what_passes_over_all_of_it_name(loaded, parts):
    """Where the derivative of the first sequences alone is far off."""
    run, one, other = parts
    written = Corpus(run.corpus.sequences, self_sampled=False)
    run = run_unsteered(loaded, written, [0], (1, len(written.sequences) - 1))
    settings = Settings(ce_budget=0.05)
    law = measure_log_odds(loaded, run.first, one, ()).law(1)
    assert delta_ce(loaded, run, one, law.invert(0.05)).value != pytest.approx(0.05, rel=SPENT)
    _, weight = mixed_with(loaded, run, one, other, 3.0, 0.5, settings)
    assert delta_ce(loaded, run, one, 3.0 / weight).value == pytest.approx(0.05, rel=SPENT)


def test_the_mix_is_of_what_each_spends_alone_on_the_budget_asked_for(finished):
    """Though the earlier one was calibrated at another."""
    beside = Beside(finished.result, 0.5)
    config = finished.result.config
    assert beside._at_budget(0.4) == config.range.strength_at_budget.value
    quarter = beside._at_budget(0.1)
    assert config.laws.cross_entropy.predict(quarter) == pytest.approx(0.1)
    assert 0 < quarter < config.range.strength_at_budget.value


@pytest.fixture(scope="module")
def options(tiny_options, finished):
    found = {name: value for name, value in tiny_options.items() if name != "concept"}
    return {**found, "min_gain": 0.0, "layer": finished.result.config.layers[0]}


@pytest.fixture(scope="module")
def pair(finished, tiny_options, options, tmp_path_factory):
    """The same texts under another name, beside the finished calibration."""
    concept = replace(tiny_options["concept"], name="shine")
    folder = tmp_path_factory.mktemp("pair") / "pair"
    with torch.no_grad():
        result = calibrate.calibrate(
            tiny.model("gpt2"), concept, beside=finished.directory, mix=0.4, out=folder, **options
        )
    return folder, result


@pytest.mark.slow
def test_both_are_in_the_vector_and_keep_to_one_budget(pair, finished):
    _, result = pair
    config, before = result.config, finished.result.config
    assert config.measured.delta_ce.upper <= config.budget.limit
    assert config.beside.name == "bright"
    assert config.beside.fingerprint == before.provenance.fingerprint
    theirs = {v.layer: v.values for v in before.site.vectors}
    own = {v.layer: v.values for v in config.site.vectors}
    layer = before.layers[0]
    weight = config.beside.weight
    rest = own[layer] - weight * theirs[layer]
    cosine = torch.nn.functional.cosine_similarity(rest, theirs[layer], dim=0)
    # the same texts at the same block give the same vector
    assert float(cosine) == pytest.approx(1.0, abs=1e-3)
    assert weight > 0
    assert config.beside.change.low > 0


@pytest.mark.slow
def test_a_pair_is_shown_verified_and_found_again(pair, finished, tiny_options, options):
    folder, result = pair
    loaded = calibrate.load_model(tiny.model("gpt2"), tiny.tokenizer())
    assert calibrate.check_directory(folder, loaded).passed
    assert "presence of bright" in (folder / "report.html").read_text(encoding="utf-8")
    concept = replace(tiny_options["concept"], name="shine")
    again = calibrate.calibrate(
        tiny.model("gpt2"), concept, beside=finished.result, mix=0.4, out=folder, **options
    )
    assert again.config.provenance.created == result.config.provenance.created


@pytest.mark.slow
def test_a_pair_is_neither_begun_with_nor_put_beside_a_third(pair, tiny_options):
    folder, result = pair
    loaded = calibrate.load_model(tiny.model("gpt2"), tiny.tokenizer())
    concept, settings = replace(tiny_options["concept"], name="shine"), result.config.settings
    with pytest.raises(InputError, match="also steers 'bright'; calibrate the pair anew, with --b"):
        opened_start(folder, loaded, concept, settings)
    with pytest.raises(InputError, match="also steers 'bright'; calibrate 'shine' alone"):
        opened_beside(folder, 0.5, loaded, settings)


@pytest.mark.slow
def test_one_that_loses_its_own_concept_is_infeasible(finished, tiny_options, options):
    turned = finished.result.config
    concept = turned.concept.model_copy(update={"goal": "decrease"})
    against = replace(finished.result, config=turned.model_copy(update={"concept": concept}))
    shine = replace(tiny_options["concept"], name="shine")
    with pytest.raises(Infeasible, match="does not measurably decrease beside it"):
        calibrate.calibrate(tiny.model("gpt2"), shine, beside=against, **options)


@pytest.mark.slow
def test_a_larger_budget_ships_where_the_first_loses_the_concept_beside(
    finished, tiny_options, options, monkeypatch
):
    section, first = Beside.section, options["ce_budget"]

    def lost_at_first(second, verified, weight, settings):
        if settings.ce_budget == first:
            raise TooLittle(["it is lost"])
        return section(second, verified, weight, settings)

    monkeypatch.setattr(Beside, "section", lost_at_first)
    shine = replace(tiny_options["concept"], name="shine")
    config = calibrate.calibrate(
        tiny.model("gpt2"), shine, beside=finished.result, other_budgets=[2 * first], **options
    ).config
    assert config.budget.limit == 2 * first
    assert config.beside.change.low > 0


def test_what_cannot_be_beside_is_refused(finished, tiny_options, options):
    loaded = calibrate.load_model(tiny.model("gpt2"), tiny.tokenizer())
    settings = finished.result.config.settings

    def refused(words, model=loaded, **changes):
        with pytest.raises(InputError, match=words):
            opened_beside(finished.directory, 0.5, model, replace(settings, **changes))

    refused("the same positions", positions="last")
    refused("got --layer search; give --layer N or N-M, or leave it out", layer="search")
    refused("must hold for this model", model=tiny.loaded("llama"))
    with pytest.raises(InputError, match="either start or beside"):
        calibrate.calibrate(
            tiny.model("gpt2"),
            tiny_options["concept"],
            start=finished.directory,
            beside=finished.directory,
            **options,
        )


def test_a_judge_that_cannot_be_made_again_is_told_before_anything_is_spent(
    finished, tiny_options, options, monkeypatch
):
    config = finished.result.config
    measured = config.measured.model_copy(update={"judges": ["embedding"]})
    beside = replace(finished.result, config=config.model_copy(update={"measured": measured}))
    monkeypatch.setattr(calibration, "forecast", None)
    with pytest.raises(InputError, match="not kept; calibrate anew with another --judge"):
        calibrate.calibrate(tiny.model("gpt2"), tiny_options["concept"], beside=beside, **options)


def test_the_share_is_half_unless_another_is_asked_for():
    assert checked_mix(None, "joy") == 0.5
    assert checked_mix(0.4, "joy") == 0.4


REFUSED = [
    *(
        Refused(
            f"a share of {mix}",
            f"--mix must be between 0 and 1, got {mix:g}",
            lambda _, mix=mix: calibrate.calibrate("nothing", "joy", beside="evil", mix=mix),
        )
        for mix in (0.0, 1.0, -1.0, float("nan"))
    ),
    Refused(
        "a share of a second concept that is not named",
        "--mix needs --beside, got 0.5; add it or leave --mix out",
        lambda _: calibrate.calibrate("nothing", "joy", mix=0.5),
    ),
]


@each(REFUSED)
def test_what_is_no_share_is_refused(row, tmp_path):
    row.check(tmp_path)


def test_a_model_in_training_is_compared_without_its_dropout(finished):
    loaded = calibrate.load_model(tiny.model("gpt2"), tiny.tokenizer())
    loaded.model.train()
    assert loaded.model.config.resid_pdrop > 0
    with torch.enable_grad():
        beside = opened_beside(finished.directory, 0.5, loaded, Settings())
    assert beside.config.concept.name == "bright"
    assert loaded.model.training
