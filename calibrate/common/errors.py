"""Every error this project raises, in one tree.

    CalibrateError
    ├── InputError            the caller can fix it              (exit status 2)
    │   ├── ModelError        a model that cannot be loaded or read
    │   ├── ConceptError      texts that cannot be used
    │   ├── ExportRefused     a format that cannot express a config
    │   ├── ArtefactError     a directory or config that cannot be read or written
    │   │   └── AlteredError  a file that is not the one its config was written with
    │   └── NumericalError    NaN or infinity in the activations
    ├── WrittenElsewhere      deprecated, never raised
    ├── Infeasible            no strength does what was asked    (exit status 3)
    └── VerificationFailed    the evidence does not hold         (exit status 4)

A message states the rule, the value that broke it, and the way out. The library raises;
only the command line turns an error into a message and an exit status.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

# What torch says of memory by a plain RuntimeError: its CPU allocator, Metal's, and cuBLAS.
SHORTAGES = (
    "allocate memory",
    "not enough memory",
    "out of memory",
    "Invalid buffer size",
    "ALLOC_FAILED",
)


class CalibrateError(Exception):
    """Base class of everything this project raises on purpose.

    >>> try:
    ...     calibrate.load("sadness/")
    ... except calibrate.CalibrateError as error:
    ...     print(error)
    sadness must hold a steering.json, but it cannot be read (...); name a directory that ...
    """


class CalibrateWarning(UserWarning):
    """Something was done in another way than expected; the message says what and why.

    >>> import warnings
    >>> warnings.filterwarnings("ignore", category=calibrate.CalibrateWarning)
    """


class InputError(CalibrateError):
    """Something the caller gave cannot be used; the message says what to change."""


class ModelError(InputError):
    """The model cannot be fetched, loaded, or its parts cannot be found."""


class ConceptError(InputError):
    """The texts of a concept, or the prompts, cannot be used."""


class ArtefactError(InputError):
    """A steering config or an output directory cannot be read or written."""


class AlteredError(ArtefactError):
    """A file beside a config is not the one the config was written with."""


class ExportRefused(InputError):
    """A format cannot express what the config says; the message says why, and what can."""


class NumericalError(InputError):
    """The model's activations are not finite at this precision or strength."""


class WrittenElsewhere(CalibrateError):
    """Deprecated: never raised, since each worker writes its own artefact.

    The name stays for those who catch it.
    """


class Infeasible(CalibrateError):
    """No strength meets the request; `reasons` says why, `advice` what could be tried.

    frontier: what the budgets buy all the same (`calibrate.artefact.frontier.Frontier`), where
    several were asked for and it was measured; else None.

    >>> try:
    ...     raise calibrate.Infeasible(["presence moves too little"], ["a larger --ce-budget"])
    ... except calibrate.Infeasible as infeasible:
    ...     print(infeasible, *infeasible.advice, sep="; try ")
    presence moves too little; try a larger --ce-budget
    """

    def __init__(
        self, reasons: Iterable[str], advice: Iterable[str] = (), frontier: Any = None
    ) -> None:
        self.reasons = tuple(reasons)
        self.advice = tuple(advice)
        self.frontier = frontier
        super().__init__("; ".join(self.reasons))


class VerificationFailed(CalibrateError):
    """A shipped config does not hold on the data it was verified on."""


def of_machine(error: BaseException) -> bool:
    """Whether it is the machine's memory, disk or network that fails, and not a program."""
    return isinstance(error, OSError) or ran_out_of_memory(error)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice: Python's own, or torch's, which is not imported to ask."""
    if any(kind.__name__ in ("MemoryError", "OutOfMemoryError") for kind in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in SHORTAGES)


def did_you_mean(value: str, choices: Iterable[str]) -> str:
    """Return `'; did you mean …?'` for the nearest choices, or an empty string."""
    near = difflib.get_close_matches(value, list(choices), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else ""
