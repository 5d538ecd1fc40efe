"""Every promise of a page that names a test names one that exists."""

import subprocess
from pathlib import Path

from testbed.promises import PAGES, ROOT, find_tests, find_unkept, named, unkept


def test_each_test_that_a_page_names_exists() -> None:
    assert find_unkept() == []


def test_every_page_that_names_tests_is_held_to_it() -> None:
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    naming = {path for name in listed.splitlines() if list(named((path := ROOT / name).read_text()))}
    assert naming <= set(PAGES)
    assert {"README.md", "SECURITY.md", "client.md", "limits.md"} <= {path.name for path in naming}


def test_the_operations_page_names_tests() -> None:
    (operations,) = (page for page in PAGES if page.name == "operations.md")
    assert len(list(named(operations.read_text()))) >= 20


def test_a_name_without_a_test_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/test_it.py").write_text(
        "async def test_here(): ...\nclass Some:\n    def test_there(self): ...\n"
    )
    tests = find_tests(tmp_path)
    page = "Kept. <!-- test: test_here, test_there -->\nNot kept. <!-- test: test_nowhere -->\n"
    assert unkept({"page.md": page}, tests) == ["page.md:2: there is no test 'test_nowhere'"]
