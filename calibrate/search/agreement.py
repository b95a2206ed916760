"""What the workers of a study have to agree on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import optuna
from optuna.trial import FrozenTrial

from calibrate.search.storage import StudyStore
from calibrate.search.workers import open_study, shared_study


def agreed(store: StudyStore, what: str, mine: str) -> str:
    """What all workers of a study take for something: what the first of them took it for.

    Raises: ArtefactError as `shared_study` does.
    """
    study = open_study(replace(store, name=f"{store.name}: {what}"), "maximize")
    if what not in study.user_attrs:
        study.set_user_attr(what, mine)
    return str(study.user_attrs[what])


def act_once(store: StudyStore, place: str, act: Callable[[], None]) -> str:
    """Let exactly one worker of a study act, and return where that was.

    place: where this worker would act. If the one that acts dies, another takes over; whoever
    comes later learns where it was done, and acts only if it was here and has been undone.
    """
    if store.url is None:
        act()  # one directory has one writer at a time: see `calibrate.artefact.directory.writing`
        return place
    turn = _Turn(place, act)
    with shared_study(replace(store, name=f"{store.name}: artefact"), "maximize") as shared:
        shared.take_part(turn)
        where = str(shared.finished[0].user_attrs["place"])
    if where == place and not turn.acted:
        act()
    return where


@dataclass(eq=False)
class _Turn:
    """The plan of a study whose only trial is to act."""

    place: str
    act: Callable[[], None]
    acted: bool = False
    most: int = 1

    def enough(self, finished: Sequence[FrozenTrial]) -> bool:
        return bool(finished)

    def propose(self, counting: Sequence[FrozenTrial]) -> None:
        return None

    def sampler(self, n_finished: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.RandomSampler(seed=n_finished)

    def measure(self, trial: optuna.Trial) -> float:
        self.act()
        self.acted = True
        trial.set_user_attr("place", self.place)
        return 1.0

    def ended(self, trial: FrozenTrial) -> None:
        pass
