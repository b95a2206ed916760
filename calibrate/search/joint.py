"""Two concepts steered together: their joint law, and the site that mixes their vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from calibrate.common.errors import Infeasible, InputError
from calibrate.common.settings import Settings
from calibrate.engine.site import Site, SteeringVector
from calibrate.engine.unsteered import UnsteeredRun
from calibrate.laws.joint import JointLaw, correlation_of
from calibrate.laws.log_odds import measure_log_odds
from calibrate.laws.pilot import Pilot
from calibrate.models.model import LoadedModel


def mixed(first: Site, a: float, second: Site, b: float) -> Site:
    """The site that adds a·v₁ and b·v₂, each at its own blocks, per unit strength.

    Raises: InputError if they steer other positions.
    """
    if first.positions != second.positions:
        raise InputError(
            f"two concepts steered together must steer the same positions, got {first.positions} "
            f"and {second.positions}; give --positions {second.positions}"
        )
    found: dict[int, SteeringVector] = {}
    for site, weight in ((first, a), (second, b)):
        for vector in site.vectors:
            scaled = replace(vector, values=weight * vector.values, noise=_scaled(vector, weight))
            earlier = found.get(vector.layer)
            found[vector.layer] = scaled if earlier is None else _sum(earlier, scaled)
    return Site(tuple(found[layer] for layer in sorted(found)), first.positions)


def joint_law(
    loaded: LoadedModel,
    run: UnsteeredRun,
    first: Pilot,
    second: Pilot,
    concept_tokens: Sequence[int] = (),
) -> JointLaw:
    """The law of both together: one derivative more, along their sum in units of their α_B.

    run: the first sequences, on which both pilots measured their log-odds.
    """
    a, b = first.strength_at_budget.value, second.strength_at_budget.value
    both = mixed(first.site, a, second.site, b)
    together = measure_log_odds(loaded, run, both, concept_tokens).law(1).curvature
    costs = a**2 * first.law.curvature, b**2 * second.law.curvature
    return JointLaw(
        first.law, second.law, correlation_of(*costs, together), _cosine(first.site, second.site)
    )


def _cosine(first: Site, second: Site) -> float:
    return float(torch.nn.functional.cosine_similarity(first.total, second.total, dim=0))


def _sum(one: SteeringVector, other: SteeringVector) -> SteeringVector:
    noise = None if one.noise is None or other.noise is None else one.noise + other.noise
    return replace(
        one,
        values=one.values + other.values,
        residual_norm=max(one.residual_norm, other.residual_norm),
        n_sinks=one.n_sinks + other.n_sinks,
        noise=noise,
    )


def _scaled(vector: SteeringVector, weight: float) -> float | None:
    return None if vector.noise is None else weight**2 * vector.noise


def mixed_with(
    loaded: LoadedModel,
    run: UnsteeredRun,
    site: Site,
    beside: Site,
    beside_at_budget: float,
    mix: float,
    settings: Settings,
) -> tuple[Site, float]:
    """A concept's site, with another's vectors at a fixed ratio of the strengths.

    In units of the strength that spends the budget alone, the other has the share `mix` of both.
    run: the first sequences of the search corpus. beside_at_budget: α_B of the other, alone.
    Returns: the site, and the other's strength per unit of its strength.
    Raises: Infeasible if no strength of the concept alone spends the budget.
    """
    law = measure_log_odds(loaded, run, site, ()).law(settings.sign)
    alone = law.invert(settings.ce_budget, settings.sign)
    if not math.isfinite(alone):
        raise Infeasible(
            [f"no strength at {site.name} spends the budget of {settings.ce_budget:g} nat"],
            ["ask for a smaller --ce-budget"],
        )
    weight = mix / (1 - mix) * beside_at_budget / alone
    return mixed(site, 1.0, beside, weight), weight
