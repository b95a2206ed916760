"""The pictures of a calibration: what a strength costs, what it brings, and at which block."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calibrate.artefact.config import SteeringConfig
from calibrate.artefact.evidence import Evidence
from calibrate.artefact.measured_sections import LongRunSection
from calibrate.common.blocks import site_name
from calibrate.common.marks import TOOL
from calibrate.common.pictures import literal

COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#8172b3", "#937860", "#da8bc3")
BUDGET, SHIPPED, MUTED = "#c44e52", "#111111", "#999999"

Draw = Callable[[Axes, SteeringConfig, Evidence], None]


def pictures(config: SteeringConfig, evidence: Evidence) -> dict[str, bytes]:
    """Return the pictures as PNG files by name."""
    drawn = {"delta_ce.png": _draw_cost, "presence.png": _draw_presence}
    if evidence.ranks:
        drawn["blocks.png"] = _draw_blocks
    images = {name: _png(draw, config, evidence) for name, draw in drawn.items()}
    if config.measured.long_run is not None:
        images["long_run.png"] = _rendered(_long_run(config.measured.long_run, config.concept.name))
    return images


def _png(draw: Draw, config: SteeringConfig, evidence: Evidence) -> bytes:
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    draw(axes, config, evidence)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return _rendered(figure)


def _rendered(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": TOOL})
    return buffer.getvalue()


def _draw_cost(axes: Axes, config: SteeringConfig, evidence: Evidence) -> None:
    """ΔCE against strength at the shipped block: law, pilot, trials, and held-out bounds."""
    intervention, limit = config.intervention, config.budget.limit
    site = site_name(config.layers, intervention.positions)
    pilot = next(pilot for pilot in evidence.pilots if pilot.site == site)
    trials = [trial for trial in evidence.trials if trial.site == site]
    reach = 1.3 * max(abs(rung.strength) for rung in evidence.tested)
    reach = max(reach, 1.15 * abs(pilot.strength_at_budget.value))
    strengths = np.copysign(np.linspace(0, reach, 200), intervention.strength)
    axes.plot(strengths, pilot.law.predict(strengths), color=COLOURS[0], label="law")
    quadratic = 0.5 * pilot.law.curvature * strengths**2
    axes.plot(strengths, quadratic, "--", color=MUTED, lw=1, label="½cα²")
    axes.axhline(limit, color=BUDGET, lw=1.2, label=f"budget {limit:g} nat")
    points = [(strength, rise) for strength, rise, _ in pilot.points]
    axes.plot(*zip(*points, strict=True), "o", color=COLOURS[0], label="pilot")
    if trials:
        points = [(trial.strength, trial.delta_ce) for trial in trials]
        axes.plot(*zip(*points, strict=True), "x", color=COLOURS[1], label="trials")
    for index, rung in enumerate(evidence.tested):
        colour = COLOURS[2] if rung.within else BUDGET
        axes.plot(
            [rung.strength] * 2,
            [rung.delta_ce, rung.upper],
            "_-",
            color=colour,
            label="held out, with upper bound" if index == 0 else None,
        )
    axes.axvline(intervention.strength, color=SHIPPED, lw=1, ls=":", label="shipped α")
    axes.set(
        xlabel=f"strength α at {site}",
        ylabel="ΔCE (nats per token)",
        title=f"What steering towards {literal(config.concept.name)} costs",
        ylim=(min(0, 1.1 * min(rung.delta_ce for rung in evidence.tested)), 1.8 * limit),
    )


def _draw_presence(axes: Axes, config: SteeringConfig, evidence: Evidence) -> None:
    """Presence against ΔCE: every trial by block, the baseline, and the verified result."""
    presence, rise = config.measured.presence, config.measured.delta_ce
    axes.axhspan(*presence.baseline_interval, color=MUTED, alpha=0.25, lw=0)
    axes.axhline(presence.baseline, color=MUTED, label="unsteered, held out")
    for colour, pilot in zip(COLOURS, evidence.pilots, strict=False):
        points = [
            (trial.delta_ce, trial.presence)
            for trial in evidence.trials
            if trial.site == pilot.site and trial.presence is not None
        ]
        if points:
            label = f"trials at {pilot.site}"
            axes.plot(*zip(*points, strict=True), "x", color=colour, label=label)
    axes.errorbar(
        rise.value,
        presence.value,
        yerr=[[presence.value - presence.low], [presence.high - presence.value]],
        xerr=[[rise.value - rise.low], [rise.high - rise.value]],
        fmt="o",
        color=SHIPPED,
        capsize=3,
        label=f"shipped, held out ({config.budget.confidence:.0%})",
    )
    axes.axvline(config.budget.limit, color=BUDGET, lw=1.2, label="budget")
    axes.set(
        xlabel="ΔCE (nats per token)",
        ylabel=f"presence of {literal(config.concept.name)}",
        title=f"What it brings at {config.where}",
        xlim=(min(0, rise.low), None),
        ylim=(0, 1),
    )


def _draw_blocks(axes: Axes, config: SteeringConfig, evidence: Evidence) -> None:
    """Every block's gain at the budget, and which were carried into the study."""
    ranks = sorted(evidence.ranks, key=lambda rank: rank.layer)
    carried = {pilot.layer for pilot in evidence.pilots}
    shipped = config.intervention.layer
    for label, colour, chosen in (
        ("all others", MUTED, [rank for rank in ranks if rank.layer not in carried]),
        ("carried into the study", COLOURS[0], [rank for rank in ranks if rank.layer in carried]),
        ("shipped", SHIPPED, [rank for rank in ranks if rank.layer == shipped]),
    ):
        layers, gains = [rank.layer for rank in chosen], [rank.gain for rank in chosen]
        axes.bar(layers, gains, color=colour, label=label)
    axes.set(
        xlabel="block",
        ylabel="gain at the budget (nats per token)",
        title=f"How far the budget moves {literal(config.concept.name)} ahead of its opposite",
    )


def _long_run(long_run: LongRunSection, concept: str) -> Figure:
    """Loops, presence and log-probability along replies of serving length."""
    figure = Figure(figsize=(10.8, 3.6), layout="constrained")
    starts = [index * long_run.window for index in range(long_run.n_tokens // long_run.window + 1)]
    for axes, name, label in zip(
        figure.subplots(1, 3),
        ("loops", "presence", "log_prob"),
        (
            "share of tokens in loops",
            f"presence of {literal(concept)}",
            "log-probability (nats per token)",
        ),
        strict=True,
    ):
        for along, colour, who in (
            (long_run.unsteered, MUTED, "unsteered"),
            (long_run.steered, SHIPPED, "steered"),
        ):
            values = [np.nan if value is None else value for value in getattr(along, name)]
            middles = [start + long_run.window / 2 for start in starts[: len(values)]]
            axes.plot(middles, values, "o-", ms=3.5, color=colour, label=who)
        axes.set(xlabel="tokens into the reply", ylabel=label, xlim=(0, long_run.n_tokens))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    figure.suptitle("Along replies of serving length, read by the unsteered model")
    return figure
