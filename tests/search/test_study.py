"""The study: suggestions, constraints, pruning, when it stops, and the best of what was allowed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

import numpy as np
import optuna
import pytest
import tiny
import torch

from calibrate.common.cost import Allowance, Limits, Meter
from calibrate.common.errors import ArtefactError
from calibrate.common.estimate import Interval, RatioEstimate
from calibrate.common.progress import SILENT, Progress
from calibrate.common.settings import Settings
from calibrate.common.trial import PROPOSED_SHARE
from calibrate.laws.formulas import CrossEntropyLaw, MassLaw, judge_mass, judge_rise
from calibrate.laws.pilot import Pilot, PilotPoint
from calibrate.laws.tokens import TokenLaw
from calibrate.search.objective_types import Replied, Rise
from calibrate.search.refusals import TooMuch
from calibrate.search.storage import StudyStore, open_storage
from calibrate.search.study import run_study
from calibrate.search.trials import LOWER_SHARE, SHARES, WIDE_SHARES, TrialPolicy
from calibrate.search.workers import shared_study

N_PROMPTS, N_SEQUENCES = 48, 16
UNSTEERED = 0.2


def estimate(value, n=N_SEQUENCES):
    return RatioEstimate(np.full(n, value), np.ones(n))


def pilot(layer, alpha, good=True):
    law = CrossEntropyLaw(0.0, 0.2 / alpha**2, 0.0, 20.0)
    return Pilot(
        site=tiny.site(torch.ones(4), layer),
        law=law,
        mass_law=MassLaw(-3.0, 1.0, 0.0),
        errors={},
        mass_errors={},
        rise_goodness=judge_rise([alpha], [0.1], [0.1 if good else 0.2]),
        mass_goodness=judge_mass([alpha], [0.1], [0.1], 0.05),
        strength_at_budget=Interval(alpha, 0.9 * alpha, 1.1 * alpha),
        points=(PilotPoint(alpha, 0.1, 0.1),),
        nearest=estimate(0.1),
        contexts=TokenLaw(np.zeros((1, 1)), np.zeros((1, 1))),
        concept_tokens=(),
    )


def by_site(alphas, good=True):
    return {f"block {layer}": pilot(layer, alpha, good) for layer, alpha in alphas.items()}


@dataclass
class Synthetic:
    """ΔCE quadratic in the share of α_B, presence a saturating function of it, by block.

    The replies to a prompt share their noise, as they do with common random numbers.
    """

    alphas: dict[int, float]
    best_layer: int
    stop_after: int | None = None
    calls: list[tuple[str, float, int]] = field(default_factory=list)
    batches: list[list[tuple[str, float]]] = field(default_factory=list)
    meter: Meter = field(default_factory=Meter)
    rungs: tuple[slice, ...] = (slice(0, 24), slice(24, N_PROMPTS))
    tokens_a_rung: int = 100

    def sample_ahead(self, batch):
        self.batches.append(list(batch))

    def share(self, site, strength):
        return strength / self.alphas[int(site.split()[1])]

    def delta_ce(self, site, strength):
        return Rise(0.1 * self.share(site, strength) ** 2, 0.0, N_SEQUENCES)

    def presence(self, site, strength):
        gain = 0.5 if site == f"block {self.best_layer}" else 0.3
        return UNSTEERED + gain * np.tanh(abs(self.share(site, strength)))

    def replies(self, site, strength, rung):
        if self.stop_after is not None and len(self.calls) >= self.stop_after:
            raise KeyboardInterrupt
        self.calls.append((site, strength, rung))
        self.meter.count(self.tokens_a_rung)
        noise = np.random.default_rng(0).normal(0, 0.1, N_PROMPTS)
        prompts = range(N_PROMPTS)[self.rungs[rung]]
        mean = self.presence(site, strength)
        return Replied({index: float(mean + noise[index]) for index in prompts})


ALPHAS = {3: 0.9, 5: 1.4, 8: 2.0}
PILOTS = by_site(ALPHAS)
SETTINGS = Settings(trials=9, seed=4)
BASELINE = estimate(UNSTEERED, N_PROMPTS)


def store(directory=None, fingerprint="f", name="joy"):
    if directory is not None:
        directory.mkdir(exist_ok=True)
    return StudyStore(name, fingerprint, directory)


def study(objective, settings=SETTINGS, where=None, pilots=PILOTS, **others):
    return run_study(pilots, objective, BASELINE, settings, where or store(), **others)


def test_the_laws_suggestions_come_first_and_the_best_feasible_trial_wins():
    result = study(Synthetic(ALPHAS, best_layer=5))
    assert [trial.site for trial in result.trials[:3]] == ["block 3", "block 5", "block 8"]
    assert {trial.share for trial in result.trials[:3]} == {PROPOSED_SHARE}
    best = max((t for t in result.trials if t.complete), key=lambda t: t.presence)
    assert result.best == best
    assert result.best.site == "block 5"
    assert result.best.delta_ce <= 0.1


def test_each_proposal_of_the_laws_hands_over_those_after_it_and_no_other_trial_does():
    objective = Synthetic(ALPHAS, best_layer=5)
    study(objective)
    proposed = [(f"block {i}", PROPOSED_SHARE * alpha) for i, alpha in ALPHAS.items()]
    assert objective.batches == [proposed, proposed[1:], proposed[2:], []]


def test_a_single_site_has_both_of_its_trials_sampled_in_one_batch():
    objective = Synthetic(ALPHAS, best_layer=5)
    result = study(objective, pilots=by_site({5: 1.4}))
    assert [trial.share for trial in result.trials] == [PROPOSED_SHARE, LOWER_SHARE]
    both = [("block 5", share * 1.4) for share in (PROPOSED_SHARE, LOWER_SHARE)]
    assert objective.batches == [both, both[1:]]


def test_nothing_is_sampled_ahead_for_trials_beyond_the_last():
    objective = Synthetic(ALPHAS, best_layer=5)
    study(objective, Settings(trials=1), pilots=by_site({5: 1.4}))
    assert objective.batches == [[("block 5", PROPOSED_SHARE * 1.4)]]


def test_it_stops_once_the_laws_leave_nothing_to_gain():
    """One trial a site, and one below the best, which shows that presence has not fallen."""
    result = study(Synthetic(ALPHAS, best_layer=5))
    assert len(result.trials) == 4
    assert result.trials[-1].share == LOWER_SHARE
    assert result.trials[-1].site == "block 5"
    doubtful = study(Synthetic(ALPHAS, best_layer=5), pilots=by_site(ALPHAS, good=False))
    assert len(doubtful.trials) == SETTINGS.trials


def test_where_presence_falls_it_goes_on_to_look_for_the_peak():
    class Peaked(Synthetic):
        def presence(self, site, strength):
            return 0.7 - 2.0 * (abs(self.share(site, strength)) - 0.7) ** 2

    result = study(Peaked(ALPHAS, best_layer=5), Settings(trials=12), pilots=by_site({5: 1.4}))
    assert len(result.trials) > 4
    assert abs(result.best.share - 0.7) < abs(PROPOSED_SHARE - 0.7)


def test_a_trial_behind_the_best_is_pruned_after_its_first_rung():
    result = study(Synthetic(ALPHAS, best_layer=3))
    behind = [trial for trial in result.trials if trial.site != "block 3"]
    assert behind
    assert all(not trial.complete and trial.n_prompts == 24 for trial in behind)
    assert all(trial.presence is not None for trial in behind)
    assert result.best.n_prompts == N_PROMPTS


def test_prompts_end_once_the_interval_is_as_narrow_as_wished():
    result = study(Synthetic(ALPHAS, best_layer=5), Settings(trials=3, precision=0.3))
    assert {trial.n_prompts for trial in result.trials} == {24}


def test_a_trial_over_budget_is_pruned_before_anything_is_sampled():
    tight = Settings(trials=4, ce_budget=0.05)
    objective = Synthetic(ALPHAS, best_layer=5)
    result = study(objective, tight, pilots=by_site(ALPHAS, good=False))
    over = [trial for trial in result.trials if trial.delta_ce > 0.05]
    assert over
    assert all(trial.presence is None and not trial.complete for trial in over)
    assert {(trial.site, trial.strength) for trial in over}.isdisjoint(
        (site, strength) for site, strength, _ in objective.calls
    )
    assert result.best.delta_ce <= 0.05


def test_no_feasible_trial_is_infeasible():
    result = study(
        Synthetic(ALPHAS, 5),
        Settings(trials=3, ce_budget=0.001),
        pilots=by_site(ALPHAS, good=False),
    )
    assert "none of 3 trials kept ΔCE within 0.001" in str(result.refusal)
    assert result.refusal.advice == ("allow more with --ce-budget", "try more with --trials")
    assert result.best.delta_ce == min(trial.delta_ce for trial in result.trials)


def test_a_trial_whose_replies_lose_too_much_fluency_does_not_win():
    """Presence and the drop both rise with the share; block 5 has more of both."""

    class Fading(Synthetic):
        def replies(self, site, strength, rung):
            drop = self.share(site, strength) * (site == "block 5")
            return Replied(super().replies(site, strength, rung).scores, estimate(drop))

    settings = Settings(trials=8, max_fluency_drop=0.5)
    result = study(Fading(ALPHAS, 5), settings)
    assert result.best.site != "block 5"
    assert result.best.fluency_drop <= 0.5
    free = study(Synthetic(ALPHAS, 5), Settings(trials=8))
    assert free.best.site == "block 5"
    assert free.best.fluency_drop is None


def test_fluency_is_held_to_its_bound_as_in_the_verification():
    """At block 5, which has most presence, the mean drop is within the limit and the bound not."""

    class Scattered(Synthetic):
        def replies(self, site, strength, rung):
            spread = 0.5 if site == "block 5" else 0.0
            drops = 0.4 + spread * np.resize([-1.0, 1.0], N_SEQUENCES)
            drop = RatioEstimate(drops, np.ones(N_SEQUENCES))
            return Replied(super().replies(site, strength, rung).scores, drop)

    result = study(Scattered(ALPHAS, 5), Settings(trials=6, max_fluency_drop=0.5))
    assert result.best.site != "block 5"
    assert result.best.fluency_drop == result.best.fluency_drop_upper == pytest.approx(0.4)
    passed_over = [t for t in result.trials if t.site == "block 5" and t.complete]
    assert passed_over
    assert all(t.fluency_drop < 0.5 < t.fluency_drop_upper for t in passed_over)


def test_where_every_trial_reads_too_badly_more_budget_is_no_advice():
    class Worse(Synthetic):
        def replies(self, site, strength, rung):
            return Replied(super().replies(site, strength, rung).scores, estimate(1.0))

    result = study(Worse(ALPHAS, 5), Settings(trials=3, max_fluency_drop=0.5))
    assert result.refusal.advice == (
        "allow more with --max-fluency-drop",
        "allow less with --ce-budget",
        "try more with --trials",
    )


def test_a_search_does_not_stop_at_a_trial_whose_replies_read_too_badly():
    class Fading(Synthetic):
        def replies(self, site, strength, rung):
            drop = estimate(self.share(site, strength))
            return Replied(super().replies(site, strength, rung).scores, drop)

    settings = Settings(trials=12, max_fluency_drop=0.7)
    result = study(Fading(ALPHAS, 5), settings, pilots=by_site({5: 1.4}))
    assert result.best.share <= 0.7
    assert len(result.trials) > 2


def test_decreasing_presence_takes_the_lowest():
    negative = {layer: -alpha for layer, alpha in ALPHAS.items()}

    class Falling(Synthetic):
        def presence(self, site, strength):
            return UNSTEERED - 0.1 * self.share(site, strength) * (site == "block 8")

    settings = Settings(trials=5, goal="decrease")
    result = study(Falling(negative, 8), settings, pilots=by_site(negative))
    assert result.best.site == "block 8"
    assert result.best.strength < 0
    assert result.best.presence == min(t.presence for t in result.trials)


def test_a_law_that_does_not_fit_widens_the_search():
    shares = {}
    for good in (True, False):
        settings = Settings(trials=30, precision=1e-6)
        result = study(Synthetic(ALPHAS, 3), settings, pilots=by_site({3: 0.9}, good))
        shares[good] = [trial.share for trial in result.trials[1:]]
    assert min(shares[True]) >= SHARES[0]
    assert min(shares[False]) < SHARES[0]
    assert max(shares[False]) > SHARES[1]
    assert max(shares[False]) <= WIDE_SHARES[1]


def test_it_ends_when_its_allowance_does_but_not_before_its_first_trial():
    for tokens, expected in ((10, 1), (500, 2), (10_000, 4)):
        objective = Synthetic(ALPHAS, 5)
        allowance = Allowance(objective.meter, Limits(tokens=tokens), reserve=50)
        assert len(study(objective, allowance=allowance).trials) == expected
        if expected > 1:
            assert objective.meter.tokens + 50 <= tokens


def test_replies_that_were_drawn_ahead_are_read_where_they_are_paid_for():
    class Ahead(Synthetic):
        def sample_ahead(self, batch):
            if not self.batches:
                self.meter.count(1000 * len(batch))
            super().sample_ahead(batch)

    for left, expected in ((150, 1), (250, 2), (450, 3), (1500, 4)):
        objective = Ahead(ALPHAS, 3)  # the others are pruned after a rung
        allowance = Allowance(objective.meter, Limits(tokens=3200 + left), reserve=0)
        trials = study(objective, allowance=allowance).trials
        assert len(trials) == expected, left
        assert trials[0].token_forwards == 3200


def test_an_interrupt_is_not_hidden_where_another_worker_has_ended_the_trial():
    given = optuna.create_study()
    trial, silent = given.ask(), Synthetic(ALPHAS, 5)

    def interrupted(*_):
        given.tell(trial, state=optuna.trial.TrialState.FAIL)
        raise KeyboardInterrupt

    silent.delta_ce = interrupted
    with pytest.raises(KeyboardInterrupt):
        TrialPolicy(PILOTS, silent, BASELINE, SETTINGS, None, SILENT).measure(trial)


def test_whoever_spends_the_reserve_says_what_has_still_to_come():
    meter = Meter()
    allowance = Allowance(meter, Limits(tokens=100), reserve=80)
    meter.count(50)
    assert not allowance.left_for(10)
    assert allowance.left_for(10, reserve=10)
    assert not allowance.left_for(30, reserve=30)


@pytest.mark.parametrize("stop_after", [0, 1, 2, 3, 5, 6])
def test_an_interrupted_study_resumes_to_the_same_answer(tmp_path, stop_after):
    pilots = by_site(ALPHAS, good=False)  # so that the sampler has its say as well
    whole = study(Synthetic(ALPHAS, 5), where=store(tmp_path / "whole"), pilots=pilots)
    interrupted = Synthetic(ALPHAS, 5, stop_after=stop_after)
    with pytest.raises(KeyboardInterrupt):
        study(interrupted, where=store(tmp_path / "cut"), pilots=pilots)
    rest = Synthetic(ALPHAS, 5)
    resumed = study(rest, where=store(tmp_path / "cut"), pilots=pilots)
    timeless = [
        [replace(trial, number=0, seconds=0.0) for trial in result.trials]
        for result in (resumed, whole)
    ]
    assert timeless[0] == timeless[1]
    finished = {(site, strength) for site, strength, rung in interrupted.calls if rung == 1}
    assert finished.isdisjoint((site, strength) for site, strength, _ in rest.calls)


def test_a_finished_study_is_not_run_again_but_its_trials_are_shown(tmp_path):
    first = study(Synthetic(ALPHAS, 5), where=store(tmp_path))
    shown = []

    class Watching(Progress):
        def tried(self, trial):
            shown.append(trial)

    silent = Synthetic(ALPHAS, 5)
    second = study(silent, where=store(tmp_path), progress=Watching())
    assert silent.calls == []
    assert second == first
    assert tuple(shown) == first.trials


def test_zeros_that_a_power_loss_left_at_the_end_of_the_journal_are_cut_off(tmp_path):
    first = study(Synthetic(ALPHAS, 5), where=store(tmp_path))
    journal = tmp_path / "study.journal"
    content = journal.read_bytes()
    for torn in (b"", b'{"op_code":'):
        journal.write_bytes(content + torn + bytes(4096))
        assert study(Synthetic(ALPHAS, 5), where=store(tmp_path)) == first
        assert b"\0" not in journal.read_bytes()


def test_a_study_of_other_settings_is_not_mixed_in(tmp_path):
    study(Synthetic(ALPHAS, 5), Settings(trials=1), store(tmp_path))
    with pytest.raises(ArtefactError, match="made with other settings"):
        study(Synthetic(ALPHAS, 5), Settings(trials=1), store(tmp_path, "other"))


def test_a_trial_that_another_worker_finishes_first_is_left_to_it():
    class Twice:
        """Whose only trial is measured by two workers at once."""

        most = 1

        def enough(self, finished):
            return bool(finished)

        def propose(self, counting):
            return None

        def sampler(self, n_finished):
            return optuna.samplers.RandomSampler(seed=n_finished)

        def measure(self, trial):
            trial.study.tell(trial.number, 0.5)
            return 0.1

        def ended(self, trial):
            pytest.fail("the other worker tells")

    with shared_study(StudyStore("joy", "f"), "maximize") as shared:
        shared.take_part(Twice())
        assert [trial.value for trial in shared.finished] == [0.5]


def test_a_trial_that_cannot_be_measured_fails_the_worker():
    def broken(*_):
        raise ValueError("of another kind")

    silent = Synthetic(ALPHAS, 5)
    silent.delta_ce = broken
    with pytest.raises(ValueError, match="of another kind"):
        study(silent)


def test_trials_carry_their_measurements_and_constraints_in_the_storage(tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    result = study(Synthetic(ALPHAS, 5), Settings(trials=3), StudyStore("joy", "f", None, url))
    kept = optuna.load_study(study_name="joy", storage=url)
    assert kept.best_trial.params["site"] == result.best.site
    assert kept.best_value == result.best.presence
    for stored, trial in zip(kept.trials, result.trials, strict=True):
        for name in ("strength", "delta_ce", "presence", "n_prompts", "token_forwards", "seconds"):
            assert stored.user_attrs[name] == getattr(trial, name)
        assert stored.constraints["delta_ce"] == pytest.approx(trial.delta_ce - 0.1)
        # What optuna-dashboard reads.
        assert stored.system_attrs["constraints"] == [pytest.approx(trial.delta_ce - 0.1)]


@pytest.mark.parametrize(
    "url",
    [
        "mysterious://me:hunter2@host/study",
        "postgresql+none://me:hunter2@host:5432/study",
        "postgresql+none://host/study?password=hunter2",
        "postgresql:/me:hunter2@host/study",
        "me:hunter2@host:x/study?a@b",
        "grpc://me:hunter2@host:port",
    ],
)
def test_a_storage_that_cannot_be_opened_is_named_without_its_password(url):
    with pytest.raises(ArtefactError, match="--storage must be a database URL") as refused:
        open_storage(StudyStore("study", "abc", url=url))
    assert "hunter2" not in str(refused.value)
    assert url.partition(":")[0] in str(refused.value)


def test_a_storage_that_cannot_be_opened_is_named():
    bad = StudyStore("joy", "f", None, "postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(ArtefactError, match="--storage must be a database URL"):
        study(Synthetic(ALPHAS, 5), where=bad)


class Silencing(Synthetic):
    """A model that steering at one of the blocks, or all, makes mostly silent."""

    silenced: tuple[str, ...] = ("block 7",)

    def replies(self, site, strength, rung):
        replied = super().replies(site, strength, rung)
        if site not in self.silenced:
            return replied
        spoken = dict(list(replied.scores.items())[: 0 if rung else 4])
        return Replied(spoken, None, len(replied.scores) - len(spoken))


def test_a_trial_that_silences_the_model_is_bad_and_no_crash():
    objective = Silencing(alphas={3: 1.0, 7: 1.0}, best_layer=7)
    result = run_study(
        by_site({7: 1.0, 3: 1.0}),
        objective,
        estimate(UNSTEERED),
        Settings(),
        store(name="silent"),
    )
    assert result.best.site == "block 3"
    silent = [trial for trial in result.trials if trial.site == "block 7"]
    assert silent
    assert not any(trial.complete for trial in silent)
    assert all(trial.empty == pytest.approx(20 / 24) for trial in silent)


def test_where_every_trial_silences_the_model_that_is_the_reason():
    objective = Silencing(alphas={3: 1.0}, best_layer=3)
    objective.silenced = ("block 3",)
    result = run_study(
        by_site({3: 1.0}),
        objective,
        estimate(UNSTEERED),
        Settings(trials=2),
        store(name="mute"),
    )
    assert re.search(r"or most replies from being empty, as \d did not", str(result.refusal))
    assert isinstance(result.refusal, TooMuch)
    assert result.refusal.advice == (
        "allow less with --ce-budget",
        "try another --layer",
        "try more with --trials",
    )
