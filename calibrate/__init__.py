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
    from calibrate.calibration import Calibration, calibrate
    from calibrate.concept import Concept
    from calibrate.config import SteeringConfig, load
    from calibrate.curves import LawCurves, measure_laws
    from calibrate.errors import (
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
    from calibrate.gate import GateReport, check_directory
    from calibrate.loading import load_model
    from calibrate.model import LoadedModel
    from calibrate.settings import Sampling, Settings
    from calibrate.vector import SteeringVector, extract_vectors

_HOMES = {
    "calibration": ("Calibration", "calibrate"),
    "concept": ("Concept",),
    "config": ("SteeringConfig", "load"),
    "curves": ("LawCurves", "measure_laws"),
    "errors": (
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
    "gate": ("GateReport", "check_directory"),
    "loading": ("load_model",),
    "model": ("LoadedModel",),
    "settings": ("Sampling", "Settings"),
    "vector": ("SteeringVector", "extract_vectors"),
}

__all__ = [
    "ArtefactError",
    "CalibrateError",
    "CalibrateWarning",
    "Calibration",
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
