"""The project's own files agree with one another."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")),
]


def documented(heading: str) -> set[str]:
    """The first column of the table below ``heading`` in docs/dependencies.md."""
    text = (ROOT / "docs/dependencies.md").read_text()
    section = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| ([a-z][a-z0-9-]+) +\|", section, re.MULTILINE)) - {"package"}


def test_every_python_package_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + extras["shrink"] + extras["test"]
    names = {re.split(r"[<>=~!\[ ]", requirement)[0] for requirement in wanted} - {project["name"]}
    assert documented("Python packages") == names


@pytest.mark.parametrize(
    ("variable", "heading"),
    [
        ("RUN_PACKAGES", "Distribution packages to run nemu"),
        ("TEST_PACKAGES", "Distribution packages for the tests"),
    ],
)
def test_every_distribution_package_has_its_reason(variable: str, heading: str) -> None:
    found = re.search(rf"^{variable} := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert found
    assert documented(heading) == set(found[1].split())


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_in_documents_lead_somewhere(document: str) -> None:
    file = ROOT / document
    for target in re.findall(r"\]\(([^)#]+)\)", file.read_text()):
        if "://" not in target:
            assert (file.parent / target).exists(), target
