"""The study: constraints, suggestions, resuming, and the best of what was allowed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import optuna
import pytest
import torch

from calibrate.errors import ArtefactError, Infeasible
from calibrate.estimate import Interval
from calibrate.laws import CrossEntropyLaw, MassLaw, judge_mass, judge_rise
from calibrate.pilot import Pilot, PilotPoint
from calibrate.progress import Progress
from calibrate.settings import Settings
from calibrate.study import (
    SHARES,
    SUGGESTED_SHARE,
    WIDE_SHARES,
    Replied,
    StudyStore,
    run_study,
)
from calibrate.token_law import TokenLaw
from calibrate.vector import SteeringVector


def pilot(layer, alpha, good=True):
    law = CrossEntropyLaw(0.0, 0.2 / alpha**2, 0.0, 20.0)
    return Pilot(
        vector=SteeringVector(torch.ones(4), layer, residual_norm=1.0),
        law=law,
        mass_law=MassLaw(-3.0, 1.0),
        errors={},
        mass_errors={},
        rise_goodness=judge_rise([alpha], [0.1], [0.1 if good else 0.2]),
        mass_goodness=judge_mass([alpha], [0.1], [0.1]),
        strength_at_budget=Interval(alpha, 0.9 * alpha, 1.1 * alpha),
        points=(PilotPoint(alpha, 0.1, 0.1),),
        contexts=TokenLaw(np.zeros((1, 1)), np.zeros((1, 1))),
        concept_tokens=(),
    )


@dataclass
class Synthetic:
    """ΔCE quadratic in the share of α_B, presence a saturating function of it, by block."""

    alphas: dict[int, float]
    best_layer: int
    stop_after: int | None = None
    calls: list[tuple[int, float]] = field(default_factory=list)

    def delta_ce(self, layer, strength):
        return 0.1 * (strength / self.alphas[layer]) ** 2

    def replies(self, layer, strength):
        if self.stop_after is not None and len(self.calls) >= self.stop_after:
            raise KeyboardInterrupt
        self.calls.append((layer, strength))
        share = strength / self.alphas[layer]
        return Replied(0.2 + (0.5 if layer == self.best_layer else 0.3) * np.tanh(abs(share)))


ALPHAS = {3: 0.9, 5: 1.4, 8: 2.0}
PILOTS = {layer: pilot(layer, alpha) for layer, alpha in ALPHAS.items()}
SETTINGS = Settings(trials=9, seed=4)


def store(directory=None, fingerprint="f", name="joy"):
    if directory is not None:
        directory.mkdir(exist_ok=True)
    return StudyStore(name, fingerprint, directory)


def test_the_laws_suggestions_come_first_and_the_best_feasible_trial_wins():
    objective = Synthetic(ALPHAS, best_layer=5)
    result = run_study(PILOTS, objective, SETTINGS, store())
    assert [trial.layer for trial in result.trials[:3]] == [3, 5, 8]
    assert {trial.share for trial in result.trials[:3]} == {SUGGESTED_SHARE}
    assert len(result.trials) == 9
    best = max((t for t in result.trials if t.presence is not None), key=lambda t: t.presence)
    assert result.best == best
    assert result.best.layer == 5
    assert result.best.delta_ce <= 0.1


def test_a_trial_over_budget_is_pruned_before_anything_is_sampled():
    tight = Settings(trials=4, ce_budget=0.05)
    objective = Synthetic(ALPHAS, best_layer=5)
    result = run_study(PILOTS, objective, tight, store())
    over = [trial for trial in result.trials if trial.delta_ce > 0.05]
    assert over
    assert all(trial.presence is None for trial in over)
    assert len(objective.calls) == len(result.trials) - len(over)
    assert result.best.delta_ce <= 0.05


def test_no_feasible_trial_is_infeasible():
    with pytest.raises(Infeasible, match=r"none of 3 trials kept ΔCE within 0\.001"):
        run_study(PILOTS, Synthetic(ALPHAS, 5), Settings(trials=3, ce_budget=0.001), store())


def test_a_trial_whose_replies_lose_too_much_fluency_does_not_win():
    """Presence and the drop both rise with the share; block 5 has more of both."""

    class Fading(Synthetic):
        def replies(self, layer, strength):
            share = strength / self.alphas[layer]
            return Replied(super().replies(layer, strength).presence, share * (layer == 5))

    settings = Settings(trials=8, max_fluency_drop=0.5)
    result = run_study(PILOTS, Fading(ALPHAS, 5), settings, store())
    assert result.best.layer != 5
    assert result.best.fluency_drop <= 0.5
    free = run_study(PILOTS, Fading(ALPHAS, 5), Settings(trials=8), store())
    assert free.best.layer == 5
    assert free.best.fluency_drop is None


def test_decreasing_presence_takes_the_lowest():
    negative = {layer: -alpha for layer, alpha in ALPHAS.items()}
    pilots = {layer: pilot(layer, alpha) for layer, alpha in negative.items()}

    class Falling(Synthetic):
        def replies(self, layer, strength):
            return Replied(0.4 - 0.2 * (strength / self.alphas[layer]) * (layer == 8))

    result = run_study(pilots, Falling(negative, 8), Settings(trials=5, goal="decrease"), store())
    assert result.best.layer == 8
    assert result.best.strength < 0
    assert result.best.presence == min(t.presence for t in result.trials)


def test_a_law_that_does_not_fit_widens_the_search():
    shares = {}
    for good in (True, False):
        pilots = {3: pilot(3, 0.9, good)}
        result = run_study(pilots, Synthetic(ALPHAS, 3), Settings(trials=30), store())
        shares[good] = [trial.share for trial in result.trials[1:]]
    assert min(shares[True]) >= SHARES[0]
    assert min(shares[False]) < SHARES[0]
    assert max(shares[False]) > SHARES[1]
    assert max(shares[False]) <= WIDE_SHARES[1]


@pytest.mark.parametrize("stop_after", [0, 1, 2, 4, 6])
def test_an_interrupted_study_resumes_to_the_same_answer(tmp_path, stop_after):
    whole = run_study(PILOTS, Synthetic(ALPHAS, 5), SETTINGS, store(tmp_path / "whole"))
    interrupted = Synthetic(ALPHAS, 5, stop_after=stop_after)
    with pytest.raises(KeyboardInterrupt):
        run_study(PILOTS, interrupted, SETTINGS, store(tmp_path / "cut"))
    rest = Synthetic(ALPHAS, 5)
    resumed = run_study(PILOTS, rest, SETTINGS, store(tmp_path / "cut"))
    assert len(interrupted.calls) == stop_after
    assert len(interrupted.calls) + len(rest.calls) == len(whole.trials)
    assert [replace(t, number=0) for t in resumed.trials] == [
        replace(t, number=0) for t in whole.trials
    ]


def test_a_finished_study_is_not_run_again_but_its_trials_are_shown(tmp_path):
    first = run_study(PILOTS, Synthetic(ALPHAS, 5), SETTINGS, store(tmp_path))
    shown = []

    class Watching(Progress):
        def tried(self, trial):
            shown.append(trial)

    silent = Synthetic(ALPHAS, 5)
    second = run_study(PILOTS, silent, SETTINGS, store(tmp_path), Watching())
    assert silent.calls == []
    assert second == first
    assert tuple(shown) == first.trials


def test_a_study_of_other_settings_is_not_mixed_in(tmp_path):
    run_study(PILOTS, Synthetic(ALPHAS, 5), Settings(trials=1), store(tmp_path))
    with pytest.raises(ArtefactError, match="made with other settings"):
        run_study(PILOTS, Synthetic(ALPHAS, 5), Settings(trials=1), store(tmp_path, "other"))


def test_trials_carry_their_measurements_and_constraints_in_the_storage(tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    result = run_study(
        PILOTS, Synthetic(ALPHAS, 5), Settings(trials=3), StudyStore("joy", "f", None, url)
    )
    study = optuna.load_study(study_name="joy", storage=url)
    assert study.best_trial.params["layer"] == result.best.layer
    for kept, trial in zip(study.trials, result.trials, strict=True):
        assert kept.user_attrs["delta_ce"] == trial.delta_ce
        assert kept.user_attrs["strength"] == trial.strength
        assert kept.constraints["delta_ce"] == pytest.approx(trial.delta_ce - 0.1)


def test_a_storage_that_cannot_be_opened_is_named():
    bad = StudyStore("joy", "f", None, "postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(ArtefactError, match="--storage must be a database URL"):
        run_study(PILOTS, Synthetic(ALPHAS, 5), SETTINGS, bad)
