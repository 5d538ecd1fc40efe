"""Files of manifests: YAML or JSON, folders of them, or standard input."""

import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

SUFFIXES = {".yaml", ".yml", ".json"}


class UnreadableError(Exception):
    """A file that cannot be read, or is no YAML; `file` names it."""

    def __init__(self, file: str, problem: object) -> None:
        super().__init__(" ".join(str(problem).split()))
        self.file = file


def read_documents(path: str) -> Iterator[tuple[str, list[object]]]:
    """Return the documents of each file: of one, of all in a folder and its folders, or `-` for standard input."""
    found = Path(path)
    files = [found]
    if path != "-" and found.is_dir():
        files = sorted(each for each in found.rglob("*") if each.suffix in SUFFIXES)
    if not files:
        raise UnreadableError(path, f"it contains no file that ends in {', '.join(sorted(SUFFIXES))}")
    for each in files:
        try:
            text = sys.stdin.read() if path == "-" else each.read_text(encoding="utf-8")
            yield str(each), list(yaml.safe_load_all(text))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UnreadableError(str(each), error) from error
