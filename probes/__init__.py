"""Probes: how strongly a finished text expresses a concept, read by an unsteered model.

A probe is the thermometer to the calibrator's thermostat: it knows nothing of steering or of
how a strength is chosen, and lives on after a calibration as a monitor.

    probe = probes.load("joy/probe")
    probe.score(["What a wonderful morning!"], model)      # array of shape (1,), probabilities
"""

from probes.examples import Example, Kind, degenerate_examples
from probes.fit import fit_probe
from probes.judges import Judge, Reader
from probes.probe import Probe, ProbeQuality, load
from probes.quality import Quality

__all__ = [
    "Example",
    "Judge",
    "Kind",
    "Probe",
    "ProbeQuality",
    "Quality",
    "Reader",
    "degenerate_examples",
    "fit_probe",
    "load",
]
