"""Write every generated file again, or say which are stale: `make gen`, and `--check` in `make check`.

A generator is a function without arguments that returns the full text of each file it makes, by absolute path; a room
that generates something adds its function to GENERATORS. Nothing is written whose text has not changed.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from testbed import api_reference, chart, etcd_client, etcd_descriptor, outage_picture, references, sizing_picture

GENERATORS: tuple[Callable[[], Mapping[Path, str]], ...] = (
    etcd_descriptor.outputs,
    etcd_client.outputs,
    chart.outputs,
    references.outputs,
    api_reference.outputs,
    outage_picture.outputs,
    sizing_picture.outputs,
)


def generated() -> dict[Path, str]:
    """The text that every generated file should have now."""
    return {path: text for generator in GENERATORS for path, text in generator().items()}


def stale(files: Mapping[Path, str]) -> list[Path]:
    """The files that are missing or have another text."""
    return sorted(path for path, text in files.items() if not path.exists() or path.read_text() != text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write what is stale, or with --check only name it and exit with 1."""
    parser = argparse.ArgumentParser(prog="python -m testbed.generate")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when a file is stale")
    check = parser.parse_args(arguments).check
    files = generated()
    for path in (old := stale(files)):
        print(f"{'stale' if check else 'wrote'}: {os.path.relpath(path)}")
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(files[path])
    if check and old:
        sys.exit("generated files are stale; run: make gen")


if __name__ == "__main__":
    main()
