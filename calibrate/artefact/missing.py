"""What to say of a directory that holds no config: often a calibration that found no strength."""

from __future__ import annotations

from pathlib import Path

from calibrate.artefact.frontier import FRONTIER_FILE
from calibrate.common.layout import REPORT_FILE
from calibrate.common.marks import HEAD, names_us

NO_STRENGTH = b": infeasible</title>"  # in the head of such a calibration's report


def no_config(path: Path, error: Exception) -> str:
    """Why a config cannot be read, and the way out.

    path: of the config.
    """
    folder, rule = path.parent, f"{path.parent} must hold a {path.name}, "
    report = folder / REPORT_FILE
    if not (isinstance(error, FileNotFoundError) and _is_infeasible(report)):
        return f"{rule}but it cannot be read ({error}); name a directory that calibrate wrote"
    if (folder / FRONTIER_FILE).is_file():
        return (
            f"{rule}but its calibration found no strength; why, and what each budget buys all the "
            f"same, is in {report} and in {FRONTIER_FILE}"
        )
    return (
        f"{rule}but its calibration found no strength; {report} says why. To see what budgets buy "
        "all the same, calibrate again with several, as in --ce-budget 0.1,0.05,0.2"
    )


def _is_infeasible(report: Path) -> bool:
    """Whether a page is the report of a calibration that found no strength."""
    if not names_us(report):
        return False
    with report.open("rb") as opened:
        return NO_STRENGTH in opened.read(HEAD)
