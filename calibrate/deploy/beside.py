"""A second concept under one budget: `calibrate(beside=…)`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from calibrate.artefact.beside_section import BesideSection
from calibrate.artefact.config import SteeringConfig
from calibrate.common.errors import InputError
from calibrate.common.numbers import check_number
from calibrate.common.settings import Settings
from calibrate.deploy.checks import why_not_same
from calibrate.deploy.finished import Calibration
from calibrate.deploy.start import Start
from calibrate.deploy.trusted import reader_again
from calibrate.engine.site import Site
from calibrate.engine.unsteered import UnsteeredRun
from calibrate.judging.presence import read
from calibrate.models.model import LoadedModel, preserving_model_state
from calibrate.search.joint import mixed_with
from calibrate.search.refusals import MORE, TooLittle
from calibrate.search.verification import Verified
from probes import Reader

HALF = 0.5  # the share of a concept beside another, by default


@dataclass(frozen=True, eq=False)
class Beside:
    """An earlier calibration of the same model, and its share of the budget's strengths.

    reader: its judge; None until it is `ready`.
    """

    earlier: Calibration
    mix: float
    reader: Reader | None = None

    @property
    def config(self) -> SteeringConfig:
        """Its config."""
        return self.earlier.config

    @property
    def key(self) -> str:
        """What a fingerprint has to know of it."""
        return f"{self.config.provenance.fingerprint} at {self.mix!r}"

    def ready(self, loaded: LoadedModel) -> Beside:
        """With its judge made again, before anything is spent.

        Raises: InputError if its name is not enough to make it.
        """
        judge = self.config.measured.judges[0]
        return replace(self, reader=reader_again(judge, self.config, loaded, self.earlier.probe))

    def join(
        self, loaded: LoadedModel, run: UnsteeredRun, sites: Sequence[Site], settings: Settings
    ) -> tuple[list[Site], dict[str, float]]:
        """Mix its vectors into the sites.

        run: of the search corpus.
        Returns: the sites, and by their names its strength per unit of theirs.
        """
        at_budget, own = self._at_budget(settings.ce_budget), self.config.site
        mixed = [
            mixed_with(loaded, run, site, own, at_budget, self.mix, settings) for site in sites
        ]
        return [site for site, _ in mixed], {site.name: weight for site, weight in mixed}

    def _at_budget(self, budget: float) -> float:
        """The strength that spends a budget on its concept alone, by its law where not measured."""
        known = self.config.range.strength_at_budget.value
        if budget == self.config.settings.ce_budget:
            return known
        foretold = self.config.laws.cross_entropy.invert(budget, 1 if known > 0 else -1)
        return foretold if math.isfinite(foretold) else known

    def section(self, verified: Verified, weight: float, settings: Settings) -> BesideSection:
        """What became of its concept in the final replies, once it is `ready`.

        Raises: TooLittle if it does not move in the direction it was calibrated for.
        """
        config, confidence = self.config, settings.confidence
        assert self.reader is not None
        after, before = (
            read(self.reader, each.completions) for each in (verified.presence, verified.baseline)
        )
        change = after.change_from(before).with_interval(confidence)
        towards = change.low if config.concept.goal == "increase" else -change.high
        if towards <= 0:
            raise TooLittle(
                [
                    f"{config.concept.name!r} does not measurably {config.concept.goal} beside it: "
                    f"{change.value:+.3f} ({change.low:+.3f} to {change.high:+.3f})"
                ],
                [f"give it more with a --mix above {self.mix:g}", MORE],
            )
        return BesideSection(
            name=config.concept.name,
            goal=config.concept.goal,
            fingerprint=config.provenance.fingerprint,
            weight=weight,
            judge=self.reader.name,
            presence=after.estimate.with_interval(confidence),
            baseline=before.estimate.value,
            change=change,
        )


def checked_mix(mix: float | None, beside: Start | None, start: Start | None = None) -> float:
    """The share of a concept beside another; HALF where none is asked for.

    Raises: InputError for a share out of range, or of nothing, and for a pair that is begun with.
    """
    if beside is None and mix is not None:
        raise InputError(f"--mix needs --beside, got {mix!r}; add it or leave --mix out")
    if beside is not None and start is not None:
        raise InputError("give either start or beside; a pair is calibrated from nothing")
    if mix is None:
        return HALF
    return check_number("--mix must be between 0 and 1", mix, lambda share: 0 < share < 1)


def opened_beside(beside: Start, mix: float, loaded: LoadedModel, settings: Settings) -> Beside:
    """The earlier calibration, if it holds for the model.

    mix: as `checked_mix` returns it.
    Raises: InputError for another model, other positions, blocks still to be searched or a pair;
        ArtefactError if it cannot be read.
    """
    if settings.layer == "search":
        raise InputError(
            "two concepts steered together must steer blocks chosen beforehand, got --layer "
            "search; give --layer N or N-M, or leave it out"
        )
    found = beside if isinstance(beside, Calibration) else Calibration.load(beside)
    if (third := found.config.beside) is not None:
        raise InputError(
            "--beside must be a calibration of one concept, got one that also steers "
            f"{third.name!r}; calibrate {found.config.concept.name!r} alone, and give that"
        )
    with preserving_model_state(loaded):
        why_not = why_not_same(found.config, loaded)
    if why_not is not None:
        raise InputError(f"--beside must hold for this model: {why_not}")
    positions = found.config.intervention.positions
    if settings.position_choices != (positions,):
        raise InputError(
            f"two concepts steered together must steer the same positions, {positions}, got "
            f"{settings.positions}; give --positions {positions}"
        )
    return Beside(found, mix)
