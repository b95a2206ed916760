"""Choose the strength of an activation-steering vector, with evidence.

    import calibrate

    result = calibrate.calibrate(model="smollm2", concept="joy", ce_budget=0.1)
    result.save("joy/")
    with calibrate.load("joy/").steer(model):
        model.generate(...)

Names are imported when they are first used, so that `import calibrate` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calibrate.artefact.config import SteeringConfig, load
    from calibrate.calibration import calibrate
    from calibrate.common.errors import (
        ArtefactError,
        CalibrateError,
        CalibrateWarning,
        ConceptError,
        ExportRefused,
        Infeasible,
        InputError,
        ModelError,
        NumericalError,
        VerificationFailed,
        WrittenElsewhere,
    )
    from calibrate.common.settings import Sampling, Settings
    from calibrate.deploy.finished import Calibration
    from calibrate.deploy.verify import GateReport, check_directory
    from calibrate.engine.loading import load_model
    from calibrate.engine.site import SteeringVector
    from calibrate.laws.law_curves import LawCurves
    from calibrate.models.model import LoadedModel
    from calibrate.pipelines.callback import CalibratedStep, CalibrationCallback
    from calibrate.search.law_experiment import measure_laws
    from calibrate.texts.concept import Concept
    from calibrate.texts.extraction import extract_vectors

_HOMES = {
    "calibration": ("calibrate",),
    "pipelines.callback": ("CalibratedStep", "CalibrationCallback"),
    "deploy.finished": ("Calibration",),
    "texts.concept": ("Concept",),
    "artefact.config": ("SteeringConfig", "load"),
    "laws.law_curves": ("LawCurves",),
    "search.law_experiment": ("measure_laws",),
    "common.errors": (
        "ArtefactError",
        "CalibrateError",
        "CalibrateWarning",
        "ConceptError",
        "ExportRefused",
        "Infeasible",
        "InputError",
        "ModelError",
        "NumericalError",
        "VerificationFailed",
        "WrittenElsewhere",
    ),
    "deploy.verify": ("GateReport", "check_directory"),
    "engine.loading": ("load_model",),
    "models.model": ("LoadedModel",),
    "common.settings": ("Sampling", "Settings"),
    "engine.site": ("SteeringVector",),
    "texts.extraction": ("extract_vectors",),
}

__all__ = [
    "ArtefactError",
    "CalibrateError",
    "CalibrateWarning",
    "CalibratedStep",
    "Calibration",
    "CalibrationCallback",
    "Concept",
    "ConceptError",
    "ExportRefused",
    "GateReport",
    "Infeasible",
    "InputError",
    "LawCurves",
    "LoadedModel",
    "ModelError",
    "NumericalError",
    "Sampling",
    "Settings",
    "SteeringConfig",
    "SteeringVector",
    "VerificationFailed",
    "WrittenElsewhere",
    "calibrate",
    "check_directory",
    "extract_vectors",
    "load",
    "load_model",
    "measure_laws",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"calibrate.{home}"), name)
    raise AttributeError(f"module 'calibrate' has no attribute {name!r}")
