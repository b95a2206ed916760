"""Imports point downwards, wing by wing: the contracts in pyproject.toml, held by import-linter."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def modules() -> dict[str, Path]:
    """Every module of the project by name."""
    paths = [path for wing in ("calibrate", "probes") for path in (ROOT / wing).rglob("*.py")]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return dict(zip((name.removesuffix(".__init__") for name in names), paths, strict=True))


def imports(tree: ast.AST) -> set[str]:
    """Modules that a file imports from, wherever in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def kept(root: Path) -> subprocess.CompletedProcess[str]:
    """Have import-linter look at a checkout."""
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command as run; run()",
    ]
    return subprocess.run(
        [*command, "--no-cache"], cwd=root, check=False, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkout")
    shutil.copy(ROOT / "pyproject.toml", root)
    for wing in ("calibrate", "probes"):
        shutil.copytree(ROOT / wing, root / wing, ignore=shutil.ignore_patterns("*.jsonl"))
    return root


def test_imports_point_downwards(copy):
    done = kept(copy)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("calibrate/common/errors.py", "from calibrate.models.model import LoadedModel"),
        ("calibrate/laws/dose.py", "from calibrate.judging.presence import Presence"),
        ("calibrate/engine/forward.py", "import calibrate.engine.tries"),
        ("probes/scale.py", "import probes.learn"),
    ],
    ids=["upwards", "sideways", "round a wing", "round the probes"],
)
def test_a_planted_import_is_seen(copy, where, what):
    path = copy / where
    before = path.read_text(encoding="utf-8")
    hidden = f"\n\nif TYPE_CHECKING:\n    {what}\n"
    for planted in (f"\n\n{what}\n", f"\n\nfrom typing import TYPE_CHECKING{hidden}"):
        path.write_text(before + planted, encoding="utf-8")
        assert kept(copy).returncode == 1
    path.write_text(before, encoding="utf-8")


def test_every_wing_has_its_place_in_the_contract():
    contract = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("layers = [")[2]
    placed = set(re.findall(r"[\w.]+", contract.partition("]")[0]))
    entries = [path for path in (ROOT / "calibrate").iterdir() if path.suffix in ("", ".py")]
    names = {f"calibrate.{path.stem}" for path in entries if not path.stem.startswith("__")}
    assert names | {"probes"} == placed
    assert len(names) <= 12


def test_no_module_is_too_long_to_read_at_once():
    long = {
        name: lines
        for name, path in modules().items()
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 300
    }
    assert long == {}


def test_only_one_file_names_architectures_and_only_the_residual_file_hooks():
    for name, path in modules().items():
        text = path.read_text(encoding="utf-8")
        if name != "calibrate.models.hooks":
            assert "register_forward" not in text, name
        if name != "calibrate.models.architecture":
            assert "transformer.h" not in text, name
            assert "layers.mlp" not in text, name


@pytest.mark.parametrize("module", ["dose", "formulas", "presence", "tokens"])
def test_the_laws_need_numpy_and_scipy_only(module):
    tree = ast.parse((ROOT / "calibrate" / "laws" / f"{module}.py").read_text(encoding="utf-8"))
    roots = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    assert roots <= {"__future__", "collections", "dataclasses", "numpy", "scipy", "calibrate"}
    ours = {name for name in imports(tree) if name.startswith("calibrate")}
    assert all(name.startswith("calibrate.laws.") for name in ours)


@pytest.mark.parametrize("module", ["calibrate", "calibrate.cli.commands", "calibrate.laws.tokens"])
def test_torch_is_not_imported_by(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_nothing_imports_the_scripts():
    for path in modules().values():
        names = imports(ast.parse(path.read_text(encoding="utf-8")))
        assert "scripts" not in {name.split(".")[0] for name in names}
