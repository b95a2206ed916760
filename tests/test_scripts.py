"""The scripts behind the pages of docs keep up with the packages they measure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

SCRIPTS = Path(__file__).parents[1] / "scripts"
OPTIONAL = ("vaderSentiment", "xllamacpp", "peft", "lm_eval", "ray")
IMPORT_ALL = f"""
import importlib, sys
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as missing:
        if missing.name.split(".")[0] not in {OPTIONAL}:
            raise SystemExit(name + ": " + str(missing))
    except ImportError as error:
        raise SystemExit(name + ": " + str(error))
"""


@pytest.mark.skipif(not SCRIPTS.is_dir(), reason="an installed package has no scripts")
def test_every_script_can_be_imported():
    names = sorted(path.stem for path in SCRIPTS.glob("*.py"))
    found = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, str(SCRIPTS), *names],
        capture_output=True,
        text=True,
        check=False,
    )
    assert names
    assert found.returncode == 0, found.stderr


@pytest.mark.skipif(not SCRIPTS.is_dir(), reason="an installed package has no scripts")
def test_the_benchmark_of_gpus_runs_on_what_is_there(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(SCRIPTS)
    import benchmark_gpu

    monkeypatch.setattr(benchmark_gpu, "DOCS", tmp_path)
    small = "--layers 2 --hidden 128 --vocabulary 512 --tokens 4096 --matrix 64"
    asked = [*small.split(), "--device", "cpu", "--dtype", "float32"]
    done = CliRunner().invoke(benchmark_gpu.main, asked, catch_exceptions=False)
    assert done.exit_code == 0
    assert "grid of 129" in (tmp_path / "benchmark-gpu.md").read_text()
