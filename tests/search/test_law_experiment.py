"""The paper's curves: measured where they say, predicted by the laws, drawn and kept."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from rich.console import Console
from scipy.special import logit

from calibrate.cli.laws_table import LAW_NAMES, laws_summary
from calibrate.common.blocks import check_sites, site_name
from calibrate.common.errors import (
    CalibrateWarning,
    ConceptError,
    Infeasible,
    InputError,
    ModelError,
    NumericalError,
)
from calibrate.common.settings import Settings
from calibrate.engine.cross_entropy import measure_steered
from calibrate.engine.generation import sample
from calibrate.engine.loading import load_model
from calibrate.engine.unsteered import Corpus, run_unsteered
from calibrate.judging.presence import scored
from calibrate.laws.curves import SHARES, _judge_laws, _Watched, block_curves
from calibrate.laws.far_end import EXTREME, LISTED, measure_far_end
from calibrate.laws.law_curves import LawCurves
from calibrate.laws.log_odds import far_logits
from calibrate.laws.plots import law_pictures
from calibrate.laws.presence import fit_both_ways
from calibrate.laws.tokens import ProbabilityCurves
from calibrate.models.tokens import TokenSequence
from calibrate.search import kept_curves, law_experiment
from calibrate.search.law_experiment import (
    chosen_blocks,
    early_middle_late,
    measure_laws,
    resampled,
)
from calibrate.search.law_panels import PROMPTS, SIDE, ReadingBench, judge_curve
from calibrate.search.objective import FIRST_PART
from calibrate.texts.concept import Text, Texts, read_prompts
from calibrate.texts.extraction import concept_vectors
from calibrate.texts.replies import sample_unsteered

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def arguments(tiny_options):
    return {
        key: tiny_options[key]
        for key in ("concept", "tokenizer", "prompts", "ce_budget", "sampling")
    }


@pytest.fixture(scope="module")
def curves(arguments):
    return measure_laws(tiny.model("gpt2"), layers=(0, 1), **arguments)


@pytest.fixture(scope="module")
def panels(arguments, tmp_path_factory):
    few = tmp_path_factory.mktemp("guard") / "few.jsonl"
    rows = zip(tiny.texts(tiny.PLAIN, 24), 2 * tiny.BRIGHT, 2 * tiny.DULL, strict=True)
    few.write_text(
        "\n".join(
            json.dumps({"question": text, "choices": pair, "answer": index % 2})
            for index, (text, *pair) in enumerate(rows)
        )
    )
    wished = {"judge": tiny.share_of_bright_words, "guard": few, "variants": True}
    return measure_laws(tiny.model("gpt2"), layers=(1,), **arguments, **wished)


def test_strengths_are_shares_of_the_budgets_of_both_signs(curves):
    for block in curves.blocks:
        unit = block.strength_at_budget["positive"].value
        shares = np.array(block.strengths) / unit
        assert shares == pytest.approx([-s for s in reversed(SHARES)] + [0, *SHARES])
        assert block.strength_at_budget["negative"].value < 0


def test_the_rise_is_what_a_hand_written_hook_finds(curves, arguments):
    """Recomputed from logits under a hook, without any of the suffix-only machinery."""
    loaded = tiny.loaded("gpt2")
    settings = Settings(ce_budget=arguments["ce_budget"], sampling=arguments["sampling"])
    replies = sample_unsteered(loaded, read_prompts(arguments["prompts"]), settings)
    vectors = concept_vectors(loaded, arguments["concept"].split()["vector"], settings)
    block = curves.blocks[0]
    for index in (3, 8, 14):
        strength = block.strengths[index]
        total, count = 0.0, 0
        for completion in replies.first_replies("search"):
            ids = torch.tensor([completion.sequence.ids])
            plain = loaded.model(input_ids=ids).logits[0].log_softmax(dim=-1)
            with tiny.hand_written_hook(loaded.blocks[0], strength * vectors[0].values):
                steered = loaded.model(input_ids=ids).logits[0].log_softmax(dim=-1)
            rows = slice(completion.sequence.start - 1, -1)
            total += float((plain.exp() * (plain - steered)).sum(dim=-1)[rows].sum())
            count += completion.sequence.n_scored
        assert block.delta_ce[index] == pytest.approx(total / count, rel=1e-3)


def test_tokens_are_those_that_move_and_start_where_the_law_starts(curves):
    for block in curves.blocks:
        zero = block.strengths.index(0.0)
        assert block.delta_ce[zero] == pytest.approx(0.0, abs=1e-6)
        for token in block.tokens:
            assert token.predicted[zero] == pytest.approx(token.probability[zero], rel=1e-3)
            assert token.peak == block.strengths[int(np.argmax(token.probability))]
        moves = [max(token.probability) - min(token.probability) for token in block.tokens]
        assert moves == sorted(moves, reverse=True)


def test_laws_are_of_the_sequences_the_curves_are_of(curves):
    """Of all, where a calibration's pilot takes derivatives on the first only."""
    assert curves.n_sequences > FIRST_PART
    for block in curves.blocks:
        zero = block.strengths.index(0.0)
        assert block.law_concept_mass[zero] == pytest.approx(block.concept_mass[zero], rel=1e-4)


def test_every_law_has_a_verdict_and_the_points_behind_it(curves):
    for block in curves.blocks:
        unit = block.strength_at_budget["positive"].value
        for found, reach in ((block.goodness, 1), (block.goodness_beyond, 3)):
            assert set(found) | {"peaks"} == set(LAW_NAMES)
            for goodness in found.values():
                assert goodness.good == (goodness.error <= goodness.tolerance)
            for law, measured, predicted in (
                ("cross_entropy", block.delta_ce, block.law_delta_ce),
                ("concept", block.concept_mass, block.law_concept_mass),
                ("cross_entropy_remainder", block.delta_ce, block.remainder_delta_ce),
                ("concept_remainder", block.concept_mass, block.remainder_concept_mass),
            ):
                points = found[law].points
                assert max(abs(one[0]) for one in points) == pytest.approx(reach * unit)
                for strength, said, was in points:
                    at = block.strengths.index(strength)
                    assert (said, was) == (predicted[at], measured[at])


def test_the_remainder_foretells_cost_and_concept_between_its_passes(arguments, monkeypatch):
    """At half of α_B, where no pass of the law was: nearer than 1 % and .02 of the log-odds.

    With every token followed, so that no sampling stands between law and truth.
    """
    monkeypatch.setattr("calibrate.laws.foretold.FOLLOWED", 10_000)
    found = measure_laws(tiny.model("gpt2"), layers=(0, 1), **arguments)
    for block in found.blocks:
        half = block.strengths.index(0.5 * block.strength_at_budget["positive"].value)
        assert block.remainder_delta_ce[half] == pytest.approx(block.delta_ce[half], rel=1e-2)
        apart = logit(block.remainder_concept_mass[half]) - logit(block.concept_mass[half])
        assert abs(apart) < 0.02


def test_on_other_text_the_remainder_foretells_the_concept_and_no_cost(arguments, tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(tiny.texts([*tiny.BRIGHT, *tiny.DULL], 64)))
    found = measure_laws(tiny.model("gpt2"), layers=(0,), corpus=corpus, **arguments)
    (block,) = found.blocks
    one = len(SHARES) + 1 + SHARES.index(1.0)
    assert block.delta_ce[one] == pytest.approx(arguments["ce_budget"], rel=0.02)
    assert block.remainder_delta_ce is None
    assert "cross_entropy_remainder" not in block.goodness | block.goodness_beyond
    assert block.goodness["concept_remainder"].good
    assert {"delta_ce.png", "laws.json"} <= law_pictures(found).keys()
    assert LawCurves.model_validate_json(found.to_bytes()) == found
    laws_summary(found, tmp_path)


def test_resampled_texts_give_error_bars(arguments):
    some = measure_laws(tiny.model("gpt2"), layers=(1,), resamples=3, **arguments).blocks[0]
    none = measure_laws(tiny.model("gpt2"), layers=(1,), **arguments).blocks[0]
    assert none.concept_mass_error is None
    zero = some.strengths.index(0.0)
    assert some.concept_mass_error[zero] == pytest.approx(0.0, abs=1e-9)
    assert min(some.concept_mass_error[zero + 4 : zero + 8]) > 0
    assert some.delta_ce == none.delta_ce


def test_matched_pairs_are_drawn_together_and_others_side_by_side():
    pairs = tuple((Text(f"up {n}", f"{n}"), Text(f"down {n}", f"{n}")) for n in range(30))
    up, down = zip(*pairs, strict=True)
    drawn = resampled(Texts(up, down), seed=0)
    assert [text.group for text in drawn.positives] == [text.group for text in drawn.negatives]
    assert len({text.group for text in drawn.positives}) < 30
    alone = resampled(Texts(tuple(Text(f"up {n}") for n in range(9)), (Text("a"), Text("b"))), 1)
    assert (len(alone.positives), len(alone.negatives)) == (9, 2)
    mixed = Texts((*up[:3], Text("up")), down[:2])
    assert all(len(resampled(mixed, seed).negatives) for seed in range(40))


def test_what_cannot_be_measured_is_refused_before_anything_is(arguments):
    def measure(**wrong):
        return measure_laws(tiny.model("gpt2"), **arguments, **wrong)

    for resamples in (1, -1, 1.5):
        with pytest.raises(InputError, match="resamples must be 0, or 2 or more"):
            measure(resamples=resamples)
    for wrong, rule in (
        ({"teacher": "qwen2.5-1.5b"}, "--teacher needs --judge auto, got nobody"),
        (
            {"teacher": "qwen2.5-1.5b", "judge": "embedding"},
            "--teacher needs --judge auto, got embedding",
        ),
        ({"judge_question": "{concept} in {text}?"}, "--judge-question needs a judge"),
        ({"judge_url": "http://localhost:1", "judge": "question"}, "--judge-url needs a judge"),
        ({"judge": "auto", "teacher": "openai:"}, "a judge openai must name a model"),
    ):
        with pytest.raises(InputError, match=rule):
            measure(**wrong)
    for layers in (["one"], [1.5], 1.5, {0: 1.0}, [{0: 1.0}], "1-", [b"1"], [[[0, 2]]], object()):
        with pytest.raises(InputError, match="layers must be blocks, bands or auto"):
            measure(layers=layers)
    with pytest.raises(ModelError, match=r"layer must be in 0\.\.2"):
        measure(layers="1-3")


@pytest.mark.parametrize(
    ("asked", "measured"),
    [
        (1, ["block 1"]),
        ("1", ["block 1"]),
        (np.array([2, 0, 2]), ["block 2", "block 0"]),
        (["1-2", (0, 2), 1, "0-2"], ["blocks 1-2", "blocks 0, 2", "block 1", "blocks 0-2"]),
        ("auto", ["blocks 1-2"]),
        (["auto", "1-2", 0], ["blocks 1-2", "block 0"]),
        ([np.array([1, 2]), np.array([0])], ["blocks 1-2", "block 0"]),
        (None, ["block 0", "block 1", "block 2"]),
    ],
)
def test_blocks_and_bands_are_asked_for_in_many_ways(asked, measured):
    loaded = load_model(tiny.model("gpt2"), tiny.tokenizer())
    sites = chosen_blocks(loaded, check_sites(asked))
    assert [site_name(site, "all") for site in sites] == measured


def test_a_band_is_measured_as_one_site(arguments):
    found = measure_laws(tiny.model("gpt2"), layers=["0-1", 1], variants=True, **arguments)
    band, alone = found.blocks
    assert (band.where, band.layers, band.layer) == ("blocks 0-1", [0, 1], 0)
    assert (alone.where, alone.layers) == ("block 1", [])
    assert band.goodness["cross_entropy"].good
    assert band.strength_at_budget != alone.strength_at_budget
    assert {each.where for each in found.variants.values()} == {"block 1"}
    assert {"tokens.png", "variants.png"} <= law_pictures(found).keys()
    assert LawCurves.model_validate_json(found.to_bytes()) == found


def test_a_block_that_cannot_spend_the_budget_is_left_out(arguments, monkeypatch):
    def curves(bench, site, others=()):
        if site.first != 2:
            raise Infeasible([f"ΔCE levels off after block {site.first}"])
        return block_curves(bench, site, others)

    monkeypatch.setattr(kept_curves, "block_curves", curves)
    with pytest.warns(CalibrateWarning, match="block 0 is left out: ΔCE levels off after block 0"):
        found = measure_laws(tiny.model("gpt2"), layers=(2, 0, 2), **arguments)
    assert [block.layer for block in found.blocks] == [2]
    with pytest.raises(Infeasible, match="levels off after block 1"):
        measure_laws(tiny.model("gpt2"), layers=(0, 1), **arguments)


def test_a_variant_that_cannot_spend_the_budget_is_left_out(arguments, monkeypatch):
    def curves(bench, site, others=()):
        if site.positions == "last":
            raise Infeasible(["ΔCE levels off"])
        return block_curves(bench, site, others)

    monkeypatch.setattr(kept_curves, "block_curves", curves)
    with pytest.warns(CalibrateWarning, match="last token is left out: ΔCE levels off"):
        found = measure_laws(tiny.model("gpt2"), layers=(1,), variants=True, **arguments)
    assert set(found.variants) == {"random negatives", "normalised"}
    assert len(found.blocks) == 1


def test_a_variant_that_has_no_vectors_is_left_out(arguments, monkeypatch):
    def vectors(loaded, texts, settings):
        if settings.negatives == "random":
            raise ConceptError("the model says nothing")
        return concept_vectors(loaded, texts, settings)

    monkeypatch.setattr(law_experiment, "concept_vectors", vectors)
    with pytest.warns(CalibrateWarning, match="random negatives is left out: the model says noth"):
        found = measure_laws(tiny.model("gpt2"), layers=(1,), variants=True, **arguments)
    assert set(found.variants) == {"last token", "normalised"}


def overflowing(monkeypatch, beyond):
    """Let activations be infinite at strengths beyond a size, but for those of the pilot."""

    def steered(loaded, run, site, strength, *others, **named):
        if abs(strength) > beyond:
            raise NumericalError("activations must be finite")
        return measure_steered(loaded, run, site, strength, *others, **named)

    for module in ("bench", "far_end"):
        monkeypatch.setattr(f"calibrate.laws.{module}.measure_steered", steered)


def test_strengths_at_which_activations_are_not_finite_are_left_out(
    arguments, curves, monkeypatch, tmp_path
):
    whole = curves.blocks[1]
    reach = whole.strength_at_budget["positive"].value * 5.5
    overflowing(monkeypatch, reach)
    said = "4 strengths at block 1 are left out, below .* not finite there; use --dtype float32"
    with pytest.warns(CalibrateWarning, match=said):
        found = measure_laws(tiny.model("gpt2"), layers=(1,), resamples=2, **arguments)
    (block,) = found.blocks
    near = [index for index, at in enumerate(whole.strengths) if abs(at) < reach]
    for name in ("strengths", "delta_ce", "law_delta_ce", "remainder_delta_ce"):
        kept = [getattr(whole, name)[index] for index in near]
        assert getattr(block, name) == pytest.approx(kept, rel=1e-6, abs=1e-9), name
    assert block.goodness_beyond["cross_entropy"] == whole.goodness_beyond["cross_entropy"]
    assert block.far == {}
    assert {"delta_ce.png", "laws.json"} <= law_pictures(found).keys()
    assert LawCurves.model_validate_json(found.to_bytes()) == found
    laws_summary(found, tmp_path)


def test_a_block_at_which_activations_are_not_finite_near_the_budget_is_left_out(
    arguments, curves, monkeypatch
):
    units = [block.strength_at_budget["positive"].value for block in curves.blocks]
    small, large = sorted((0, 1), key=lambda index: units[index])
    assert units[large] > 1.2 * units[small]
    overflowing(monkeypatch, 3.01 * units[small])
    with pytest.warns(CalibrateWarning, match=f"block {large} is left out: activations must be"):
        found = measure_laws(tiny.model("gpt2"), layers=(large, small), **arguments)
    assert [block.layer for block in found.blocks] == [small]


def test_every_variant_of_steering_spends_the_budget_in_its_own_way(panels, arguments, curves):
    pooled = measure_laws(tiny.model("gpt2"), layers=(1,), **arguments, pooling="last").blocks[0]
    one = len(SHARES) + 1 + SHARES.index(1.0)
    for found in (pooled, *panels.variants.values()):
        assert found.delta_ce != curves.blocks[1].delta_ce
        assert found.delta_ce[one] == pytest.approx(arguments["ce_budget"], rel=0.02)


def test_an_early_a_middle_and_a_late_block_are_measured_by_default():
    assert early_middle_late(tiny.loaded(layers=12)) == [2, 6, 10]
    assert early_middle_late(tiny.loaded(layers=1)) == [0]


def test_an_unknown_block_is_refused(arguments):
    with pytest.raises(ModelError, match=r"0\.\.2"):
        measure_laws(tiny.model("gpt2"), layers=(3,), **arguments)


def test_the_pictures_and_the_points_are_complete(curves):
    files = law_pictures(curves)
    assert set(files) == {
        "laws.json",
        *(
            f"{name}.{form}"
            for name in ("tokens", "concept", "delta_ce")
            for form in ("png", "svg")
        ),
    }
    assert all(content.startswith(b"\x89PNG") for name, content in files.items() if "png" in name)
    assert all(b"<svg" in content for name, content in files.items() if "svg" in name)
    assert LawCurves.model_validate(json.loads(files["laws.json"])) == curves


def test_the_unsteered_run_of_a_shorter_corpus_gives_other_curves(arguments, curves):
    """A guard against curves that do not depend on what they are measured on."""
    lines = arguments["prompts"].read_text().splitlines()
    fewer = arguments["prompts"].with_name("fewer.txt")
    fewer.write_text("\n".join(lines[:60]))
    found = measure_laws(tiny.model("gpt2"), layers=(1,), **{**arguments, "prompts": fewer})
    assert found.n_sequences < curves.n_sequences
    assert found.blocks[0].delta_ce != curves.blocks[1].delta_ce


def test_nobody_reads_and_nothing_is_asked_unless_wished(curves):
    assert all(block.presence is None and block.accuracy is None for block in curves.blocks)
    assert curves.variants == {}


def test_a_judge_reads_replies_up_to_where_text_degenerates(panels):
    panel = panels.blocks[0].presence
    assert len(panel.strengths) == 2 * SIDE + 1
    assert panel.strengths == sorted(panel.strengths)
    assert min(panel.strengths) < 0 < max(panel.strengths)
    assert panel.fluency_drop[panel.strengths.index(0.0)] == pytest.approx(0.0, abs=1e-6)
    for sign in ("negative", "positive"):
        end = panel.degenerate[sign]
        assert end is None or end in panel.strengths
    assert panel.presence[-1] > panel.presence[0]


def test_presence_at_a_strength_is_what_the_judge_says_of_replies_there(panels, arguments):
    """Replies under a hook of this test, through the plain `generate` path of the engine."""
    loaded, panel = tiny.loaded("gpt2"), panels.blocks[0].presence
    settings = Settings(ce_budget=arguments["ce_budget"], sampling=arguments["sampling"])
    replies = sample_unsteered(loaded, read_prompts(arguments["prompts"]), settings)
    vectors = concept_vectors(loaded, arguments["concept"].split()["vector"], settings)
    asked = replies.prompts["verify"][:PROMPTS]
    for index in (10, 25):
        with tiny.hand_written_hook(loaded.blocks[1], panel.strengths[index] * vectors[1].values):
            steered = sample(loaded, asked, settings.sampling, settings.seed)
        scores = [tiny.share_of_bright_words([reply.text], "bright")[0] for reply in steered]
        assert panel.presence[index] == pytest.approx(np.mean(scores), abs=1e-6)


def test_presence_is_unknown_where_fewer_than_two_replies_are_heard(arguments, monkeypatch):
    """Neither 0 without an error, nor a number without one: and all can be written and read."""
    replies = ReadingBench._replies

    def quiet(bench, site, strengths):
        read = replies(bench, site, strengths)
        if len(read) > 1:  # not the search for where text degenerates
            for end, heard in ((0, 0), (-1, 1)):
                spoken = read[end].completions
                silent = [replace(each, text="") for each in spoken[heard:]]
                scores = np.where(np.arange(len(spoken)) < heard, 0.5, 0.0)
                read[end] = scored([*spoken[:heard], *silent], scores)
        return read

    monkeypatch.setattr(ReadingBench, "_replies", quiet)
    judge = tiny.share_of_bright_words
    found = measure_laws(tiny.model("gpt2"), layers=(1,), **arguments, judge=judge)
    panel = found.blocks[0].presence
    for values in (panel.presence, panel.error, panel.fluency_drop):
        assert [at for at, value in enumerate(values) if value is None] == [0, 2 * SIDE]
    assert panel.heard == panel.presence[1:-1]
    assert np.isfinite(panel.goodness.error)
    files = law_pictures(found)
    assert "presence.png" in files
    assert LawCurves.model_validate_json(files["laws.json"]) == found
    laws_summary(found, Path("here"))


def test_a_law_of_presence_is_judged_by_the_points_left_over():
    strengths = np.linspace(-1, 1, 8)
    said = 0.5 + 0.1 * strengths
    off = 0.05 * np.array([1, -1, 1, -1, 1, -1, 1, -1])
    found = judge_curve(strengths, said, said + off, np.full(8, 0.05))
    assert found.error == pytest.approx(np.sqrt(8 / 4))  # of 8 points four went into the law
    few = judge_curve(strengths[:4], said[:4], said[:4] + off[:4], np.full(4, 0.05))
    assert few.error == pytest.approx(np.sqrt(4 / 2))
    assert len(few.points) == 4


def test_a_law_of_presence_through_all_its_points_has_no_verdict():
    """As where presence falls from strength 0 on at both sides, which leaves the point at 0."""
    strengths = np.linspace(-2, 2, 9)
    presences = np.where(strengths == 0, 0.6, np.where(strengths > 0, 0.2, 0.9))
    law, falls = fit_both_ways(strengths, presences, [100.0] * 9)
    assert falls == {1: 0.5, -1: -0.5}
    for kept in (np.array([0.0]), np.array([0.0, 1.0])):
        said = np.asarray(law.predict(kept))
        assert judge_curve(kept, said, said, np.full(len(kept), 0.1)) is None


def test_questions_are_put_at_strengths_of_both_signs(panels):
    panel = panels.blocks[0].accuracy
    zero = panel.strengths.index(0.0)
    assert panel.n_questions == 24
    assert panel.drop_bound[zero] == pytest.approx(1 - 0.05 ** (1 / panel.n_questions))
    assert len(set(panel.accuracy)) > 1
    for accuracy, bound in zip(panel.accuracy, panel.drop_bound, strict=True):
        assert bound >= panel.accuracy[zero] - accuracy - 1e-9


def test_the_middle_block_is_steered_in_other_ways_on_request(panels, arguments):
    assert set(panels.variants) == {"random negatives", "last token", "normalised"}
    alone = measure_laws(tiny.model("gpt2"), layers=(1,), **arguments, positions="last")
    assert panels.variants["last token"] == alone.blocks[0]
    files = law_pictures(panels)
    assert {"variants.png", "presence.svg", "accuracy.png"} <= set(files)
    assert LawCurves.model_validate(json.loads(files["laws.json"])) == panels


def test_presence_without_a_verdict_is_drawn_and_told(panels):
    block = panels.blocks[0]
    presence = block.presence.model_copy(update={"goodness": None})
    found = panels.model_copy(
        update={"blocks": [block.model_copy(update={"presence": presence})], "variants": {}}
    )
    files = law_pictures(found)
    assert LawCurves.model_validate_json(files["laws.json"]) == found
    console = Console(width=200, file=io.StringIO())
    console.print(laws_summary(found, Path("here")))
    assert "too few points to judge the sigmoid by" in console.file.getvalue()


def test_an_exact_law_has_exact_peaks_though_it_is_known_between_the_strengths_measured():
    strengths = np.array([-(share) for share in reversed(SHARES)] + [0.0, *SHARES])
    fine = np.union1d(strengths, np.linspace(-30, 30, 801))
    at = np.linspace(-1.4, 1.4, 40)[None, :, None]

    def bumps(strengths):
        return ProbabilityCurves(strengths, np.exp(-((strengths - at) ** 2)))

    ids = np.arange(40)[None]
    watched = _Watched(ids, bumps(strengths), bumps(fine))
    flat = {"cross_entropy": strengths**2}, {"concept": np.full(21, 0.5)}
    found = _judge_laws(strengths, 3.0, *flat, (strengths**2, np.full(21, 0.5)), watched)
    assert found["peaks"].error == pytest.approx(0.0)


def test_of_a_small_vocabulary_as_many_tokens_are_extreme_as_are_listed():
    """The ten likeliest far out are all extreme where log-odds and far logits are ordered alike."""
    loaded = tiny.loaded("gpt2")
    sequence = TokenSequence(tuple(range(1, 9)), 4)
    run = run_unsteered(loaded, Corpus((sequence,), self_sampled=True), [1])
    site = tiny.site(torch.randn(loaded.hidden_size, generator=torch.Generator().manual_seed(0)), 1)
    assert loaded.vocabulary_size < LISTED / EXTREME
    for sign in (1, -1):
        log_odds = sign * far_logits(loaded, site, sign).double().cpu().numpy()
        assert measure_far_end(loaded, run, site, sign * 200.0, log_odds, [0]).extreme == 1.0
        assert measure_far_end(loaded, run, site, sign * 200.0, -log_odds, [0]).extreme == 0.0


def test_the_summary_shows_the_far_end_of_both_signs_as_foretold_and_as_measured(curves):
    console = Console(width=300, file=io.StringIO())
    console.print(laws_summary(curves, Path("here")))
    shown = console.file.getvalue()
    for block in curves.blocks:
        for far in block.far.values():
            row = next(line for line in shown.splitlines() if f"{far.strength:+g}" in line)
            assert f"{far.shared} of 10" in row
            assert f"{far.total_variation:.3f}" in row
            for token in (*far.predicted, *far.measured):
                assert token.strip() in row
            shown = shown.replace(row, "", 1)


def test_far_out_the_likeliest_tokens_are_those_foretold(curves):
    for block in curves.blocks:
        for far in block.far.values():
            assert far.shared >= 9
            assert far.total_variation < 0.1
            assert len(far.predicted) == len(far.measured) == 10
