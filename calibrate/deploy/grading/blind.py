"""Which of the final replies people read, and in what order: nothing shows which are steered.

For each prompt of a random sample of the verify prompts, people read the plain and the steered
reply, which were drawn with the same noise. The sample comes in rounds of a few prompts, and the
replies are shuffled within a round, so that whoever stops early has still read pairs.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from calibrate.artefact.config import SteeringConfig
from calibrate.artefact.config import load as load_config
from calibrate.artefact.evidence import CompletionRecord, Evidence
from calibrate.common.errors import ArtefactError, InputError

ROUND = 5  # prompts whose replies are shuffled together
FEWEST = 5  # prompts with both replies graded from which anything is inferred


@dataclass(frozen=True)
class BlindReply:
    """One reply to read. id: what names it, which does not show whether it is steered."""

    id: str
    prompt: str
    text: str


@dataclass(frozen=True)
class Pair:
    """The plain and the steered reply of one prompt, and what the judge read in them.

    scores: (plain, steered), probabilities. means: the same over all replies of the prompt that
    may be drawn.
    """

    plain: BlindReply
    steered: BlindReply
    scores: tuple[float, float]
    means: tuple[float, float]

    @property
    def replies(self) -> tuple[BlindReply, BlindReply]:
        """Both replies, the plain one first."""
        return self.plain, self.steered


@dataclass(frozen=True)
class ReadingRoom:
    """A calibration and all that may be read of it.

    pairs: one of each prompt, in the random order in which prompts join the sample.
    """

    directory: Path
    config: SteeringConfig
    evidence: Evidence
    pairs: tuple[Pair, ...]

    @classmethod
    def open(cls, directory: Path) -> ReadingRoom:
        """Open a calibration's directory.

        Raises: ArtefactError if it holds none, or one written before all replies were kept.
        """
        config, evidence = load_config(directory), Evidence.load(directory)
        _require_all_replies(directory, config, evidence)
        pairs = _pairs(directory, evidence, config.provenance.seed)
        return cls(directory, config, evidence, pairs)

    def sample(self, n_replies: int, grader: str) -> list[BlindReply]:
        """Return replies in the order in which one grader reads them.

        Raises: InputError if there are not as many, or they make no pairs.
        """
        most = 2 * len(self.pairs)
        if n_replies % 2 or not 2 * FEWEST <= n_replies <= most:
            raise InputError(
                f"--replies must be even, at least {2 * FEWEST} and at most {most} here, a plain "
                f"and a steered reply to each prompt, got {n_replies}"
            )
        rng = random.Random(f"{self.config.provenance.seed} {grader}")
        chosen: list[BlindReply] = []
        for start in range(0, n_replies // 2, ROUND):
            pairs = self.pairs[start : min(start + ROUND, n_replies // 2)]
            dealt = [reply for pair in pairs for reply in pair.replies]
            rng.shuffle(dealt)
            chosen += dealt
        return chosen


def _require_all_replies(directory: Path, config: SteeringConfig, evidence: Evidence) -> None:
    """Raise ArtefactError if there were more replies to each prompt than are kept."""
    drawn = config.measured.presence.n_replies
    if drawn > 1 and not any(record.reply for record in evidence.completions):
        raise ArtefactError(
            f"{directory} keeps one of the {drawn} replies to each prompt, as earlier releases "
            "did, and grades need them all; run the same calibration again into a new --out"
        )


def _pairs(directory: Path, evidence: Evidence, seed: int) -> tuple[Pair, ...]:
    """One pair of replies of each prompt that has any in which neither is empty."""
    by_prompt: dict[str, list[CompletionRecord]] = {}
    for record in evidence.completions:
        if record.unsteered.strip() and record.steered.strip():
            by_prompt.setdefault(record.prompt, []).append(record)
    if len(by_prompt) < FEWEST:
        raise ArtefactError(
            f"{directory} must have {FEWEST} prompts or more with a plain and a steered reply that "
            f"are not empty, got {len(by_prompt)}; calibrate again with more --prompts"
        )
    rng = random.Random(seed)
    prompts = list(by_prompt.values())
    rng.shuffle(prompts)
    return tuple(_pair(rng.choice(records), records) for records in prompts)


def _pair(drawn: CompletionRecord, records: Sequence[CompletionRecord]) -> Pair:
    return Pair(
        plain=_blind(drawn, drawn.unsteered, "plain"),
        steered=_blind(drawn, drawn.steered, "steered"),
        scores=(drawn.unsteered_presence, drawn.steered_presence),
        means=(
            sum(record.unsteered_presence for record in records) / len(records),
            sum(record.steered_presence for record in records) / len(records),
        ),
    )


def _blind(record: CompletionRecord, text: str, which: str) -> BlindReply:
    named = json.dumps([record.prompt, record.reply, which, text]).encode()
    return BlindReply(hashlib.sha256(named).hexdigest()[:12], record.prompt, text)
