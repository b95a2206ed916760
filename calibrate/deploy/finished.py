"""A finished calibration, and what can be done with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from calibrate.artefact import saved
from calibrate.artefact.config import SteeringConfig
from calibrate.artefact.evidence import Evidence
from calibrate.artefact.frontier import Frontier, PointSection
from calibrate.common.errors import ArtefactError, InputError
from calibrate.common.progress import SILENT, Progress
from calibrate.deploy import frontier
from calibrate.deploy.checks import why_not_same
from calibrate.deploy.export import export
from calibrate.deploy.export.exporter import Exported
from calibrate.deploy.verify import as_calibrated, open_model
from calibrate.engine.loading import load_model
from calibrate.models.model import LoadedModel, preserving_model_state
from probes import Probe


@dataclass(frozen=True, eq=False)
class Calibration:
    """A finished calibration.

    config: what to steer with. evidence: every point it rests on. probe: what read presence in the
    study; None where another judge did. frontier: what other budgets buy; None until measured.

    >>> result = calibrate.Calibration.load("joy/")
    >>> result.config.intervention.strength > 0  # what to steer with
    True
    >>> result.save("copy/")
    """

    config: SteeringConfig
    evidence: Evidence
    probe: Probe | None
    frontier: Frontier | None = None

    def save(self, directory: str | Path) -> None:
        """Write the config, the vector, the probe, the evidence and the report; all or nothing.

        Files of an earlier calibration there are replaced, and no others.
        Raises: ArtefactError if the directory cannot be written, or if it holds a file of that name
            that no calibration wrote.
        """
        saved.save(directory, self.config, self.evidence, self.probe, self.frontier)

    def export(
        self, format_name: str, to: str | Path, model: Any = None, tokenizer: Any = None
    ) -> Exported:
        """Write the config for a consumer, and check it there (`calibrate.deploy.export.export`).

        model, tokenizer: as `calibrate` takes them; the model that the config names if None.
        Raises: ExportRefused if the format cannot express it; VerificationFailed if what was
            written does not do what the config says.
        """
        loaded = None if model is None else load_model(model, tokenizer)
        return export(self.config, format_name, to, loaded)

    def at(self, ce_budget: float | None = None, *, gain: float | None = None) -> PointSection:
        """What a budget buys, or which buys a change: a point of the frontier (`Frontier.at`).

        ce_budget: nats a token: the point that ships with most change within it, or where none
            does, the one of most strength, whose `why_not` says why. gain: of presence, towards
            the goal: the cheapest point that ships with it.
        Raises: InputError if no frontier was measured, or it has no such point.

        >>> result.with_frontier([0.05, 0.1], model, tokenizer).at(ce_budget=0.1).upper <= 0.1
        True
        """
        if self.frontier is None:
            raise InputError(
                "other budgets must have been measured; do it with with_frontier(), or with "
                "calibrate frontier DIR"
            )
        return self.frontier.at(ce_budget, gain=gain)

    def with_frontier(
        self,
        budgets: Sequence[float] | float | None = None,
        model: Any = None,
        tokenizer: Any = None,
        *,
        corpus: str | Path | None = None,
        rivals: bool = True,
        progress: Progress = SILENT,
    ) -> Calibration:
        """Measure what other budgets buy, and return the calibration with that frontier.

        It is added to what the calibration's frontier holds already.

        budgets: in nats a token; None for half, once, twice and four times its own. model,
            tokenizer: as `calibrate` takes them; the model that the config names if None. corpus:
            the file it was calibrated on, if on any. rivals: whether to measure asking in words, a
            random vector and best of n, too.
        Raises: InputError for budgets out of range, a judge that cannot be made again, or two
            concepts.
        """
        loaded = self._opened(model, tokenizer, progress)
        measured = frontier.measure(
            self.config,
            self.evidence,
            self.probe,
            loaded,
            budgets,
            corpus,
            rivals,
            progress,
            self.frontier,
        )
        return replace(self, frontier=measured)

    def pick(
        self,
        ce_budget: float,
        model: Any = None,
        tokenizer: Any = None,
        *,
        corpus: str | Path | None = None,
        progress: Progress = SILENT,
    ) -> Calibration:
        """Ship another budget with the same guarantees: verification, and no new study.

        The frontier goes along.

        model, tokenizer, corpus: as for `with_frontier`.
        Raises: Infeasible as `calibrate` does; InputError as `with_frontier` does.
        """
        loaded = self._opened(model, tokenizer, progress)
        config, evidence, carried = frontier.pick(
            self.config,
            self.evidence,
            self.probe,
            loaded,
            ce_budget,
            self.frontier,
            corpus,
            progress,
        )
        probe = None if self.probe is None else self.probe.as_fitted
        return Calibration(config, evidence, probe, carried)

    def _opened(self, model: Any, tokenizer: Any, progress: Progress) -> LoadedModel:
        """The model, its prompts rendered as for the config.

        Raises: InputError for two concepts.
        """
        frontier.require_one_concept(self.config)
        if model is None:
            return open_model(self.config, progress=progress)
        return as_calibrated(self.config, load_model(model, tokenizer, progress=progress))

    @classmethod
    def load(cls, directory: str | Path) -> Calibration:
        """Load what `save` wrote.

        Raises: ArtefactError if anything is missing or damaged.
        """
        return cls(*saved.load(directory))


def found_again(directory: Path, loaded: LoadedModel, weights: str | None) -> Calibration:
    """The calibration that the same call has finished before.

    weights: their hash, which its fingerprint knows; where there is none, or the model is given in
        memory, with hooks and switches that no weights show, its reference is held against it.
    Raises: ArtefactError if it is of another model, or damaged.
    """
    found = Calibration.load(directory)
    if weights is None or not loaded.by_name:
        with preserving_model_state(loaded):
            why_not = why_not_same(found.config, loaded)
        if why_not is not None:
            raise ArtefactError(
                f"{directory} holds a calibration of another model: {why_not}; choose another "
                "--out, or remove it"
            )
    return found
