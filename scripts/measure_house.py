"""Measure the code, and whether it does what an earlier commit did; write docs/house.md.

    python scripts/measure_house.py [--against CHECKOUT] [--page]

CHECKOUT is this project at an earlier commit. The same calibration is run with both, four minutes
each on two cores, and their configs are compared value by value.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
from checkouts import command_of, commit_of
from markdown_tables import DOCS, table
from records import page_option, read_records, write_records

TARGET = DOCS / "house.json"
HERE = DOCS.parent
PACKAGES = ("calibrate", "probes")
# One block and one judge, so that a later choice of blocks or judges changes nothing.
OPTIONS = "--model smollm2 --concept joy --seed 0 --layer 20 --audit none".split()
CHANGES = ("seconds", "created", "versions.steering-calibrate")  # from run to run, or by release


@click.command()
@click.option("--against", type=click.Path(exists=True, file_okay=False, path_type=Path))
@page_option
def main(against: Path | None, only_page: bool) -> None:
    if not only_page:
        found = read_records(TARGET)
        found["now"] = sizes(HERE)
        if against is not None:
            found |= {"earlier": sizes(against), "same": compared(against)}
        write_records(TARGET, found)
    (DOCS / "house.md").write_text(page(read_records(TARGET)), encoding="utf-8")


def sizes(checkout: Path) -> dict[str, Any]:
    modules = [path for package in PACKAGES for path in (checkout / package).rglob("*.py")]
    lines = [len(path.read_text(encoding="utf-8").splitlines()) for path in modules]
    functions = [length for path in modules for length in lengths(path)]
    entries = [path for path in (checkout / "calibrate").iterdir() if path.suffix in ("", ".py")]
    return {
        "commit": commit_of(checkout),
        "entries of calibrate/": len([path for path in entries if path.name != "__pycache__"]),
        "modules": len(modules),
        "lines": sum(lines),
        "lines of the longest module": max(lines),
        "functions": len(functions),
        "lines of a function, median": float(np.median(functions)),
        "lines of a function, 90th percentile": float(np.percentile(functions, 90)),
    }


def lengths(path: Path) -> list[int]:
    """Lines of each function, without its docstring and decorators."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return [lines_of(node) - doc_lines(node) for node in functions]


def doc_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = node.body[0]
    documented = ast.get_docstring(node) is not None
    return lines_of(first) if documented else 0


def lines_of(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def compared(earlier: Path) -> dict[str, Any]:
    """What the same calibration finds in both checkouts."""
    with tempfile.TemporaryDirectory() as scratch:
        before, after = (
            config_by(checkout, Path(scratch) / name)
            for name, checkout in (("before", earlier), ("after", HERE))
        )
    known = {path for path in before if path in after and not path.endswith(CHANGES)}
    return {
        "commits": [commit_of(checkout) for checkout in (earlier, HERE)],
        "values": len(known),
        "different": sorted(path for path in known if before[path] != after[path]),
        "only before": sorted({*before} - {*after}),
        "only now": sorted({*after} - {*before}),
        "strength": [repr(one["intervention.strength"]) for one in (before, after)],
        "presence": [repr(one["measured.presence.value"]) for one in (before, after)],
        "ΔCE": [repr(one["measured.delta_ce.value"]) for one in (before, after)],
        "seconds": {
            path.split(".")[1]: [before[path], after[path]]
            for path in before
            if path.startswith("cost.") and path.endswith("seconds") and path in after
        },
    }


def config_by(checkout: Path, out: Path) -> dict[str, Any]:
    """Every value of the config that a checkout writes, by its path."""
    command = command_of([*OPTIONS, "--out", str(out), "--quiet"])
    with tempfile.TemporaryDirectory() as cache:  # neither finds what the other kept
        for kept in ("models", "wheels"):
            (Path(cache) / kept).symlink_to(shared_cache() / kept)
        env = {**os.environ, "STEERING_CALIBRATE_CACHE": cache}
        subprocess.run(command, cwd=checkout, env=env, check=True)
    return leaves(json.loads((out / "steering.json").read_text(encoding="utf-8")))


def shared_cache() -> Path:
    from calibrate.models.converted import cache_directory

    return cache_directory().resolve()


def leaves(facts: Any, path: str = "") -> dict[str, Any]:
    if isinstance(facts, dict):
        items = [(f"{path}.{key}" if path else key, value) for key, value in facts.items()]
    elif isinstance(facts, list):
        items = [(f"{path}.{index}", value) for index, value in enumerate(facts)]
    else:
        return {path: facts}
    return {leaf: value for where, each in items for leaf, value in leaves(each, where).items()}


def page(found: dict[str, Any]) -> str:
    now, earlier = found["now"], found.get("earlier")
    columns = [one for one in (earlier, now) if one is not None]
    rows = [[name, *(f"{one[name]:,.0f}" for one in columns)] for name in now if name != "commit"]
    heads = ["", *(f"commit {one['commit']}" for one in columns)]
    parts = [HEADER, table(heads, rows)]
    if "same" in found:
        parts.append(sameness(found["same"]))
    return "\n".join(parts)


HEADER = """# The house in figures

Written by `scripts/measure_house.py`: `calibrate/` and `probes/` before and after the modules
moved into wings. A function's lines are counted without its docstring. Which wing may import which
is in `pyproject.toml` (import-linter), and `tests/test_layers.py` plants imports that it has to
see.
"""


def sameness(same: dict[str, Any]) -> str:
    before, after = same["commits"]
    different = ", ".join(same["different"]) or "none"
    rows = [[name, *same[name]] for name in ("strength", "presence", "ΔCE")]
    rows += [
        [f"seconds: {stage}", *(f"{seconds:.0f}" for seconds in both)]
        for stage, both in same["seconds"].items()
    ]
    return (
        f"## The same calibration\n\n`calibrate {' '.join(OPTIONS)}` with {before} and {after}, "
        "one after the other, each with nothing kept but the model. Of the "
        f"{same['values']} values of the config that both write and that are no time, date or "
        f"release, these differ: {different}. "
        f"Written only before: {', '.join(same['only before']) or 'none'}; only now: "
        f"{', '.join(same['only now']) or 'none'}.\n\n" + table(["", "before", "now"], rows)
    )


if __name__ == "__main__":
    main()
