"""Values in `steering.json` of the right type that no calibration writes, by the field's name."""

from __future__ import annotations

import math
from collections.abc import Sequence

from calibrate.artefact.beside_section import BesideSection
from calibrate.artefact.measured_sections import MeasuredSection
from calibrate.artefact.sections import (
    BudgetSection,
    ConceptSection,
    InterventionSection,
    SteeredBlockSection,
    VectorSection,
)
from calibrate.common.names import is_name
from calibrate.common.record import ModelIdentity, Reference


def wrong_names(
    model: ModelIdentity,
    concept: ConceptSection,
    measured: MeasuredSection,
    beside: BesideSection | None,
) -> dict[str, bool]:
    """By the fields with names, whether any is no name: they stand in code, commands and cards."""
    names = {
        "model.id": [model.id],
        "model.revision": [model.revision or ""],
        "model.architecture": [model.architecture],
        "concept.name": [concept.name],
        "measured.judges": measured.judges,
        "measured.audit": [measured.audit.judge] if measured.audit else [],
        "measured.guard": [measured.guard.name] if measured.guard else [],
        "beside": [beside.name, beside.judge] if beside else [],
    }
    return {field: not all(map(is_name, found)) for field, found in names.items()}


def wrong_intervention(intervention: InterventionSection, num_layers: int) -> dict[str, bool]:
    """By the intervention's fields, whether they are wrong for a model of so many blocks."""
    return {
        "intervention.layer": not 0 <= intervention.layer < num_layers,
        "intervention.strength": not math.isfinite(intervention.strength),
        "intervention.relative_strength": not _is_a_weight(intervention.relative_strength),
    }


def wrong_blocks(
    layers: Sequence[int], first: int, blocks: Sequence[SteeredBlockSection], num_layers: int
) -> dict[str, bool]:
    """By the steered blocks' fields, whether they are wrong for a model of so many blocks.

    layers: their numbers. first: the number that the intervention has. blocks: those listed.
    """
    return {
        "interventions": not _are_blocks(layers, num_layers) or layers[0] != first,
        "interventions.weight": not all(_is_a_weight(each.weight) for each in blocks),
        "interventions.norm": not all(0 < each.norm < math.inf for each in blocks),
        "interventions.residual_norm": not all(
            0 < each.residual_norm < math.inf for each in blocks
        ),
        "interventions.signal": not all(0 <= (each.signal or 0) <= 1 for each in blocks),
    }


def wrong_vector(vector: VectorSection, file: str) -> dict[str, bool]:
    """By the vector's fields, whether they are wrong; `file` is what it is always written to."""
    return {
        "vector.file": vector.file != file,
        "vector.norm": not 0 < vector.norm < math.inf,
        "vector.signal": not 0 <= (vector.signal or 0) <= 1,
    }


def wrong_budget(budget: BudgetSection) -> dict[str, bool]:
    """By the budget's fields, whether they are wrong."""
    return {
        "budget.limit": not 0 < budget.limit < math.inf,
        "budget.confidence": not 0.5 < budget.confidence < 1,
    }


def wrong_reference(reference: Reference) -> dict[str, bool]:
    """By the reference's fields, whether they are wrong: as many log-probabilities as tokens."""
    n_tokens = len(reference.token_ids)
    return {
        "reference.input_ids": not _are_ids(reference.input_ids),
        "reference.token_ids": not _are_ids(reference.token_ids),
        "reference.log_probs": not _are_finite(reference.log_probs, n_tokens),
        "reference.unsteered_log_probs": not _are_finite(reference.unsteered_log_probs, n_tokens),
    }


def _is_a_weight(value: float) -> bool:
    return value != 0 and math.isfinite(value)


def _are_blocks(layers: Sequence[int], num_layers: int) -> bool:
    """Whether they are blocks of the model, each once and in order."""
    in_order = bool(layers) and list(layers) == sorted({*layers})
    return in_order and layers[0] >= 0 and layers[-1] < num_layers


def _are_ids(ids: Sequence[int]) -> bool:
    return bool(ids) and min(ids) >= 0


def _are_finite(values: Sequence[float], n: int) -> bool:
    return len(values) == n and all(math.isfinite(value) for value in values)
