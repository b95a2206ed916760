"""Judges that a config names are made again only where its word may be taken for it."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import tiny

import calibrate
from calibrate.artefact.hub import SUMS_FILE, sums_of
from calibrate.common.errors import InputError
from calibrate.deploy.trusted import reader_again
from calibrate.deploy.verify import check_directory

URL = "http://localhost:1/v1"


@pytest.fixture
def named(finished, tmp_path, monkeypatch):
    """A directory whose config names a judge, pushed or not; importing `spy` leaves a file."""
    spies = tmp_path / "spies"
    spies.mkdir()
    (spies / "spy.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nscore = len\n")
    monkeypatch.syspath_prepend(spies)
    monkeypatch.delitem(sys.modules, "spy", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")

    def made(judge, pushed=False, url=None):
        folder = shutil.copytree(finished.directory, tmp_path / "named")
        facts = json.loads((folder / "steering.json").read_text())
        facts["measured"]["judges"] = [judge]
        facts["provenance"]["settings"]["judge_url"] = url
        (folder / "steering.json").write_text(json.dumps(facts))
        if pushed:
            (folder / SUMS_FILE).write_bytes(sums_of(folder))
        return folder

    return made


def remade(folder):
    config = calibrate.load(folder)
    return reader_again(config.measured.judges[0], config, tiny.loaded("gpt2"), None)


@pytest.mark.parametrize(
    "judge", ["spy:score", "openai:m", "openai:", "embedding:me/encoder", "question:a.gguf"]
)
def test_a_repository_has_no_code_run_and_no_server_asked(judge, named, tmp_path):
    folder = named(judge, pushed=True, url=URL)
    with pytest.raises(InputError, match="is named by a repository, which may have no code run"):
        remade(folder)
    assert not (tmp_path / "ran").exists()


def test_the_gate_says_that_it_does_not_ask_such_a_judge(named, tmp_path):
    loaded = calibrate.load_model(tiny.model("gpt2"), tiny.tokenizer())
    report = check_directory(named("spy:score", pushed=True), loaded)
    (presence,) = (check for check in report.checks if check.name == "presence")
    assert presence.passed
    assert "is not asked again here: judge 'spy:score' is named by a repository" in presence.found
    assert not (tmp_path / "ran").exists()


def test_a_function_that_ones_own_directory_names_is_run(named, tmp_path):
    assert remade(named("spy:score")).name == "spy:score"
    assert (tmp_path / "ran").exists()


def test_the_key_goes_to_ones_own_address_only(named, finished, monkeypatch):
    folder = named("openai:m", url=URL)
    with pytest.raises(InputError, match="OPENAI_API_KEY is sent there, and the config names"):
        remade(folder)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:2/v1")
    with pytest.raises(InputError, match="set OPENAI_BASE_URL to it, or unset the key"):
        remade(folder)
    monkeypatch.setenv("OPENAI_BASE_URL", f"{URL}/")
    assert remade(folder).name == "openai:m"
    monkeypatch.delenv("OPENAI_BASE_URL")
    monkeypatch.delenv("OPENAI_API_KEY")
    assert remade(folder).name == "openai:m"


def test_what_this_process_calibrated_asks_whom_it_was_told_to(finished):
    assert finished.result.config.origin.place == "memory"
    assert calibrate.load(finished.directory).origin.place == "directory"
    assert calibrate.load(finished.directory) == finished.result.config
