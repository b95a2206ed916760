"""Build the config and the evidence from the results of a calibration."""

from __future__ import annotations

import hashlib
import platform
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple
from datetime import datetime, timezone
from importlib.metadata import version
from itertools import count

import numpy as np

from calibrate.artefact.config import VECTOR_FILE, SteeringConfig, vector_file
from calibrate.artefact.evidence import CompletionRecord, Evidence, PilotRecord, SplitRecord
from calibrate.artefact.law_sections import (
    ConceptLawSection,
    CrossEntropyLawSection,
    LawsSection,
    PresenceLawSection,
    TokenLawSection,
)
from calibrate.artefact.measured import measured_section
from calibrate.artefact.sections import (
    BudgetSection,
    ConceptSection,
    CostSection,
    InterventionSection,
    ProvenanceSection,
    RangeSection,
    RenderingSection,
    SteeredBlockSection,
    VectorSection,
    sweet_spot,
)
from calibrate.common.cost import Cost
from calibrate.common.estimate import RatioEstimate
from calibrate.common.record import BlockRank
from calibrate.common.settings import Settings
from calibrate.common.trial import Trial
from calibrate.engine.site import Site
from calibrate.judging.panel import Panel
from calibrate.laws.formulas import GOOD_RISE, Goodness, judge_rise
from calibrate.laws.pilot import Pilot
from calibrate.laws.presence import judge_presence
from calibrate.models.model import LoadedModel
from calibrate.search.affordable import Bought
from calibrate.search.study import StudyResult
from calibrate.search.trials import laws_hold, presence_law
from calibrate.search.verification import Verified
from calibrate.texts.concept import Concept, Texts
from calibrate.texts.guard import BUILT_IN, Guard
from calibrate.texts.replies import UnsteeredReplies

VERSIONED = ("steering-calibrate", "torch", "transformers", "optuna", "scikit-learn", "numpy")
DOUBLED_ODDS = 2.0  # of the concept's tokens, where the sweet spot begins


def build_config(
    loaded: LoadedModel,
    concept: Concept,
    bought: Bought,
    laws: LawsSection,
    panel: Panel,
    cost: Mapping[str, Cost],
    fingerprint: str,
) -> SteeringConfig:
    """Return the config of a verified strength, carrying its vector."""
    verified, pilot, settings = bought.verified, bought.pilot, bought.settings
    learned = None if panel.probe is None else panel.probe.learned
    file, keys = vector_file({one.layer: one.values.numpy() for one in pilot.site.vectors})
    config = SteeringConfig(
        model=loaded.identity,
        rendering=_rendering_section(loaded) if loaded.is_chat else None,
        concept=_concept_section(concept, settings),
        vector=VectorSection(
            file=VECTOR_FILE,
            key=keys[pilot.site.first],
            norm=pilot.site.norm,
            sha256=hashlib.sha256(file).hexdigest(),
            signal=pilot.site.signal,
        ),
        intervention=_intervention_section(pilot, verified.budget.strength),
        interventions=_steered_blocks(pilot.site, keys),
        budget=BudgetSection(limit=settings.ce_budget, confidence=settings.confidence),
        measured=measured_section(verified, panel.names, learned, settings),
        laws=laws,
        range=RangeSection(
            strength_at_budget=pilot.strength_at_budget, sweet_spot=_sweet_spot(pilot)
        ),
        reference=verified.reference,
        capabilities=loaded.capabilities.report(),
        cost={stage: cost_section(spent, loaded.num_layers) for stage, spent in cost.items()},
        provenance=_provenance_section(settings, fingerprint),
    )
    return config.with_vector(file)


def build_laws(
    pilots: Mapping[str, Pilot],
    studied: StudyResult,
    baseline: RatioEstimate,
    bought: Bought,
) -> LawsSection:
    """Return the steered block's laws, each judged on points it was not fitted to.

    baseline: unsteered presence on the search prompts. bought: its pilot's laws go through the
    budget that was bought.
    """
    presence = _presence_section(studied, baseline, bought.verified, bought.settings)
    laws = carry_laws(bought.pilot, presence, studied.trials)
    return laws.model_copy(update={"relied_on": laws_hold(pilots)})


def carry_laws(
    pilot: Pilot, presence: PresenceLawSection, trials: Sequence[Trial] = ()
) -> LawsSection:
    """Return the laws of a pilot, beside a law of presence."""
    return LawsSection(
        cross_entropy=_law_section(pilot, _rise_goodness(pilot, trials)),
        concept=ConceptLawSection(
            **vars(pilot.mass_law), errors=pilot.mass_errors, goodness=pilot.mass_goodness
        ),
        presence=presence,
        tokens=TokenLawSection(saturation=pilot.tokens.saturation, mass_peak=pilot.mass_peak),
        relied_on=laws_hold({pilot.site.name: pilot}),
    )


def build_evidence(
    ranks: Sequence[BlockRank],
    pilots: Mapping[str, Pilot],
    trials: Sequence[Trial],
    verified: Verified,
    splits: Mapping[str, Texts],
    replies: UnsteeredReplies,
    guard: Guard | None,
) -> Evidence:
    """Return every measurement behind the config."""
    return Evidence(
        ranks=list(ranks),
        pilots=[_pilot_record(pilot) for pilot in pilots.values()],
        trials=list(trials),
        tested=list(verified.budget.tested),
        completions=completion_records(verified),
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
        guard=() if guard is None or guard.name == BUILT_IN else guard.items,
    )


def _concept_section(concept: Concept, settings: Settings) -> ConceptSection:
    return ConceptSection(
        name=concept.name,
        goal=settings.goal,
        n_positive=len(concept.texts.positives),
        n_negative=len(concept.texts.negatives),
        negatives=settings.negatives,
        data_sha256=concept.data_sha256,
    )


def _intervention_section(pilot: Pilot, strength: float) -> InterventionSection:
    return InterventionSection(
        layer=pilot.site.first,
        positions=pilot.site.positions,
        strength=strength,
        relative_strength=pilot.site.relative(strength),
    )


def _steered_blocks(site: Site, keys: Mapping[int, str]) -> list[SteeredBlockSection]:
    return [
        SteeredBlockSection(
            layer=vector.layer,
            key=keys[vector.layer],
            norm=vector.norm,
            residual_norm=vector.residual_norm,
            signal=vector.signal,
        )
        for vector in site.vectors
    ]


def _provenance_section(settings: Settings, fingerprint: str) -> ProvenanceSection:
    versions = {name: version(name) for name in VERSIONED}
    return ProvenanceSection(
        versions={"python": platform.python_version(), **versions},
        seed=settings.seed,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        fingerprint=fingerprint,
        settings=asdict(settings),
    )


def _rendering_section(loaded: LoadedModel) -> RenderingSection:
    facts = asdict(loaded.rendering)
    return RenderingSection(strips_end=any(facts.pop("trailing")), **facts)


def _sweet_spot(pilot: Pilot) -> tuple[float, float]:
    """From where the concept's tokens have doubled odds, or halved ones, steered away from it."""
    at_budget = pilot.strength_at_budget.value
    start = pilot.mass_law.invert(np.sign(at_budget) * np.log(DOUBLED_ODDS))
    return sweet_spot(abs(start), at_budget, pilot.mass_peak)


def cost_section(spent: Cost, num_layers: int) -> CostSection:
    """What a stage spent, as the config has it."""
    blocks = spent.token_forwards * num_layers
    return CostSection(**vars(spent), token_block_forwards=blocks)


def _law_section(pilot: Pilot, goodness: Goodness) -> CrossEntropyLawSection:
    return CrossEntropyLawSection(**vars(pilot.law), errors=pilot.errors, goodness=goodness)


def _rise_goodness(pilot: Pilot, trials: Sequence[Trial]) -> Goodness:
    """Judge the law of ΔCE on the pilot's test points and the trials at its site.

    Trials whose standard error exceeds a fifth of the law's tolerance are left out.
    """
    points = list(pilot.rise_goodness.points)
    points += [
        (trial.strength, float(pilot.law.predict(trial.strength)), trial.delta_ce)
        for trial in trials
        if trial.site == pilot.site.name
        and trial.delta_ce_error <= 0.2 * GOOD_RISE * abs(trial.delta_ce)
    ]
    return judge_rise(*zip(*points, strict=True))


def _presence_section(
    studied: StudyResult, baseline: RatioEstimate, verified: Verified, settings: Settings
) -> PresenceLawSection:
    """Fit presence to the study's trials at the site; judge the law at the verified strength."""
    fit = presence_law(studied.best.site, studied.trials, baseline, settings.goal)
    strength, measured = verified.budget.strength, verified.presence.estimate
    error = float(np.hypot(fit.standard_error(strength), measured.standard_error))
    predicted = float(fit.law.predict(strength))
    return PresenceLawSection(
        **vars(fit.law),
        log_odds_error=fit.log_odds_error,
        gain_error=fit.gain_error,
        fall=fit.fall,
        covariance=fit.covariance.tolist(),
        goodness=judge_presence(strength, predicted, measured.value, error),
    )


def _pilot_record(pilot: Pilot) -> PilotRecord:
    return PilotRecord(
        site=pilot.site.name,
        layer=pilot.site.first,
        law=_law_section(pilot, pilot.rise_goodness),
        concept_gain=pilot.mass_law.gain,
        strength_at_budget=pilot.strength_at_budget,
        relative_strength_at_budget=pilot.site.relative(pilot.strength_at_budget.value),
        points=[astuple(point) for point in pilot.points],
    )


def completion_records(verified: Verified) -> list[CompletionRecord]:
    """Every final reply, unsteered and steered side by side."""
    steered, unsteered = verified.presence, verified.baseline
    numbers = defaultdict[str, Iterator[int]](count)
    return [
        CompletionRecord(
            prompt=after.prompt,
            unsteered=before.text,
            steered=after.text,
            unsteered_presence=float(unsteered.scores[row]),
            steered_presence=float(steered.scores[row]),
            reply=next(numbers[after.prompt]),
        )
        for row, (before, after) in enumerate(
            zip(unsteered.completions, steered.completions, strict=True)
        )
    ]
