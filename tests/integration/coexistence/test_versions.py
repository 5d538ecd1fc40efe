"""The library with the oldest grpcio and protobuf that it allows, and on the newer Pythons with the newest ones.

Each environment runs calls and list-watches of both etcd clients on a real etcd, every layout's golden bytes, and real
calls through channels that follow the registry.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from testbed import pythons
from testbed.build import ROOT
from testbed.environments import NEWEST, TEST_PACKAGES, environment, pinned, variables
from testbed.image import ImageError

# The slowest case installs an environment first.
pytestmark = [pytest.mark.matrix, pytest.mark.timeout(600)]

DEPENDENCIES = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
OLDEST = tuple(requirement.replace(">=", "==") for requirement in DEPENDENCIES)
CASES = {"oldest": ("python3.11", OLDEST)} | {minor: (f"python{minor}", NEWEST) for minor in ("3.12", "3.13", "3.14")}
CONTRACT = (
    "tests/integration/etcd/test_calls.py",
    "tests/integration/etcd/test_list_watch.py",
    "tests/unit/layouts/test_golden.py",
    "tests/integration/client/test_channels.py",
)
# Of the tests of channels those of the main job; all of them would take minutes.
CHOSEN = "not test_channels or spread or without_a_failed_call or running_call or broken_records or disabling"


def find_python(name: str) -> str | None:
    """Find an interpreter: what runs the tests, on the path, or among pyenv's, whose shims may lead nowhere."""
    if name == f"python{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    candidates = [shutil.which(name), *map(str, sorted(pyenv.glob(f"versions/*/bin/{name}")))]
    return next((path for path in candidates if path and runs(path)), None)


def runs(python: str) -> bool:
    return subprocess.run([python, "-c", "import venv"], capture_output=True, check=False).returncode == 0


def test_the_oldest_versions_are_those_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    for requirement in OLDEST:
        name, version = requirement.split("==")
        assert re.search(rf"{name} \({re.escape(version)} or newer\)", readme), requirement


def install(case: str) -> str:
    """Return the interpreter of a case, which Debian may have where the machine has none."""
    try:
        return str(pythons.install_python(case))
    except ImageError as error:
        pytest.skip(f"no Python {case}: {error}")


@pytest.mark.parametrize(
    "case", [case for case, (python, _) in CASES.items() if case in pythons.SUITES or find_python(python)]
)
def test_the_contract_holds(case: str, tmp_path: Path) -> None:
    python, versions = CASES[case]
    home = find_python(python) or install(case)
    interpreter = environment(*versions, *map(pinned, TEST_PACKAGES), python=home)
    command: list[str | Path] = [
        interpreter,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        "not faults",
        "-k",
        CHOSEN,
    ]
    log = tmp_path / "log"
    with log.open("w") as output:
        done = subprocess.run(
            [*command, *CONTRACT], cwd=ROOT, env=variables(), stdout=output, stderr=subprocess.STDOUT, check=False
        )
    closing = log.read_text()[-6000:]
    assert done.returncode == 0, closing
    assert re.search(r"\d{3} passed", closing), closing
