"""Build the config of a calibration that began with an earlier one."""

from __future__ import annotations

from collections.abc import Mapping

from calibrate.artefact.assemble import build_config, build_evidence, carry_laws
from calibrate.artefact.config import SteeringConfig
from calibrate.artefact.evidence import Evidence
from calibrate.artefact.law_sections import PresenceLawSection
from calibrate.artefact.sections import StartSection
from calibrate.common.cost import Ledger
from calibrate.judging.panel import Panel
from calibrate.laws.pilot import Pilot
from calibrate.laws.presence import judge_presence
from calibrate.models.model import LoadedModel
from calibrate.search.affordable import Bought
from calibrate.search.verification import Verified
from calibrate.texts.concept import Concept, Texts
from calibrate.texts.guard import Guard
from calibrate.texts.replies import UnsteeredReplies


def started(
    start: SteeringConfig,
    loaded: LoadedModel,
    concept: Concept,
    bought: Bought,
    panel: Panel,
    splits: Mapping[str, Texts],
    replies: UnsteeredReplies,
    guard: Guard | None,
    confirmed: bool,
    fingerprint: str,
    ledger: Ledger,
) -> tuple[SteeringConfig, Evidence]:
    """Return config and evidence of what was verified.

    confirmed: whether α_B may be what it was at the start. fingerprint: of this calibration.
    """
    pilot, verified = bought.pilot, bought.verified
    laws = carry_laws(pilot, _presence(start.laws.presence, verified))
    config = build_config(loaded, concept, bought, laws, panel, ledger.stages, fingerprint)
    began = StartSection(
        fingerprint=start.provenance.fingerprint,
        strength=start.intervention.strength,
        strength_at_budget=start.range.strength_at_budget,
        confirmed=confirmed,
    )
    provenance = config.provenance.model_copy(update={"start": began})
    config = config.model_copy(update={"provenance": provenance})
    pilots: dict[str, Pilot] = {pilot.site.name: pilot}
    return config, build_evidence((), pilots, (), verified, splits, replies, guard)


def _presence(law: PresenceLawSection, verified: Verified) -> PresenceLawSection:
    """The law as it was, judged by what is measured now."""
    strength, measured = verified.budget.strength, verified.presence.estimate
    predicted = float(law.law.predict(strength))
    goodness = judge_presence(strength, predicted, measured.value, measured.standard_error)
    return law.model_copy(update={"goodness": goodness})
