"""The gate before deployment: does a steering config still do what it says, on this model, here?

    origin      of what a repository holds: which one, and at which commit
    identity    the model, its tokenizer and chat template are those it was calibrated with
    reference   one input's steered log-probabilities come out as they were recorded
    budget      ΔCE keeps to the budget, with its one-sided bound
    presence    the concept moves as it did
    audit       by the second judge as well, if there was one
    long run    replies of serving length hardly loop more than unsteered ones
    guard       questions with known answers are answered as they were

Replies to the prompts it was verified on are drawn again with the recorded seed, so that an
unchanged config on an unchanged model always passes. A corpus takes the place of those replies.
Where the reference is missed, the gate looks for the mistake that explains it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from calibrate.artefact.config import SteeringConfig, load
from calibrate.artefact.evidence import Evidence
from calibrate.artefact.hub import gate_directory
from calibrate.common.cost import Ledger
from calibrate.common.errors import AlteredError, ArtefactError, InputError
from calibrate.common.progress import SILENT, Progress
from calibrate.deploy.checks import (
    check_budget,
    check_guard,
    check_identity,
    check_long_run,
    check_presence,
    check_reference,
)
from calibrate.deploy.diagnosis import Check
from calibrate.engine.loading import is_hub_id, load_model, rendered_with
from calibrate.models.model import LoadedModel, preserving_model_state


@dataclass(frozen=True)
class GateReport:
    """Everything the gate looked at, in order; a check that needs an earlier one may be missing.

    >>> report = calibrate.check_directory("joy/", loaded, quick=True)
    >>> [(check.name, check.passed) for check in report.checks]
    [('identity', True), ('reference', True)]
    """

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether everything holds."""
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> tuple[str, ...]:
        """What the failed checks found."""
        return tuple(check.found for check in self.checks if not check.passed)

    def with_check(self, check: Check) -> GateReport:
        """This report and one check more."""
        return GateReport((*self.checks, check))

    def facts(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return {"passed": self.passed, "checks": [asdict(check) for check in self.checks]}


def check_directory(
    directory: str | Path,
    loaded: LoadedModel | None = None,
    corpus: str | Path | None = None,
    quick: bool = False,
    progress: Progress = SILENT,
) -> GateReport:
    """Check the config in a directory on its model.

    directory: its path; for one in a repository, "hub:USER/NAME".
    loaded: the model to run it on (default: what `open_model` loads for it).
    corpus: a file of texts to measure ΔCE on, one a line or .jsonl.
    quick: identity and reference alone, two passes over one input.
    Raises: ArtefactError or InputError if there is nothing to check, or the model cannot be loaded.

    >>> calibrate.check_directory("joy/", loaded, quick=True).passed
    True
    """
    require_measured(corpus, quick)
    try:
        folder = gate_folder(directory)
        config = load(folder)
    except AlteredError as error:
        return GateReport((Check("artefact", False, str(error)),))
    model = open_model(config) if loaded is None else as_calibrated(config, loaded)
    ledger = Ledger(model.meter, progress)
    checks = [*_origin(config), *check_identity(config, model)]
    if not all(check.passed for check in checks):
        return GateReport(tuple(checks))
    with preserving_model_state(model):
        with ledger.stage("reference"):
            checks.append(check_reference(config, model))
        if checks[-1].passed and not quick:
            evidence = Evidence.load(folder)
            with ledger.stage("budget"):
                checks.append(check_budget(config, evidence, model, corpus))
            with ledger.stage("presence"):
                checks += check_presence(config, evidence, model, folder)
            with ledger.stage("long run"):
                checks += check_long_run(config, evidence, model)
            with ledger.stage("guard"):
                checks += check_guard(config, evidence, model)
    return GateReport(tuple(checks))


def require_measured(corpus: str | Path | None, quick: bool) -> None:
    """Raise InputError for a corpus on which nothing would be measured."""
    if corpus is not None and quick:
        raise InputError(
            f"--quick measures no cross-entropy, so --corpus must be left out, got {corpus}; leave "
            "one of them out, or name a stack with --against"
        )


def exported_as(folder: Path) -> str | None:
    """The format of the export with weights that a directory holds: "folded", "peft" or None."""
    if (folder / "adapter_config.json").is_file():
        return "peft"
    try:
        facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return "folded" if isinstance(facts, dict) and "steering" in facts else None


def gate_folder(directory: str | Path) -> Path:
    """The directory that the gate looks at, fetched if it is a repository's.

    Raises: as `gate_directory`; ArtefactError for an export, whose weights would not be checked.
    """
    folder = gate_directory(directory)
    kind = exported_as(folder)
    if kind is not None:
        raise ArtefactError(
            f"{folder} must be a calibration's directory, got a {kind} export of one, whose "
            f"weights are not looked at; verify the calibration, with --against {kind}"
        )
    return folder


def _origin(config: SteeringConfig) -> Iterator[Check]:
    """Which repository it is from, where it is from one."""
    if config.origin.says:
        yield Check("origin", True, config.origin.says)


def open_model(config: SteeringConfig, model: str | None = None, **options: Any) -> LoadedModel:
    """Load the model a config is for, in the precision and with the prompts of its calibration.

    From the Hub it comes at the commit it was calibrated at, unless another place or revision is
    named.

    model, options: another place to load it from, and other arguments of `load_model`; of these
        dtype "auto" is the precision of the calibration.
    """
    how: dict[str, Any] = {"dtype": "auto", **options}
    if how["dtype"] == "auto":
        how["dtype"] = config.model.dtype
    if model is None and how.get("revision") is None and is_hub_id(config.model.id):
        how["revision"] = config.model.revision
    if config.rendering is not None:
        how["chat_template_kwargs"] = config.rendering.kwargs
        how["template_date"] = config.rendering.date
    return load_model(model or config.model.id, **how)


def as_calibrated(config: SteeringConfig, loaded: LoadedModel) -> LoadedModel:
    """The same model, with prompts rendered as they were for the config."""
    if config.rendering is None:
        return loaded
    return rendered_with(loaded, config.rendering.kwargs, config.rendering.date)
