"""Imports point downwards, at run time, in the order written down here."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the top of the house to its foundations; a module imports only what stands further down.
ORDER = (
    "calibrate.cli",
    "calibrate.grade_command",
    "calibrate.options",
    "calibrate.grade_session",
    "calibrate.terminal",
    "calibrate.console",
    "calibrate",
    "calibrate.apply_grades",
    "calibrate.calibration",
    "calibrate.describe",
    "calibrate.report",
    "calibrate.report.summary",
    "calibrate.report.readers",
    "calibrate.report.page",
    "calibrate.report.pictures",
    "calibrate.report.curves",
    "calibrate.report.judged",
    "calibrate.curves",
    "calibrate.block_curves",
    "calibrate.assemble",
    "calibrate.chat",
    "calibrate.named_judges",
    "calibrate.stacks",
    "calibrate.export",
    "calibrate.export.snippet",
    "calibrate.export.folded",
    "calibrate.export.adapter",
    "calibrate.export.easysteer",
    "calibrate.export.control_vector",
    "calibrate.export.lm_eval",
    "calibrate.export.svec",
    "calibrate.export.target",
    "calibrate.export.exporter",
    "calibrate.export.place",
    "calibrate.export.adapters",
    "calibrate.export.restored",
    "calibrate.gate",
    "calibrate.explain",
    "calibrate.forecast",
    "calibrate.verify",
    "calibrate.audit",
    "calibrate.effect",
    "calibrate.long_run",
    "calibrate.search",
    "calibrate.study",
    "calibrate.shared_study",
    "calibrate.readers",
    "calibrate.grade_sheet",
    "calibrate.blind",
    "calibrate.workspace",
    "calibrate.evidence",
    "calibrate.config",
    "calibrate.schema",
    "calibrate.ranking",
    "calibrate.pilot",
    "calibrate.log_odds",
    "calibrate.token_law",
    "calibrate.laws",
    "calibrate.dose",
    "calibrate.presence",
    "calibrate.judging",
    "calibrate.teaching",
    "calibrate.graded_replies",
    "calibrate.asked",
    "calibrate.fluency",
    "probes",
    "probes.validation",
    "probes.correction",
    "probes.learn",
    "probes.fit",
    "probes.student",
    "probes.ridge",
    "probes.classifier",
    "probes.readout",
    "probes.encoder",
    "probes.examples",
    "probes.probe",
    "probes.features",
    "probes.verdicts",
    "probes.question",
    "probes.gguf_question",
    "probes.openai_question",
    "probes.address",
    "probes.asking",
    "probes.judges",
    "probes.quality",
    "probes.scale",
    "calibrate.vector",
    "calibrate.replies",
    "calibrate.cache",
    "calibrate.cross_entropy",
    "calibrate.completions",
    "calibrate.loading",
    "calibrate.capabilities",
    "calibrate.prefix",
    "calibrate.decoding",
    "calibrate.drawing",
    "calibrate.given",
    "calibrate.model",
    "calibrate.parts",
    "calibrate.embedded",
    "calibrate.checkpoint",
    "calibrate.architecture",
    "calibrate.residual",
    "calibrate.memory",
    "calibrate.threads",
    "calibrate.rendering",
    "calibrate.thought",
    "calibrate.tokens",
    "calibrate.concept",
    "calibrate.dealing",
    "calibrate.alike",
    "calibrate.graded",
    "probes.graded",
    "calibrate.text_files",
    "calibrate.rows",
    "calibrate.cost",
    "calibrate.progress",
    "calibrate.llama_cpp",
    "calibrate.loops",
    "calibrate.ppi",
    "calibrate.estimate",
    "calibrate.settings",
    "calibrate.files",
    "calibrate.grades",
    "calibrate.rubrics",
    "calibrate.marks",
    "calibrate.errors",
)


def modules() -> dict[str, Path]:
    found = {}
    for package in ("calibrate", "probes"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def runtime_imports(path: Path) -> set[str]:
    """Modules of the project a file imports, those only for type checking left out."""
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return names & set(modules())


def test_every_module_has_its_place():
    assert sorted(ORDER) == sorted(modules())


@pytest.mark.parametrize("module", [name for name in ORDER if name != "calibrate"])
def test_imports_point_downwards(module):
    place = {name: index for index, name in enumerate(ORDER)}
    upwards = [
        other
        for other in runtime_imports(modules()[module]) - {module, module.split(".")[0]}
        if place[other] <= place[module]
    ]
    assert upwards == []


def test_only_one_file_names_architectures_and_only_the_residual_file_hooks():
    for name, path in modules().items():
        text = path.read_text(encoding="utf-8")
        if name != "calibrate.residual":
            assert "register_forward" not in text, name
        if name != "calibrate.architecture":
            assert "transformer.h" not in text, name
            assert "layers.mlp" not in text, name


@pytest.mark.parametrize("module", ["dose", "laws", "token_law"])
def test_the_laws_need_numpy_and_scipy_only(module):
    tree = ast.parse((ROOT / "calibrate" / f"{module}.py").read_text(encoding="utf-8"))
    roots = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    assert roots <= {"__future__", "collections", "dataclasses", "numpy", "scipy", "calibrate"}
    assert runtime_imports(ROOT / "calibrate" / f"{module}.py") <= {
        "calibrate.laws",
        "calibrate.dose",
    }


@pytest.mark.parametrize("module", ["calibrate", "calibrate.cli", "calibrate.token_law"])
def test_torch_is_not_imported_by(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_nothing_imports_the_scripts():
    for path in modules().values():
        assert "scripts" not in {name.split(".")[0] for name in runtime_imports(path)}
