"""What is left of a calibration that found no strength: a report, and what its budgets buy.

Judges, replies and the law of ΔCE are at hand then, and nowhere else: there is no config from which
they could be made again. So the frontier is measured on the spot where several budgets were asked
for, beside the ways to the concept that need no steering. None of its points ships.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from calibrate.artefact import report
from calibrate.artefact.advice import advice
from calibrate.artefact.assemble_frontier import UNDECIDED
from calibrate.artefact.directory import FRONTIER_FILES, wrote
from calibrate.artefact.frontier import FRONTIER_FILE, Frontier
from calibrate.common.cost import Ledger
from calibrate.common.errors import CalibrateWarning, Infeasible, InputError
from calibrate.common.files import remove_ours, write_together
from calibrate.common.layout import REPORT_FILE
from calibrate.common.progress import Progress
from calibrate.common.settings import Settings
from calibrate.deploy.frontier import measure_at
from calibrate.laws.formulas import CrossEntropyLaw
from calibrate.models.model import LoadedModel
from calibrate.search.frontier import Bench
from calibrate.texts.concept import Concept

NO_ROOM = "the limits leave no room; raise --max-tokens or --max-minutes"
NOT_VERIFIED = "not verified"


@contextmanager
def report_if_infeasible(
    directory: Path | None, loaded: LoadedModel, concept: Concept
) -> Iterator[None]:
    """Leave a report of an infeasible calibration, and its frontier, where its config would be."""
    try:
        yield
    except Infeasible as infeasible:
        if directory is not None:
            files = report.render_infeasible(loaded.name, concept.name, infeasible)
            if infeasible.frontier is not None:
                files[FRONTIER_FILE] = infeasible.frontier.to_bytes()
            write_together(directory, files, last=REPORT_FILE, ours=wrote)
            if infeasible.frontier is None:
                remove_ours(directory, FRONTIER_FILES, wrote)
        raise


@contextmanager
def frontier_if_infeasible(
    bench: Bench,
    law: CrossEntropyLaw,
    budgets: Sequence[float],
    fingerprint: str,
    directory: Path | None,
    progress: Progress,
    affords: Callable[[int], bool],
) -> Iterator[None]:
    """Where no strength was found, have the error carry what the budgets buy.

    law: of ΔCE at the bench's site. budgets: all that were asked for; for a single one nothing
        is measured, but the advice says how to. fingerprint: of the calibration. directory: where
        an earlier run may have left its frontier. affords: whether the limits leave room for so
        many verifications, each of which takes about what a budget does.
    Warns with CalibrateWarning of budgets that are not measured.
    """
    try:
        yield
    except Infeasible as infeasible:
        found, hint = None, []
        wanted = budgets if len(budgets) > 1 else ()
        try:
            found = _measured(bench, law, wanted, fingerprint, directory, progress, affords)
        except InputError as error:
            warn_unmeasured(budgets, str(error))
        if found is None and not wanted:
            hint = [_how_to_see(budgets[0])]
        raise Infeasible(infeasible.reasons, [*infeasible.advice, *hint], found) from infeasible


def warn_unmeasured(budgets: Sequence[float], reason: str) -> None:
    """Warn with CalibrateWarning that it is not known what these budgets buy."""
    shown = ", ".join(f"{budget:g}" for budget in budgets)
    warnings.warn(
        f"what {shown} nat buys is not measured: {reason}", CalibrateWarning, stacklevel=3
    )


def _measured(
    bench: Bench,
    law: CrossEntropyLaw,
    budgets: Sequence[float],
    fingerprint: str,
    directory: Path | None,
    progress: Progress,
    affords: Callable[[int], bool],
) -> Frontier | None:
    """What the budgets buy, as far as the limits allow, added to what is known of them already."""
    earlier = None if directory is None else Frontier.load(directory, fingerprint)
    missing = sorted({*budgets} - {*(earlier.tried if earlier else ())})
    room = sum(affords(n + 1) for n in range(1, len(missing) + 1))  # one more for the rivals
    if beyond := missing[room:]:
        warn_unmeasured(beyond, NO_ROOM)
    if room == 0:
        return earlier
    ledger = Ledger(bench.loaded.meter, progress)
    own = bench.settings.ce_budget
    made = measure_at(bench, law, missing[:room], own, ledger, fingerprint, earlier)
    return _without_shipping(made, bench.settings)


def _without_shipping(made: Frontier, settings: Settings) -> Frontier:
    """The frontier, none of whose points ships: what they do not rule out was not verified."""
    points = [
        point.model_copy(update={"ships": False, "why_not": NOT_VERIFIED})
        if point.ships or point.why_not == UNDECIDED
        else point
        for point in made.points
    ]
    told = made.model_copy(update={"points": points})
    return told.model_copy(update={"advice": advice(told, settings)})


def _how_to_see(budget: float) -> str:
    several = ",".join(f"{share * budget:g}" for share in (1, 0.5, 2))
    return (
        "see what other budgets buy here, and whether asking in words brings more, with "
        f"--ce-budget {several}"
    )
