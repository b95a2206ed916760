"""The HTML report: one self-contained page."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from functools import cache

from jinja2 import Environment, PackageLoader, Template

from calibrate.artefact.config import SteeringConfig
from calibrate.artefact.evidence import Evidence
from calibrate.artefact.frontier import Frontier
from calibrate.artefact.menu import menu
from calibrate.artefact.report.chart import Panel, chart
from calibrate.common.errors import Infeasible

SHOWN_COMPLETIONS = 12


def page(
    config: SteeringConfig,
    evidence: Evidence,
    pictures: Mapping[str, bytes],
    frontier: Frontier | None = None,
) -> str:
    """Return the report of a finished calibration, its pictures embedded."""
    return _template("page.html").render(
        config=config,
        evidence=evidence,
        completions=evidence.first_completions[:SHOWN_COMPLETIONS],
        pictures=_embedded(pictures),
        frontier=frontier,
        chart=_chart_of(frontier),
        menu=[] if frontier is not None else menu(config, evidence),
        seconds=sum(spent.seconds for spent in config.cost.values()),
        token_forwards=sum(spent.token_forwards for spent in config.cost.values()),
    )


def infeasible_page(
    model: str, concept: str, infeasible: Infeasible, pictures: Mapping[str, bytes]
) -> str:
    """Return the report of a calibration that found no strength, its pictures embedded."""
    return _template("infeasible.html").render(
        model=model,
        concept=concept,
        reasons=infeasible.reasons,
        advice=infeasible.advice,
        pictures=_embedded(pictures),
        frontier=infeasible.frontier,
        chart=_chart_of(infeasible.frontier),
    )


def _chart_of(frontier: Frontier | None) -> tuple[Panel, ...] | None:
    """The frontier's chart, if there is a point to draw."""
    return None if frontier is None or not frontier.points else chart(frontier)


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("calibrate.artefact.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _template(name: str) -> Template:
    return _environment().get_template(name)


def _embedded(pictures: Mapping[str, bytes]) -> dict[str, str]:
    """What the page's images hold, by name."""
    return {name: _data_url(image) for name, image in pictures.items() if name.endswith(".png")}


def _data_url(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode()
