"""A sweep on a Ray cluster. Ray queues, places, restarts and retries; none of that is done here.

An actor holds a model and works through its cells, so neighbours among the cells share one. There
are as many actors as the cluster has cores, or cells. One whose node dies starts anew on another,
when there is room, and the call it died in is made again. The sweep's directory must be one that
all nodes share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from calibrate.common.errors import InputError
from calibrate.pipelines.sweep.cells import Cell
from calibrate.pipelines.sweep.ledger import Heard, SweepLedger
from calibrate.pipelines.sweep.worker import Facts, Holder, asked_of

MOST_TRIES = 3  # of a cell whose actor dies; a node takes all of its actors with it


class Actor(Holder):
    """Holds a model on a node. Ray calls it again when it died over a cell, but not for ever."""

    def run(self, asked: Facts, loaded: Callable[[], None] = lambda: None) -> Facts:
        """Run a cell as `Holder` does, unless that has killed too many actors."""
        tries = _tries(Path(asked["out"]))
        with tries.open("ab") as counted:
            counted.write(b".")
        if tries.stat().st_size > MOST_TRIES:
            reason = f"its worker died {MOST_TRIES} times"
            return {"status": "failed", "reasons": [reason], "seconds": 0.0}
        facts = super().run(asked, loaded)
        tries.unlink()
        return facts


def _tries(out: Path) -> Path:
    """Where the tries of a cell are counted, a byte each: on a disk that outlives its node."""
    return out.parent / "logs" / f"{out.name}.tries"


class RayPool:
    """Runs cells on a cluster.

    address: "ray" for one of this machine's own or the one it belongs to, or ray://HOST:PORT.
    heard: told when a cell is handed to Ray, with None, and when it ends.
    """

    def __init__(self, directory: Path, ledger: SweepLedger, address: str, heard: Heard) -> None:
        """Connect to the cluster.

        Raises: InputError if there is no Ray, or no cluster at the address.
        """
        try:
            import ray
        except ImportError as error:
            raise InputError("--on ray needs Ray: pip install 'steering-calibrate[ray]'") from error
        self._ray, self._directory, self._ledger, self._heard = ray, directory, ledger, heard
        if not ray.is_initialized():
            where = None if address == "ray" else address
            try:
                ray.init(where, log_to_driver=False, configure_logging=False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise InputError(f"no Ray cluster answers at {address}: {error}") from error

    def run(self, cells: Sequence[Cell]) -> None:
        """Run every cell, and return when all have ended."""
        actors = self._actors(len(cells))
        (self._directory / "logs").mkdir(exist_ok=True)
        waiting: dict[Any, tuple[Cell, int]] = {}
        share = -(-len(cells) // len(actors))
        ordered = sorted(cells, key=lambda cell: cell.model)
        for place, cell in enumerate(ordered):
            asked = asked_of(cell, self._directory.resolve())
            _tries(Path(asked["out"])).unlink(missing_ok=True)
            waiting[actors[place // share].run.remote(asked)] = cell, place // share
            self._ledger.change(cell, tries=1)
            self._heard(cell, None)
        while waiting:
            (ready,), _ = self._ray.wait(list(waiting), num_returns=1)
            cell, place = waiting.pop(ready)
            self._heard(cell, self._ledger.change(cell, **self._result(ready)))
            if all(held != place for _, held in waiting.values()):
                self._ray.kill(actors[place])  # frees its core for one that waits to start anew

    def _actors(self, n_cells: int) -> list[Any]:
        cores = int(self._ray.cluster_resources().get("CPU", 1))
        kind = self._ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=-1)(Actor)
        return [kind.remote() for _ in range(max(1, min(cores, n_cells)))]

    def _result(self, ready: Any) -> dict[str, Any]:
        try:
            facts = self._ray.get(ready)
        except self._ray.exceptions.RayError as error:
            return {"status": "failed", "reasons": (f"{type(error).__name__}: {error}",)}
        return {**facts, "reasons": tuple(facts["reasons"])}
