"""A sweep whose files go to an object store, here one that speaks S3 on this machine."""

from __future__ import annotations

import json
from urllib.request import Request, urlopen

import fsspec
import pytest
from moto.server import ThreadedMotoServer
from test_sweep import alone, cells, options, places  # noqa: F401

import calibrate
from calibrate.common.errors import ArtefactError, InputError
from calibrate.pipelines.sweep.cells import cells_of
from calibrate.pipelines.sweep.ledger import SweepLedger
from calibrate.pipelines.sweep.run import sweep
from calibrate.pipelines.sweep.store import Store, working_at

JOY = cells_of(["m"], ["joy"])


@pytest.fixture
def bucket(monkeypatch):
    """The address of an empty bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    facts = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in facts.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()
    files().mkdir("bucket")
    yield "s3://bucket/sweeps/one"
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


def files():
    found = fsspec.filesystem("s3")
    found.invalidate_cache()
    return found


@pytest.mark.slow
def test_cells_and_report_go_to_the_store_and_a_second_run_touches_nothing(
    cells,  # noqa: F811
    alone,  # noqa: F811
    bucket,
    tmp_path,
):
    asked = cells[:2]
    swept = sweep(asked, bucket)
    assert swept.report == f"{bucket}/report.html"
    there = {name.removeprefix("bucket/sweeps/one/") for name in files().find(bucket)}
    assert {"sweep.json", "report.html", "cells.csv", "logs/worker-0.log"} <= there
    assert not any(name.endswith((".journal", ".lock")) for name in there)
    for cell in asked:
        if alone[cell.name] is None:
            continue
        files().get(f"{bucket}/{cell.name}", str(tmp_path / cell.name), recursive=True)
        found = calibrate.load(tmp_path / cell.name)
        assert found.intervention == alone[cell.name].intervention
        assert found.measured == alone[cell.name].measured
    begun = []
    again = sweep(asked, bucket, heard=lambda cell, _: begun.append(cell.name))
    assert not begun
    assert again.outcomes == swept.outcomes
    # Killed between a cell's end and the ledger's: what is there is taken over.
    ledger = json.loads(files().cat_file(f"{bucket}/sweep.json"))
    for one in ledger["cells"]:
        one["status"] = "waiting"
    files().pipe_file(f"{bucket}/sweep.json", json.dumps(ledger).encode())
    third = sweep(asked, bucket)
    assert [one.status for one in third.outcomes] == [one.status for one in swept.outcomes]
    assert sum(one.seconds for one in third.outcomes) < sum(one.seconds for one in swept.outcomes)


def test_what_is_put_is_there_as_a_whole_with_the_config_last(bucket, monkeypatch):
    put, really = [], Store.put

    def noted(self, names):
        put.extend(names := list(names))
        really(self, names)

    monkeypatch.setattr(Store, "put", noted)
    with working_at(f"{bucket}/cell") as own:
        (own / "steering.json").write_text("{}")
        (own / "zebra.png").write_bytes(b"x")
        (own / "study.journal").write_text("left behind")
    assert put == ["zebra.png", "steering.json"]
    with working_at(f"{bucket}/cell") as own:
        assert (own / "steering.json").read_text() == "{}"


def test_of_two_runs_at_one_address_the_later_goes_on(bucket):
    with Store(bucket) as first, Store(bucket) as second:
        ledger = SweepLedger(first, JOY)
        ledger.change(JOY[0], tries=1)
        later = SweepLedger(second, JOY)
        with pytest.raises(ArtefactError, match="another sweep has taken over"):
            ledger.change(JOY[0], tries=2)
        assert later.change(JOY[0], tries=3).tries == 3


def test_what_is_not_a_sweeps_is_left_alone(bucket):
    files().pipe_file(f"{bucket}/thesis.txt", b"years")
    with pytest.raises(ArtefactError, match="s3://bucket/sweeps/one is not; choose another"):
        sweep(JOY, bucket)
    assert files().find(bucket) == ["bucket/sweeps/one/thesis.txt"]


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("gopher://there", "an address that fsspec knows, as s3://BUCKET/PATH, got gopher"),
        ("gs://bucket/sweep", "got gs://bucket/sweep: .*gcsfs"),
        ("memory://sweep", "no other sees memory://sweep; give a directory"),
    ],
)
def test_addresses_that_cannot_be_used_are_refused(place, says):
    with pytest.raises(InputError, match=says):
        sweep(JOY, place)


def test_a_store_that_cannot_be_reached_is_named(bucket):
    with pytest.raises(ArtefactError, match="s3://nowhere/sweep must exist, and does not"):
        sweep(JOY, "s3://nowhere/sweep")


def test_a_ledger_that_cannot_be_kept_ends_the_sweep(bucket, monkeypatch):
    written = []

    def fail(self, names):
        written.append(list(names))
        if len(written) > 2:
            raise ArtefactError("the store is gone")

    monkeypatch.setattr(Store, "put", fail)
    with pytest.raises(ArtefactError, match="the store is gone"):
        sweep(JOY, bucket)


def test_a_file_address_is_a_directory(tmp_path):
    with Store(f"file://{tmp_path}/out") as store:
        assert not store.remote
        assert store.directory == tmp_path / "out"
