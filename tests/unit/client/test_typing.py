"""What users' type checkers say: nothing about right use of every public name, and something about each wrong use."""

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from zipfile import ZipFile

import pytest

import grpc_etcd
import grpc_etcd.testing
from testbed.build import ROOT

PROGRAMS = Path(__file__).parent / "typed"


def check(program: Path, *flags: str) -> list[str]:
    """Check one program as its author would, with nothing of our own settings; give the complaints about it."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--show-error-codes", *flags, str(program)],
        capture_output=True,
        text=True,
        cwd=program.parent,
        check=False,
    )
    assert not done.stderr, done.stderr
    return done.stdout.splitlines()


def test_right_use_is_clean_under_strict() -> None:
    assert check(PROGRAMS / "right.py") == ["Success: no issues found in 1 source file"]


def test_every_wrong_use_is_refused() -> None:
    program = PROGRAMS / "wrong.py"
    expected = {
        (number, line.rpartition("wrong: ")[2])
        for number, line in enumerate(program.read_text().splitlines(), start=1)
        if "  # wrong: " in line
    }
    pattern = re.compile(r"wrong\.py:(\d+): error: .*\[([\w-]+)\]$")
    found = {(int(match[1]), match[2]) for line in check(program) if (match := pattern.search(line))}
    assert found == expected


@pytest.mark.parametrize("module", [grpc_etcd, grpc_etcd.testing], ids=lambda module: module.__name__)
def test_right_use_leaves_no_public_name_out(module: ModuleType) -> None:
    text = (PROGRAMS / "right.py").read_text()
    assert [name for name in module.__all__ if not re.search(rf"\b{name}\b", text)] == []


def test_the_modules_that_the_docs_name_come_with_the_package() -> None:
    program = (
        "import grpc_etcd; print(grpc_etcd.aio.insecure_channel.__name__, grpc_etcd.testing.MemoryRegistry.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["insecure_channel", "MemoryRegistry"]


def test_every_public_name_can_be_loaded() -> None:
    assert [name for name in grpc_etcd.__all__ if getattr(grpc_etcd, name).__doc__ is None] == []
    assert set(dir(grpc_etcd)) >= set(grpc_etcd.__all__)
    with pytest.raises(AttributeError, match="SnapShot"):
        grpc_etcd.SnapShot  # type: ignore[attr-defined]  # noqa: B018  # the access is what is tested


def test_a_pytest_that_does_not_use_the_fixture_loads_no_grpc() -> None:
    program = "import sys, grpc_etcd.pytest_plugin; print('grpc' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "False"


def test_the_wheel_says_that_it_is_typed_and_brings_the_fixture(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], cwd=ROOT, check=True
    )
    (built,) = tmp_path.glob("*.whl")
    with ZipFile(built) as wheel:
        names = wheel.namelist()
        (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
        text = wheel.read(entry_points).decode()
    assert {
        "grpc_etcd/py.typed",
        "grpc_etcd_operator/py.typed",
        "grpc_etcd/pytest_plugin.py",
        "grpc_etcd/memory/store.py",
    } <= set(names)
    assert "[pytest11]" in text
    assert not [name for name in names if name.startswith(("tests/", "testbed/", "bench/"))]
