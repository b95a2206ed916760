"""More of a finished calibration: what other budgets buy, and another of them shipped.

Everything is made again from the artefact: the plain replies (usually kept), the judges, and the
law of ΔCE. A judge that cannot be made again is replaced by nobody: the frontier needs the reader.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from calibrate.artefact.assemble_frontier import (
    build_frontier,
    carried,
    known_before,
    shipped_section,
)
from calibrate.artefact.assemble_pick import picked
from calibrate.artefact.config import SteeringConfig
from calibrate.artefact.evidence import Evidence
from calibrate.artefact.frontier import Frontier, PointSection
from calibrate.common.cost import Ledger
from calibrate.common.errors import ArtefactError, CalibrateWarning, InputError
from calibrate.common.progress import SILENT, Progress
from calibrate.common.trial import PROPOSED_SHARE
from calibrate.deploy.checks import why_not_same
from calibrate.deploy.corpora import require_same_texts, same_corpus
from calibrate.deploy.trusted import reader_again
from calibrate.judging.panel import Panel
from calibrate.laws.formulas import CrossEntropyLaw
from calibrate.models.model import LoadedModel, preserving_model_state
from calibrate.search.budget import LADDER, ascending, spending_strength
from calibrate.search.frontier import Bench, Point, measure_frontier
from calibrate.search.rivals import Rival, measure_rivals
from calibrate.search.verification import verify
from calibrate.texts.guard import Guard, guard_again
from calibrate.texts.replies import build_corpora, sample_splits
from probes import Probe

MENU = (0.5, 1.0, 2.0, 4.0)  # times the calibration's own budget
SHIPPED = "strength that ships"  # what the stage is called that measures what replies cost there


def measure(
    config: SteeringConfig,
    evidence: Evidence,
    probe: Probe | None,
    loaded: LoadedModel,
    budgets: Sequence[float] | float | None = None,
    corpus: str | Path | None = None,
    rivals: bool = True,
    progress: Progress = SILENT,
    earlier: Frontier | None = None,
) -> Frontier:
    """Measure what budgets buy at a config's site, and what else would bring the concept.

    config: of one concept (`require_one_concept`). loaded: the config's model, prompts rendered as
        for the config (`deploy.verify.open_model`). budgets: in nats a token; None for MENU times
        the calibration's own. corpus: the file it was calibrated on, if on any. rivals: whether to
        measure other ways to the concept, too. earlier: of the same calibration, to which this is
        added; its rivals are kept, and its end is met again.
    Raises: InputError for budgets that are none, or a judge or corpus that is not at hand.
    """
    if budgets is None:
        budgets = [share * config.budget.limit for share in MENU]
    wanted = ascending([budgets] if isinstance(budgets, int | float) else budgets)
    if not wanted:
        raise InputError("there must be at least one budget, got none")
    with preserving_model_state(loaded):
        ledger = Ledger(loaded.meter, progress)
        with ledger.stage("replies and judges"):
            bench = open_bench(config, evidence, probe, loaded, corpus)
        shipped = None if earlier is None else earlier.shipped
        if shipped is None:
            with ledger.stage(SHIPPED):
                costs = bench.costs(config.intervention.strength)
            shipped = shipped_section(config, evidence, *costs)
        law, fingerprint = config.laws.cross_entropy, config.provenance.fingerprint
        own = config.budget.limit
        return measure_at(bench, law, wanted, own, ledger, fingerprint, earlier, rivals, shipped)


def measure_at(
    bench: Bench,
    law: CrossEntropyLaw,
    budgets: Sequence[float],
    own: float,
    ledger: Ledger,
    fingerprint: str,
    earlier: Frontier | None = None,
    rivals: bool = True,
    shipped: PointSection | None = None,
) -> Frontier:
    """Measure what budgets buy at a bench's site, and rivals at the strength nearest to one's.

    law: of ΔCE at the site. own: that budget, the calibration's. ledger: books what each
    took. fingerprint: of the calibration. earlier, rivals: as of `measure`. shipped: its own
    strength, if it has one.
    """
    known, silent = ([], None) if earlier is None else known_before(earlier, budgets)
    found = measure_frontier(bench, law, budgets, ledger, known, silent)
    others: tuple[Rival, ...] = ()
    wanted = rivals and not (earlier and earlier.rivals)
    at = nearest_strength(found.points, own) if wanted else None
    if at is not None:
        with ledger.stage("rivals"):
            others = measure_rivals(bench, at)
    return build_frontier(fingerprint, bench, found, others, at, ledger.stages, earlier, shipped)


def require_one_concept(config: SteeringConfig) -> None:
    """Raise InputError for two concepts: what other budgets do to the second is not read."""
    if config.beside is not None:
        raise InputError(
            "other budgets must be those of one concept, but this config also steers "
            f"{config.beside.name!r}, whose presence would not be read; calibrate the pair with "
            "another --ce-budget, or give the calibration of either concept alone"
        )


def open_bench(
    config: SteeringConfig,
    evidence: Evidence,
    probe: Probe | None,
    loaded: LoadedModel,
    corpus: str | Path | None = None,
) -> Bench:
    """Make again what a calibration was verified on, and its judges.

    Raises: InputError if it is another model, a judge cannot be made again, or the corpus is not
        the one that it was verified on.
    """
    if (why_not := why_not_same(config, loaded)) is not None:
        raise ArtefactError(why_not)
    texts = same_corpus(config, corpus)
    panel = open_panel(config, probe, loaded)
    replies = sample_splits(loaded, evidence.splits.prompts, config.settings)
    corpora = build_corpora(loaded, replies, texts)
    if texts is not None:
        require_same_texts(config, corpora["verify"])
    return Bench(
        loaded,
        config.site,
        panel,
        replies,
        corpora,
        config.settings,
        open_guard(config, evidence),
    )


def open_guard(config: SteeringConfig, evidence: Evidence) -> Guard | None:
    """The questions of a calibration's guard, if it had one that is at hand.

    Raises: InputError if they are not, and a largest drop was asked for.
    """
    recorded, most = config.measured.guard, config.settings.max_guard_drop
    if recorded is None:
        return None
    guard = guard_again(recorded.name, recorded.sha256, evidence.guard)
    if guard is None and most is not None:
        raise InputError(
            f"the {recorded.name} questions must be at hand, since --max-guard-drop {most:g} was "
            "asked for, but this release has others; calibrate anew"
        )
    return guard


def open_panel(config: SteeringConfig, probe: Probe | None, loaded: LoadedModel) -> Panel:
    """The judges of a calibration, made again; no auditor where it cannot be.

    Raises: InputError if the judge of the final replies cannot be made again.
    """
    names = config.measured.judges
    final = reader_again(names[0], config, loaded, probe)
    reader = final if probe is None else reader_again("probe", config, loaded, probe)
    auditor = None
    if len(names) > 1:
        try:
            auditor = reader_again(names[1], config, loaded, probe)
        except InputError as missing:
            warnings.warn(
                f"no second judge reads these replies: {missing}", CalibrateWarning, stacklevel=2
            )
    return Panel(reader, final, auditor, probe)


def nearest_strength(points: Sequence[Point], budget: float) -> float | None:
    """The strength of the point whose budget is nearest; None if there is no point."""
    nearest = min(points, key=lambda point: abs(point.budget - budget), default=None)
    return None if nearest is None else nearest.strength


def pick(
    config: SteeringConfig,
    evidence: Evidence,
    probe: Probe | None,
    loaded: LoadedModel,
    ce_budget: float,
    frontier: Frontier | None = None,
    corpus: str | Path | None = None,
    progress: Progress = SILENT,
) -> tuple[SteeringConfig, Evidence, Frontier | None]:
    """Ship another budget with the guarantees of a calibration: verification, and no study.

    config: of one concept (`require_one_concept`). frontier: names the strength where it was
        measured at this budget; else the law does, held to the search corpus.
    Returns: the config, the evidence and the frontier as its own, to be written
        (`artefact.saved.save`); it stays what it is, since site, prompts and judges do.
    Raises: Infeasible as a calibration's verification does; InputError as `measure` does.
    """
    (budget,) = ascending([ce_budget])
    ledger = Ledger(loaded.meter, progress)
    with preserving_model_state(loaded):
        with ledger.stage("replies and judges"):
            bench = open_bench(config, evidence, probe, loaded, corpus)
        settings = replace(bench.settings, ce_budget=budget)
        with ledger.stage("strength"):
            proposed = proposed_before(frontier, budget)
            if proposed is None:
                spending, _ = spending_strength(
                    loaded,
                    bench.runs["search"],
                    bench.site,
                    config.laws.cross_entropy,
                    budget,
                    settings.sign,
                )
                proposed = PROPOSED_SHARE * spending
        with ledger.stage("verification"):
            verified = verify(
                loaded,
                bench.panel,
                bench.site,
                proposed,
                bench.corpora,
                bench.replies,
                settings,
                guard=bench.guard,
            )
        if frontier is not None:
            with ledger.stage(SHIPPED):
                costs = bench.costs(verified.budget.strength)
    at_budget = proposed / PROPOSED_SHARE
    after = picked(config, evidence, verified, bench.panel, at_budget, settings, ledger)
    if frontier is not None:
        n_prompts = len(bench.replies.prompts["verify"])
        frontier = carried(frontier, after[0], shipped_section(*after, *costs), n_prompts)
    return *after, frontier


def proposed_before(frontier: Frontier | None, budget: float) -> float | None:
    """The strength the frontier proposed for a budget; None if it did not measure it."""
    for point in [] if frontier is None else frontier.points:
        if point.budget == budget:
            return point.tested[0].strength / LADDER[0]
    return None
