"""Documents that are generated say what the code says."""

from __future__ import annotations

import re
import runpy
from importlib.metadata import version
from pathlib import Path

import pytest

from calibrate.pipelines.sweep.cells import read_plan
from calibrate.texts.guard import read_guard
from calibrate.texts.text_files import read_labelled

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *map(str, sorted(ROOT.glob("docs/*.md")))]


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


@pytest.mark.parametrize("page", PAGES)
def test_links_between_the_pages_lead_somewhere(page):
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def _slug(heading):
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_to_a_section_lead_to_its_heading(page):
    path = ROOT / page
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", path.read_text(encoding="utf-8")):
        other = path.parent / target if target else path
        headings = re.findall(r"^#+ (.*)$", other.read_text(encoding="utf-8"), re.MULTILINE)
        assert anchor in {_slug(heading) for heading in headings}, f"{target}#{anchor}"


def test_the_files_that_are_shown_can_be_read(tmp_path):
    page = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
    texts, questions = re.findall(r"```jsonl\n(.*?)```", page, re.DOTALL)
    (plan,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "texts.jsonl").write_text(texts)
    labels = [entry.positive for entry in read_labelled(tmp_path / "texts.jsonl")]
    assert labels == [True, True, False, True, False]
    lines = questions.strip().split("\n")
    numbered = [line.replace("ees", f"ees {n}", 1) for n in range(10) for line in lines]
    (tmp_path / "questions.jsonl").write_text("\n".join(numbered))
    guard = read_guard(tmp_path / "questions.jsonl")
    assert {item.choices[item.answer] for item in guard.items} == {"honey"}
    (tmp_path / "plan.toml").write_text(plan)
    assert len(read_plan(tmp_path / "plan.toml")) == 8


def test_the_readme_shows_exactly_two_commands_for_a_fresh_clone():
    start = (ROOT / "README.md").read_text(encoding="utf-8").split("## Quick start")[1]
    commands = re.search(r"```sh\n(.*?)```", start, re.DOTALL).group(1).strip().splitlines()
    assert [line.split("#")[0].strip() for line in commands] == [
        "sh scripts/quickstart.sh",
        "sh scripts/test.sh",
    ]
    assert "sh scripts/test.sh" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
