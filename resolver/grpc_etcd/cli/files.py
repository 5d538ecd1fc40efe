"""Files of manifests: YAML or JSON, folders of them, or standard input."""

import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import yaml

SUFFIXES = {".yaml", ".yml", ".json"}
STANDARD_INPUT = "-"
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # eight times as fast, where libyaml is there
# Arbitrary, far more than manifests need: how deeply values are nested, and how many aliases may repeat.
MOST_DEPTH = 100
MOST_REPEATED = 100_000
TOO_DEEP = "it is nested too deeply, or an anchor contains itself"


class UnreadableError(Exception):
    """A file that cannot be read, or is not YAML; `file` names it."""

    def __init__(self, file: str, problem: object) -> None:
        words = " ".join(str(problem).split())
        super().__init__(words.replace(', in "<unicode string>",', ", at").replace('in "<unicode string>", ', "at "))
        self.file = file


def read_documents(path: str) -> Iterator[tuple[str, list[object]]]:
    """Return the documents of each file: of one, of all in a folder and its folders, or `-` for standard input."""
    found = Path(path)
    files = [found]
    if path != STANDARD_INPUT and found.is_dir():
        files = list_files(found)
    if not files:
        raise UnreadableError(path, f"it contains no file that ends in {', '.join(sorted(SUFFIXES))}")
    for each in files:
        try:
            yield str(each), _load(_read(sys.stdin) if path == STANDARD_INPUT else each.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise UnreadableError(str(each), error) from error


def list_files(folder: Path) -> list[Path]:
    """Return the files of a folder and its folders that may be manifests, sorted."""
    try:
        return sorted(each for each in folder.rglob("*") if each.suffix in SUFFIXES and not each.is_dir())
    except OSError as error:  # such as a folder that goes while it is looked through
        raise UnreadableError(str(folder), error) from error


@functools.cache
def _read(stream: TextIO) -> str:
    """Read a stream; whoever looks again has the same."""
    return stream.read()


def _load(text: str) -> list[object]:
    documents = list(yaml.load_all(text, LOADER))
    extent = _measure(documents, {}, 0)
    if extent.depth > MOST_DEPTH:
        raise ValueError(TOO_DEEP)
    if extent.values > len(text) + MOST_REPEATED:
        raise ValueError("its aliases repeat too much")
    return documents


class _Extent(NamedTuple):
    """How many values one consists of, each counted wherever an alias repeats it, and how deeply they are nested."""

    values: int
    depth: int


def _measure(value: object, known: dict[int, _Extent], depth: int) -> _Extent:
    """Measure a value without going through anything twice, as each command would else do."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if not inner:
        return _Extent(1, 0)
    if depth > MOST_DEPTH:
        raise ValueError(TOO_DEEP)
    if id(value) not in known:
        parts = [_measure(each, known, depth + 1) for each in inner]
        known[id(value)] = _Extent(1 + sum(each.values for each in parts), 1 + max(each.depth for each in parts))
    return known[id(value)]
