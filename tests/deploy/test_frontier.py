"""What other budgets buy, measured on a random model; and another of them shipped."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tiny

import calibrate
from calibrate.artefact.advice import advice, error_of_change, worth_of_step
from calibrate.artefact.assemble_frontier import known_before, refusal
from calibrate.artefact.directory import FRONTIER_FILES, open_workspace, wrote
from calibrate.artefact.frontier import Frontier, MissedSection, PointSection, RivalSection
from calibrate.artefact.measured_sections import GuardSection
from calibrate.artefact.report.chart import chart
from calibrate.artefact.report.frontier_curves import law_curve, limit_by_token, what_breaks
from calibrate.artefact.saved import save_frontier
from calibrate.common.cost import Ledger, Meter
from calibrate.common.errors import ArtefactError, CalibrateWarning, Infeasible, InputError
from calibrate.common.estimate import Interval, RatioEstimate
from calibrate.common.settings import Settings
from calibrate.deploy import frontier as deploy
from calibrate.deploy.chat import Chat, SteeredModel
from calibrate.deploy.finished import Calibration
from calibrate.deploy.verify import as_calibrated, check_directory
from calibrate.engine.cross_entropy import delta_ce
from calibrate.engine.loading import load_model
from calibrate.laws.presence import PresenceLaw
from calibrate.search import frontier as searched
from calibrate.search.fingerprint import fingerprint_at, fingerprint_picked
from calibrate.search.frontier_end import End, Known, end_of

BUDGETS = (0.1, 0.2, 0.4, 1.6)
PANELS = ("token", "reply", "strength")


@pytest.fixture(scope="module")
def opened(finished, tiny_options):
    loaded = load_model(tiny.model("gpt2"), tiny_options["tokenizer"])
    return as_calibrated(finished.result.config, loaded)


@pytest.fixture(scope="module")
def measured(finished, opened):
    """The calibration with a frontier of four budgets."""
    return finished.result.with_frontier([0.4, *BUDGETS], opened)


def test_every_budget_has_its_strength_and_its_bound(measured, opened):
    frontier = measured.frontier
    assert tuple(point.budget for point in frontier.points) == BUDGETS
    strengths = [point.strength for point in frontier.points]
    assert strengths == sorted(strengths)
    bench = deploy.open_bench(measured.config, measured.evidence, measured.probe, opened)
    for point in frontier.points:
        assert 0.75 * point.budget < point.upper <= point.budget
        again = delta_ce(opened, bench.runs["verify"], bench.site, point.strength)
        assert point.delta_ce.value == pytest.approx(again.value, rel=1e-6)
        # The replies' temperature is 1 here, at which the cost a reply is ΔCE, by another pass.
        assert point.cost.value == pytest.approx(again.sums.mean(), rel=1e-3)
        assert point.ships
        assert 0 < frontier.efficiency(point) < 1
    assert [point.presence.value for point in frontier.points] == sorted(
        point.presence.value for point in frontier.points
    )


def test_the_own_budget_comes_out_as_the_calibration_had_it(measured):
    config = measured.config
    (point,) = [each for each in measured.frontier.points if each.budget == 0.4]
    assert point.strength == pytest.approx(config.intervention.strength, rel=0.02)
    assert point.change.value == pytest.approx(config.measured.presence.change.value, abs=0.02)
    assert point.delta_ce.value == pytest.approx(config.measured.delta_ce.value, rel=0.03)


def test_what_the_calibration_ships_is_a_point_as_it_was_verified(measured, opened):
    shipped, config = measured.frontier.shipped, measured.config
    assert shipped.strength == config.intervention.strength
    assert shipped.budget == config.budget.limit
    assert shipped.upper == config.measured.delta_ce.upper
    assert shipped.change == config.measured.presence.change
    assert shipped.ships
    assert shipped.example == measured.evidence.completions[0].steered
    # The replies' temperature is 1 here, at which the cost a reply is ΔCE, by another pass.
    bench = deploy.open_bench(config, measured.evidence, measured.probe, opened)
    again = delta_ce(opened, bench.runs["verify"], bench.site, shipped.strength)
    assert shipped.cost.value == pytest.approx(again.sums.mean(), rel=1e-3)
    replies = measured.frontier.points[2]  # of nearly the same strength
    assert shipped.cost_back.value == pytest.approx(replies.cost_back.value, rel=0.1)
    assert shipped in measured.frontier.strengths


def test_a_frontier_is_measured_on_the_corpus_of_its_calibration(opened, tiny_options, tmp_path):
    said = tiny.texts(tiny.DULL, 60, seed=5)
    corpus, other = tmp_path / "corpus.txt", tmp_path / "other.txt"
    corpus.write_text("\n".join(said))
    other.write_text("\n".join(f"{text} sun" for text in said))
    result = calibrate.calibrate(tiny.model("gpt2"), **tiny_options, corpus=corpus)
    again = (result.config, result.evidence, result.probe, opened)
    assert not deploy.open_bench(*again, corpus).corpora["verify"].self_sampled
    with pytest.raises(InputError, match="give that file with --corpus"):
        deploy.open_bench(*again)
    with pytest.raises(InputError, match="must be the file that this config was verified on"):
        deploy.open_bench(*again, other)


def test_a_corpus_that_the_calibration_did_not_have_is_refused(measured, opened, tmp_path):
    again = (measured.config, measured.evidence, measured.probe, opened)
    with pytest.raises(InputError, match="--corpus must be left out here"):
        deploy.open_bench(*again, tmp_path / "corpus.txt")


def test_rivals_are_read_by_the_same_judge_and_paid_for_in_the_same_unit(measured):
    frontier = measured.frontier
    by_name = {rival.name: rival for rival in frontier.rivals}
    assert {*by_name} == {
        "asked in words",
        "asked and steered",
        "random vector",
        "best of 2",
        "best of 4",
    }
    assert by_name["random vector"].change.high < frontier.at(0.4).change.low
    best_2, best_4 = by_name["best of 2"], by_name["best of 4"]
    assert 0 < best_2.change.value < best_4.change.value
    assert best_4.cost_back.value == pytest.approx(np.log(4) - 3 / 4)
    assert best_4.cost is None
    assert frontier.efficiency(best_4) is None
    assert 0 < frontier.efficiency_back(best_4) < 1
    plain = {completion.unsteered for completion in measured.evidence.completions}
    assert all(rival.example for rival in frontier.rivals)
    assert best_2.example in plain
    # Choosing costs little for what it brings, but never less than data processing allows.
    assert best_4.cost_back.value > frontier.least_cost(best_4, back=True)


def test_it_is_written_read_again_and_replaced_by_nothing_else(measured, tmp_path):
    measured.save(tmp_path / "joy")
    for name in FRONTIER_FILES:
        assert wrote(tmp_path / "joy" / name), name
    assert Calibration.load(tmp_path / "joy").frontier == measured.frontier
    (tmp_path / "joy" / "frontier.json").write_text("[]")
    with pytest.raises(ArtefactError, match=r"frontier\.json cannot be read"):
        Calibration.load(tmp_path / "joy")
    with pytest.raises(ArtefactError, match=r"frontier\.json"):
        measured.save(tmp_path / "joy")
    assert (tmp_path / "joy" / "frontier.json").read_text() == "[]"


def test_a_calibration_without_a_frontier_says_how_to_get_one(finished, measured):
    with pytest.raises(InputError, match="with_frontier"):
        finished.result.at(ce_budget=0.1)
    with pytest.raises(InputError, match=r"--budgets 0\.01"):
        measured.at(ce_budget=0.01)


def test_it_ends_where_the_law_levels_off(finished, opened):
    plateau = finished.result.config.laws.cross_entropy.plateau
    frontier = finished.result.with_frontier([0.1, 2 * plateau], opened, rivals=False).frontier
    assert [point.budget for point in frontier.points] == [0.1]
    assert [one.budget for one in frontier.missed] == [2 * plateau]
    assert "levels off" in " ".join(frontier.endings)
    nothing = finished.result.with_frontier([2 * plateau], opened).frontier
    assert nothing.points == []
    assert "No budget could be measured" in nothing.advice


def test_a_budget_that_cannot_be_held_is_missed_and_larger_ones_are_measured(finished, opened):
    frontier = finished.result.with_frontier([1e-9, 0.4], opened, rivals=False).frontier
    assert [point.budget for point in frontier.points] == [0.4]
    assert "Not measured at 1e-09 nat: " in frontier.endings[0]


def test_more_budgets_are_added_and_rivals_kept(measured, opened):
    more = measured.with_frontier([0.8, 0.4], opened)
    assert [point.budget for point in more.frontier.points] == [0.1, 0.2, 0.4, 0.8, 1.6]
    assert more.frontier.rivals == measured.frontier.rivals
    assert more.frontier.rivals_at == measured.frontier.rivals_at
    assert more.at(0.2) == measured.at(0.2)
    assert more.frontier.shipped == measured.frontier.shipped
    assert more.frontier.law != measured.frontier.law
    spent, before = more.frontier.token_forwards, measured.frontier.token_forwards
    assert spent["0.4 nat"] > before["0.4 nat"]
    assert spent["0.2 nat"] == before["0.2 nat"]


def test_two_runs_at_once_lose_no_point(measured, finished, tmp_path):
    """Each began with the calibration alone, and saves what it has found of it."""
    whole, place = measured.frontier, tmp_path / "bright"
    finished.result.save(place)

    def run_of(budgets, **more):
        points = [point for point in whole.points if point.budget in budgets]
        return whole.model_copy(update={"points": points, **more})

    missed = [{"budget": 0.8, "why": "it levels off"}]
    gentle = Frontier.model_validate({**run_of(BUDGETS[:2]).model_dump(), "missed": missed})
    save_frontier(place, gentle)
    told = save_frontier(place, run_of(BUDGETS[2:], rivals=[], rivals_at=None))
    assert told == Calibration.load(place).frontier
    assert told.points == whole.points
    assert [one.budget for one in told.missed] == [0.8]
    assert (told.rivals, told.rivals_at) == (whole.rivals, whole.rivals_at)
    assert told.token_forwards == whole.token_forwards
    assert told.law == pytest.approx(whole.law)


def test_a_frontier_of_another_calibration_is_neither_used_nor_left(
    measured, finished, opened, tmp_path
):
    measured.save(tmp_path / "one")
    picked = measured.pick(0.2, opened)
    picked.save(tmp_path / "two")
    shutil.copy(tmp_path / "one" / "frontier.json", tmp_path / "two")
    with pytest.warns(CalibrateWarning, match="is of another calibration, and not used"):
        again = Calibration.load(tmp_path / "two")
    assert again.frontier is None
    finished.result.save(tmp_path / "one")
    assert not [name for name in FRONTIER_FILES if (tmp_path / "one" / name).exists()]
    assert Calibration.load(tmp_path / "one").frontier is None


def seen(change, error=0.01, empty=0.0, loops=0.0, unsteered=0.0, budget=0.1):
    """A point of which only what ends a frontier, and what ships, is known."""
    spread = np.array([change - error, change + error] * 8)
    looping, more = (
        RatioEstimate(np.full(16, share), np.ones(16)) for share in (loops, loops - unsteered)
    )
    known = Known(budget, 0.3 + change, change, error / 15**0.5, empty, (loops, loops - unsteered))
    return SimpleNamespace(
        budget=budget,
        presence=SimpleNamespace(empty=empty),
        change=RatioEstimate(spread, np.ones(16)),
        loops=(looping, more),
        known=known,
    )


def ends(points, sign=1):
    """Why a frontier of these points ends at the last of them."""
    known = [replace(each.known, budget=0.1 * (n + 1)) for n, each in enumerate(points)]
    end = end_of(known, sign)
    return None if end is None else end.says


def test_it_ends_where_replies_break_or_presence_turns_back():
    up, more = seen(0.1), seen(0.2)
    assert ends([]) is None
    assert ends([up, more]) is None
    assert "at 0.3 nat: presence has turned back, from 0.500 at 0.2" in ends([up, more, up])
    assert "turned back" not in (ends([seen(0.2, error=0.3), seen(0.1, error=0.3)]) or "")
    assert "turned back" in ends([more, seen(0.3)], sign=-1)
    assert "loops" in ends([seen(0.1, loops=0.7)])
    assert ends([seen(0.1, loops=0.7, unsteered=0.5)]) is None
    assert "loops" in ends([seen(0.1, loops=0.8, unsteered=0.5)])
    assert "empty" in ends([seen(0.1, empty=0.7)])


def searching(monkeypatch, budgets, points, earlier=(), silent=None):
    """Search a frontier whose budgets buy these points, or silence; and which of them are tried."""
    tried = []

    def measured(bench, law, budget):
        tried.append(budget)
        if points[budget] is None:
            raise searched.Silenced(["nobody speaks"])
        return points[budget], law

    monkeypatch.setattr(searched, "_measured", measured)
    bench, ledger = SimpleNamespace(settings=Settings()), Ledger(Meter())
    return searched.measure_frontier(bench, None, budgets, ledger, earlier, silent), tried


def test_a_silenced_model_ends_the_frontier_and_has_no_point(monkeypatch):
    found, tried = searching(monkeypatch, [0.4, 0.1, 0.2], {0.1: seen(0.1), 0.2: None})
    assert tried == [0.1, 0.2]
    assert len(found.points) == 1
    assert found.ended == End(0.2, "nobody speaks")
    assert found.missed[0.2] == "nobody speaks"
    assert "at 0.2 nat: nobody speaks" in found.missed[0.4]


def test_budgets_that_are_added_end_where_they_would_have_ended_together(monkeypatch):
    best, broken = seen(0.3, budget=0.2).known, seen(0.3, loops=0.8, budget=0.4).known
    # Beyond an end, nothing is tried; before it, everything is.
    points = {0.1: seen(0.1), 0.8: seen(0.4, budget=0.8)}
    found, tried = searching(monkeypatch, [0.1, 0.8], points, [best, broken])
    assert tried == [0.1]
    assert found.ended.budget == 0.4
    assert "80% of the tokens" in found.missed[0.8]
    # The best so far may be an earlier one.
    points = {0.8: seen(0.1, budget=0.8), 1.6: seen(0.1, budget=1.6)}
    found, tried = searching(monkeypatch, [0.8, 1.6], points, [best])
    assert tried == [0.8]
    assert "at 0.8 nat: presence has turned back" in found.missed[1.6]
    # A silence ends it as well, unless more is known to speak.
    found, tried = searching(monkeypatch, [0.8], points, [best], End(0.4, "nobody speaks"))
    assert tried == []
    assert found.ended == End(0.4, "nobody speaks")
    found, tried = searching(monkeypatch, [0.1], {0.1: None}, [best])
    assert found.ended is None
    assert found.missed == {0.1: "nobody speaks"}


def test_a_later_end_is_that_of_all_points_and_said_once(measured, opened, monkeypatch):
    broken = measured.frontier.points[-1].model_copy(
        update={"loops": 0.9, "loop_excess": Interval(0.9, 0.8, 1.0)}
    )
    earlier = measured.frontier.model_copy(
        update={
            "points": [*measured.frontier.points[:-1], broken],
            "ended": "at 1.6 nat: 90% of the tokens of long replies lie in loops",
            "ended_at": 1.6,
            "missed": [
                MissedSection(budget=each, why="more strength only breaks the model")
                for each in (3.2, 6.4)
            ],
        }
    )
    ended = replace(measured, frontier=earlier)
    more = ended.with_frontier([0.8, 3.2], opened).frontier
    assert [point.budget for point in more.points] == [0.1, 0.2, 0.4, 0.8, 1.6]
    assert more.ended == earlier.ended
    assert [one.budget for one in more.missed] == [3.2, 6.4]
    assert all("at 1.6 nat: 90% of the tokens" in one.why for one in more.missed)
    # Measured anew, the budget that ended it does not: what lay beyond is open again.
    again = ended.with_frontier([1.6], opened).frontier
    assert again.ended is None
    assert again.missed == []


def test_what_silenced_the_model_is_known_until_it_is_measured_anew(measured):
    silenced = measured.frontier.model_copy(
        update={
            "ended": "at 3.2 nat: nobody speaks",
            "ended_at": 3.2,
            "missed": [MissedSection(budget=3.2, why="nobody speaks")],
        }
    )
    known, silent = known_before(silenced, [0.2])
    assert [each.budget for each in known] == [0.1, 0.4, 1.6]
    assert silent == End(3.2, "nobody speaks")
    assert known_before(silenced, [3.2])[1] is None


@pytest.mark.parametrize("steered", [{}, {3: 0.5}, {3: 0.5, 9: 0.5}])
def test_a_change_is_seen_where_two_prompts_are_answered_both_ways(steered):
    plain = SimpleNamespace(by_prompt={3: 0.1, 4: 0.1})
    bench = SimpleNamespace(baseline=plain, fluency=SimpleNamespace(prompts=(3, 4)))
    replies = [SimpleNamespace(prompt_index=index, spoken=True) for index in steered]
    presence = SimpleNamespace(
        by_prompt=steered, first_replies=replies, change_from=lambda _: "a change"
    )
    with pytest.raises(Infeasible, match="fewer than two prompts"):
        searched.Bench.change(bench, presence)
    presence.by_prompt = {3: 0.5, 4: 0.5}
    presence.first_replies = [SimpleNamespace(prompt_index=n, spoken=True) for n in (3, 4)]
    assert searched.Bench.change(bench, presence) == "a change"


def test_advice_on_a_decrease_counts_downwards():
    falling = bending([-0.1, -0.2, -0.3, -0.4], sign=-1, law=(0.0, 0.3, 0.0, 1.0))
    assert "changes by -0.400; another 0.1 nat would bring about -0.0" in advice(
        falling, Settings()
    )


def test_a_point_ships_only_without_what_a_calibration_refuses():
    def drop(size):
        return RatioEstimate(np.full(16, size), np.ones(16))

    def why_not(settings, fluency=0.0, guard=None, **facts):
        point = seen(0.2, loops=0.0, **facts)
        point.fluency_drop = drop(fluency)
        point.guarded = None if guard is None else SimpleNamespace(drop_upper=lambda _: guard)
        point.presence.n_empty, point.presence.completions = 12, range(16)
        return refusal(point, settings)

    strict = Settings(max_fluency_drop=0.1, max_guard_drop=0.05)
    assert why_not(strict, fluency=0.05, guard=0.01) is None
    assert why_not(Settings(), fluency=9.0, guard=0.5) is None
    assert why_not(strict, fluency=0.2) == "fluency may drop by more than 0.1 nat"
    assert why_not(strict, guard=0.2) == "the guard's accuracy may drop by more than 5%"
    assert why_not(Settings(), empty=0.75) == "12 of 16 replies are empty"
    assert why_not(Settings(min_gain=0.3)) == "no change of 0.3"
    assert why_not(Settings(min_gain=0.19), error=0.6) == "undecided; pick draws more replies"


def test_what_a_step_is_worth_falls_as_the_law_levels_off():
    law = PresenceLaw(-1.0, 2.0)
    points = [
        SimpleNamespace(strength=size, delta_ce=SimpleNamespace(value=0.1 * size**2))
        for size in (0.5, 1.0, 2.0, 4.0)
    ]
    worth = worth_of_step(points, law, 1)
    assert worth == sorted(worth, reverse=True)
    size = np.sqrt(0.1 * 1.0 + 0.1) / np.sqrt(0.1)
    assert worth[1] == pytest.approx(law.predict(size) - law.predict(1.0), rel=0.05)


def bought(budget, strength, change, error=0.02, why_not=None):
    """A point of a frontier, of which advice only reads these."""
    return PointSection.model_construct(
        budget=budget,
        strength=strength,
        upper=budget,
        delta_ce=Interval(budget, budget, budget),
        change=Interval(change, change - 2 * error, change + 2 * error),
        n_prompts=None,
        ships=why_not is None,
        why_not=why_not,
    )


def bending(changes, error=0.02, why_not=None, sign=1, **facts):
    """A frontier at .1, .2, .4, .8 nat, of which advice only reads these."""
    points = [
        bought(0.1 * 2**n, sign * 2 ** (n / 2), change, error, why_not)
        for n, change in enumerate(changes)
    ]
    known = {"confidence": 0.95, "rivals": [], "law": (0.0, 2.0, 0.3, 0.5), **facts}
    goal = "increase" if sign > 0 else "decrease"
    return Frontier.model_construct(points=points, goal=goal, **known)


def test_a_knee_is_where_no_larger_point_brings_what_can_be_seen():
    steep = (-5.0, 6.0, 0.3, 0.5)  # at its ceiling from 0.2 nat on
    knee = bending([0.1, 0.19, 0.2, 0.2], law=steep)
    assert "Most is bought by 0.2 nat" in advice(knee, Settings())
    # A flat law says that a step is worth nothing, and larger points say otherwise.
    flat = (0.0, 0.01, 0.3, 0.5)
    assert "At 0.8 nat a token, the most that was measured" in advice(
        bending([0.05, 0.1, 0.15, 0.2], law=flat, error=0.02), Settings()
    )
    assert "Most is bought" not in advice(bending([0.01, 0.0, 0.01, 0.0], law=flat), Settings())


def test_advice_names_a_budget_only_where_smaller_ones_were_measured_and_do_not_ship():
    some = bending([0.1] * 4, why_not="long replies loop +6%")
    some.points[2] = bought(0.4, 2.0, 0.1)
    said = advice(some, Settings(ce_budget=0.2))
    assert "is +0.100, at 0.4 nat. Any that may be shipped takes 0.4 nat." in said
    assert "takes" not in advice(some, Settings(ce_budget=0.05))  # which was not measured
    assert "takes" not in advice(bending([0.1] * 4), Settings(ce_budget=0.2))


def test_where_nothing_ships_advice_names_what_the_least_change_takes_and_what_forbids_it():
    law = PresenceLaw(-1.0, 0.5)
    changes = [float(law.predict(2 ** (n / 2)) - law.predict(0.0)) for n in range(4)]
    none = bending(changes, law=(-1.0, 0.5, 0.0, 1.0), why_not="no change of 0.2")
    none.points[2] = bought(0.4, 2.0, changes[2], why_not="long replies loop +12%")
    gain = float(law.predict(1.7) - law.predict(0.0))  # between the strengths of .2 and .4 nat
    said = advice(none, Settings(min_gain=gain))
    assert (
        "None of these points is sure to ship; pick tries weaker strengths as well. A change of "
        f"{gain:g} takes about 0.29 nat by the law; at 0.4 nat: long replies loop +12%."
    ) in said
    assert "A change of 0.9 takes more than 0.8 nat." in advice(none, Settings(min_gain=0.9))
    assert "as well. At 0.1 nat: no change of 0.2." in advice(none, Settings(min_gain=0.0))
    down = bending([-each for each in changes], law=(1.0, 0.5, 0.0, 1.0), sign=-1, why_not="no")
    assert f"A change of {gain:g} takes about 0.29 nat" in advice(down, Settings(min_gain=gain))


def test_advice_says_what_the_calibration_ships_where_its_budget_spent_whole_does_not():
    frontier = bending([0.19, 0.27, 0.37, 0.43], why_not="long replies loop +11%")
    own = frontier.model_copy(update={"shipped": bought(0.1, 0.8, 0.16)})
    assert (
        "The largest change that is sure to ship is +0.160, as calibrated: 0.8 within 0.1 nat. "
        "What spends that budget, 1, is not: long replies loop +11%."
    ) in advice(own, Settings())
    assert "None of these points" in advice(frontier, Settings())


def test_a_budget_buys_the_point_that_ships_with_most_change_within_it():
    frontier = bending([0.19, 0.27, 0.37, 0.43], why_not="long replies loop +11%")
    assert frontier.at(0.2) is frontier.points[1]  # none ships: the one of most strength
    shipped = bought(0.1, 0.8, 0.16)
    own = frontier.model_copy(update={"shipped": shipped})
    assert own.at(ce_budget=0.1) is own.at(0.9) is shipped
    own.points[2] = bought(0.4, 2.0, 0.37)  # loops need not grow with the strength
    assert own.at(0.2) is shipped
    assert own.at(0.9) is own.points[2]
    down = bending([-0.19, -0.27, -0.37, -0.43], sign=-1)
    assert down.at(0.9) is down.points[3]


def test_a_gain_is_bought_by_the_cheapest_point_that_ships_with_it():
    frontier = bending([0.1, 0.2, 0.3, 0.25])
    frontier.points[1] = bought(0.2, 1.4, 0.2, why_not="long replies loop +11%")
    assert frontier.at(gain=0.1) is frontier.points[0]
    assert frontier.at(gain=0.15) is frontier.points[2]
    with pytest.raises(InputError, match=r"at most 0\.3, got 0\.4; measure other budgets"):
        frontier.at(gain=0.4)
    with pytest.raises(InputError, match="at most none, got"):
        bending([0.1] * 4, why_not="no").at(gain=0.1)
    for both in ({}, {"ce_budget": 0.1, "gain": 0.1}):
        with pytest.raises(InputError, match="give either a budget or a gain"):
            frontier.at(**both)


def asking(change, cost, error=0.01):
    """Asking in words, of which advice only reads these."""
    return RivalSection.model_construct(
        name="asked in words",
        change=Interval(change, change - 2 * error, change + 2 * error),
        delta_ce=Interval(cost, cost, cost),
        n_prompts=None,
    )


@pytest.mark.parametrize(
    ("asked", "cost", "says"),
    [
        # ΔCE grows with the square of the strength, and here the change with the strength.
        (
            0.3,
            0.05,
            "more than steering at about its cost: +0.300 at a ΔCE of 0.050, beside +0.071",
        ),
        (0.08, 0.05, "about as much as steering at about its cost: +0.080"),
        (0.0, 0.05, "less than steering at about its cost: +0.000"),
        (
            0.14,
            0.2,
            "about as much as steering at about its cost: +0.140 at a ΔCE of 0.200, beside +0.141 "
            "at 0.200, and at most +0.283, at 0.800",
        ),
        (0.3, 1.0, "about as much as steering at about its cost: +0.300 at a ΔCE of 1.000, beside"),
    ],
)
def test_asking_is_compared_with_steering_that_costs_as_much(asked, cost, says):
    frontier = bending([0.1, 0.1414, 0.2, 0.2828], error=0.01, rivals=[asking(asked, cost)])
    assert f"Asking in words alone brings {says}" in advice(frontier, Settings())


def test_the_error_behind_an_interval_is_students_where_it_is_known_over_how_many():
    rng = np.random.default_rng(0)
    change = RatioEstimate(rng.normal(size=5), np.ones(5))
    point = bought(0.1, 1.0, 0.0).model_copy(
        update={"change": change.with_interval(0.95), "n_prompts": 5}
    )
    assert error_of_change(point, 0.95) == pytest.approx(change.standard_error)
    unknown = point.model_copy(update={"n_prompts": None})
    assert error_of_change(unknown, 0.95) == pytest.approx(change.half_width(0.95) / 1.959964)


def test_pick_ships_another_budget_that_passes_the_gate(measured, opened, tmp_path):
    picked = measured.pick(0.2, opened)
    picked.save(tmp_path / "gentler")
    config = picked.config
    assert config.budget.limit == 0.2
    assert config.measured.delta_ce.upper <= 0.2
    assert abs(config.intervention.strength) < abs(measured.config.intervention.strength)
    assert config.provenance.fingerprint != measured.config.provenance.fingerprint
    assert config.provenance.settings["ce_budget"] == 0.2
    low, high = config.range.sweet_spot
    assert low < high == config.range.strength_at_budget.value
    assert float(config.laws.cross_entropy.predict(high)) == pytest.approx(0.2)
    report = check_directory(tmp_path / "gentler", opened)
    assert report.passed, report.failures
    known = measured.at(0.2)
    assert config.intervention.strength >= known.strength
    frontier = Calibration.load(tmp_path / "gentler").frontier
    assert frontier.points == measured.frontier.points
    assert frontier.rivals == measured.frontier.rivals
    assert frontier.shipped.strength == config.intervention.strength
    assert frontier.shipped.budget == 0.2
    assert frontier.at(0.2).change.value >= known.change.value
    study = sum(spent.token_forwards for spent in measured.config.cost.values())
    assert sum(spent.token_forwards for spent in config.cost.values()) < study


def test_a_pick_is_not_taken_for_a_calibration_that_went_on_to_its_budget(
    measured, opened, tmp_path
):
    fingerprint = measured.config.provenance.fingerprint
    picked = measured.pick(0.2, opened)
    picked.save(tmp_path)
    with pytest.raises(ArtefactError, match="made with other settings"):
        open_workspace(tmp_path, fingerprint, fingerprint_at(fingerprint, 0.2))
    again = fingerprint_picked(fingerprint, 0.2)
    assert picked.config.provenance.fingerprint == again
    assert open_workspace(tmp_path, again) == (tmp_path, True)


def test_pick_refuses_what_cannot_be_had(measured, opened):
    plateau = measured.config.laws.cross_entropy.plateau
    with pytest.raises(Infeasible, match="levels off"):
        measured.pick(2 * plateau, opened)
    with pytest.raises(InputError, match="budget must be"):
        measured.pick(-1.0, opened)
    demanding = replace(
        measured,
        config=measured.config.model_copy(
            update={
                "provenance": measured.config.provenance.model_copy(
                    update={"settings": {**measured.config.provenance.settings, "min_gain": 0.9}}
                )
            }
        ),
    )
    with pytest.raises(Infeasible):
        demanding.pick(0.2, opened)


def test_without_a_frontier_a_pick_has_none(finished, opened):
    assert finished.result.pick(0.2, opened).frontier is None


def test_a_pair_has_no_other_budgets(measured, monkeypatch):
    pair = measured.config.model_copy(update={"beside": SimpleNamespace(name="shine")})
    monkeypatch.setattr("calibrate.deploy.finished.open_model", None)  # refused before it is loaded
    both = replace(measured, config=pair)
    for act in (both.with_frontier, lambda: both.pick(0.2)):
        with pytest.raises(InputError, match=r"also steers 'shine', .* either"):
            act()


def test_another_model_is_not_measured_in_its_place(finished, tiny_options):
    other = load_model(tiny.model("llama"), tiny_options["tokenizer"])
    with pytest.raises(ArtefactError, match="architecture must be"):
        finished.result.with_frontier([0.1], other)
    retrained = tiny.model("gpt2")
    retrained.transformer.h[0].mlp.c_fc.weight.mul_(1.5)
    with pytest.raises(ArtefactError, match="other weights"):
        finished.result.pick(0.1, load_model(retrained, tiny_options["tokenizer"]))
    with pytest.raises(InputError, match="at least one budget"):
        finished.result.with_frontier([], other)


def test_the_chat_spends_a_budget(measured, opened):
    steered = SteeredModel(opened, measured.config, 0.0, measured.frontier)
    chat = Chat(steered, Settings().sampling, 0.0)
    assert "verified" in chat.command("/budget 0.1")
    assert chat.strength == measured.at(0.1).strength
    assert "ship" not in chat.command("/budget 0.1")
    assert "by the law of ΔCE, not measured" in chat.command("/budget 0.15")
    assert measured.at(0.1).strength < chat.strength < measured.at(0.2).strength
    for wrong in ("", "much", "-1", "1000"):
        with pytest.raises(InputError, match="budget"):
            chat.command(f"/budget {wrong}")


def test_the_chat_spends_the_own_budget_as_calibrated_and_says_what_may_not_ship(measured, opened):
    points = [
        each.model_copy(update={"ships": False, "why_not": "long replies loop +11%"})
        for each in measured.frontier.points
    ]
    frontier = measured.frontier.model_copy(update={"points": points})
    chat = Chat(SteeredModel(opened, measured.config, 0.0, frontier), Settings().sampling, 0.0)
    assert "ship" not in chat.command("/budget 0.4")
    assert chat.strength == measured.config.intervention.strength
    assert "may not ship: long replies loop +11%" in chat.command("/budget 0.2")


def test_a_workspace_with_a_foreign_frontier_is_refused(tmp_path):
    (tmp_path / "study.journal").write_text("")
    (tmp_path / "frontier.json").write_text("{}")
    with pytest.raises(ArtefactError, match=r"frontier\.json"):
        open_workspace(tmp_path, "fingerprint")


def test_the_report_shows_every_point_without_any_network(measured, tmp_path):
    measured.save(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert measured.frontier.advice in page
    by_token, by_reply = len(BUDGETS) + 1 + 3, len(BUDGETS) + 1 + 5  # best of n has no ΔCE
    along = len(BUDGETS) + 1  # no guard was asked
    assert page.count('class="mark ') == by_token + by_reply + along
    assert "0.4 nat, shipped: α = " in page
    assert page.count('type="radio"') == 3
    assert "What other budgets would buy" not in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert "http" not in page.replace("http://www.w3.org", "")


def test_the_drawn_limit_is_the_divergence_that_a_point_spends(measured):
    frontier = measured.frontier
    rises, farthest = limit_by_token(frontier)
    before = frontier.baseline.value
    for point in frontier.points:
        limit = np.interp(point.delta_ce.value, rises, farthest)
        spent = before * math.log(before / limit)
        spent += (1 - before) * math.log((1 - before) / (1 - limit))
        assert spent == pytest.approx(point.cost.value, rel=0.02)
        assert before < point.presence.value < limit


def test_best_of_n_stands_among_what_a_reply_costs(measured):
    token, reply, _ = chart(measured.frontier)
    assert "best of 4" not in {mark.title for mark in token.marks}
    marks = {mark.title: mark for mark in reply.marks}
    assert marks["best of 2"].x < marks["best of 4"].x < marks["asked and steered"].x
    assert all(mark.reply for mark in (*token.marks, *reply.marks))


def test_what_breaks_is_drawn_beside_the_unsteered_model(measured):
    frontier, guard = (
        measured.frontier,
        {
            "name": "built-in",
            "sha256": "",
            "n_questions": 240,
            "accuracy": Interval(0.4, 0.3, 0.5),
            "baseline": 0.5,
            "drop": Interval(0.1, 0.05, 0.15),
            "drop_upper": 0.14,
        },
    )
    points = [
        point.model_copy(update={"guard": GuardSection(**guard)}) for point in frontier.points
    ]
    loops, questions, fluency = what_breaks(
        frontier.model_copy(update={"points": points, "shipped": None}), margin=0.05
    )
    long_run = measured.config.measured.long_run
    assert loops.unsteered == pytest.approx(long_run.loops_baseline)
    assert loops.most == pytest.approx(long_run.loops_baseline + 0.05)
    _, seen, bound = questions.points[0]
    assert (questions.unsteered, seen.low, seen.high) == pytest.approx((0.5, 0.35, 0.45))
    assert bound == pytest.approx(0.36)
    assert [seen for _, seen, _ in fluency.points] == [each.fluency_drop for each in points]
    assert [each.name for each in what_breaks(frontier, 0.05)] == ["loops", "fluency"]


def test_the_law_is_drawn_with_its_errors_and_not_beyond_where_presence_falls(measured):
    frontier = measured.frontier
    whole = law_curve(frontier)
    assert whole.rises[-1] == pytest.approx(frontier.strengths[-1].delta_ce.value)
    assert (whole.low < whole.presence).all()
    assert (whole.presence < whole.high).all()
    # Points that were all measured share the unsteered replies' error, which no number of them
    # takes away: the band is about as wide there as the baseline's own interval.
    width = (whole.high - whole.low)[0]
    assert 0.5 < width / (frontier.baseline.high - frontier.baseline.low) < 2
    fallen = law_curve(frontier.model_copy(update={"fall": frontier.strengths[2].strength}))
    assert fallen.rises[-1] == pytest.approx(frontier.strengths[1].delta_ce.value)


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium to look at the report with")
def test_in_a_browser_the_keyboard_switches_panels_and_a_mark_shows_its_reply(measured, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    measured.save(tmp_path)
    asked = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.goto((tmp_path / "report.html").as_uri())

        def card():
            return page.locator("#frontier-card").inner_text()

        def panels():
            return [page.locator(f"#by-{name}").is_visible() for name in PANELS]

        assert panels() == [True, False, False]
        page.locator("#by-token .mark").nth(1).hover()
        point = measured.frontier.strengths[1]
        assert f"{point.budget:g} nat" in card()
        assert point.example[:20] in card()
        page.locator("#panel-token").focus()
        page.keyboard.press("ArrowRight")
        assert panels() == [False, True, False]
        for _ in range(len(BUDGETS) + 1 + 5):
            page.keyboard.press("Tab")
        assert "best of 4" in card()
        assert measured.frontier.rivals[-1].example[:20] in card()
        page.locator("#panel-reply").focus()
        page.keyboard.press("ArrowRight")
        assert panels() == [False, False, True]
        page.keyboard.press("Tab")
        assert "of long replies' tokens in loops" in card()
        browser.close()
    assert [url.partition(":")[0] for url in asked if not url.startswith("data:")] == ["file"]


def test_older_artefacts_have_no_frontier(finished):
    assert Frontier.load(finished.directory, finished.result.config.provenance.fingerprint) is None
    assert json.loads(finished.result.config.model_dump_json())["version"] == 2


def test_dollars_in_a_name_are_no_formula(measured, tmp_path):
    config, frontier = measured.config, measured.frontier
    concept = config.concept.model_copy(update={"name": "make $$ and $x^$"})
    named = replace(
        measured,
        config=config.model_copy(update={"concept": concept}),
        frontier=frontier.model_copy(update={"concept": concept.name, "model": "$$/$_$"}),
    )
    named.save(tmp_path / "rich")
    assert (tmp_path / "rich" / "frontier.svg").stat().st_size > 10_000
