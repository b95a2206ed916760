"""What a calibration went through: every point behind its answer, for reports and for reading."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from calibrate.errors import ArtefactError
from calibrate.schema import CrossEntropyLawSection, IntervalSection, Section

EVIDENCE_FILE = "evidence.json"


@dataclass(frozen=True)
class Trial:
    """One strength the study tried.

    share: of the block's α_B. delta_ce: nats per token on the search corpus.
    presence: on the search prompts, or None if the trial was pruned for its ΔCE. fluency_drop:
    nats per token, if it was limited.
    """

    number: int
    layer: int
    share: float
    strength: float
    delta_ce: float
    presence: float | None
    fluency_drop: float | None = None


class PilotRecord(Section):
    """The pilot of one candidate block; points are (strength, ΔCE, mass of concept tokens)."""

    layer: int
    law: CrossEntropyLawSection
    concept_gain: float
    strength_at_budget: IntervalSection
    relative_strength_at_budget: float
    points: list[tuple[float, float, float]]


class TestedRecord(Section):
    """One strength tested on held-out text: its ΔCE, the upper bound, and whether it held."""

    strength: float
    delta_ce: float
    upper: float
    within: bool


class CompletionRecord(Section):
    """One verify prompt with an unsteered and a steered reply, and the presence in each."""

    prompt: str
    unsteered: str
    steered: str
    unsteered_presence: float
    steered_presence: float


class SplitRecord(Section):
    """Which texts and prompts were used for what; the splits are disjoint."""

    texts: dict[str, list[str]]
    prompts: dict[str, list[str]]


class Evidence(Section):
    """Pilots, trials, tested strengths, completions and splits of one calibration."""

    pilots: list[PilotRecord]
    trials: list[Trial]
    tested: list[TestedRecord]
    completions: list[CompletionRecord]
    splits: SplitRecord

    def to_bytes(self) -> bytes:
        """Return the contents of `evidence.json`."""
        return f"{self.model_dump_json(indent=1)}\n".encode()

    @classmethod
    def load(cls, directory: Path) -> Evidence:
        """Read `evidence.json` in a directory.

        Raises: ArtefactError if it is missing or damaged.
        """
        path = directory / EVIDENCE_FILE
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise ArtefactError(f"{path} cannot be read: {error}") from error
