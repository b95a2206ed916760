"""Put the results of a calibration into its config and its evidence."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from calibrate.concept import Concept, Texts
from calibrate.config import (
    VECTOR_FILE,
    VECTOR_KEY,
    BudgetSection,
    ConceptLawSection,
    ConceptSection,
    ControlsSection,
    CostSection,
    CrossEntropyLawSection,
    DeltaCESection,
    FluencySection,
    GoodnessSection,
    IntervalSection,
    InterventionSection,
    LawsSection,
    MeasuredSection,
    ModelSection,
    PresenceSection,
    ProvenanceSection,
    RangeSection,
    ReferenceSection,
    SteeringConfig,
    VectorSection,
    vector_file,
)
from calibrate.cost import Cost
from calibrate.evidence import (
    CompletionRecord,
    Evidence,
    PilotRecord,
    SplitRecord,
    TestedRecord,
)
from calibrate.pilot import Pilot
from calibrate.replies import VERIFY_COMPLETIONS, UnsteeredReplies
from calibrate.settings import Settings
from calibrate.study import StudyResult
from calibrate.verify import Verified

if TYPE_CHECKING:
    from calibrate.estimate import RatioEstimate
    from calibrate.model import LoadedModel

VERSIONED = ("steering-calibrate", "torch", "transformers", "optuna", "scikit-learn", "numpy")
DOUBLED_ODDS = 2.0  # the sweet spot begins where the concept's tokens have twice their odds


def build_config(
    loaded: LoadedModel,
    concept: Concept,
    pilot: Pilot,
    verified: Verified,
    settings: Settings,
    cost: Mapping[str, Cost],
    fingerprint: str,
) -> SteeringConfig:
    """Return the config of a verified strength, carrying its vector."""
    vector, strength = pilot.vector, verified.budget.strength
    file = vector_file(vector.values.numpy())
    config = SteeringConfig(
        model=ModelSection(**asdict(loaded.identity)),
        concept=ConceptSection(
            name=concept.name,
            goal=settings.goal,
            n_positive=len(concept.texts.positives),
            n_negative=len(concept.texts.negatives),
            negatives=settings.negatives,
            data_sha256=concept.data_sha256,
        ),
        vector=VectorSection(
            file=VECTOR_FILE,
            key=VECTOR_KEY,
            norm=vector.norm,
            sha256=hashlib.sha256(file).hexdigest(),
        ),
        intervention=InterventionSection(
            layer=vector.layer,
            positions=settings.positions,
            strength=strength,
            relative_strength=vector.relative(strength),
        ),
        budget=BudgetSection(limit=settings.ce_budget, confidence=settings.confidence),
        measured=_measured(verified, settings),
        laws=LawsSection(
            cross_entropy=_law_section(pilot), concept=ConceptLawSection(**asdict(pilot.concept))
        ),
        range=RangeSection(
            strength_at_budget=IntervalSection(**asdict(pilot.strength_at_budget)),
            sweet_spot=_sweet_spot(pilot),
        ),
        reference=ReferenceSection(**{k: list(v) for k, v in asdict(verified.reference).items()}),
        cost={stage: CostSection(**asdict(spent)) for stage, spent in cost.items()},
        provenance=ProvenanceSection(
            versions=_versions(),
            seed=settings.seed,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            fingerprint=fingerprint,
            settings=asdict(settings),
        ),
    )
    return config.with_vector(file)


def build_evidence(
    pilots: Mapping[int, Pilot],
    found: StudyResult,
    verified: Verified,
    splits: Mapping[str, Texts],
    replies: UnsteeredReplies,
) -> Evidence:
    """Return every point behind the config."""
    return Evidence(
        pilots=[_pilot_record(pilot) for pilot in pilots.values()],
        trials=list(found.trials),
        tested=[
            TestedRecord(
                strength=rung.strength,
                delta_ce=rung.delta_ce.value,
                upper=rung.upper,
                within=rung.within,
            )
            for rung in verified.budget.tested
        ],
        completions=_completion_records(verified),
        splits=SplitRecord(
            texts={
                name: [text.text for text in (*part.positives, *part.negatives)]
                for name, part in splits.items()
            },
            prompts={
                name: [prompt.text for prompt in prompts]
                for name, prompts in replies.prompts.items()
            },
        ),
    )


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in VERSIONED}}


def _measured(verified: Verified, settings: Settings) -> MeasuredSection:
    confidence = settings.confidence
    rise = verified.budget.delta_ce
    presence, baseline = verified.presence.estimate, verified.baseline.estimate
    return MeasuredSection(
        delta_ce=DeltaCESection(
            **_interval(rise, confidence),
            upper=rise.upper(confidence),
            corpus=verified.corpus_kind,
            n_sequences=len(rise.counts),
            n_tokens=int(rise.counts.sum()),
        ),
        presence=PresenceSection(
            **_interval(presence, confidence),
            baseline=baseline.value,
            baseline_interval=baseline.interval(confidence),
            change=IntervalSection(**_interval(verified.change, confidence)),
            n_prompts=len(presence.counts),
            n_completions=int(presence.counts.sum()),
        ),
        controls=ControlsSection(
            random_vector=IntervalSection(**_interval(verified.random_vector, confidence)),
            prompt_only=IntervalSection(**_interval(verified.prompt_only, confidence)),
        ),
        fluency=FluencySection(
            log_prob=verified.fluency.log_prob,
            log_prob_baseline=verified.fluency_baseline.log_prob,
            distinct_2=verified.fluency.distinct_2,
            distinct_2_baseline=verified.fluency_baseline.distinct_2,
        ),
    )


def _interval(estimate: RatioEstimate, confidence: float) -> dict[str, Any]:
    low, high = estimate.interval(confidence)
    return {"value": estimate.value, "low": low, "high": high}


def _sweet_spot(pilot: Pilot) -> tuple[float, float]:
    """From the strength that doubles the concept's odds, at most half of α_B, to α_B."""
    at_budget = pilot.strength_at_budget.value
    doubled = abs(pilot.concept.strength_for(DOUBLED_ODDS))
    start = min(doubled, abs(at_budget) / 2)
    low, high = sorted((start if at_budget > 0 else -start, at_budget))
    return low, high


def _law_section(pilot: Pilot) -> CrossEntropyLawSection:
    goodness = pilot.goodness
    return CrossEntropyLawSection(
        **asdict(pilot.law),
        goodness=GoodnessSection(
            **asdict(goodness), relative_error=goodness.relative_error, good=goodness.good
        ),
    )


def _pilot_record(pilot: Pilot) -> PilotRecord:
    return PilotRecord(
        layer=pilot.vector.layer,
        law=_law_section(pilot),
        concept_gain=pilot.concept.gain,
        strength_at_budget=IntervalSection(**asdict(pilot.strength_at_budget)),
        relative_strength_at_budget=pilot.vector.relative(pilot.strength_at_budget.value),
        points=list(pilot.points),
    )


def _completion_records(verified: Verified) -> list[CompletionRecord]:
    """The first reply to each verify prompt, unsteered and steered."""
    rows = range(0, len(verified.presence.completions), VERIFY_COMPLETIONS)
    steered, unsteered = verified.presence, verified.baseline
    return [
        CompletionRecord(
            prompt=steered.completions[row].prompt,
            unsteered=unsteered.completions[row].text,
            steered=steered.completions[row].text,
            unsteered_presence=float(unsteered.scores[row]),
            steered_presence=float(steered.scores[row]),
        )
        for row in rows
    ]
