"""The scripts behind the pages of docs keep up with the packages they measure."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

SCRIPTS = Path(__file__).parents[1] / "scripts"
DOCS = SCRIPTS.parent / "docs"
SLOW = {"measure_judges": "judges"}  # it draws grades thousands of times
PAGES = {
    "benchmark": "benchmark",
    "cost_model": "cost",
    **{f"measure_{one.replace('-', '_')}": one for one in (
        "architectures", "bands", "bounds", "concepts", "devices", "engine", "exports", "finetune",
        "guard", "house", "joint", "laws", "long-run", "main-job", "pairs", "prompt-strength",
        "remainder", "serve", "study", "sweep",
    )},
}  # fmt: skip
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
def test_what_is_said_beside_the_papers_figures_is_counted(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    from reproduction_companion import at_last_token, sigmoids, within_budget

    def panel(good, fall, last, every):
        found = SimpleNamespace(goodness=SimpleNamespace(good=good), fall={"positive": fall})
        ways = [
            SimpleNamespace(goodness={"concept": SimpleNamespace(good=one)}, presence=found)
            for one in (last, every)
        ]
        curves = SimpleNamespace(variants={"last token": ways[0]})
        return SimpleNamespace(curves=curves, block=ways[1])

    panels = [panel(True, None, False, True), panel(True, 2.0, False, True)]
    assert sigmoids(panels[:1]) == "of 1 curve 1 a sigmoid within errors, 0 with a fall"
    assert sigmoids(panels) == "of 2 curves 2 a sigmoid within errors, 1 with a fall"
    assert at_last_token(panels).endswith("within the budget: concept for 0 and 2 of 2")
    held = {"cross_entropy": True, "concept": True, "bumps": False, "peaks": None}
    block = SimpleNamespace(holds=lambda law, reach: held[law])
    assert within_budget([block]) == "ΔCE, concept within the budget; not bumps"
    nothing = {sigmoids([]), at_last_token([]), within_budget([])}
    assert nothing == {"not measured here"}


@pytest.mark.skipif(not SCRIPTS.is_dir(), reason="an installed package has no scripts")
def test_a_block_chosen_on_other_prompts_is_not_best_by_luck(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    from measure_bands import lead_over_chosen

    rng = np.random.default_rng(7)
    fair, errors, flattered = [], [], []
    for _ in range(100):  # nine blocks that are as good as the band, but for noise
        prompts = rng.normal(size=(1, 64))
        band, *blocks = prompts + rng.normal(size=(10, 64))
        lead, error = lead_over_chosen(band, np.stack(blocks))
        fair.append(lead)
        errors.append(error)
        flattered.append(band.mean() - max(block.mean() for block in blocks))
    assert abs(np.mean(fair)) < 3 * np.std(fair) / 10 < 0.06
    assert np.mean(flattered) < -0.1
    assert 0.6 < np.mean(errors) / np.std(fair) < 1.2

    blocks[4] = band + 1  # the truly best is found, and its lead is whole
    assert lead_over_chosen(band, np.stack(blocks))[0] == pytest.approx(-1)


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


@pytest.mark.skipif(not SCRIPTS.is_dir(), reason="an installed package has no scripts")
def test_a_note_is_of_the_record_that_has_it(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    from records import sentences

    old, new = {"note": "Measured before"}, {"note": ""}
    assert sentences({"joy": old, "evil": old}, "note") == "Measured before."
    assert sentences({"joy": old, "evil": new, "lying": {}}, "note") == "joy: Measured before."
    assert sentences({"joy": new, "lying": {}}, "note") == ""


@pytest.mark.skipif(not SCRIPTS.is_dir(), reason="an installed package has no scripts")
def test_the_guards_page_says_of_the_largest_strength_whether_it_is_refused(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    from measure_guard import page

    drop = {"value": 0.0, "low": 0.0, "high": 0.0}
    point = {"budget": 0.1, "accuracy": 0.5, "baseline": 0.5, "drop": drop, "upper": 0.0}
    small = point | {"strength": 0.1, "refused": "the small one's reason"}
    large = point | {"strength": -1.0, "refused": "the large one's reason"}
    assert "refused: the large one's reason." in page({"joy": [large, small]})
    assert "is refused:" not in page({"joy": [small, large | {"refused": None}]})


@pytest.mark.skipif(not SCRIPTS.is_dir(), reason="an installed package has no scripts")
@pytest.mark.parametrize(
    ("script", "page"),
    [*PAGES.items(), *(pytest.param(*one, marks=pytest.mark.slow) for one in SLOW.items())],
)
def test_a_page_is_what_its_script_makes_of_what_is_kept(script, page, monkeypatch, tmp_path):
    """All but frontier.md and reproduction.md, whose pictures take half a minute each."""
    for package in ("numpy", "scipy"):
        if f"{package}=={version(package)}" not in (SCRIPTS.parent / "constraints.txt").read_text():
            pytest.skip(f"another {package} than in constraints.txt may round otherwise")
    monkeypatch.syspath_prepend(SCRIPTS)
    module = pytest.importorskip(script, reason="it needs what is not installed")
    monkeypatch.setattr(module, "DOCS", tmp_path)
    CliRunner().invoke(module.main, ["--page"], catch_exceptions=False)
    made = (tmp_path / f"{page}.md").read_text(encoding="utf-8")
    assert made == (DOCS / f"{page}.md").read_text(encoding="utf-8"), f"run {script}.py --page"
