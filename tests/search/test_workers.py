"""A study survives its workers: kill -9, a torn journal, two at once, and a database."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import sqlalchemy
import tiny
import worker as workers
from patience import PATIENCE, wait_until

import calibrate
from calibrate.artefact.config import CONFIG_FILE, VECTOR_FILE
from calibrate.artefact.directory import open_workspace
from calibrate.artefact.evidence import EVIDENCE_FILE
from calibrate.common.layout import WORKERS_FOLDER, WRITING_LOCK
from calibrate.search.storage import StudyStore, open_study, queue_again
from calibrate.search.workers import STARTED, WORKER, Proposal, SharedStudy, _Surplus, agreed

pytestmark = pytest.mark.slow

POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
TRIALS = 7
SUGGESTIONS = 3  # one a site

# Workers are forked from a process that has imported what takes seconds.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["pytest", "calibrate.calibration"])


class Crew:
    """Workers on one study, and the log they write."""

    def __init__(self, folder, **given):
        folder.mkdir(parents=True, exist_ok=True)
        self.log = workers.Log(folder / "log")
        self.given = {"trials": TRIALS, "log": str(self.log.path), **given}
        self.workers = []

    def hire(self, **changes):
        worker = PROCESSES.Process(
            target=workers.work, args=({**self.given, **changes},), daemon=True
        )
        worker.start()
        self.workers.append(worker)
        return worker

    def lines(self, *what, by=None):
        return [x for x in self.log.lines(*what) if by is None or x[0] == by.pid]

    def wait_for(self, what, by):
        """Wait until a worker has written a line of this kind."""

        def written():
            errors = self.lines("error")
            assert not errors, errors[0][2]
            return bool(self.lines(what, by=by))

        wait_until(written, f"{what!r}")

    def kill(self, worker):
        """Kill -9 a worker that waits for it."""
        self.wait_for("waiting to be killed", by=worker)
        worker.kill()
        worker.join(PATIENCE)

    def answer(self, worker):
        self.wait_for("answer", by=worker)
        worker.join(PATIENCE)
        return self.lines("answer", by=worker)[0][2]


@pytest.fixture
def crew_of():
    """Make crews, whose last workers are killed after the test."""
    crews = []

    def make(folder, **given):
        crews.append(Crew(folder, **given))
        return crews[-1]

    yield make
    for worker in (worker for crew in crews for worker in crew.workers):
        worker.kill()
        worker.join(PATIENCE)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What one worker finds that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    crew = Crew(folder, directory=str(folder))
    return crew.answer(crew.hire())


def policy_of(most, measure):
    """A policy of so many trials, measured like this."""
    return SimpleNamespace(
        most=most,
        propose=lambda counting: Proposal("block 3", {"share": 0.5}),
        sampler=lambda n_finished: optuna.samplers.RandomSampler(seed=0),
        measure=measure,
        enough=lambda finished: False,
        ended=lambda trial: None,
    )


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


@pytest.mark.parametrize("hold", [1, 4, 6])
def test_killed_in_the_middle_of_a_trial_it_resumes_to_the_same_answer(
    crew_of, tmp_path, undisturbed, hold
):
    crew = crew_of(tmp_path, directory=str(tmp_path))
    crew.kill(crew.hire(hold=hold))
    assert crew.answer(crew.hire())["best"] == undisturbed["best"]
    measured_once(crew)
    counted_once(journal(tmp_path))


def test_a_torn_last_line_of_the_journal_is_mended(crew_of, tmp_path, undisturbed):
    crew = crew_of(tmp_path, directory=str(tmp_path))
    crew.kill(crew.hire(hold=4))
    path = tmp_path / "study.journal"
    content = path.read_bytes()
    path.write_bytes(content[: content.rstrip().rfind(b"\n") + 20])
    assert not path.read_bytes().endswith(b"\n")
    assert crew.answer(crew.hire())["best"] == undisturbed["best"]
    counted_once(journal(tmp_path))


def test_a_second_worker_joins_and_nothing_is_measured_twice(crew_of, tmp_path):
    crew = crew_of(tmp_path, directory=str(tmp_path), together=2)
    answers = [crew.answer(worker) for worker in (crew.hire(), crew.hire())]
    assert answers[0]["best"] == answers[1]["best"]
    measured_once(crew)
    counted_once(journal(tmp_path))


def test_a_killed_workers_trial_is_taken_over_by_the_other(crew_of, tmp_path):
    crew = crew_of(tmp_path, directory=str(tmp_path), together=2)
    first, second = crew.hire(hold=1), crew.hire()
    crew.kill(first)
    assert crew.answer(second)["trials"] == TRIALS
    measured_once(crew)
    counted_once(journal(tmp_path))


def test_workers_of_one_directory_write_once(crew_of, tmp_path):
    crew = crew_of(tmp_path, directory=str(tmp_path), out=str(tmp_path))
    for worker in (crew.hire(), crew.hire()):
        crew.answer(worker)
    assert len(crew.lines("written")) == 1
    assert not (tmp_path / WORKERS_FOLDER).exists()


def test_if_the_one_who_writes_dies_another_takes_over(crew_of, tmp_path):
    crew = crew_of(tmp_path, directory=str(tmp_path), out=str(tmp_path), trials=SUGGESTIONS)
    first = crew.hire(hold_writing=True)
    crew.wait_for("waiting to be killed", by=first)
    second = crew.hire()
    crew.wait_for("studied", by=second)
    assert not crew.lines("written")
    crew.kill(first)
    crew.answer(second)
    assert [line[0] for line in crew.lines("written")] == [second.pid]


def test_workers_of_one_storage_each_write_their_own_directory_and_the_same_into_it(
    tiny_options, tmp_path
):
    shared = {**tiny_options, "storage": f"sqlite:///{tmp_path / 'study.db'}"}
    mine, yours = tmp_path / "mine", tmp_path / "yours"
    for out in (mine, yours):
        calibrate.calibrate(tiny.model("gpt2"), out=out, **shared)
    configs = [json.loads((out / CONFIG_FILE).read_text()) for out in (mine, yours)]
    for config in configs:
        del config["cost"], config["provenance"]["created"]
    assert configs[0] == configs[1]
    for name in (EVIDENCE_FILE, VECTOR_FILE):
        assert (mine / name).read_bytes() == (yours / name).read_bytes()


def test_a_directory_whose_writer_died_is_used_again_if_the_study_is_kept_elsewhere(tmp_path):
    (tmp_path / WORKERS_FOLDER).mkdir()
    (tmp_path / WORKERS_FOLDER / WRITING_LOCK).touch()
    assert open_workspace(tmp_path, "f") == (tmp_path, False)


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


def in_the_past(url, column, trial):
    """Set a time that a database knows of a trial back by days."""
    table, name = column.split(".")
    change = sqlalchemy.text(f"UPDATE {table} SET {name} = :then WHERE trial_id = :trial")
    then = datetime.now() - timedelta(days=2)
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        connection.execute(change, {"then": then, "trial": trial._trial_id})
    engine.dispose()


def test_two_workers_share_a_database_and_nothing_is_measured_twice(crew_of, tmp_path, database):
    crew = crew_of(tmp_path, url=database, together=2)
    answers = [crew.answer(worker) for worker in (crew.hire(), crew.hire())]
    assert answers[0]["best"] == answers[1]["best"]
    measured_once(crew)
    counted_once(optuna.load_study(study_name="joy", storage=database))


def test_heartbeats_give_a_dead_workers_trial_to_another(crew_of, tmp_path, database):
    crew = crew_of(tmp_path, url=database, together=2)
    first, second = crew.hire(hold=1), crew.hire()
    crew.kill(first)
    (_, _, site, _), *_ = crew.lines("started", by=first)
    study = optuna.load_study(study_name="joy", storage=database)
    (left,) = [t for t in study.trials if t.state.name == "RUNNING" and t.params["site"] == site]
    in_the_past(database, "trial_heartbeats.heartbeat", left)
    assert crew.answer(second)["trials"] == TRIALS
    measured_once(crew)
    counted_once(optuna.load_study(study_name="joy", storage=database))


def test_a_trial_whose_worker_died_before_its_first_heartbeat_is_given_to_another(
    crew_of, tmp_path
):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.create_study(storage=url, study_name="joy", direction="maximize")
    study.enqueue_trial({"site": "block 3", "share": 0.95}, {"origin": "block 3 at 0.95"})
    in_the_past(url, "trials.datetime_start", study.ask())
    crew = crew_of(tmp_path, url=url)
    assert crew.answer(crew.hire())["trials"] == TRIALS
    measured_once(crew)
    counted_once(study)


def test_an_old_trial_is_left_to_its_worker_as_long_as_that_has_a_heartbeat(tmp_path):
    study = open_study(StudyStore("joy", "f", url=f"sqlite:///{tmp_path / 'study.db'}"), "maximize")
    for _ in range(2):
        study.enqueue_trial({"share": 0.5})
    alive, dead = study.ask(), study.ask()
    for trial in (alive, dead):
        trial.set_user_attr(WORKER, "another")
        trial.set_user_attr(STARTED, time.time() - timedelta(hours=1).total_seconds())
    study._storage.record_heartbeat(alive._trial_id)
    SharedStudy(study, "a third", None)._hand_on_abandoned()
    assert [one.state.name for one in study.trials] == ["RUNNING", "FAIL", "WAITING"]


def test_a_trial_is_queued_again_with_what_it_had_not_come_to():
    study = optuna.create_study()
    study.enqueue_trial({"site": "block 3", "share": 0.95})
    left = study.ask()
    left.suggest_categorical("site", ["block 3", "block 5"])
    study.tell(left, state=optuna.trial.TrialState.FAIL)
    queue_again(study, study.trials[0])
    again = study.ask()
    assert again.suggest_categorical("site", ["block 3", "block 5"]) == "block 3"
    assert again.suggest_float("share", 0.0, 1.0) == 0.95


def test_of_two_workers_that_both_find_nothing_agreed_the_first_to_write_decides(
    tmp_path, monkeypatch
):
    where, add = StudyStore("joy", "f", tmp_path), optuna.Study.add_trial

    def add_as_second(study, trial):
        monkeypatch.setattr(optuna.Study, "add_trial", add)
        assert agreed(where, "date", "the first's") == "the first's"
        add(study, trial)

    monkeypatch.setattr(optuna.Study, "add_trial", add_as_second)
    assert agreed(where, "date", "the second's") == "the first's"
    assert agreed(where, "date", "a third's") == "the first's"


@pytest.fixture
def zone(monkeypatch):
    """Set this process's time zone, for the test alone."""

    def put(name):
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield put
    monkeypatch.undo()
    time.tzset()


def test_a_worker_in_another_time_zone_leaves_the_trials_of_the_living_alone(zone):
    zone("UTC")
    study, seen = optuna.create_study(direction="maximize"), []

    def measure(trial):
        zone("Pacific/Kiritimati")  # 14 hours ahead
        SharedStudy(study, "another", None)._hand_on_abandoned()
        seen.extend(one.state.name for one in study.trials)
        return trial.suggest_float("share", 0.0, 1.0)

    SharedStudy(study, "the first", None).take_part(policy_of(1, measure))
    assert seen == ["RUNNING"]


def test_a_worker_in_another_time_zone_takes_over_the_trials_of_the_dead(zone):
    zone("Pacific/Kiritimati")
    study = optuna.create_study(direction="maximize")
    study.enqueue_trial({"share": 0.5})
    left = study.ask()
    left.set_user_attr(WORKER, "the dead")
    left.set_user_attr(STARTED, time.time() - timedelta(hours=1).total_seconds())
    zone("UTC")
    SharedStudy(study, "another", None)._hand_on_abandoned()
    assert [one.state.name for one in study.trials] == ["FAIL", "WAITING"]


@pytest.fixture
def proxy(tmp_path):
    """The URL of a gRPC proxy that answers."""
    pytest.importorskip("grpc")
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    code = (
        "import optuna; from optuna.storages import RDBStorage, run_grpc_proxy_server as run;"
        f"run(RDBStorage('sqlite:///{tmp_path}/s.db'), host='localhost', port={port})"
    )
    server = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)

    def answers():
        assert server.poll() is None
        with socket.socket() as client:
            return client.connect_ex(("localhost", port)) == 0

    try:
        wait_until(answers, "the proxy")
        yield f"grpc://localhost:{port}"
    finally:
        server.kill()
        server.wait(PATIENCE)


def test_workers_share_a_grpc_proxy(crew_of, tmp_path, proxy):
    crew = crew_of(tmp_path / "crew", url=proxy, together=2)
    answers = [crew.answer(worker) for worker in (crew.hire(), crew.hire())]
    assert answers[0]["best"] == answers[1]["best"]
    # On a busy machine the proxy hands one trial to both, who measure it; it counts once.
    counted_once(optuna.load_study(study_name="joy", storage=f"sqlite:///{tmp_path}/s.db"))


def test_the_second_to_finish_a_trial_goes_on(monkeypatch):
    study = optuna.create_study(direction="maximize")
    finish = study._storage.set_trial_state_values

    def second(trial_id, state, values=None):
        """The other worker finished it a moment before."""
        done = finish(trial_id, state, values)
        if state.is_finished():
            raise optuna.exceptions.UpdateFinishedTrialError
        return done

    policy = policy_of(1, lambda trial: trial.suggest_float("share", 0.0, 1.0))
    monkeypatch.setattr(study._storage, "set_trial_state_values", second)
    shared = SharedStudy(study, "the second", None)
    shared.take_part(policy)
    assert [trial.value for trial in shared.finished] == [0.5]


FAILED = optuna.trial.TrialState.FAIL


def test_a_worker_that_was_taken_for_dead_goes_on_with_what_is_left():
    study, told = optuna.create_study(direction="maximize"), []

    def measure(trial):
        share = trial.suggest_float("share", 0.0, 1.0)
        if not told:
            told.append(trial.number)
            study.tell(trial.number, state=FAILED)
        return share

    SharedStudy(study, "taken for dead", None).take_part(policy_of(1, measure))
    assert [one.state.name for one in study.trials] == ["FAIL", "COMPLETE"]


@pytest.mark.parametrize("error", [ValueError("of another kind"), KeyboardInterrupt()])
def test_what_breaks_a_trial_is_raised_though_another_worker_has_ended_it(error):
    study = optuna.create_study(direction="maximize")

    def measure(trial):
        study.tell(trial.number, state=FAILED)
        raise error

    with pytest.raises(type(error)) as caught:
        SharedStudy(study, "taken for dead", None).take_part(policy_of(1, measure))
    assert caught.value is error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no"), _Surplus()])
def test_nothing_is_logged_of_what_ends_a_trial(error):
    """Optuna logs an error inside a trial with its traceback, and so an interrupt."""
    study, logged = optuna.create_study(direction="maximize"), []

    def measure(trial):
        share = trial.suggest_float("share", 0.0, 1.0)
        if trial.number == 0:
            raise error
        return share

    watching = logging.Handler()
    watching.emit = logged.append
    logger = logging.getLogger("optuna")
    logger.addHandler(watching)
    try:
        shared = SharedStudy(study, "interrupted", None)
        with suppress(KeyboardInterrupt, ValueError):
            shared.take_part(policy_of(1, measure))
    finally:
        logger.removeHandler(watching)
    assert study.trials[0].state == FAILED
    assert not [record.getMessage() for record in logged if record.levelno >= logging.WARNING]
