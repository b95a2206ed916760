"""The whole line on a random model: from texts to a verified config in seconds."""

from __future__ import annotations

import errno
import html
import json
import math
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

import calibrate
from calibrate import calibration
from calibrate.artefact.frontier import Frontier
from calibrate.artefact.sections import sweet_spot
from calibrate.common.errors import (
    ArtefactError,
    CalibrateWarning,
    Infeasible,
    InputError,
    ModelError,
)
from calibrate.common.progress import Progress
from calibrate.common.settings import Sampling
from calibrate.deploy.finished import Calibration, found_again
from calibrate.engine.generation import sample
from calibrate.engine.loading import load_model
from calibrate.judging.presence import require_headroom
from calibrate.models.prompts import encode_prompt
from calibrate.search.refusals import TooMuch
from calibrate.texts.replies import sample_unsteered
from probes import Reader


def run(tiny_options, model=None, **changes):
    return calibrate.calibrate(model or tiny.model("gpt2"), **{**tiny_options, **changes})


def test_the_result_keeps_its_promises(finished):
    config = finished.result.config
    measured = config.measured
    assert measured.delta_ce.upper <= config.budget.limit
    assert measured.presence.low > measured.presence.baseline_interval[1]
    assert measured.presence.change.low > 0
    assert measured.controls.random_vector.high < measured.presence.low
    at_budget = config.range.strength_at_budget
    assert at_budget.low < at_budget.value < at_budget.high
    assert 0 < config.intervention.strength <= 1.05 * at_budget.high
    low, high = config.range.sweet_spot
    assert 0 < low < high == at_budget.value
    assert config.model.architecture == "GPT2LMHeadModel"


def test_away_from_a_concept_the_sweet_spot_ends_at_the_budgets_strength(tiny_options):
    model = tiny.model("gpt2")
    result = calibrate.calibrate(model, **tiny_options | {"goal": "decrease"})
    low, high = (config := result.config).range.sweet_spot
    assert low == config.range.strength_at_budget.value
    assert low < high < 0
    picked = result.pick(0.2, model, tiny_options["tokenizer"])
    low, high = picked.config.range.sweet_spot
    assert low == picked.config.range.strength_at_budget.value
    assert low < high < 0


def test_where_steering_lowers_the_concepts_tokens_at_once_the_sweet_spot_is_not_empty():
    assert sweet_spot(0.5, 2.0, mass_peak=0.0) == (0.5, 2.0)
    assert sweet_spot(0.5, 2.0, mass_peak=1.2) == (0.5, 1.2)
    assert sweet_spot(0.5, -2.0, mass_peak=0.0) == (-2.0, -0.5)


def test_everything_is_written_and_can_be_loaded_again(finished):
    names = {p.name for p in finished.directory.iterdir()}
    assert names == {
        "steering.json",
        "steering.safetensors",
        "evidence.json",
        "probe",
        "report.html",
        "delta_ce.png",
        "presence.png",
        "blocks.png",
        "long_run.png",
        "study.journal",
    }
    again = Calibration.load(finished.directory)
    assert again.config == finished.result.config
    assert timeless(again.evidence) == timeless(finished.result.evidence)
    again.save(finished.directory.parent / "copy")
    copied = finished.directory.parent / "copy" / "steering.json"
    assert copied.read_bytes() == (finished.directory / "steering.json").read_bytes()


def test_what_is_reported_was_not_tuned_on(finished):
    splits = finished.result.evidence.splits
    for kind in (splits.texts, splits.prompts):
        everything = [text for part in kind.values() for text in part]
        assert len(everything) == len(set(everything))
    reported = {one.prompt for one in finished.result.evidence.completions}
    assert reported == set(splits.prompts["verify"])
    assert finished.result.config.measured.presence.n_prompts == len(reported)


def test_every_final_reply_is_kept_with_what_the_judge_reads_in_it(finished):
    evidence, config = finished.result.evidence, finished.result.config
    by_prompt = Counter(one.prompt for one in evidence.completions)
    assert set(by_prompt.values()) == {2}
    assert [one.prompt for one in evidence.first_completions] == list(by_prompt)
    spoken = [one.steered_presence for one in evidence.completions if one.steered.strip()]
    assert len(spoken) == config.measured.presence.n_completions
    assert np.mean(spoken) == pytest.approx(config.measured.presence.value)


def test_by_default_a_band_is_steered_and_nothing_is_searched_but_the_strength(tiny_options):
    result = run(tiny_options, layer="auto")
    assert result.config.layers == (1, 2)
    assert result.evidence.ranks == []
    assert {trial.site for trial in result.evidence.trials} == {"blocks 1-2"}
    assert result.config.cost["blocks"].token_forwards == 0


def test_the_cost_of_every_stage_is_recorded(finished):
    cost = finished.result.config.cost
    assert list(cost) == [
        "unsteered replies",
        "steering vectors",
        "blocks",
        "judges",
        "pilot",
        "study",
        "verification",
    ]
    assert all(spent.token_forwards > 0 and spent.seconds > 0 for spent in cost.values())
    blocks = finished.result.config.model.num_layers
    assert all(
        spent.token_block_forwards == blocks * spent.token_forwards for spent in cost.values()
    )


def test_the_forecast_comes_close_to_what_is_spent(tiny_options):
    forecast = {}

    class Watching(Progress):
        def forecast(self, tokens, seconds):
            forecast.update(tokens)
            assert seconds > 0

    result = run(tiny_options, progress=Watching())
    spent = {stage: cost.token_forwards for stage, cost in result.config.cost.items()}
    assert forecast.keys() == spent.keys()
    assert sum(spent.values()) == pytest.approx(sum(forecast.values()), rel=0.4)


def timeless(evidence):
    """Evidence without how long trials took."""
    trials = [replace(trial, seconds=0.0) for trial in evidence.trials]
    return evidence.model_copy(update={"trials": trials})


def test_the_same_seed_gives_the_same_config_and_another_seed_another(finished, tiny_options):
    again = run(tiny_options)
    assert again.config.intervention == finished.result.config.intervention
    assert again.config.measured == finished.result.config.measured
    assert timeless(again.evidence) == timeless(finished.result.evidence)
    other = run(tiny_options, seed=5)
    assert other.evidence.completions != again.evidence.completions


def test_batch_size_changes_the_verified_delta_ce_by_less_than_a_ten_thousandth(
    finished, tiny_options
):
    small = load_model(tiny.model("gpt2"), tiny_options["tokenizer"], batch_tokens=64)
    options = {k: v for k, v in tiny_options.items() if k != "tokenizer"}
    result = run(options, small)
    ours, theirs = result.config, finished.result.config
    assert ours.measured.delta_ce.value == pytest.approx(theirs.measured.delta_ce.value, abs=1e-4)
    assert ours.intervention.strength == pytest.approx(theirs.intervention.strength, rel=1e-4)


def state_of(model):
    """Everything a borrower could leave changed."""
    return {
        "training": [module.training for module in model.modules()],
        "gradients": [parameter.requires_grad for parameter in model.parameters()],
        "types": {parameter.dtype for parameter in model.parameters()},
        "weights": [parameter.sum().item() for parameter in model.parameters()],
        "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()),
        "attributes": [sorted(module.__dict__) for module in model.modules()],
        "config": model.config.to_dict(),
        "generation": model.generation_config.to_dict(),
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),
        "python": random.getstate(),
    }


def used_model():
    """A model in the middle of being fine-tuned with an adapter."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny.model("gpt2"), LoraConfig(r=2, target_modules=["c_fc"]))
    model.train()
    model.base_model.model.transformer.h[1].eval()
    next(model.parameters()).requires_grad_(False)
    return model


def test_an_in_memory_model_comes_back_untouched(tiny_options):
    model = used_model()
    before = state_of(model)
    result = run(tiny_options, model)
    assert state_of(model) == before
    assert result.config.model.architecture == "GPT2LMHeadModel"


@pytest.mark.parametrize("stage", ["judges", "pilot", "study", "verification"])
def test_an_in_memory_model_comes_back_untouched_after_an_error(tiny_options, stage):
    class Exploding(Progress):
        def __init__(self):
            self.stage = ""

        def began(self, stage, total=None, unit="tokens"):
            self.stage = stage

        def advanced(self, amount):
            if self.stage == stage:
                raise RuntimeError("in the middle")

    model = used_model()
    before = state_of(model)
    with pytest.raises(RuntimeError, match="in the middle"):
        run(tiny_options, model, progress=Exploding())
    assert state_of(model) == before


def test_an_interrupted_calibration_resumes_to_the_same_answer(finished, tiny_options, tmp_path):
    class Interrupting(Progress):
        def tried(self, trial):
            if trial.number == 1:
                raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(tiny_options, out=out, progress=Interrupting())
    assert [p.name for p in out.iterdir()] == ["study.journal"]
    assert run(tiny_options, out=out).config.intervention == finished.result.config.intervention


def test_a_search_goes_on_among_the_blocks_it_began_with(tiny_options, tmp_path):
    """How many those are depends on what may be spent, which may differ the next time."""

    class Interrupting(Progress):
        def tried(self, trial):
            raise KeyboardInterrupt

    class Forecast(Progress):
        def forecast(self, tokens, seconds):
            self.tokens = sum(tokens.values())

    all_blocks, limited = Forecast(), tmp_path / "limited"
    whole = run(tiny_options, progress=all_blocks)
    assert len(whole.evidence.pilots) > 1
    with pytest.raises(KeyboardInterrupt):
        run(tiny_options, out=limited, progress=Interrupting(), max_tokens=all_blocks.tokens - 1)
    resumed = run(tiny_options, out=limited)
    assert 0 < len(resumed.evidence.pilots) < len(whole.evidence.pilots)


def test_a_finished_directory_answers_at_once(finished, tiny_options):
    class Refusing(Progress):
        def began(self, stage, total=None, unit="tokens"):
            raise AssertionError(f"{stage} ran again")

    again = run(tiny_options, out=finished.directory, progress=Refusing())
    assert again.config == finished.result.config


def test_a_finished_directory_is_not_overwritten_by_other_settings(finished, tiny_options):
    with pytest.raises(ArtefactError, match=r"made with other settings.*another --out"):
        run(tiny_options, out=finished.directory, ce_budget=0.2)


def test_a_finished_directory_is_not_of_other_weights(finished, tiny_options):
    """Of the same name and shape, as after a training."""
    with pytest.raises(ArtefactError, match=r"or another model; choose another --out"):
        run(tiny_options, retrained(), out=finished.directory)


def test_where_no_process_holds_all_weights_the_reference_tells_them_apart(finished):
    same, other = (load_model(each, tiny.tokenizer()) for each in (tiny.model("gpt2"), retrained()))
    assert found_again(finished.directory, same, None).config == finished.result.config
    with pytest.raises(ArtefactError, match=r"another model: unsteered log-prob.*another --out"):
        found_again(finished.directory, other, None)


def retrained():
    model = tiny.model("gpt2")
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight.mul_(1.5)
    return model


def test_another_judge_of_the_same_name_is_another_calibration(tiny_options):
    judges = [
        lambda texts, _: [sum(word in tiny.BRIGHT for word in text.split()) / 40 for text in texts],
        lambda texts, _: [sum(word in tiny.BRIGHT for word in text.split()) / 50 for text in texts],
    ]
    one, again, other = (
        run(tiny_options, judge=judge).config.provenance for judge in (*judges[:1], *judges)
    )
    assert one.fingerprint == again.fingerprint != other.fingerprint


def test_texts_in_other_groups_are_another_calibration(finished, tiny_options):
    """The same texts, but split otherwise."""
    concept = tiny_options["concept"]
    sides = (
        [replace(text, group=f"{number // 2}") for number, text in enumerate(side)]
        for side in (concept.texts.positives, concept.texts.negatives)
    )
    paired = calibrate.Concept.from_texts(concept.name, *sides)
    assert paired.data_sha256 == concept.data_sha256
    with pytest.raises(ArtefactError, match="made with other settings"):
        run(tiny_options, out=finished.directory, concept=paired)


def test_a_directory_that_holds_something_else_is_left_alone(tiny_options, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ArtefactError, match=r"holds 'thesis\.tex'; choose another --out"):
        run(tiny_options, out=tmp_path)
    with pytest.raises(ArtefactError, match="must be a directory"):
        run(tiny_options, out=tmp_path / "thesis.tex")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_full_disk_leaves_only_the_journal(tiny_options, tmp_path, monkeypatch):
    def full(_path, _content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ArtefactError, match="No space left on device"):
        run(tiny_options, out=tmp_path / "out")
    left = {p.name for p in (tmp_path / "out").iterdir() if not p.name.startswith(".")}
    assert left == {"study.journal"}


def test_an_infeasible_request_leaves_a_report_with_reasons_and_no_config(tiny_options, tmp_path):
    with pytest.raises(Infeasible, match=r"cannot be told|worth having") as caught:
        run(tiny_options, ce_budget=1e-4, out=tmp_path)
    assert caught.value.advice
    report = (tmp_path / "report.html").read_text()
    assert all(html.escape(advice) in report for advice in caught.value.advice)
    assert not (tmp_path / "steering.json").exists()


def test_a_larger_budget_buys_what_the_first_does_not(tiny_options, tmp_path):
    """Without another study; and the same call then finds it."""
    larger = [2e-4, 0.4]
    result = run(tiny_options, ce_budget=1e-4, out=tmp_path, other_budgets=larger)
    config, measured = result.config, result.config.measured
    assert config.budget.limit == config.provenance.settings["ce_budget"] == 0.4
    assert 2e-4 < measured.delta_ce.upper <= 0.4
    assert measured.presence.change.low > 0
    at_budget = config.range.strength_at_budget
    assert at_budget.low < at_budget.value < at_budget.high
    assert config.intervention.strength <= at_budget.value
    law = config.laws.cross_entropy
    assert float(law.predict(at_budget.value)) == pytest.approx(0.4, rel=1e-3)
    again = run(tiny_options, ce_budget=1e-4, out=tmp_path, other_budgets=larger)
    assert again.config.provenance == config.provenance
    with pytest.raises(ArtefactError, match="made with other settings"):
        run(tiny_options, ce_budget=1e-4, out=tmp_path)
    with pytest.raises(ArtefactError, match="made with other settings"):
        run(tiny_options, ce_budget=1e-4, out=tmp_path, other_budgets=[0.4])


def test_a_larger_budget_is_left_alone_where_the_limits_have_no_room_for_it(tiny_options):
    class Counting(Progress):
        def forecast(self, tokens, seconds):
            self.most = sum(tokens.values())

    forecast = Counting()
    with pytest.raises(Infeasible):
        run(tiny_options, ce_budget=1e-4, progress=forecast)
    with (
        pytest.warns(
            CalibrateWarning, match=r"what 0\.0001, 0\.0002, 0\.4 nat buys is not measured: the lim"
        ),
        pytest.raises(Infeasible) as caught,
    ):
        run(tiny_options, ce_budget=1e-4, other_budgets=[2e-4, 0.4], max_tokens=forecast.most)
    assert any("verify 0.0002 nat too, with a higher --max" in one for one in caught.value.advice)


@pytest.mark.parametrize("others", [[math.nan], ["much"], [0.2, -1.0]])
def test_other_budgets_are_numbers(tiny_options, others):
    with pytest.raises(InputError, match="must be"):
        run(tiny_options, other_budgets=others)


def refusing(monkeypatch, kind, budgets):
    """Have every verification of these budgets be refused; return those that are verified."""
    verified, verify = [], calibration.verify

    def verify_or_refuse(*given, **others):
        settings = next(one for one in given if isinstance(one, calibrate.Settings))
        verified.append(settings.ce_budget)
        if settings.ce_budget in budgets:
            raise kind(["they loop"], ["change something"])
        return verify(*given, **others)

    monkeypatch.setattr(calibration, "verify", verify_or_refuse)
    return verified


def test_a_smaller_budget_ships_where_the_first_does_harm(tiny_options, tmp_path, monkeypatch):
    """And the same call then finds it."""
    verified = refusing(monkeypatch, TooMuch, {0.4, 0.3})
    wanted = {"out": tmp_path, "other_budgets": [0.8, 0.2, 0.3]}
    result = run(tiny_options, **wanted)
    assert verified == [0.4, 0.3, 0.2]
    assert result.config.budget.limit == 0.2
    assert result.config.measured.delta_ce.upper <= 0.2
    assert run(tiny_options, **wanted).config.provenance == result.config.provenance
    assert verified == [0.4, 0.3, 0.2]


def test_where_the_law_levels_off_below_the_first_budget_a_smaller_one_ships(
    finished, tiny_options
):
    plateau = finished.result.config.laws.cross_entropy.plateau
    result = run(tiny_options, ce_budget=2 * plateau, other_budgets=[0.4])
    assert result.config.budget.limit == 0.4
    with pytest.raises(Infeasible, match="levels off"):
        run(tiny_options, ce_budget=2 * plateau)


def test_where_no_budget_ships_it_is_measured_what_each_buys(tiny_options, tmp_path, monkeypatch):
    """Once: the same call adds only what it lacks."""
    refusing(monkeypatch, TooMuch, {0.4, 0.2, 0.1})
    with pytest.raises(
        Infeasible, match=r"at 0\.2 nat: they loop; at 0\.4 nat: they loop"
    ) as caught:
        run(tiny_options, out=tmp_path, other_budgets=[0.2])
    frontier = caught.value.frontier
    assert [point.budget for point in frontier.points] == [0.2, 0.4]
    assert {point.why_not for point in frontier.points} == {"not verified"}
    assert "None of these points is sure to ship" in frontier.advice
    assert {"asked in words", "random vector", "best of 4"} <= {one.name for one in frontier.rivals}
    written = Frontier.load(tmp_path, frontier.fingerprint)
    assert written == frontier
    assert {path.name for path in tmp_path.iterdir()} >= {"frontier.png", "frontier.svg"}
    page = (tmp_path / "report.html").read_text()
    by_token, by_reply = len(frontier.points) + 3, len(frontier.points) + 5
    along = len(frontier.points)  # loops, since no guard was asked
    assert page.count('class="mark ') == by_token + by_reply + along
    assert html.escape(frontier.advice, quote=False) in html.unescape(page)

    with pytest.raises(Infeasible) as caught:
        run(tiny_options, out=tmp_path, other_budgets=[0.2, 0.1])
    more = caught.value.frontier
    assert [point.budget for point in more.points] == [0.1, 0.2, 0.4]
    assert (more.points[1:], more.rivals) == (frontier.points, frontier.rivals)
    assert more.token_forwards["0.2 nat"] == frontier.token_forwards["0.2 nat"]
    with pytest.raises(
        ArtefactError, match=r"found no strength; .* is in .*report\.html and in front"
    ):
        Calibration.load(tmp_path)


def test_where_no_trial_reads_well_enough_the_nearest_ones_site_is_measured(tiny_options):
    with pytest.raises(Infeasible, match=r"none of 4 trials kept .* drop of fluency") as caught:
        run(tiny_options, max_fluency_drop=1e-9, other_budgets=[0.2])
    assert [point.budget for point in caught.value.frontier.points] == [0.2, 0.4]


def test_of_a_single_budget_it_is_said_how_to_see_what_others_buy(tiny_options, tmp_path):
    with pytest.raises(Infeasible) as caught:
        run(tiny_options, ce_budget=1e-4, out=tmp_path)
    assert caught.value.frontier is None
    assert "asking in words brings more, with --ce-budget 0.0001,5e-05," in caught.value.advice[-1]
    with pytest.raises(ArtefactError, match=r"found no strength; .* calibrate again with several"):
        calibrate.load(tmp_path)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_an_infeasible_request_can_be_made_again(elsewhere, tiny_options, tmp_path):
    """Also where its study is kept elsewhere, so that only its report is in the directory."""
    kept = {"storage": f"sqlite:///{tmp_path / 'study.db'}"} if elsewhere else {}
    for _ in range(2):
        with pytest.raises(Infeasible, match=r"cannot be told|worth having"):
            run(tiny_options, ce_budget=1e-4, out=tmp_path / "out", **kept)
    (tmp_path / "out" / "report.html").write_text("mine")
    with pytest.raises(ArtefactError, match=r"report\.html is in the way"):
        run(tiny_options, ce_budget=1e-4, out=tmp_path / "out", **kept)


class Constant:
    """A judge to whom every reply is the same."""

    def __init__(self, score):
        self.value = score

    def score(self, texts, concept):
        return np.full(len(texts), self.value)


@pytest.mark.parametrize(("score", "goal"), [(0.999, "increase"), (0.001, "decrease")])
def test_no_headroom_is_infeasible(tiny_options, score, goal):
    """Where so few prompts cannot show that there is none, the study goes on."""
    loaded = load_model(tiny.model("gpt2"), tiny_options["tokenizer"])
    settings = calibrate.Settings(goal=goal, sampling=tiny_options["sampling"])
    replies = sample_unsteered(loaded, tiny.prompts(160), settings)
    with pytest.raises(Infeasible, match=f"no headroom: .* {score}.* to {goal} it by --min-gain"):
        require_headroom(Reader(Constant(score), "bright", "constant"), replies, settings)
    require_headroom(Reader(Constant(0.5), "bright", "constant"), replies, settings)
    few = sample_unsteered(loaded, tiny.prompts(30), settings)
    require_headroom(Reader(Constant(score), "bright", "constant"), few, settings)


def test_a_probe_that_cannot_tell_the_concept_is_infeasible(tiny_options):
    """Few of the texts differ, which a mean over all of them shows and a single one does not."""
    plain = tiny.texts(tiny.PLAIN, 60, seed=8)
    bright, dull = tiny.texts(tiny.BRIGHT, 10), tiny.texts(tiny.DULL, 10)
    vague = calibrate.Concept.from_texts("vague", [*plain[:30], *bright], [*plain[30:], *dull])
    with pytest.raises(Infeasible, match="cannot tell 'vague' apart: its AUC"):
        run(tiny_options, concept=vague)


@pytest.mark.parametrize(
    "changes",
    [
        {"negatives": "random"},
        {"pooling": "last"},
        {"positions": "last"},
        {"normalize": True},
        {"layer": 1},
        {"layer": "auto", "normalize": True},
    ],
)
def test_every_variant_runs_to_the_end(tiny_options, changes):
    config = run({**tiny_options, "tokenizer": tiny.tokenizer(bos=True)}, **changes).config
    assert config.measured.delta_ce.upper <= config.budget.limit
    assert config.measured.presence.change.low > 0
    assert config.model.adds_bos
    if changes.get("normalize"):
        norms = [block.norm for block in config.steered_blocks]
        assert norms == pytest.approx([1.0] * len(norms), abs=1e-6)
    if changes.get("layer"):
        assert config.intervention.layer == 1


def test_a_corpus_is_measured_on_its_own_labels(tiny_options, tmp_path):
    """Texts of the model itself, drawn at a lower temperature: likelier than it thinks."""
    loaded = load_model(tiny.model("gpt2"), tiny_options["tokenizer"])
    prompts = [encode_prompt(loaded, text) for text in tiny.prompts(60)]
    drawn = sample(loaded, prompts, Sampling(temperature=0.8, max_new_tokens=20), seed=0)
    corpus = tmp_path / "corpus.jsonl"
    said = [one.text for one in drawn if one.text]
    corpus.write_text("\n".join(json.dumps({"text": text}) for text in said))
    config = run(tiny_options, corpus=corpus).config
    assert config.measured.delta_ce.corpus == "file"
    assert config.laws.cross_entropy.slope != 0
    assert config.measured.delta_ce.upper <= config.budget.limit


def test_a_chat_model_is_asked_through_its_template(tiny_options):
    options = {**tiny_options, "tokenizer": tiny.tokenizer(chat=True)}
    config = run(options).config
    assert config.model.chat_template_sha256 is not None
    user = tiny.VOCABULARY.index("<user>")
    assert config.reference.input_ids[0] == user


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ce_budget": 0.0}, "above 0 nat, got 0"),
        ({"ce_budget": float("nan")}, "above 0 nat, got nan"),
        ({"ce_budget": -1.0}, "got -1"),
        ({"confidence": 1.0}, "between 0.5 and 1, got 1"),
        ({"trials": 0}, "at least 1 trial, got 0"),
        ({"goal": "explode"}, "goal must be increase or decrease, got 'explode'"),
        ({"seed": -1}, "seed must be 0 or more"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_is_loaded(options, said):
    with pytest.raises(InputError, match=said):
        calibrate.calibrate("a model that does not exist", "joy", **options)


def test_a_layer_out_of_range_is_refused(tiny_options):
    with pytest.raises(ModelError, match=r"layer must be in 0\.\.2"):
        run(tiny_options, layer=7)


def test_a_text_longer_than_the_context_is_refused(tiny_options):
    long = ["sun " * 200, *tiny.texts(tiny.BRIGHT, 40)]
    concept = calibrate.Concept.from_texts("long", long, tiny.texts(tiny.DULL, 40))
    with pytest.raises(InputError, match="context of 128 tokens, got 200: 'sun sun"):
        run(tiny_options, concept=concept)


def test_activations_that_are_not_finite_stop_it(tiny_options):
    model = tiny.model("gpt2")
    model.transformer.h[0].mlp.c_proj.bias.data.fill_(float("nan"))
    with pytest.raises((InputError, ModelError), match=r"finite|logits"):
        run(tiny_options, model)
