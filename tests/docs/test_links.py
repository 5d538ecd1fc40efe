"""Every relative link in the documentation leads somewhere, and the README stays short."""

import re
import subprocess
from pathlib import Path

import pytest

from testbed.build import ROOT

README_LINES = 150
PAGES = sorted(
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


def test_the_readme_names_existing_make_targets() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"\bmake ([a-z-]+)", (ROOT / "README.md").read_text() + _contributing()))
    assert {"demo", "test"} <= targets
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


def _contributing() -> str:
    return (ROOT / "CONTRIBUTING.md").read_text()


GENERATED = {ROOT / "charts/grpc-etcd-operator/README.md", *(ROOT / "docs/reference").glob("*.md")}
SENTENCE_END = re.compile(r"(?<!e\.g)(?<!i\.e)(?<!\d)[.!?] (?=[A-Z`\[(])")


@pytest.mark.parametrize(
    "page", sorted({*PAGES} - GENERATED - {ROOT / "CHANGELOG.md"}), ids=lambda page: str(page.relative_to(ROOT))
)
def test_each_sentence_begins_a_line(page: Path) -> None:
    """So that a diff shows the sentence that has changed; a bold lead-in may stand before one."""
    prose = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE).splitlines()
    assert [line for line in prose if not line.startswith(("|", "#")) and SENTENCE_END.search(line)] == []
