"""Hold what the pages promise against the tests that show it: `<!-- test: NAME -->` at the end of a promise's line.

A comment that names no test is a promise that nobody keeps watch over, so `make check` refuses it.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")))
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_COMMENT = re.compile(r"<!--\s*test:(?P<names>[^>]*)-->")


def named(text: str) -> Iterator[tuple[int, str]]:
    """Yield each test that a page names, with the number of its line; several stand in one comment with commas."""
    for number, line in enumerate(text.splitlines(), 1):
        for comment in _COMMENT.finditer(line):
            yield from ((number, name.strip()) for name in comment["names"].split(","))


def find_tests(folder: Path) -> set[str]:
    """Give the names of all tests below a folder: functions, and state machines of Hypothesis (`TestIt = ...`)."""
    nodes = [
        node for file in folder.rglob("test_*.py") for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    ]
    names = [node.name for node in nodes if isinstance(node, _FUNCTIONS)]
    names += [
        each.id for node in nodes if isinstance(node, ast.Assign) for each in node.targets if isinstance(each, ast.Name)
    ]
    return {name for name in names if name.startswith(("test_", "Test"))}


def unkept(pages: Mapping[str, str], tests: set[str]) -> list[str]:
    """Say which pages name tests that do not exist."""
    return [
        f"{page}:{number}: there is no test {name!r}"
        for page, text in pages.items()
        for number, name in named(text)
        if name not in tests
    ]


def find_unkept() -> list[str]:
    """Say it of this repository's own pages."""
    pages = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
    return unkept(pages, find_tests(ROOT / "tests"))
