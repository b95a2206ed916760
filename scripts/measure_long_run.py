"""Measure what long replies are like before and after steering; write docs/long-run.md.

    python scripts/measure_long_run.py [--concept joy --concept depression] [--page]

Every concept is calibrated with `--layer search`, from an empty cache, and its long run is made
again, to see what it took. Then the strength that the budget alone would ship and the one that
ships are put to verification prompts to which no long reply was read. Takes about 15 minutes on two
cores, and nothing else should run meanwhile.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
from markdown_tables import DOCS, table
from matplotlib.figure import Figure
from records import page_option, read_records, sentences, write_records

from calibrate import Calibration, LoadedModel, calibrate, load_model
from calibrate.common.estimate import RatioEstimate
from calibrate.common.settings import Sampling, Settings
from calibrate.engine.generation import Completion, Request, sample_all
from calibrate.judging.loops import looped
from calibrate.models.converted import cache_directory
from calibrate.models.model import preserving_model_state
from calibrate.models.prompts import encode_prompt
from calibrate.search.long_run import (
    LOOP_MARGIN,
    PROMPTS,
    WINDOW,
    Along,
    answer_at_length,
    read_along,
)
from probes import Reader

TARGET = DOCS / "long-run.json"
LENGTH = 192  # tokens of a reply
SEED = 1  # not the calibrations' own
KINDS = ("unsteered", "budget alone", "shipped")
ALONG = {
    "loops": "tokens in loops",
    "presence": "presence",
    "log_prob": "log-probability, nats per token",
}
COLOURS = ("#999999", "#dd8452", "#111111")

HEADER = f"""# Long replies

Written by `scripts/measure_long_run.py`. Model: the embedded `smollm2`, float32, two cores.
A single block, chosen by the study (`--layer search`).
{{notes}}

The verification has {PROMPTS} prompts answered in up to {LENGTH} tokens, unsteered and steered, and
does not ship a strength with which the share of their tokens in loops (stretches of eight tokens or
more that say one group again at once) is more than {100 * LOOP_MARGIN:g} points above unsteered.
"""


@dataclass(frozen=True)
class Measured:
    """One concept: what was shipped, what it cost, and what fresh long replies are like.

    minutes: of the main job, without and with the long run. strengths: by kind. loops, replies,
    excess: by kind, on fresh prompts: share of the tokens in loops, share of replies of which a
    quarter is loops, and the paired difference from unsteered with its standard error.
    along: by kind, what ALONG names, a value a window. note: how it was measured, where today's
    script would do otherwise.
    """

    concept: str
    minutes: tuple[float, float]
    tested: list[tuple[float, float | None]]
    strengths: dict[str, float]
    n_prompts: int
    loops: dict[str, float]
    replies: dict[str, float]
    excess: dict[str, tuple[float, float]]
    along: dict[str, dict[str, list[float]]]
    note: str = ""


@click.command()
@click.option("--concept", "concepts", multiple=True, default=("joy", "depression"))
@page_option
def main(concepts: tuple[str, ...], only_page: bool) -> None:
    if not only_page:
        loaded = load_model("smollm2")
        shutil.rmtree(cache_directory() / "kept", ignore_errors=True)
        write_records(TARGET, [asdict(measure(loaded, concept)) for concept in concepts])
    found = [Measured(**facts) for facts in read_records(TARGET)]
    (DOCS / "long-run").mkdir(exist_ok=True)
    for one in found:
        draw(one, DOCS / "long-run" / f"{one.concept}.png")
    (DOCS / "long-run.md").write_text(page(found), encoding="utf-8")


def page(found: Sequence[Measured]) -> str:
    header = HEADER.format(notes=sentences({one.concept: asdict(one) for one in found}, "note"))
    return "\n".join([header, strengths(found), loops(found), along(found), minutes(found)])


def measure(loaded: LoadedModel, concept: str) -> Measured:
    started = time.perf_counter()
    result = calibrate(loaded, concept, layer="search")
    minutes = (time.perf_counter() - started) / 60
    within = [one for one in result.evidence.tested if one.within]
    chosen = {
        "unsteered": 0.0,
        "budget alone": within[-1].strength,
        "shipped": result.config.intervention.strength,
    }
    assert result.probe is not None
    with preserving_model_state(loaded):
        long_run = minutes_of(loaded, result, chosen["shipped"])
        print(concept, chosen, minutes, long_run, flush=True)
        replies = answered(loaded, result, chosen)
        reader = Reader(result.probe.on(loaded), concept, "probe")
        read = {kind: read_along(loaded, reader, said) for kind, said in replies.items()}
    shares = {kind: share(said) for kind, said in replies.items()}
    apart = {kind: one.difference(shares["unsteered"]) for kind, one in shares.items()}
    return Measured(
        concept=concept,
        minutes=(minutes - long_run, minutes),
        tested=[(one.strength, one.loop_excess) for one in within],
        strengths=chosen,
        n_prompts=len(replies["unsteered"]),
        loops={kind: one.value for kind, one in shares.items()},
        replies={kind: float(np.mean(one.sums > 0.25)) for kind, one in shares.items()},
        excess={kind: (one.value, one.standard_error) for kind, one in apart.items()},
        along={kind: listed(one) for kind, one in read.items()},
    )


def minutes_of(loaded: LoadedModel, result: Calibration, strength: float) -> float:
    """Minutes that the long run takes where no reply to it is kept."""
    shutil.rmtree(cache_directory() / "kept", ignore_errors=True)
    texts = result.evidence.splits.prompts["verify"]
    prompts = [encode_prompt(loaded, text) for text in texts]
    steering = result.config.site.steering(strength)
    assert result.probe is not None
    reader = Reader(result.probe.on(loaded), result.config.concept.name, "probe")
    started = time.perf_counter()
    long_replies = answer_at_length(loaded, prompts, Settings(), steering)
    assert long_replies is not None
    long_replies.read(reader, long_replies.steered(steering))
    return (time.perf_counter() - started) / 60


def answered(
    loaded: LoadedModel, result: Calibration, strengths: dict[str, float]
) -> dict[str, tuple[Completion, ...]]:
    """Long replies to verification prompts to which the verification itself made none."""
    texts = result.evidence.splits.prompts["verify"][PROMPTS:]
    prompts = [encode_prompt(loaded, text) for text in texts]
    site = result.config.site
    requests = [Request(prompts, steering=site.steering(at)) for at in strengths.values()]
    drawn = sample_all(loaded, requests, Sampling(max_new_tokens=LENGTH), SEED)
    return dict(zip(strengths, drawn, strict=True))


def share(replies: Sequence[Completion]) -> RatioEstimate:
    """Share of each reply's tokens in loops."""
    shares = [float(looped(one.ids).sum()) / max(len(one.ids), 1) for one in replies]
    return RatioEstimate(np.array(shares), np.ones(len(shares)))


def listed(one: Along) -> dict[str, list[float]]:
    return {name: np.round(getattr(one, name), 4).tolist() for name in ALONG}


def strengths(found: Sequence[Measured]) -> str:
    rows = []
    for one in found:
        tried = "; ".join(
            f"{strength:.4g}: {excess:+.3f}"
            for strength, excess in one.tested
            if excess is not None
        )
        rows.append(
            [one.concept, f"{one.strengths['budget alone']:.4g}", tried,
             f"{one.strengths['shipped']:.4g}"]
        )  # fmt: skip
    headings = ["concept", "α by the budget alone", "α tried at length: share of tokens in loops "
                "above unsteered", "α shipped"]  # fmt: skip
    return "## What ships\n\n" + table(headings, rows)


def loops(found: Sequence[Measured]) -> str:
    rows = [
        [one.concept, kind, f"{one.strengths[kind]:.4g}", f"{one.loops[kind]:.3f}",
         "{:+.3f} ± {:.3f}".format(*one.excess[kind]), f"{one.replies[kind]:.2f}"]
        for one in found for kind in KINDS
    ]  # fmt: skip
    headings = ["concept", "replies", "α", "tokens in loops", "above unsteered ± standard error",
                "replies of which a quarter is loops"]  # fmt: skip
    return (
        f"## On other prompts\n\n{found[0].n_prompts} verification prompts to which no long reply "
        "was read before, one reply each, other noise. Only of loops did they not decide: both "
        "strengths keep the bound of ΔCE on all verification prompts, and on short replies to all "
        "of them presence of the one that ships was tested.\n\n" + table(headings, rows)
    )


def along(found: Sequence[Measured]) -> str:
    parts = ["## Along the reply\n\nThe same replies, read by the unsteered model and the probe.\n"]
    starts = range(0, LENGTH, WINDOW)
    for name, label in ALONG.items():
        rows = [
            [one.concept, kind, *(f"{value:.3f}" for value in one.along[kind][name])]
            for one in found for kind in KINDS
        ]  # fmt: skip
        headings = ["concept", "replies", *(f"{first} to {first + WINDOW}" for first in starts)]
        parts.append(f"### {label.capitalize()}\n\n{table(headings, rows)}")
    parts += [f"![{one.concept} along the reply](long-run/{one.concept}.png)\n" for one in found]
    return "\n".join(parts)


def minutes(found: Sequence[Measured]) -> str:
    rows = [
        [one.concept, f"{one.minutes[0]:.2f}", f"{one.minutes[1]:.2f}",
         f"{one.minutes[1] / one.minutes[0]:.2f}"]
        for one in found
    ]  # fmt: skip
    return (
        "## What it costs\n\nMinutes of the main job from an empty cache, in all and less what its "
        "long run took, which was made again right after it.\n\n"
        + table(["concept", "without", "with the long run", "ratio"], rows)
    )


def draw(one: Measured, path: Path) -> None:
    figure = Figure(figsize=(10.8, 3.6), layout="constrained")
    names = {"loops": "share of tokens in loops", "presence": f"presence of {one.concept}",
             "log_prob": "log-probability (nats per token)"}  # fmt: skip
    for axes, (name, label) in zip(figure.subplots(1, 3), names.items(), strict=True):
        for kind, colour in zip(KINDS, COLOURS, strict=True):
            values = one.along[kind][name]
            middles = [WINDOW * (place + 0.5) for place in range(len(values))]
            axes.plot(middles, values, "o-", ms=3.5, color=colour,
                      label=f"{kind}, α = {one.strengths[kind]:.3g}")  # fmt: skip
        axes.set(xlabel="tokens into the reply", ylabel=label)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
