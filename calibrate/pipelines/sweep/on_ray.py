"""A sweep on a Ray cluster. Ray queues, places, restarts and retries; none of that is done here.

An actor holds a model and works through cells of it, and then of another. There are as many actors
as the cluster has cores, or cells; each asks for the memory that the largest model takes, so that
Ray starts no more than fit. One whose node dies starts anew on another, when there is room, and the
call it died in is made again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from calibrate.common.errors import InputError
from calibrate.models.size import memory_of
from calibrate.pipelines.sweep.cells import Cell, next_cell
from calibrate.pipelines.sweep.ledger import Heard, SweepLedger
from calibrate.pipelines.sweep.store import Store
from calibrate.pipelines.sweep.tries import Tries
from calibrate.pipelines.sweep.worker import Facts, Holder, asked_of

MOST_TRIES = 3  # of a cell whose actor dies; a node takes all of its actors with it


class Actor(Holder):
    """Holds a model on a node. Ray calls it again when it died over a cell, but not for ever."""

    def calibrate(self, asked: Facts, tries: Any) -> Facts:
        """Run a cell, unless that has killed too many actors; tries: the actor that counts."""
        import ray

        if ray.get(tries.begin.remote(asked["out"])) > MOST_TRIES:
            reason = f"its worker died {MOST_TRIES} times"
            return {"status": "failed", "reasons": [reason], "seconds": 0.0}
        return self.run(asked)


class RayPool:
    """Runs cells on a cluster.

    address: "ray" for one of this machine's own or the one it belongs to, or ray://HOST:PORT.
    heard: told when a cell is handed to Ray, with None, and when it ends.
    """

    def __init__(self, store: Store, ledger: SweepLedger, address: str, heard: Heard) -> None:
        """Connect to the cluster.

        Raises: InputError if there is no Ray, or no cluster at the address.
        """
        try:
            import ray
        except ImportError as error:
            raise InputError("--on ray needs Ray: pip install 'steering-calibrate[ray]'") from error
        self._ray, self._store, self._ledger, self._heard = ray, store, ledger, heard
        if not ray.is_initialized():
            where = None if address == "ray" else address
            try:
                ray.init(where, log_to_driver=False, configure_logging=False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise InputError(f"no Ray cluster answers at {address}: {error}") from error

    def run(self, cells: Sequence[Cell]) -> None:
        """Run every cell, and return when all have ended."""
        left, waiting = list(cells), {}
        held: dict[Any, str] = {}

        def hand_on(actor: Any) -> None:
            if not left:
                self._ray.kill(actor)  # frees its core for one that waits to start anew
                held.pop(actor, None)
                return
            cell = left.pop(next_cell(left, held.get(actor, ""), Counter(held.values())))
            held[actor] = cell.held
            called = actor.calibrate.remote(asked_of(cell, self._store), self._tries)
            waiting[called] = cell, actor
            self._ledger.change(cell, tries=1)
            self._heard(cell, None)

        for actor in self._actors(cells):
            hand_on(actor)
        while waiting:
            (ready,), _ = self._ray.wait(list(waiting), num_returns=1)
            cell, actor = waiting.pop(ready)
            self._heard(cell, self._ledger.change(cell, **self._result(ready)))
            hand_on(actor)

    def _actors(self, cells: Sequence[Cell]) -> list[Any]:
        needs = resources({cell.model for cell in cells}, self._ray.cluster_resources())
        n_cores = int(self._ray.cluster_resources().get("CPU", 1))
        here = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            self._ray.get_runtime_context().get_node_id(), soft=True
        )
        # Where its node dies all the same, it counts anew. Held here: Ray ends what nobody holds.
        counting = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
        self._tries = self._ray.remote(scheduling_strategy=here, **counting)(Tries).remote()
        kind = self._ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=-1, **needs)(Actor)
        return [kind.remote() for _ in range(max(1, min(n_cores, len(cells))))]

    def _result(self, ready: Any) -> dict[str, Any]:
        try:
            facts = self._ray.get(ready)
        except self._ray.exceptions.RayError as error:
            return {"status": "failed", "reasons": (f"{type(error).__name__}: {error}",)}
        return {**facts, "reasons": tuple(facts["reasons"])}


def resources(models: set[str], cluster: dict[str, float]) -> dict[str, float]:
    """What an actor asks Ray for that will hold any of these models.

    cluster: all that the cluster has. Memory is asked for as far as the cluster counts it; where
    there are GPUs each actor has one to itself.
    Raises: InputError if the largest model needs more memory than there is.
    """
    needed = max((memory_of(model) or 0 for model in models), default=0)
    most = cluster.get("memory", 0.0)
    if needed > most > 0:
        raise InputError(
            f"the largest model takes about {needed / 2**30:.1f} GiB, and the cluster counts "
            f"{most / 2**30:.1f} GiB of memory; add a node, or start Ray with more --memory"
        )
    asked: dict[str, float] = {"memory": needed} if needed and most else {}
    return {**asked, "num_gpus": 1} if cluster.get("GPU") else asked
