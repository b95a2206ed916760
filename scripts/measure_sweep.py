"""Calibrate two models for eight concepts, one by one and as a sweep, and write docs/sweep.md.

    python scripts/measure_sweep.py [--page] [--keep DIR [--way ray]]

As a sweep on this machine, a worker of which is killed half-way; one after the other, each with
`calibrate` in a process of its own; and on a Ray cluster of two nodes, one of which is killed. With
fewer prompts and trials than by default, since it is the same that is calibrated three times. Forty
minutes on two cores; it needs the extra `ray`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import psutil
import ray
from markdown_tables import DOCS, table
from ray.cluster_utils import Cluster
from records import page_option, read_records, write_records

from calibrate import load
from calibrate.models.converted import cache_directory
from calibrate.models.size import memory_of
from calibrate.pipelines.sweep.cells import Cell, cells_of
from calibrate.pipelines.sweep.run import sweep
from calibrate.texts.concept import PACKS, built_in_concepts

TARGET = DOCS / "sweep.json"
MODELS_AT_HAND = cache_directory()
MODELS = ("smollm2", "gemma3-270m")
PROMPTS = 36
OPTIONS: dict[str, Any] = {
    "reply_tokens": 12, "trials": 2, "audit": "none", "guard": "none", "long_run": 0,
    "min_gain": 0.0, "ce_budget": 0.15,
}  # fmt: skip
EVERY = 0.5  # seconds between two looks at the memory
ALONE = """
import json, sys, calibrate
try:
    calibrate.calibrate(**json.loads(sys.argv[1]))
except calibrate.Infeasible:
    sys.exit(3)
"""
PARTS = ("intervention", "measured", "laws", "range", "reference", "vector")


@click.command()
@click.option("--keep", type=click.Path(path_type=Path), help="Where to keep all that is written.")
@click.option("--way", "ways", multiple=True, help="Repeat these alone, in what --keep kept.")
@page_option
def main(keep: Path | None, ways: tuple[str, ...], only_page: bool) -> None:
    if not only_page:
        os.environ |= {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
        with tempfile.TemporaryDirectory() as folder:
            write_records(TARGET, measured(keep or Path(folder), ways or tuple(WAYS)))
    (DOCS / "sweep.md").write_text(page(read_records(TARGET)), encoding="utf-8")


def measured(folder: Path, ways: tuple[str, ...]) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    prompts = folder / "prompts.txt"
    lines = (PACKS / "prompts.txt").read_text(encoding="utf-8").splitlines()
    prompts.write_text("\n".join(lines[:PROMPTS]), encoding="utf-8")
    cells = cells_of(MODELS, built_in_concepts(), options={**OPTIONS, "prompts": str(prompts)})
    os.environ["STEERING_CALIBRATE_CACHE"] = str(own_cache(folder / "cache"))
    found = {one["way"]: one for one in read_records(TARGET).get("runs", [])}
    for way in ways:
        found[way] = {"way": way, **timed(WAYS[way], cells, folder / way)}
        click.echo(json.dumps(found[way]))
    runs = [found[way] for way in WAYS]
    for one in runs:
        one |= against(cells, folder / one["way"], folder / ALONE_WAY)
    return {"runs": runs, "memory": {model: memory_of(model) for model in MODELS}}


def own_cache(folder: Path) -> Path:
    """A cache with the models that are at hand, but with no results of earlier calibrations."""
    folder.mkdir(exist_ok=True)
    for entry in MODELS_AT_HAND.iterdir():
        if entry.name != "kept" and not (folder / entry.name).exists():
            (folder / entry.name).symlink_to(entry)
    return folder


def timed(
    run: Callable[..., dict[str, Any]], cells: tuple[Cell, ...], place: Path
) -> dict[str, Any]:
    """Seconds of a way to run all cells, and the most memory that its processes held together."""
    most, ended = [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(EVERY):
            most[0] = max(most[0], held())

    watching = threading.Thread(target=watch)
    watching.start()
    started = time.perf_counter()
    try:
        facts = run(cells, place)
    finally:
        ended.set()
        watching.join()
    return {"seconds": time.perf_counter() - started, "memory": most[0], **facts}


def held() -> float:
    """GiB of the processes that calibrate: each its own pages."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        try:
            line = " ".join(process.cmdline())
            if "calibrate" in line or "ray::Actor" in line:
                total += process.memory_full_info().uss
        except psutil.Error:
            continue
    return total / 2**30


def one_by_one(cells: tuple[Cell, ...], place: Path) -> dict[str, Any]:
    """A serial loop of `calibrate`, each in a process of its own that loads the model."""
    busy, failed = [0.0] * len(cells), 0
    for number, cell in enumerate(cells):
        out = {"model": cell.model, "concept": cell.concept, "out": str(place / cell.name)}
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            ALONE,
            json.dumps(out | dict(cell.options)),
        ]
        started = time.perf_counter()
        failed += subprocess.run(command, capture_output=True, check=False).returncode not in (0, 3)
        busy[number] = time.perf_counter() - started
    return {"died": 0, "failed": failed, "busy": sum(busy)}


def on_cores(cells: tuple[Cell, ...], place: Path) -> dict[str, Any]:
    """A sweep on this machine; a worker dies once half of the cells have ended."""
    died: list[int] = []

    def kill(n_ended: int) -> None:
        if n_ended == len(cells) // 2 and not died:
            workers = [p for p in psutil.Process().children() if "sweep.worker" in str(p.cmdline())]
            workers[0].kill()
            died.append(1)

    return swept(cells, place, "local", kill) | {"died": len(died)}


def on_ray(cells: tuple[Cell, ...], place: Path) -> dict[str, Any]:
    """A sweep on two nodes with a core each; one dies once half of the cells have ended."""
    nodes = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    second, died = nodes.add_node(num_cpus=1), list[int]()
    nodes.wait_for_nodes()
    ray.init(address=nodes.address, log_to_driver=False)

    def kill(n_ended: int) -> None:
        if n_ended == len(cells) // 2 and not died:
            nodes.remove_node(second, allow_graceful=False)
            nodes.add_node(num_cpus=1)
            died.append(1)

    try:
        return swept(cells, place, "ray", kill) | {"died": len(died)}
    finally:
        ray.shutdown()
        nodes.shutdown()


def swept(
    cells: tuple[Cell, ...], place: Path, on: str, ended: Callable[[int], None]
) -> dict[str, Any]:
    n_ended = [0]

    def heard(_cell: Cell, outcome: Any) -> None:
        if outcome is not None and outcome.status != "waiting":
            n_ended[0] += 1
            ended(n_ended[0])

    found = sweep(cells, place, on=on, heard=heard)
    return {
        "failed": found.count("failed"),
        "busy": sum(one.seconds for one in found.outcomes),
    }


def against(cells: tuple[Cell, ...], place: Path, alone: Path) -> dict[str, int]:
    """How many cells ended with a config, and how many configs are those of the serial loop."""
    done, equal = 0, 0
    for cell in cells:
        mine, its = place / cell.name / "steering.json", alone / cell.name / "steering.json"
        done += mine.is_file()
        if not (mine.is_file() and its.is_file()):
            equal += mine.is_file() == its.is_file()
            continue
        found, expected = load(mine.parent), load(its.parent)
        equal += all(getattr(found, part) == getattr(expected, part) for part in PARTS)
    return {"cells": len(cells), "done": done, "equal": equal}


ALONE_WAY = "alone"
WAYS = {"sweep": on_cores, ALONE_WAY: one_by_one, "ray": on_ray}
SAID = {  # how each is run, what died on the way, what was in the cache
    "sweep": ("`calibrate sweep`, two workers of one core", "a worker", "nothing"),
    ALONE_WAY: ("a loop of `calibrate`, one core", "nothing", "vectors, probes, replies"),
    "ray": ("`--on ray`, two nodes of one core", "a node", "vectors, probes, replies"),
}


def page(facts: dict[str, Any]) -> str:
    rows = [
        [
            *SAID[run["way"]],
            f"{run['done']} of {run['cells']}",
            f"{run['equal']} of {run['cells']}",
            f"{run['seconds'] / 60:.1f} min",
            f"{run['busy'] / run['cells']:.1f} s",
            f"{run['memory']:.2f} GiB",
        ]
        for run in facts["runs"]
    ]
    headings = [
        "how", "killed half-way", "found in the cache", "cells with a config", "as in the loop",
        "time", "a cell", "most memory",
    ]  # fmt: skip
    by_way = {run["way"]: run for run in facts["runs"]}
    loop, ray_run = by_way[ALONE_WAY], by_way["ray"]
    memory = table(
        ["model", "asked of Ray, an actor"],
        [[model, f"{size / 2**30:.2f} GiB"] for model, size in facts["memory"].items()],
    )
    options = " ".join(f"{name}={value}" for name, value in OPTIONS.items())
    return PAGE.format(
        runs=table(headings, rows),
        memory=memory,
        prompts=PROMPTS,
        options=options,
        faster=loop["seconds"] / ray_run["seconds"],
        idle=(2 * ray_run["seconds"] - ray_run["busy"]) / ray_run["cells"],
    )


PAGE = """# Many calibrations together

Written by `scripts/measure_sweep.py`: two models × eight concepts, on two cores, with {prompts}
prompts and fewer of the rest, so that it can be repeated three times in less than an hour
(`{options}`).

{runs}
A config is *as in the loop* if its vectors, strength, laws, measurements, range and reference are
equal to the last digit to those of a loop of `calibrate`, each in a process of its own; a cell
without one, if the loop has none either: with so few prompts most changes of presence cannot be
told from none, and two probes cannot tell their concept. Every process computes with one thread,
since another number of threads adds sums up in another order, and changes last digits. *A cell* is
what a cell takes of its process, loading and waiting for memory included. The first way begins
without earlier results; the others find its vectors, probes and unsteered replies in the cache, as
a loop on one machine would.

With the same in the cache, two nodes of a cluster are {faster:.2f} times as fast as a loop on one
core, although one of them died. A cell of theirs takes {idle:.1f} s of the cores beside its own
seconds: starting Ray and the actors, the calibration that was lost, and the end, when one node has
nothing left to do.

{memory}
An actor asks Ray for this much memory, so that no more of them start than fit; it is made of the
number of weights that the files' headers give.
"""


if __name__ == "__main__":
    main()
