"""Two concepts steered together: the site that mixes their vectors."""

from __future__ import annotations

from dataclasses import replace

from calibrate.common.errors import InputError
from calibrate.common.settings import Settings
from calibrate.engine.site import Site, SteeringVector
from calibrate.engine.unsteered import UnsteeredRun
from calibrate.laws.log_odds import measure_log_odds
from calibrate.models.model import LoadedModel
from calibrate.search.budget import spending_strength


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
    run: of the search corpus. beside_at_budget: α_B of the other alone, which passes corrected.
    Returns: the site, and the other's strength per unit of its strength.
    Raises: Infeasible if no strength of the concept alone spends the budget.
    Warns with CalibrateWarning if no pass comes near to the budget.
    """
    budget, sign = settings.ce_budget, settings.sign
    law = measure_log_odds(loaded, run.first, site, ()).law(sign)
    alone, _ = spending_strength(loaded, run, site, law, budget, sign)
    weight = mix / (1 - mix) * beside_at_budget / alone
    return mixed(site, 1.0, beside, weight), weight
