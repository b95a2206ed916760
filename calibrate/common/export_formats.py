"""The export formats by name, and where each is written; read by --help, which imports no torch."""

from __future__ import annotations

from collections.abc import Mapping

FORMATS: Mapping[str, tuple[str, str]] = {
    "gguf": ("control_vector", "ControlVector"),
    "peft": ("adapter", "Adapter"),
    "folded": ("folded", "Folded"),
    "easysteer": ("easysteer", "EasySteer"),
    "lm-eval": ("lm_eval", "LmEval"),
    "svec": ("svec", "Svec"),
    "snippet": ("snippet", "Snippet"),
}
