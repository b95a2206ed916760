"""What became of each cell: `sweep.json`, from which an interrupted sweep goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from calibrate.artefact.config import CONFIG_FILE
from calibrate.common.errors import ArtefactError
from calibrate.common.files import write_together
from calibrate.common.marks import facts_in
from calibrate.pipelines.sweep.cells import Cell
from calibrate.pipelines.sweep.store import Store

SWEEP_FILE = "sweep.json"
FORMAT = "steering-sweep"

Status = Literal["waiting", "done", "infeasible", "failed"]


@dataclass(frozen=True)
class Outcome:
    """What became of a cell. reasons: why it has no config. tries: how often it was begun."""

    cell: str
    key: str
    status: Status = "waiting"
    reasons: tuple[str, ...] = ()
    seconds: float = 0.0
    tries: int = 0


Heard = Callable[[Cell, Outcome | None], None]  # told of a cell


class SweepLedger:
    """The outcomes of a sweep's cells, written whenever one changes."""

    def __init__(self, store: Store, cells: Sequence[Cell]) -> None:
        """Take over what an earlier run finished; what became of other cells is kept as well.

        Raises: ArtefactError if the place is not new, empty or a sweep's.
        """
        self._store, self._begun = store, False
        known = {one.cell: one for one in kept_outcomes(store)}
        asked = {cell.name for cell in cells}
        self._others = [one for one in known.values() if one.cell not in asked]
        self._outcomes: dict[str, Outcome] = {}
        for cell in cells:
            fresh = Outcome(cell.name, cell.key)
            before = known.get(cell.name, fresh)
            kept = before.key == cell.key and _stands(store, before)
            self._outcomes[cell.name] = before if kept else fresh
        self._write()

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """Of every cell, in the order of the cells."""
        return tuple(self._outcomes.values())

    def of(self, cell: Cell) -> Outcome:
        """What became of a cell so far."""
        return self._outcomes[cell.name]

    def has_ended(self, cell: Cell) -> bool:
        """Whether a cell need not be run again."""
        return self.of(cell).status in ("done", "infeasible")

    def change(self, cell: Cell, **changes: Any) -> Outcome:
        """Note what became of a cell."""
        self._outcomes[cell.name] = replace(self._outcomes[cell.name], **changes)
        self._write()
        return self._outcomes[cell.name]

    def _write(self) -> None:
        self._require_ours()
        kind = TypeAdapter(list[Outcome])
        facts = {
            "format": FORMAT,
            "version": 1,
            "run": self._store.run,
            "cells": kind.dump_python([*self._others, *self.outcomes]),
        }
        content = json.dumps(facts, indent=1, ensure_ascii=False).encode() + b"\n"
        directory = self._store.directory
        write_together(directory, {SWEEP_FILE: content}, last=SWEEP_FILE, ours=is_ledger)
        self._store.put([SWEEP_FILE])
        self._begun = True

    def _require_ours(self) -> None:
        """Raise ArtefactError if another run has written since: at an address nothing locks."""
        if not (self._begun and self._store.remote):
            return
        self._store.fetch(SWEEP_FILE)
        if facts_in(self._store.directory / SWEEP_FILE).get("run") != self._store.run:
            raise ArtefactError(
                f"another sweep has taken over {self._store.link(SWEEP_FILE)}; leave the rest to "
                "it, or choose another --out"
            )


def is_ledger(path: Path) -> bool:
    """Whether a file is a sweep's."""
    return facts_in(path).get("format") == FORMAT


def kept_outcomes(store: Store) -> list[Outcome]:
    """What an earlier sweep has left at a place; nothing at a new one.

    Raises: ArtefactError if the place is not new, empty or a sweep's.
    """
    store.fetch(SWEEP_FILE)
    path = store.directory / SWEEP_FILE
    if not path.is_file():
        if not store.is_free():
            raise ArtefactError(
                f"--out must be new, empty or of an earlier sweep, and {store.place} is not; "
                "choose another --out"
            )
        return []
    try:
        return TypeAdapter(list[Outcome]).validate_python(facts_in(path).get("cells"))
    except ValidationError as error:
        raise ArtefactError(f"{path} must be a sweep's: {error.errors()[0]['msg']}") from error


def _stands(store: Store, outcome: Outcome) -> bool:
    """Whether a cell need not be run again."""
    if outcome.status == "done":
        return store.has(f"{outcome.cell}/{CONFIG_FILE}")
    return outcome.status == "infeasible"
