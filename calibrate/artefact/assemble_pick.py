"""Build the config of another budget at the same site."""

from __future__ import annotations

from datetime import datetime, timezone

from calibrate.artefact.assemble import completion_records, cost_section
from calibrate.artefact.config import SteeringConfig
from calibrate.artefact.evidence import Evidence
from calibrate.artefact.measured import measured_section
from calibrate.artefact.sections import RangeSection, sweet_spot
from calibrate.common.cost import Ledger
from calibrate.common.settings import Settings
from calibrate.judging.panel import Panel
from calibrate.search.fingerprint import fingerprint_picked
from calibrate.search.verification import Verified


def picked(
    config: SteeringConfig,
    evidence: Evidence,
    verified: Verified,
    panel: Panel,
    at_budget: float,
    settings: Settings,
    ledger: Ledger,
) -> tuple[SteeringConfig, Evidence]:
    """Return a config of the same site at another verified strength, and its evidence.

    at_budget: the strength that spends the budget on the search corpus; the law of ΔCE goes through
        it.
    """
    law = config.laws.cross_entropy.through(at_budget, settings.ce_budget)
    learned = None if panel.probe is None else panel.probe.learned
    strength, provenance = verified.budget.strength, config.provenance
    changed = {
        "intervention": config.intervention.model_copy(
            update={
                "strength": strength,
                "relative_strength": config.site.relative(strength),
            }
        ),
        "budget": config.budget.model_copy(update={"limit": settings.ce_budget}),
        "measured": measured_section(verified, panel.names, learned, settings),
        "laws": config.laws.model_copy(update={"cross_entropy": law}),
        "range": RangeSection(
            strength_at_budget=config.range.strength_at_budget.scaled_to(at_budget),
            sweet_spot=sweet_spot(
                min(map(abs, config.range.sweet_spot)), at_budget, config.laws.tokens.mass_peak
            ),
        ),
        "reference": verified.reference,
        "cost": {
            stage: cost_section(spent, config.model.num_layers)
            for stage, spent in ledger.stages.items()
        },
        "provenance": provenance.model_copy(
            update={
                "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "fingerprint": fingerprint_picked(provenance.fingerprint, settings.ce_budget),
                "settings": {**provenance.settings, "ce_budget": settings.ce_budget},
            }
        ),
    }
    tested = {"tested": list(verified.budget.tested), "completions": completion_records(verified)}
    after = config.model_copy(update=changed).with_vector(config.files()[config.vector.file])
    return after, evidence.model_copy(update=tested)
