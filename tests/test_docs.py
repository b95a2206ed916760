"""Documents that are generated say what the code says."""

from __future__ import annotations

import re
import runpy
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("script", "function", "target", "written_by"),
    [
        ("write_schema.py", "schema", "steering-config.schema.json", "pydantic"),
        ("write_cli_docs.py", "cli_docs", "cli.md", "click"),
        ("write_refusals.py", "page", "refusals.md", "click"),
    ],
)
def test_a_generated_document_is_up_to_date(script, function, target, written_by):
    installed = f"{written_by}=={version(written_by)}"
    if installed not in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        pytest.skip(f"{installed} words it otherwise than the version in constraints.txt")
    produce = runpy.run_path(str(ROOT / "scripts" / script))[function]
    assert (ROOT / "docs" / target).read_text(encoding="utf-8") == produce(), (
        f"run scripts/{script}"
    )


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *map(str, ROOT.glob("docs/*.md"))]
)
def test_links_between_the_pages_lead_somewhere(page):
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_the_readme_shows_exactly_two_commands_for_a_fresh_clone():
    start = (ROOT / "README.md").read_text(encoding="utf-8").split("## Quick start")[1]
    commands = re.search(r"```sh\n(.*?)```", start, re.DOTALL).group(1).strip().splitlines()
    assert [line.split("#")[0].strip() for line in commands] == [
        "sh scripts/quickstart.sh",
        "sh scripts/test.sh",
    ]
    assert "sh scripts/test.sh" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
