"""Probes: how strongly a finished text expresses a concept, read by an unsteered model.

A probe is the thermometer to the calibrator's thermostat: it knows nothing of steering or of
how a strength is chosen, and lives on after a calibration as a monitor.

    probe = probes.load("joy/probe")
    probe.score(["What a wonderful morning!"], model)      # array of shape (1,), probabilities
"""

from probes.examples import Example
from probes.fit import fit_written_probe
from probes.graded import GradedText
from probes.judges import Judge, Reader
from probes.learn import learn_probe
from probes.probe import Learned, Probe, load
from probes.quality import Quality

__all__ = [
    "Example",
    "GradedText",
    "Judge",
    "Learned",
    "Probe",
    "Quality",
    "Reader",
    "fit_written_probe",
    "learn_probe",
    "load",
]
