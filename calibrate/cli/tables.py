"""The summary in the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from calibrate.artefact.config import SteeringConfig
from calibrate.artefact.evidence import Evidence
from calibrate.artefact.frontier import Frontier
from calibrate.artefact.measured_sections import (
    AuditSection,
    FluencySection,
    MeasuredSection,
    PresenceSection,
)
from calibrate.artefact.menu import menu
from calibrate.cli.frontier_table import default_menu, measured_menu
from calibrate.cli.reader_table import readers_line
from calibrate.cli.rich_tables import headed, labelled
from calibrate.common.estimate import Interval
from calibrate.common.numbers import in_points

if TYPE_CHECKING:
    from calibrate.deploy.verify import GateReport

EXAMPLES = 3


def summary(
    config: SteeringConfig,
    evidence: Evidence,
    directory: Path | None,
    frontier: Frontier | None = None,
) -> RenderableType:
    """Return what follows the headline: ΔCE, presence, the menu, examples, cost, and files."""
    return Group(
        "",
        labelled(_facts(config, evidence)),
        "",
        *_menu(config, evidence, directory, frontier),
        "",
        _examples(evidence),
        "",
        _cost(config),
        *_files(directory),
    )


def _menu(
    config: SteeringConfig, evidence: Evidence, directory: Path | None, frontier: Frontier | None
) -> list[RenderableType]:
    """What other budgets buy, measured or by the laws, and which could not be measured."""
    if frontier is None:
        return [default_menu(menu(config, evidence), directory)]
    return [*measured_menu(frontier), *(Text(sentence) for sentence in frontier.endings)]


def headline(config: SteeringConfig) -> Text:
    """Return the strength in one line."""
    intervention, name = config.intervention, config.concept.name
    return Text.from_markup(
        f"[bold]{escape(config.model.id)}[/] steered {config.concept.direction} "
        f"[bold]{escape(name)}[/]: "
        f"α = [bold green]{intervention.strength:.4g}[/] "
        f"at [bold green]{config.where}[/] ({intervention.positions} positions, "
        f"α‖v‖/‖h‖ = {intervention.relative_strength:.3f})"
    )


def gate_summary(report: GateReport) -> RenderableType:
    """Return each check of `calibrate verify`, and whether it passed."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for check in report.checks:
        mark = "[green]✓[/]" if check.passed else "[red]✗[/]"
        table.add_row(mark, f"[bold]{check.name}[/]", escape(check.found))
    return table


def _facts(config: SteeringConfig, evidence: Evidence) -> Iterator[tuple[str, str]]:
    measured, confidence = config.measured, f"{config.budget.confidence:.0%}"
    rise, presence = measured.delta_ce, measured.presence
    low, high = presence.baseline_interval
    at_budget = config.range.strength_at_budget
    yield (
        "ΔCE",
        f"[bold]{rise.value:.4f}[/] nat/token ({confidence} {rise.low:.4f} to {rise.high:.4f}), "
        f"at most {rise.upper:.4f} of the budget of {config.budget.limit:g}",
    )
    yield (
        "presence",
        f"[bold]{presence.value:.3f}[/] ({presence.low:.3f} to {presence.high:.3f}) against "
        f"{presence.baseline:.3f} ({low:.3f} to {high:.3f}) unsteered",
    )
    yield from _clear(presence)
    yield "change", _change(presence)
    yield from _scale(presence)
    if measured.controls is not None:
        yield "random vector", _control(measured.controls.random_vector, presence)
        yield "asked in words", _control(measured.controls.prompt_only, presence)
    yield from _began(config)
    if config.beside is not None:
        yield "beside", escape(config.beside.says)
    yield from _audit(measured)
    yield from _readers(measured)
    yield from _unanswered(presence)
    yield "fluency", _fluency(measured.fluency)
    yield from _long_run(measured)
    yield from _guard(measured)
    yield (
        "law's α at budget",
        f"{at_budget.value:.4g} ({at_budget.low:.4g} to {at_budget.high:.4g}), "
        f"off by at most {config.laws.cross_entropy.goodness.error:.2%} where tested"
        + ("" if config.laws.relied_on else "; it failed at a block, so the search was wider"),
    )
    yield from _choice(config, evidence)
    if config.vector.says:
        yield "vector", config.vector.says
    yield (
        "held out",
        f"{rise.n_sequences} sequences, {rise.n_tokens} tokens; {presence.n_completions} "
        f"completions of {presence.n_prompts} prompts",
    )


def _choice(config: SteeringConfig, evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Why this block."""
    if not evidence.ranks:
        return
    layers = [rank.layer for rank in evidence.ranks]
    shipped = config.intervention.layer
    others = [str(pilot.layer) for pilot in evidence.pilots if pilot.layer != shipped]
    ranked = f"ranked {layers.index(shipped) + 1} of {len(layers)} by its derivatives"
    if others:
        ranked += f"; in the study it brought more presence than block {', '.join(others)}"
    yield f"block {shipped}", ranked


def _began(config: SteeringConfig) -> Iterator[tuple[str, str]]:
    start = config.provenance.start
    if start is not None:
        yield "began with", f"{start.says}{config.measured.not_repeated}"


def _clear(presence: PresenceSection) -> Iterator[tuple[str, str]]:
    if presence.clear is not None and presence.clear_baseline is not None:
        yield "clearly", f"{presence.clear:.3f} against {presence.clear_baseline:.3f} unsteered"


def _scale(presence: PresenceSection) -> Iterator[tuple[str, str]]:
    """Whose yes presence predicts, and how well."""
    scale = presence.scale
    if scale is None:
        return
    guessed = scale.source == "written"
    yield "whose yes", f"[yellow]{scale.says}[/]" if guessed else scale.says


def _change(presence: PresenceSection) -> str:
    change = presence.change
    paired = f"[bold]{change.value:+.3f}[/] ({change.low:+.3f} to {change.high:+.3f}), paired"
    if presence.detectable is None:
        return paired
    return f"{paired}; changes of {presence.detectable:.3f} or more would be seen (80% power)"


def _control(control: Interval, presence: PresenceSection) -> str:
    share = (control.value - presence.baseline) / (presence.value - presence.baseline)
    return (
        f"presence {control.value:.3f} ({control.low:.3f} to {control.high:.3f}), "
        f"{share:.0%} of the change"
    )


def _audit(measured: MeasuredSection) -> Iterator[tuple[str, str]]:
    audit = measured.audit
    if audit is not None:
        yield (
            f"audit by {escape(audit.judge)}",
            f"presence {audit.value:.3f} against {audit.baseline:.3f}, a change of "
            f"{audit.change.value:+.3f} ({audit.change.low:+.3f} to {audit.change.high:+.3f}); "
            f"ranks replies as {escape(measured.judges[0])} does: {audit.agreement:.2f}"
            + (f"; {_emphasised(audit)}" if audit.says else ""),
        )


def _readers(measured: MeasuredSection) -> Iterator[tuple[str, str]]:
    if measured.readers is not None:
        yield "to readers", readers_line(measured.readers)


def _emphasised(audit: AuditSection) -> str:
    """What the second judge says, in yellow where it sees no change."""
    return f"[yellow]{audit.says}[/]" if audit.opinion == "sees no change" else audit.says


def _fluency(fluency: FluencySection) -> str:
    return (
        f"replies are {fluency.drop.value:.3f} nat/token less likely to the unsteered model "
        f"({fluency.drop.low:.3f} to {fluency.drop.high:.3f})"
    )


def _long_run(measured: MeasuredSection) -> Iterator[tuple[str, str]]:
    """Loops and presence in replies as long as those served."""
    long_run = measured.long_run
    if long_run is None:
        return
    first, last = (
        f"{steered:.2f} against {plain:.2f}" if None not in (steered, plain) else "nothing to read"
        for steered, plain in (
            (long_run.steered.presence[at], long_run.unsteered.presence[at]) for at in (0, -1)
        )
    )
    yield (
        "long replies",
        f"{long_run.loops:.1%} of the tokens of {long_run.n_prompts} replies of "
        f"{long_run.n_tokens} tokens in loops, unsteered {long_run.loops_baseline:.1%}; presence "
        f"{first} at the beginning, {last} at the end",
    )


def _guard(measured: MeasuredSection) -> Iterator[tuple[str, str]]:
    """How many questions it still answers."""
    guard = measured.guard
    if guard is not None:
        yield (
            "still knows",
            f"{guard.accuracy.value:.1%} of {guard.n_questions} {escape(guard.name)} questions, "
            f"unsteered {guard.baseline:.1%}; {in_points(-guard.drop.value)}, at most "
            f"{100 * guard.drop_upper:.1f} lost",
        )


def _unanswered(presence: PresenceSection) -> Iterator[tuple[str, str]]:
    """Shares of replies that are empty, and that end before the answer."""
    if presence.empty or presence.empty_baseline:
        yield (
            "empty replies",
            f"{presence.empty:.0%}, unsteered {presence.empty_baseline:.0%}; presence is over the "
            "others",
        )
    if presence.unanswered or presence.unanswered_baseline:
        yield (
            "still thinking",
            f"{presence.unanswered:.0%} of the replies end before the answer, unsteered "
            f"{presence.unanswered_baseline:.0%}; --reply-tokens allows more",
        )


def _examples(evidence: Evidence) -> Table:
    table = headed("prompt", "unsteered", "steered", ratio=1)
    for pair in evidence.first_completions[:EXAMPLES]:
        table.add_row(escape(pair.prompt), escape(pair.unsteered), escape(pair.steered))
    return table


def _cost(config: SteeringConfig) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    table.add_column(justify="right")
    for stage, spent in config.cost.items():
        table.add_row(
            f"[dim]{escape(stage)}[/]",
            f"{spent.token_forwards:,} token-forwards",
            f"{spent.seconds:.1f} s",
        )
    tokens, blocks, seconds = (
        sum(getattr(spent, kind) for spent in config.cost.values())
        for kind in ("token_forwards", "token_block_forwards", "seconds")
    )
    table.add_row("together", f"{tokens:,} token-forwards", f"{seconds:.1f} s")
    table.add_row("", f"{blocks:,} token-block-forwards", "")
    return table


def _files(directory: Path | None) -> Iterator[RenderableType]:
    if directory is None:
        return
    yield ""
    yield Text.from_markup(
        f"Config, vector, probe and evidence are in [bold]{escape(str(directory))}/[/]; "
        f"look at [bold]{escape(str(directory / 'report.html'))}[/]."
    )
