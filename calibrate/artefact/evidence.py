"""Every measurement behind a calibration's config: for its report, and for later analysis."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from calibrate.artefact.hub import local_directory
from calibrate.artefact.law_sections import CrossEntropyLawSection
from calibrate.common.errors import ArtefactError
from calibrate.common.estimate import Interval
from calibrate.common.record import BlockRank, Section, TestedStrength
from calibrate.common.trial import Trial
from calibrate.texts.guard import GuardItem

EVIDENCE_FILE = "evidence.json"
NEEDED = ("search", "verify")  # prompts that are replied to again


class PilotRecord(Section):
    """The pilot of one site; points are (strength, ΔCE, mass of concept tokens)."""

    site: str
    layer: int
    law: CrossEntropyLawSection
    concept_gain: float
    strength_at_budget: Interval
    relative_strength_at_budget: float
    points: list[tuple[float, float, float]]


class CompletionRecord(Section):
    """One verify prompt with an unsteered and a steered reply, and the presence in each.

    An empty reply has presence 0 and is left out of every mean. reply: number of the pair among
    the prompt's, from 0; both replies were sampled with the same noise.
    """

    prompt: str
    unsteered: str
    steered: str
    unsteered_presence: float
    steered_presence: float
    reply: int = 0


class SplitRecord(Section):
    """Which texts and prompts were used for what; the splits are disjoint."""

    texts: dict[str, list[str]]
    prompts: dict[str, list[str]]


class Evidence(Section):
    """The measurements of one calibration.

    ranks: of every block, best first; empty where the block was given. completions: all replies
    to each verify prompt; earlier releases kept only the first. guard: the questions, where they
    are not the built-in ones.
    """

    ranks: list[BlockRank]
    pilots: list[PilotRecord]
    trials: list[Trial]
    tested: list[TestedStrength]
    completions: list[CompletionRecord]
    splits: SplitRecord
    guard: tuple[GuardItem, ...] = ()

    @property
    def first_completions(self) -> list[CompletionRecord]:
        """The first reply to each verify prompt, unsteered and steered."""
        return [record for record in self.completions if record.reply == 0]

    def to_bytes(self) -> bytes:
        """Return the contents of `evidence.json`."""
        return f"{self.model_dump_json(indent=1)}\n".encode()

    @classmethod
    def load(cls, directory: str | Path) -> Evidence:
        """Read `evidence.json` in a directory, or in a repository of the Hub.

        Raises: ArtefactError if it is missing or damaged.
        """
        path = local_directory(directory) / EVIDENCE_FILE
        try:
            found = cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise ArtefactError(f"{path} cannot be read: {error}") from error
        if not all(found.splits.prompts.get(split) for split in NEEDED):
            raise ArtefactError(
                f"{path} is damaged: splits.prompts must list {' and '.join(NEEDED)} prompts, got "
                f"{', '.join(found.splits.prompts) or 'none'}; calibrate again"
            )
        return found
