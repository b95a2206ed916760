"""What a probe learns from graded texts: a teacher's, for what to look, and readers', for a yes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny
from scipy.special import expit, logit
from sklearn.linear_model import Ridge as Oracle
from sklearn.metrics import roc_auc_score

from calibrate.common.errors import InputError
from probes import GradedText
from probes.graded import graded_lines, read_graded_lines
from probes.learn import learn_probe
from probes.ridge import PENALTIES, fit_ridge
from probes.scale import fit_platt


@pytest.fixture(scope="module")
def model():
    return tiny.loaded()


def mixed(n, seed, *, readers=0, leniency=0.0):
    """Texts of bright and plain words; the more are bright, the surer the teacher is.

    leniency: what the teacher's log-odds are above the truth.
    """
    rng = np.random.default_rng(seed)
    texts = []
    for number in range(n):
        share = rng.choice([0.0, 0.25, 0.5, 0.75])
        words = [rng.choice(tiny.BRIGHT if k < 8 * share else tiny.PLAIN) for k in range(8)]
        rng.shuffle(words)
        log_odds = 8 * (share - 0.4)
        grade = int(rng.random() < expit(log_odds)) if number < readers else None
        texts.append(
            GradedText(
                " ".join(words),
                grade,
                group=f"{seed} {number}",
                taught=float(expit(log_odds + leniency)),
            )
        )
    return texts


def test_a_ridge_is_the_one_that_scikit_learn_fits():
    rng = np.random.default_rng(0)
    features, targets = rng.normal(size=(40, 90)), rng.normal(size=40)
    weights = rng.uniform(0.5, 2.0, size=40)
    fitted = fit_ridge(features, targets, [str(k // 2) for k in range(40)], weights)
    mean = np.average(features, axis=0, weights=weights)
    scale = np.sqrt(np.average((features - mean) ** 2, axis=0, weights=weights)) + 1e-6
    candidates = [
        Oracle(alpha=penalty * 90).fit((features - mean) / scale, targets, sample_weight=weights)
        for penalty in PENALTIES
    ]
    gaps = [
        np.abs(one.predict((features - mean) / scale) - fitted(features)).max()
        for one in candidates
    ]
    assert min(gaps) < 1e-6


def test_a_ridge_predicts_a_group_from_the_others_alone():
    """A target that only the group tells is not predicted out of fold."""
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(20), 5)
    of_group = rng.normal(size=(20, 60))
    features = of_group[groups] + 0.01 * rng.normal(size=(100, 60))
    targets = rng.normal(size=20)[groups]
    fitted = fit_ridge(features, targets, [str(group) for group in groups], np.ones(100))
    assert np.corrcoef(fitted.out_of_fold, targets)[0, 1] < 0.2
    torn = fit_ridge(features, targets, [str(row) for row in range(100)], np.ones(100))
    assert np.corrcoef(torn.out_of_fold, targets)[0, 1] > 0.9


def test_a_student_ranks_new_texts_as_its_teacher_does(model):
    probe = learn_probe("bright", mixed(200, 0), model, teacher="words")
    new = mixed(150, 1)
    scores = probe.score([one.text for one in new], model)
    assert roc_auc_score([one.says_yes for one in new], scores) > 0.95
    assert abs(scores.mean() - np.mean([one.taught for one in new])) < 0.06
    assert probe.learned.source == "taught"
    assert probe.learned.n_texts == {"readers": 0, "teacher": 200}
    assert probe.learned.quality.auc.value > 0.9


def test_readers_correct_the_scale_of_a_teacher_who_is_too_lenient(model):
    new = mixed(300, 1, readers=300)
    said = np.mean([one.says_yes for one in new])
    levels = {}
    for readers in (0, 120):
        texts = mixed(250, 0, readers=readers, leniency=2.0)
        probe = learn_probe("bright", texts, model, teacher="words")
        levels[readers] = probe.score([one.text for one in new], model).mean()
    assert levels[0] > said + 0.15
    assert abs(levels[120] - said) < 0.06


def test_what_is_clear_is_rarer_than_what_is_somewhat(model):
    texts = [
        replace(one, grade=2 * one.grade if one.taught > 0.9 else one.grade)
        for one in mixed(250, 0, readers=250)
    ]
    probe = learn_probe("bright", texts, model)
    new = mixed(200, 2)
    scores = probe.score([one.text for one in new], model)
    clear = probe.clear(scores)
    assert clear.mean() < scores.mean()
    assert (np.argsort(clear) == np.argsort(scores)).mean() > 0.99  # one order, two thresholds
    assert probe.clear(np.zeros(1)) == [0.0]


def test_a_teacher_who_says_the_same_of_everything_teaches_nothing(model):
    texts = [GradedText(one.text, group=one.group, taught=0.1) for one in mixed(60, 0)]
    with pytest.raises(InputError, match="the grader says no to all 60; name another --teacher"):
        learn_probe("bright", texts, model, teacher="words")


def test_a_scale_is_fitted_only_where_both_answers_are_there():
    scores = np.linspace(-3, 3, 60)
    assert fit_platt(scores, scores > 5) is None
    assert fit_platt(scores[:20], scores[:20] > -2.5) is None
    fitted = fit_platt(scores, scores > 1)
    assert fitted(1.0) == pytest.approx(0.5, abs=0.1)
    assert fitted.inverse(fitted.slope * 0.7 + fitted.offset) == pytest.approx(0.7)
    assert fitted(3.0) > 0.9


def test_graded_texts_come_back_as_they_were_written(tmp_path):
    texts = (
        GradedText("a", 2.0, 1.0, "p", "1", 0.25),
        GradedText("b\n", group="q"),
    )
    (tmp_path / "graded.jsonl").write_text(graded_lines(texts))
    assert read_graded_lines(tmp_path / "graded.jsonl") == texts
    assert logit(0.25) < 0
    with pytest.raises(ValueError, match="from 0 to 2, got 3"):
        GradedText("a", 3)
