"""A sweep on a Ray cluster of two nodes, one of which is killed half-way."""

from __future__ import annotations

import pytest
from test_sweep import alone, cells, options, places, require_as_alone  # noqa: F401

from calibrate.common.errors import InputError
from calibrate.pipelines.sweep.cells import cells_of
from calibrate.pipelines.sweep.run import sweep

pytestmark = pytest.mark.slow

ray = pytest.importorskip("ray", reason="needs Ray: pip install -e .[ray]")
cluster_utils = pytest.importorskip("ray.cluster_utils")


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    started = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    second = started.add_node(num_cpus=1)
    started.wait_for_nodes()
    ray.init(address=started.address, log_to_driver=False)
    yield started, second
    ray.shutdown()
    started.shutdown()


def test_a_node_that_dies_costs_no_cell(cells, alone, cluster, tmp_path):  # noqa: F811
    nodes, second = cluster
    ended = []

    def kill_at_the_first_end(cell, outcome):
        if outcome is not None and outcome.status != "waiting":
            ended.append(cell.name)
            if len(ended) == 1:
                nodes.remove_node(second, allow_graceful=False)

    swept = sweep(cells, tmp_path / "out", on="ray", heard=kill_at_the_first_end)
    assert {one.status for one in swept.outcomes} <= {"done", "infeasible"}, swept.outcomes
    require_as_alone(tmp_path / "out", alone)


def test_where_no_cluster_is_is_said(tmp_path):
    with pytest.raises(InputError, match="no Ray cluster answers at ray://"):
        sweep(cells_of(["m"], ["joy"]), tmp_path / "out", on="ray://127.0.0.1:1")
