"""A calibration that begins with an earlier one confirms it, corrects it, or starts anew."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import tiny
import torch

import calibrate
from calibrate.cli.tables import _began
from calibrate.common.cost import Limits
from calibrate.common.errors import CalibrateWarning, ConceptError, Infeasible, InputError
from calibrate.common.estimate import Interval
from calibrate.deploy import start as deploy
from calibrate.deploy.grading.blind import ReadingRoom
from calibrate.deploy.start import opened_start
from calibrate.deploy.trusted import reader_again
from calibrate.engine.loading import load_model
from calibrate.judging import panel
from calibrate.search.confirmation import Expected, require_same_reading
from calibrate.texts.extraction import concept_vectors
from probes import Reader

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def options(tiny_options):
    return {name: value for name, value in tiny_options.items() if name != "concept"}


def changed(by):
    """The tiny model after a training that moved every weight of its blocks a little."""
    model = tiny.model("gpt2")
    generator = torch.Generator().manual_seed(5)
    for weight in model.transformer.h.parameters():
        weight.data += by * weight.data.std() * torch.randn(weight.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def warm(finished, tiny_options, options, tmp_path_factory):
    """A calibration of a slightly changed model that began with the finished one."""
    folder = tmp_path_factory.mktemp("warm") / "warm"
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("error", "the earlier calibration")
        result = calibrate.calibrate(
            changed(0.02), tiny_options["concept"], start=finished.directory, out=folder, **options
        )
    return folder, result


def test_what_holds_is_confirmed_and_costs_less(warm, finished):
    _, result = warm
    began, before = result.config.provenance.start, finished.result.config
    assert began.confirmed
    assert began.fingerprint == before.provenance.fingerprint
    assert result.config.intervention.strength == before.intervention.strength
    assert result.config.layers == before.layers
    assert result.config.measured.delta_ce.upper <= before.budget.limit
    spent, then = (
        sum(stage.token_forwards for stage in config.cost.values())
        for config in (result.config, before)
    )
    assert spent < then / 2
    assert result.config.measured.controls is None
    assert (result.config.measured.long_run is None) == (before.measured.long_run is None)


def test_its_vectors_are_the_changed_models(warm, finished, tiny_options):
    _, result = warm
    loaded = load_model(changed(0.02), tiny.tokenizer())
    texts = tiny_options["concept"].split()["vector"]
    vectors = concept_vectors(loaded, texts, result.config.settings)
    layer = result.config.layers[0]
    assert torch.allclose(result.config.steering_vector.values, vectors[layer].values, atol=1e-6)
    before = finished.result.config.steering_vector.values
    assert not torch.allclose(vectors[layer].values, before, atol=1e-4)


def test_it_is_shown_verified_and_found_again(warm, finished, tiny_options, options):
    folder, result = warm
    loaded = load_model(changed(0.02), tiny.tokenizer())
    assert calibrate.check_directory(folder, loaded).passed
    assert "was confirmed" in (folder / "report.html").read_text(encoding="utf-8")
    again = calibrate.calibrate(
        changed(0.02), tiny_options["concept"], start=finished.directory, out=folder, **options
    )
    assert again.config.provenance.created == result.config.provenance.created


def test_its_replies_can_be_graded_though_each_prompt_has_one(warm):
    folder, result = warm
    assert result.config.measured.presence.n_replies == 1
    assert len(ReadingRoom.open(folder).sample(10, "ann")) == 10


def test_what_is_picked_from_it_has_controls_and_does_not_say_otherwise(warm):
    _, result = warm
    assert "were not repeated" in shown(result.config)
    loaded = load_model(changed(0.02), tiny.tokenizer())
    picked = result.pick(result.config.budget.limit / 2, loaded).config
    assert picked.provenance.start == result.config.provenance.start
    assert picked.measured.controls is not None
    assert "was confirmed" in shown(picked)
    assert "were not repeated" not in shown(picked)


def shown(config):
    """The row of the summary on how it began."""
    return dict(_began(config))["began with"]


def test_it_can_be_begun_with_again(warm, tiny_options, options):
    _, result = warm
    third = calibrate.calibrate(
        changed(0.03), tiny_options["concept"], start=result, **options
    ).config
    assert third.provenance.start.fingerprint == result.config.provenance.fingerprint


def test_a_wrong_alpha_b_is_corrected_to_the_same_share(finished, tiny_options, options):
    config = finished.result.config
    half = config.model_copy(
        update={
            "intervention": config.intervention.model_copy(
                update={"strength": config.intervention.strength / 2}
            ),
            "range": config.range.model_copy(
                update={
                    "strength_at_budget": config.range.strength_at_budget.scaled_to(
                        config.range.strength_at_budget.value / 2
                    )
                }
            ),
        }
    )
    start = replace(finished.result, config=half)
    found = calibrate.calibrate(
        tiny.model("gpt2"), tiny_options["concept"], start=start, **options
    ).config
    assert not found.provenance.start.confirmed
    share = config.intervention.strength / config.range.strength_at_budget.value
    expected = share * found.range.strength_at_budget.value
    assert found.intervention.strength in (
        pytest.approx(expected), pytest.approx(0.9 * expected),
    )  # fmt: skip
    assert "was corrected" in found.provenance.start.says


def test_what_no_longer_holds_is_searched_anew(finished, tiny_options, options):
    random_answers = replace(
        finished.result,
        probe=replace(finished.result.probe, weights=-finished.result.probe.weights),
    )
    with pytest.warns(CalibrateWarning, match="so everything is searched anew: the earlier probe"):
        found = calibrate.calibrate(
            tiny.model("gpt2"), tiny_options["concept"], start=random_answers, **options
        )
    assert found.config.provenance.start is None
    assert found.evidence.trials
    assert found.config.intervention == finished.result.config.intervention


def test_a_vector_that_became_mostly_noise_is_refused(finished, tiny_options, options):
    model = tiny.model("gpt2")
    kinds = [tiny.VOCABULARY.index(word) for word in (*tiny.BRIGHT, *tiny.DULL)]
    embedding = model.get_input_embeddings().weight
    embedding.data[kinds] = embedding.data[kinds].mean(dim=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the earlier calibration")
        with pytest.raises(ConceptError, match="‖v‖² must be signal, got"):
            calibrate.calibrate(model, tiny_options["concept"], start=finished.result, **options)


def test_a_probe_that_reads_otherwise_is_refused(finished, tiny_options):
    gpt = load_model(tiny.model("gpt2"), tiny.tokenizer())
    texts = tiny_options["concept"].split()["held_out"]
    probe = finished.result.probe
    require_same_reading(Reader(probe.on(gpt), "bright", "probe"), texts)
    turned = replace(probe, weights=-probe.weights)
    with pytest.raises(Infeasible, match=r"at least 0\.7 is needed"):
        require_same_reading(Reader(turned.on(gpt), "bright", "probe"), texts)


def test_only_the_same_question_can_be_begun_with(finished, tiny_options):
    loaded = load_model(tiny.model("gpt2"), tiny.tokenizer())
    concept, settings = tiny_options["concept"], finished.result.config.settings

    def refused(words, model=loaded, of=concept, judge=None, **changes):
        with pytest.raises(InputError, match=words):
            opened_start(finished.directory, model, of, replace(settings, **changes), judge)

    refused("the goal must be as in", goal="decrease")
    refused("the concept's texts must be as in", of=tiny.concept(40))
    refused("leave --layer out", layer=0 if finished.result.config.layers != (0,) else 1)
    refused("steers its positions, all, got --positions last; leave", positions="last")
    refused("leave --positions out", positions="auto")
    refused("has its judge, probe, got question; leave --judge", judge="question")
    refused("the number of blocks must be", model=tiny.loaded("gpt2-1-layer"))
    refused(
        "the chat template must be", model=load_model(tiny.model("gpt2"), tiny.tokenizer(chat=True))
    )
    found = opened_start(finished.directory, loaded, concept, settings, "auto")
    assert found.config.layers
    provenance = found.config.provenance
    unsearched = provenance.model_copy(
        update={"settings": {**provenance.settings, "layer": "auto"}}
    )
    start = replace(found, config=found.config.model_copy(update={"provenance": unsearched}))
    with pytest.raises(InputError, match="got --layer search; leave --layer out"):
        opened_start(start, loaded, concept, replace(settings, layer="search"))


class Counted:
    """A judge of which nothing but the class is known afterwards."""

    def __init__(self):
        self.asked = 0

    def score(self, texts, concept):
        self.asked += 1
        return tiny.share_of_bright_words(texts, concept)


def test_a_judge_at_hand_reads_again_and_another_is_told_before_anything_is_spent(
    finished, tiny_options, options, monkeypatch
):
    first, again, concept = Counted(), Counted(), tiny_options["concept"]
    options = {name: value for name, value in options.items() if name != "teacher"}
    start = calibrate.calibrate(tiny.model("gpt2"), concept, judge=first, **options)
    result = calibrate.calibrate(changed(0.02), concept, start=start, judge=again, **options)
    assert again.asked > 0
    assert result.config.measured.judges == start.config.measured.judges
    monkeypatch.setattr(deploy, "sample_splits", None)
    with pytest.raises(InputError, match="was an object in memory"):
        calibrate.calibrate(changed(0.02), concept, start=start, **options)


def test_the_texts_at_hand_make_its_judge_again(finished, tiny_options, monkeypatch):
    concept, config = tiny_options["concept"], finished.result.config
    loaded = load_model(tiny.model("gpt2"), tiny.tokenizer())
    texts, seen = concept.split()["probe"], []
    monkeypatch.setattr(panel, "fit_embedding", lambda examples, _: seen.append(examples))
    reader_again("embedding", config, loaded, None, texts)
    assert seen == [panel.written_examples(texts)]


def test_limits_that_leave_no_room_to_confirm_are_refused(finished, tiny_options, options):
    spent = finished.result.config.cost
    with pytest.raises(InputError, match=r"allow for confirming .* raise --max-tokens"):
        calibrate.calibrate(
            changed(0.02), tiny_options["concept"], start=finished.result, max_tokens=1, **options
        )
    within = 2 * sum(stage.token_forwards for stage in spent.values())
    found = calibrate.calibrate(
        changed(0.02), tiny_options["concept"], start=finished.result, max_tokens=within, **options
    )
    assert found.config.provenance.start is not None
    assert sum(stage.token_forwards for stage in found.config.cost.values()) <= within


def test_the_same_share_of_alpha_b_is_kept():
    expected = Expected(strength=0.8, at_budget=1.0)
    assert expected.now(Interval(1.02, 0.97, 1.08)) == 0.8
    assert expected.now(Interval(1.5, 1.4, 1.6)) == pytest.approx(1.2)
    below = Expected(strength=-0.8, at_budget=-1.0)
    assert below.now(Interval(-2.0, -2.2, -1.8)) == pytest.approx(-1.6)


def test_a_model_that_has_fallen_silent_is_refused_by_name(finished, tiny_options, options):
    silent = changed(0.02)
    end = tiny.tokenizer().eos_token_id
    silent.lm_head = torch.nn.Linear(silent.config.n_embd, silent.config.vocab_size)
    with torch.no_grad():
        silent.lm_head.weight.zero_()
        silent.lm_head.bias.zero_()
        silent.lm_head.bias[end] = 50.0
    with pytest.raises(ConceptError, match="the model must reply to the search prompts"):
        calibrate.calibrate(silent, tiny_options["concept"], start=finished.directory, **options)


def test_what_a_start_that_failed_has_spent_counts_towards_the_limits():
    assert Limits(100, 2.0).less(30, 60.0) == Limits(70, 1.0)
    assert Limits().less(30, 60.0) == Limits()
    assert Limits(100).less(130, 60.0) == Limits(1)
