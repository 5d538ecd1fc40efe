"""Virtual environments with other packages than the project's own, kept in the cache outside the checkout.

Tests and benchmarks use them to meet other etcd clients. The library
itself is not installed: its folder is put on the path, so that what runs is always this checkout.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from testbed.build import ROOT, cache_folder, locked

CONSTRAINTS = ROOT / "constraints.txt"
# Other clients of etcd's v3 API; the versions are the newest of 2026.
AETCD = "aetcd==1.0.0"
CSLAB_ETCD3 = "cslab-etcd3==0.12.1"
ETCD3 = "etcd3==0.12.0"
# What the project's own tests need in an environment beside the library's dependencies.
TEST_PACKAGES = (
    "pytest",
    "pytest-asyncio",
    "pytest-timeout",
    "hypothesis",
    "trustme",
    "cryptography",
    "urllib3",
    "PyYAML",
)


class InstallError(Exception):
    """An environment could not be made; the message holds pip's words."""


def pinned(package: str) -> str:
    """Return the version of a package that the project itself is developed with: the newest that it was tried with."""
    found = re.search(rf"^{re.escape(package)}==\S+", CONSTRAINTS.read_text(), re.MULTILINE | re.IGNORECASE)
    if found is None:
        raise KeyError(f"{package} is not in {CONSTRAINTS.name}")
    return found[0]


NEWEST = (pinned("grpcio"), pinned("protobuf"))


def environment(*requirements: str, python: str = sys.executable) -> Path:
    """Return the Python of an environment with these packages; make it when it is missing."""
    wanted = "\n".join((str(Path(python).resolve()), *sorted(requirements)))
    home = cache_folder() / "environments" / hashlib.sha256(wanted.encode()).hexdigest()[:16]
    home.parent.mkdir(parents=True, exist_ok=True)
    with locked(home.with_suffix(".lock")):
        if not (home / "complete").exists():
            install(home, requirements, python)
    return home / "bin" / "python"


def install(home: Path, requirements: tuple[str, ...], python: str) -> None:
    """Make an environment; a mark at the end tells a whole one from one that was interrupted."""
    shutil.rmtree(home, ignore_errors=True)
    run([python, "-m", "venv", "--without-pip", home])
    pip: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        home / "bin/python",
        "--disable-pip-version-check",
    ]
    # Compiling grpcio takes half an hour: rather fail.
    run([*pip, "install", "--quiet", "--only-binary=grpcio,protobuf", *requirements])
    (home / "complete").write_text("\n".join(requirements) + "\n")


def run(command: list[str | Path]) -> None:
    """Run a command of the installation."""
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        shown = " ".join(str(part) for part in command)
        raise InstallError(f"$ {shown}\n{answer.stdout[-2000:]}{answer.stderr[-2000:]}")


def variables(**more: str) -> Mapping[str, str]:
    """Return the environment variables under which such a Python finds the library and the test bed."""
    return os.environ | {"PYTHONPATH": f"{ROOT / 'resolver'}{os.pathsep}{ROOT}", **more}
