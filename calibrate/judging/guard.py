"""Whether a model still answers as it did: accuracy by log-likelihood, before and after steering.

Cross-entropy on a model's own replies does not show what it has forgotten. So the guard's questions
are put to it as prompts. Of several choices the one whose tokens are likeliest together is its
answer; a cloze is right if each of its tokens is the likeliest where it stands.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import beta

from calibrate.common.errors import CalibrateWarning
from calibrate.common.estimate import RatioEstimate
from calibrate.engine.forks import Fork, Ids, WayScore, score_ways
from calibrate.engine.site import Site
from calibrate.models.cache import CacheFormat, load_or_compute
from calibrate.models.model import LoadedModel
from calibrate.models.prompts import encode_continuations, encode_reply
from calibrate.models.tokens import TokenSequence
from calibrate.texts.guard import Guard, GuardItem

ANSWERS_FILE = "answers.json"
ANSWERS = CacheFormat[list[bool]](
    "guard",
    lambda right: {ANSWERS_FILE: json.dumps(right).encode()},
    ANSWERS_FILE,
    lambda folder: _read_answers(Path(folder) / ANSWERS_FILE),
)


@dataclass(frozen=True, eq=False)
class Guarded:
    """How often the guard's questions are answered rightly.

    name, sha256: of the guard. accuracy, baseline: steered and unsteered, over questions. drop:
    baseline less accuracy, paired.
    """

    name: str
    sha256: str
    accuracy: RatioEstimate
    baseline: RatioEstimate

    @property
    def drop(self) -> RatioEstimate:
        """How much the accuracy falls, question by question."""
        return self.baseline.difference(self.accuracy)

    def drop_upper(self, confidence: float) -> float:
        """The one-sided bound on the drop: the larger of Student's and an exact one.

        Where few answers change, or none, their spread says nothing of how many might. So the share
        of questions lost is bounded by Clopper and Pearson (1934, Biometrika 26), less that gained.
        """
        change = self.drop.sums
        lost, gained, n = int((change > 0).sum()), float((change < 0).mean()), len(change)
        most = float(beta.ppf(confidence, lost + 1, n - lost)) if lost < n else 1.0
        by_spread = self.drop.interval(2 * confidence - 1)[1]
        return max(by_spread, most - gained)


def measure_guard(loaded: LoadedModel, guard: Guard, site: Site, strength: float) -> Guarded:
    """Put the guard's questions to the steered model, and to the plain one; those are cached.

    Warns with CalibrateWarning if the plain model knows no more than guessing does.
    """
    found = guarded(loaded, guard, site, strength)
    warn_of_guessing(guard.name, found.baseline.value, guard.guessed)
    return found


def guarded(loaded: LoadedModel, guard: Guard, site: Site, strength: float) -> Guarded:
    """`measure_guard` without its warning."""
    asked = [_Asked.of(loaded, item) for item in guard.items]
    facts = [one.facts for one in asked]
    plain = load_or_compute(loaded, ANSWERS, facts, lambda: _answers(loaded, asked, None).tolist())
    steered = _answers(loaded, asked, (site, strength))
    return Guarded(guard.name, guard.sha256, _shares(steered), _shares(np.array(plain)))


def warn_of_guessing(name: str, unsteered: float, guessed: float) -> None:
    """Warn if the plain model knows no more than guessing does; both are shares of the questions.

    name: of the guard.
    """
    if unsteered <= guessed:
        warnings.warn(
            f"unsteered, the model answers {unsteered:.0%} of the {name} questions rightly, and "
            f"guessing {guessed:.0%}: they cannot show what it forgets; give others with "
            "--guard FILE",
            CalibrateWarning,
            stacklevel=3,
        )


def expected_tokens(loaded: LoadedModel, guard: Guard | None) -> int:
    """Token-forwards of putting all questions once."""
    items = () if guard is None else guard.items
    return sum(_Asked.of(loaded, item).fork.n_tokens for item in items)


def put(loaded: LoadedModel, guard: Guard) -> list[Any]:
    """The questions as they are put to a model, as JSON values: what its answers depend on."""
    return [_Asked.of(loaded, item).facts for item in guard.items]


def answered(
    loaded: LoadedModel, items: Sequence[GuardItem], steered: tuple[Site, float] | None = None
) -> np.ndarray:
    """Which questions are answered rightly, bool (n_items,)."""
    return _answers(loaded, [_Asked.of(loaded, item) for item in items], steered)


@dataclass(frozen=True)
class _Asked:
    """A question as it is put to a model.

    choices: each after the question, scored from the same place on. answer: the right one's place.
    """

    choices: tuple[TokenSequence, ...]
    answer: int

    @classmethod
    def of(cls, loaded: LoadedModel, item: GuardItem) -> _Asked:
        """Encode one for a model: as it is, as a conversation, or in a line of its own."""
        if item.as_is:
            return cls(encode_continuations(loaded, item.question, item.choices), item.answer)
        if loaded.is_chat:
            said = tuple(encode_reply(loaded, item.question, choice) for choice in item.choices)
            return cls(said, item.answer)
        cloze = len(item.choices) == 1
        text = item.question if cloze else f"Question: {item.question}\nAnswer:"
        more = [f" {choice}" for choice in item.choices]
        return cls(encode_continuations(loaded, text, more), item.answer)

    @property
    def facts(self) -> list[Any]:
        """All of it as JSON values."""
        return [self.answer, [[choice.start, choice.ids] for choice in self.choices]]

    @property
    def fork(self) -> Fork:
        """The question, and the ways to go on with its choices, in their order."""
        one = self.choices[0]
        ways = tuple(choice.ids[choice.start :] for choice in self.choices)
        return Fork(one.ids[: one.start], ways)


def _answers(
    loaded: LoadedModel, asked: Sequence[_Asked], steered: tuple[Site, float] | None
) -> np.ndarray:
    forks = [one.fork for one in asked]
    right = [
        _is_right(fork.ways, one.answer, scores)
        for one, fork, scores in zip(asked, forks, score_ways(loaded, forks, steered), strict=True)
    ]
    return np.array(right, dtype=bool)


def _is_right(ways: Sequence[Ids], answer: int, scores: dict[Ids, WayScore]) -> bool:
    """Whether the answer is likeliest of the choices, or a cloze's own likeliest continuation."""
    if len(ways) == 1:
        return scores[ways[0]].likeliest
    return int(np.argmax([scores[way].log_prob for way in ways])) == answer


def _shares(right: np.ndarray) -> RatioEstimate:
    return RatioEstimate(right.astype(float), np.ones(len(right)))


def _read_answers(path: Path) -> list[bool]:
    answers = json.loads(path.read_text())
    if not isinstance(answers, list) or not all(isinstance(one, bool) for one in answers):
        raise ValueError(f"{path} must hold a list of true and false")
    return answers
