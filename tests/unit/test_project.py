"""Guards of the repository itself: names that would break Python, paths of one machine, one place for the version."""

import re
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

import yaml

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


def test_make_alone_prints_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    printed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony
    assert re.findall(r"^  make (\S+) +\S", printed, re.MULTILINE) == phony[1].split()


def test_ci_runs_nothing_but_make_targets() -> None:
    """So that whatever fails there can be run anywhere by the same words."""
    targets = set(re.findall(r"^([a-z0-9-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    steps = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    script = re.findall(r"^make .*$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert steps == script
    called = {word for step in steps for word in step.split()[1:] if not word.startswith("-")}
    assert {"check", "test", "test-faults", "test-interop", "test-matrix"} <= called <= targets


def test_the_library_needs_grpc_alone_without_upper_pins() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [re.fullmatch(r"([a-z]+)>=[\d.]+", need)[1] for need in project["dependencies"]] == ["grpcio", "protobuf"]  # type: ignore[index]


def test_constraints_are_names_and_versions_and_cover_all_that_is_asked_for() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)] == []
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = settings["project"]
    needs = [*project["dependencies"], *settings["build-system"]["requires"], *settings["dependency-groups"]["dev"]]
    needs += [need for extra in project["optional-dependencies"].values() for need in extra]
    pinned = {canonical(line.partition("==")[0]) for line in lines}
    assert {canonical(re.split(r"[<>=]", need)[0]) for need in needs} - pinned == set()


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
