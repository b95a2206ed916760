"""The calibrations that are served, and the model they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from calibrate.artefact.config import SteeringConfig, load
from calibrate.artefact.frontier import Frontier
from calibrate.artefact.hub import local_directory, named_repository
from calibrate.common.errors import InputError, VerificationFailed, did_you_mean
from calibrate.common.progress import SILENT, Progress
from calibrate.common.settings import Sampling
from calibrate.deploy.checks import why_not_same
from calibrate.deploy.verify import as_calibrated, open_model
from calibrate.engine.site import Site
from calibrate.laws.presence import PresenceLaw
from calibrate.models.model import LoadedModel, preserving_model_state
from calibrate.models.steering import Steering

POINTS = 61  # of the laws' curves on the page
WITHOUT_FRONTIER = 1.5  # times the larger of the calibrated strength and α_B: where a slider ends


@dataclass(frozen=True, eq=False)
class Served:
    """One calibration under its name."""

    name: str
    config: SteeringConfig
    frontier: Frontier | None

    @cached_property
    def site(self) -> Site:
        """Where it steers, and along what."""
        return self.config.site

    def facts(self) -> dict[str, Any]:
        """What the page shows of it; strengths from 0 to where its slider ends."""
        config, laws, presence = self.config, self.config.laws, self._law_of_presence()
        strengths = np.linspace(0.0, self._end(), POINTS)
        points = [] if self.frontier is None else self.frontier.points
        return {
            "name": self.name,
            "concept": config.concept.name,
            "goal": config.concept.goal,
            "where": config.where,
            "strength": config.intervention.strength,
            "budget": config.budget.limit,
            "delta_ce": asdict(config.measured.delta_ce),
            "presence": config.measured.presence.value,
            "baseline": config.measured.presence.baseline,
            "strength_at_budget": config.range.strength_at_budget.value,
            "sweet_spot": sorted(config.range.sweet_spot, key=abs),
            "end": strengths[-1],
            "curve": [
                {"strength": s, "delta_ce": c, "presence": p}
                for s, c, p in zip(
                    strengths.tolist(),
                    np.asarray(laws.cross_entropy.predict(strengths)).tolist(),
                    np.asarray(presence.predict(strengths)).tolist(),
                    strict=True,
                )
            ],
            "frontier": [
                {
                    "budget": point.budget,
                    "strength": point.strength,
                    "delta_ce": point.delta_ce.value,
                    "upper": point.upper,
                    "presence": point.presence.value,
                }
                for point in points
            ],
        }

    def _law_of_presence(self) -> PresenceLaw:
        """Through the frontier's points, if there are any; else that of the study."""
        if self.frontier is not None and self.frontier.points:
            return PresenceLaw(*self.frontier.law)
        return self.config.laws.presence.law

    def _end(self) -> float:
        """The frontier's end, or the calibrated strength where that is larger."""
        config = self.config
        calibrated = config.intervention.strength
        if self.frontier is not None and self.frontier.points:
            return max(calibrated, self.frontier.points[-1].strength, key=abs)
        return WITHOUT_FRONTIER * max(calibrated, config.range.strength_at_budget.value, key=abs)


@dataclass(frozen=True, eq=False)
class Choice:
    """What a request asks for: a calibration and a strength; None and 0 for the plain model.

    sampling: how its tokens are drawn unless the request says otherwise.
    """

    name: str
    served: Served | None
    strength: float
    sampling: Sampling

    def steering(self) -> Steering | None:
        """What steers its replies."""
        if self.served is None or not self.strength:
            return None
        return self.served.site.steering(self.strength)


@dataclass(frozen=True, eq=False)
class Catalogue:
    """A model, and the calibrations it is served with."""

    loaded: LoadedModel
    calibrations: tuple[Served, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """What `model` may be in a request: calibrations, and the plain model."""
        return (*(each.name for each in self.calibrations), self.loaded.name)

    def choose(self, model: str | None, concept: str | None, strength: float | None) -> Choice:
        """What a request asks for; with neither `model` nor `concept` the first calibration.

        The plain model's tokens are drawn as they were for the first calibration.
        Raises: UnknownModel; InputError for a concept that is not served, or not by the calibration
            that is named, or a strength where there is nothing to steer along.
        """
        served = self._named(model, concept)
        name = model or (self.loaded.name if served is None else served.name)
        if served is None:
            if strength:
                raise InputError(
                    f"a strength needs a concept or a calibration's name as model, got {strength:g}"
                    f" with {name!r} alone"
                )
            return Choice(name, None, 0.0, self.calibrations[0].config.settings.sampling)
        config = served.config
        at = config.intervention.strength if strength is None else strength
        return Choice(name, served, at, config.settings.sampling)

    def _named(self, model: str | None, concept: str | None) -> Served | None:
        """The calibration that a request asks for; None for the plain model alone."""
        if model is None:
            return self.calibrations[0] if concept is None else self._of_concept(concept)
        if model not in self.names:
            raise UnknownModel(f"there is no model {model!r}{did_you_mean(model, self.names)}")
        served = next((each for each in self.calibrations if each.name == model), None)
        if served is None:
            return None if concept is None else self._of_concept(concept)
        if concept not in (None, served.config.concept.name):
            raise InputError(
                f"{model!r} steers {served.config.concept.name}, got the concept {concept!r}; "
                "leave one of model and concept out"
            )
        return served

    def _of_concept(self, concept: str) -> Served:
        found = [each for each in self.calibrations if each.config.concept.name == concept]
        if not found:
            known = sorted({each.config.concept.name for each in self.calibrations})
            raise InputError(f"concept must be one of {', '.join(known)}, got {concept!r}")
        return found[0]


class UnknownModel(InputError):
    """No calibration of that name is served."""


def open_catalogue(
    directories: Sequence[str | Path],
    model: str | None = None,
    progress: Progress = SILENT,
    **options: Any,
) -> Catalogue:
    """Load calibrations and the model they share, and check that each steers it as recorded.

    directories: of calibrations, or USER/NAME on the Hub. model, options: another place to load it
        from, and other arguments of `load_model`.
    Raises: InputError if they do not share a model or a name; ArtefactError, ModelError;
        VerificationFailed if the model is not the calibrated one, or steers otherwise.
    """
    calibrations = tuple(map(_opened, directories))
    if not calibrations:
        raise InputError("a server needs a calibration; name its directory")
    first = calibrations[0].config
    for each in calibrations[1:]:
        if (each.config.model, each.config.rendering) != (first.model, first.rendering):
            raise InputError(
                f"calibrations served together must share model and prompts, and {each.name} is "
                f"for {each.config.model.id}, {calibrations[0].name} for {first.model.id}; serve "
                "it on another --port"
            )
    names = [each.name for each in calibrations]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"names must differ, and {name!r} comes twice; rename a directory")
    loaded = as_calibrated(first, open_model(first, model, progress=progress, **options))
    if loaded.name in names:
        raise InputError(f"{loaded.name!r} is the model's own name; rename the directory")
    with preserving_model_state(loaded):
        for each in calibrations:
            if (why_not := why_not_same(each.config, loaded)) is not None:
                raise VerificationFailed(f"{each.name} cannot be served: {why_not}")
    return Catalogue(loaded, calibrations)


def _opened(directory: str | Path) -> Served:
    folder, repository = local_directory(directory), named_repository(directory)
    name = Path(directory).resolve().name if repository is None else repository.group()
    config = load(folder)
    return Served(name, config, Frontier.load(folder, config.provenance.fingerprint))
