"""Guards of the repository itself: names that would break Python, paths of one machine, one place for the version."""

import re
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

from testbed.generate import generated, stale

ROOT = Path(__file__).resolve().parents[2]
# Home and work folders of whoever wrote a line, in any text file.
MACHINE_PATH = re.compile(rb"(?<![\w.-])/(?:home/\w+|root|Users/\w+|work)/[\w.-]+")


def tracked_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    return [path for name in listing.decode().split("\0") if name and (path := ROOT / name).is_file()]


def test_operator_folder_is_no_package() -> None:
    """With an __init__.py it would shadow the standard library's module in every run from the root."""
    assert not (ROOT / "operator" / "__init__.py").exists()


def test_no_test_package_is_called_operator() -> None:
    assert not [path for path in (ROOT / "tests").rglob("operator") if path.is_dir()]
    assert not list((ROOT / "tests").rglob("operator.py"))


def test_no_file_names_a_folder_of_one_machine() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match[0].decode()}"
        for path in tracked_files()
        if path != Path(__file__)
        for match in MACHINE_PATH.finditer(path.read_bytes())
    ]
    assert found == []


def test_version_is_told_by_pyproject_alone() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert version("grpc-etcd") == project["version"]
    elsewhere = [
        str(path.relative_to(ROOT))
        for path in tracked_files()
        if path.suffix == ".py" and re.search(r"^__version__\s*=\s*[\"']", path.read_text(), re.MULTILINE)
    ]
    assert elsewhere == []


def test_generated_files_are_fresh() -> None:
    assert stale(generated()) == []
