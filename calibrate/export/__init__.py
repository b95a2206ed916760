"""Exports: one steering config, in the files of its consumers.

Every export derives from the config, refuses with a reason what its format cannot express, and
proves itself: it is loaded back the way its consumer loads it, and must reproduce the reference
log-probabilities that are kept in the config.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from calibrate.config import SteeringConfig
from calibrate.errors import InputError, VerificationFailed, did_you_mean
from calibrate.export.exporter import Exported, Exporter
from calibrate.gate import TOLERANCES, open_model
from calibrate.model import borrowed
from calibrate.progress import SILENT, Progress

if TYPE_CHECKING:
    from calibrate.model import LoadedModel

__all__ = ["FORMATS", "Exported", "export"]

# By name, the module and class that write it; imported when asked for, with what they need.
FORMATS: Mapping[str, tuple[str, str]] = {
    "gguf": ("control_vector", "ControlVector"),
    "peft": ("adapter", "Adapter"),
    "folded": ("folded", "Folded"),
    "easysteer": ("easysteer", "EasySteer"),
    "lm-eval": ("lm_eval", "LmEval"),
    "svec": ("svec", "Svec"),
    "snippet": ("snippet", "Snippet"),
}


def export(
    config: SteeringConfig,
    format_name: str,
    to: str | Path,
    loaded: LoadedModel | None = None,
    check: bool = True,
    progress: Progress = SILENT,
) -> Exported:
    """Write a config in the format of a consumer, and check what was written.

    format_name: one of FORMATS. to: a file or a directory, as the format has it; it is replaced.
    loaded: the model the config is for (default: what `calibrate.gate.open_model` loads).
    check: load it back and compare; without, nothing is proved.

    Raises: ExportRefused if the format cannot express the config; VerificationFailed, with nothing
        left behind, if what was written does not reproduce the reference.
    """
    exporter = _exporter(format_name)
    exporter.check_config(config)
    model = loaded
    if model is None and (check or exporter.needs_model):
        model = open_model(config, progress=progress)
    target = Path(to)
    if model is None:
        return exporter.write(config, None, target)
    with borrowed(model):
        exporter.check_model(config, model)
        written = exporter.write(config, model, target)
        return _proved(exporter, config, model, written) if check else written


def _exporter(name: str) -> Exporter:
    if name not in FORMATS:
        raise InputError(
            f"--format must be one of {', '.join(FORMATS)}, got {name!r}"
            f"{did_you_mean(name, FORMATS)}"
        )
    module, kind = FORMATS[name]
    exporter: Exporter = getattr(import_module(f"calibrate.export.{module}"), kind)()
    return exporter


def _proved(
    exporter: Exporter, config: SteeringConfig, model: LoadedModel, written: Exported
) -> Exported:
    reference, tolerance = config.reference, TOLERANCES[config.model.dtype]
    with exporter.loaded_back(config, model, written.path) as next_log_probs:
        found = next_log_probs(reference.input_ids)[reference.token_ids]
    gap = float((found - torch.tensor(reference.log_probs)).abs().max())
    if gap > tolerance:
        if written.path.is_dir():
            shutil.rmtree(written.path)
        else:
            written.path.unlink()
        raise VerificationFailed(
            f"the {exporter.name} export must reproduce the reference log-probabilities within "
            f"{tolerance:g}, but is off by {gap:.2g}; nothing was kept. Does `calibrate verify` "
            "pass with this model?"
        )
    return replace(written, gap=gap, tolerance=tolerance)
