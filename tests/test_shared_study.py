"""A study survives its workers: kill -9, a torn journal, two at once, and a database."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest

HERE = Path(__file__).parent
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
TRIALS, SECONDS = 7, 0.25
SUGGESTIONS = 3  # one a site


class Crew:
    """Workers on one study, and the log they write."""

    def __init__(self, folder, **given):
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "log"
        self.given = {"trials": TRIALS, "seconds": SECONDS, "log": str(self.log), **given}
        self.workers = []

    def hire(self, **changes):
        command = [sys.executable, str(HERE / "worker.py"), json.dumps({**self.given, **changes})]
        worker = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=HERE
        )
        self.workers.append(worker)
        return worker

    def lines(self, *what):
        written = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in map(json.loads, written) if line[1] in what]

    def wait_for(self, n, *what, by=None, seconds=60):
        """Wait until n lines of these kinds are in the log, of one worker if named."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = [x for x in self.lines(*what) if by is None or x[0] == by.pid]
            if len(found) >= n:
                return
            broken = [worker for worker in self.workers if worker.poll() not in (None, 0, -9)]
            assert not broken, broken[0].stderr.read()
            time.sleep(0.01)
        raise AssertionError(f"{n} {what} did not come: {self.lines(*what)}")

    def answer(self, worker):
        out, err = worker.communicate(timeout=90)
        assert worker.returncode == 0, err
        return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What one worker finds that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    crew = Crew(folder, directory=str(folder), seconds=0.0)
    return crew.answer(crew.hire())


def measured_once(crew):
    """Every trial that was measured, was measured once."""
    counts = Counter((site, strength) for _, _, site, strength in crew.lines("measured"))
    assert set(counts.values()) == {1}


def counted_once(study):
    """No trial counts twice, none is left, and the laws' suggestions were each made once."""
    counting = [t for t in study.trials if t.state.is_finished() and t.state.name != "FAIL"]
    assert len(counting) == TRIALS
    suggested = [t.params["site"] for t in counting if t.params["share"] == 0.95]
    assert len(suggested) >= SUGGESTIONS
    assert {"block 3", "block 5", "block 8"} <= set(suggested)
    origins = [t.user_attrs["origin"] for t in counting if "origin" in t.user_attrs]
    assert len(origins) == len(set(origins))


def journal(folder):
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(folder / "study.journal"))
    )
    return optuna.load_study(study_name="joy", storage=storage)


@pytest.mark.parametrize("after", [1, 4, 6])
def test_killed_in_the_middle_of_a_trial_it_resumes_to_the_same_answer(
    tmp_path, undisturbed, after
):
    crew = Crew(tmp_path, directory=str(tmp_path))
    first = crew.hire()
    crew.wait_for(after, "started")
    first.kill()
    first.wait()
    assert crew.answer(crew.hire())["best"] == undisturbed["best"]
    measured_once(crew)
    counted_once(journal(tmp_path))


def test_a_torn_last_line_of_the_journal_is_mended(tmp_path, undisturbed):
    crew = Crew(tmp_path, directory=str(tmp_path))
    first = crew.hire()
    crew.wait_for(4, "started")
    first.kill()
    first.wait()
    path = tmp_path / "study.journal"
    content = path.read_bytes()
    path.write_bytes(content[: content.rstrip().rfind(b"\n") + 20])
    assert not path.read_bytes().endswith(b"\n")
    assert crew.answer(crew.hire())["best"] == undisturbed["best"]
    counted_once(journal(tmp_path))


def test_a_second_worker_joins_and_nothing_is_measured_twice(tmp_path):
    crew = Crew(tmp_path, directory=str(tmp_path))
    answers = [crew.answer(worker) for worker in (crew.hire(), crew.hire())]
    assert answers[0]["best"] == answers[1]["best"]
    measured_once(crew)
    counted_once(journal(tmp_path))
    assert len({line[0] for line in crew.lines("started")}) == 2


def test_a_killed_workers_trial_is_taken_over_by_the_other(tmp_path):
    crew = Crew(tmp_path, directory=str(tmp_path))
    first, second = crew.hire(), crew.hire()
    crew.wait_for(1, "started", by=second)
    crew.wait_for(1, "started", by=first)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert crew.answer(second)["trials"] == TRIALS
    measured_once(crew)
    counted_once(journal(tmp_path))


@pytest.fixture(scope="module")
def postgres(tmp_path_factory):
    """The URL of a PostgreSQL server that is started for these tests."""
    if not POSTGRES:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    tools, folder = POSTGRES[-1], tmp_path_factory.mktemp("postgres")
    data, as_user = folder / "data", []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        as_user = ["runuser", "-u", "postgres", "--"]
        for path in (folder, *folder.parents):
            if not path.stat().st_mode & stat.S_IXOTH:
                path.chmod(0o755)
        shutil.chown(folder, "postgres")
    run = [*as_user, str(tools / "initdb"), "-D", str(data), "-A", "trust", "-U", "postgres"]
    subprocess.run(run, check=True, capture_output=True)
    port = 50000 + os.getpid() % 10000
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    control = [*as_user, str(tools / "pg_ctl"), "-D", str(data), "-w"]
    subprocess.run(
        [*control, "-o", options, "-l", str(folder / "log"), "start"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
    subprocess.run([*control, "-m", "immediate", "stop"], check=True, stdout=subprocess.DEVNULL)


@pytest.fixture
def database(postgres):
    """The same server, empty."""
    import psycopg

    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    return postgres


def test_two_workers_share_a_database_and_one_of_them_acts(tmp_path, database):
    crew = Crew(tmp_path, url=database)
    answers = [crew.answer(worker) for worker in (crew.hire(), crew.hire())]
    assert answers[0]["best"] == answers[1]["best"]
    assert answers[0]["where"] == answers[1]["where"]
    measured_once(crew)
    counted_once(optuna.load_study(study_name="joy", storage=database))
    assert len(crew.lines("acted")) == 1


def test_heartbeats_give_a_dead_workers_trial_to_another(tmp_path, database):
    crew = Crew(tmp_path, url=database)
    first, second = crew.hire(), crew.hire()
    crew.wait_for(1, "started", by=second)
    crew.wait_for(1, "started", by=first)
    first.kill()
    first.wait()
    assert crew.answer(second)["trials"] == TRIALS
    measured_once(crew)
    counted_once(optuna.load_study(study_name="joy", storage=database))
    assert [line[0] for line in crew.lines("acted")] == [second.pid]


def test_if_the_one_who_acts_dies_another_takes_over(tmp_path, database):
    crew = Crew(tmp_path, url=database, seconds=1.0, trials=SUGGESTIONS)
    first, second = crew.hire(), crew.hire()
    crew.wait_for(1, "acting")
    acting = next(w for w in (first, second) if w.pid == crew.lines("acting")[0][0])
    other = second if acting is first else first
    acting.kill()
    acting.wait()
    assert crew.answer(other)["where"] == f"here {other.pid}"
    assert [line[0] for line in crew.lines("acted")] == [other.pid]


def test_workers_share_a_grpc_proxy(tmp_path):
    pytest.importorskip("grpc")
    port = 40000 + os.getpid() % 10000
    code = (
        "import optuna; from optuna.storages import RDBStorage, run_grpc_proxy_server as run;"
        f"run(RDBStorage('sqlite:///{tmp_path}/s.db'), host='localhost', port={port})"
    )
    server = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        crew = Crew(tmp_path / "crew", url=f"grpc://localhost:{port}")
        answers = [crew.answer(worker) for worker in (crew.hire(), crew.hire())]
    finally:
        server.kill()
        server.wait()
    assert answers[0]["best"] == answers[1]["best"]
    measured_once(crew)
    assert len(crew.lines("acted")) == 1
