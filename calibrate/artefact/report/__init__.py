"""What people look at: pictures, an HTML page, and the summary in the terminal.

Matplotlib and Jinja are imported only when something is drawn; the summary needs neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from calibrate.common.layout import REPORT_FILE

if TYPE_CHECKING:
    from calibrate.artefact.config import SteeringConfig
    from calibrate.artefact.evidence import Evidence
    from calibrate.artefact.frontier import Frontier
    from calibrate.common.errors import Infeasible


def render(
    config: SteeringConfig, evidence: Evidence, frontier: Frontier | None = None
) -> dict[str, bytes]:
    """Return the report's files by name: `report.html` and the pictures it shows."""
    from calibrate.artefact.report.frontier_pictures import frontier_pictures
    from calibrate.artefact.report.page import page
    from calibrate.artefact.report.pictures import pictures

    drawn = pictures(config, evidence)
    if frontier is not None:
        drawn |= frontier_pictures(frontier)
    return {REPORT_FILE: page(config, evidence, drawn, frontier).encode(), **drawn}


def render_infeasible(model: str, concept: str, infeasible: Infeasible) -> dict[str, bytes]:
    """Return the report of a calibration that found no strength, and the pictures it shows."""
    from calibrate.artefact.report.frontier_pictures import frontier_pictures
    from calibrate.artefact.report.page import infeasible_page

    drawn = {} if infeasible.frontier is None else frontier_pictures(infeasible.frontier)
    return {REPORT_FILE: infeasible_page(model, concept, infeasible, drawn).encode(), **drawn}
