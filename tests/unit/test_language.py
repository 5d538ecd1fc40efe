"""The field's words in names and in prose: what `retired_words.tsv` lists is refused, with what to say instead."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROWS = [
    line.split("\t")
    for line in (Path(__file__).parent / "retired_words.tsv").read_text().splitlines()
    if not line.startswith("#")
]
NAMES = {row[1]: row[2] for row in ROWS if row[0] == "name"}
PROSE = [(re.compile(row[1]), row[2]) for row in ROWS if row[0] == "prose"]
DOCSTRINGS = [(re.compile(rf"{row[1]}\b"), row[2]) for row in ROWS if row[0] == "docstring"]
EXCEPTIONS = {(row[1], row[2]) for row in ROWS if row[0] == "except"}
MODULES = [path for folder in ("operator", "resolver") for path in sorted((ROOT / folder).rglob("*.py"))]
# Decisions and the changelog say what was said when they were written.
DOCUMENTS = [
    *(path for path in sorted((ROOT / "docs").rglob("*.md")) if path.parent.name != "decisions"),
    *sorted((ROOT / "charts").rglob("*.tpl")),
    *sorted((ROOT / "charts").rglob("*.yaml")),
    *sorted((ROOT / "charts").rglob("*.json")),
    *sorted((ROOT / "charts").rglob("NOTES.txt")),
    *(path for path in sorted(ROOT.glob("*.md")) if path.name != "CHANGELOG.md"),
]


def find_in_prose(text: str) -> list[tuple[str, str]]:
    return [(found[0], instead) for word, instead in PROSE for found in word.finditer(text)]


def find_in_name(name: str) -> list[tuple[str, str]]:
    parts = re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", name)
    return [(name, NAMES[part.lower()]) for part in parts if part.lower() in NAMES]


def find_in_code(text: str) -> Iterator[tuple[int, str, str]]:
    """Give line, word and what to say instead."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        found = []
        if token.type == tokenize.NAME:
            found = find_in_name(token.string)
        elif token.type == tokenize.COMMENT or (token.type == tokenize.STRING and " " in token.string):
            found = find_in_prose(token.string)
        yield from ((token.start[0], *each) for each in found)
    yield from find_in_docstrings(text)


def find_in_docstrings(text: str) -> Iterator[tuple[int, str, str]]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (docstring := ast.get_docstring(node)):
            begun = ((word.match(docstring), instead) for word, instead in DOCSTRINGS)
            yield from ((node.lineno, found[0], instead) for found, instead in begun if found)


def complain(path: Path, line: int, word: str, instead: str) -> str:
    return f"{path.relative_to(ROOT)}:{line}: {word!r}; say: {instead}"


def is_excepted(path: Path, word: str) -> bool:
    return (str(path.relative_to(ROOT)), word) in EXCEPTIONS


def test_code_says_what_the_field_says() -> None:
    found = ((path, each) for path in MODULES for each in find_in_code(path.read_text()))
    assert [complain(path, *each) for path, each in found if not is_excepted(path, each[1])] == []


def test_documents_say_what_the_field_says() -> None:
    found = (
        (path, number, word, instead)
        for path in DOCUMENTS
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for word, instead in find_in_prose(line)
    )
    assert [complain(*each) for each in found if not is_excepted(each[0], each[2])] == []


def test_every_exception_is_of_use() -> None:
    for name, word in EXCEPTIONS:
        assert word in (ROOT / name).read_text(), f"{name} does not say {word!r} any more"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def tell_all(): ...", ["tell_all"]),
        ("class HeardAt: ...", ["HeardAt"]),
        ("x = 1  # told once", ["told"]),
        ('log("etcd is out of reach")', ["out of reach"]),
        ('def f():\n    """Say whether it is."""', ["Say"]),
        ('def f():\n    """Return whether it is."""', []),
        ("teller = untold", []),
    ],
)
def test_what_is_refused(text: str, words: list[str]) -> None:
    assert [word for _, word, _ in find_in_code(text)] == words
