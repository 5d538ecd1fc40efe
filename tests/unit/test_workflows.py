"""What GitHub runs: only what cannot change under its name, with no more rights than a job needs."""

import json
import re
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed.release import NOTES, SBOM, Place, Release

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").iterdir())
# Actions that are named by a tag, with the reason; every other one by a commit. None, so far.
BY_TAG: dict[str, str] = {}
PINNED = re.compile(r"[\w.-]+(?:/[\w.-]+)+@[0-9a-f]{40} # v\d+\.\d+\.\d+")


def jobs(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text())["jobs"]
    return found


def steps(path: Path) -> Iterator[dict[str, Any]]:
    for job in jobs(path).values():
        yield from job.get("steps", [])


def is_pinned(use: str) -> bool:
    return use.startswith("./") or use in BY_TAG or bool(PINNED.fullmatch(use))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_action_is_one_commit_whose_version_stands_beside_it(path: Path) -> None:
    used = re.findall(r"^ *(?:- )?uses: (.+)$", path.read_text(), re.MULTILINE)
    assert used
    assert [use for use in used if not is_pinned(use)] == []


@pytest.mark.parametrize(
    "use",
    [
        "actions/checkout@v6",
        "actions/checkout@main",
        f"actions/checkout@{'a' * 40}",
        f"actions/checkout@{'a' * 39} # v6.0.2",
    ],
)
def test_what_counts_as_no_pin(use: str) -> None:
    assert not is_pinned(use)


def test_one_action_has_one_version_everywhere() -> None:
    used = {line for path in WORKFLOWS for line in re.findall(r"uses: ([\w-]+/.+)$", path.read_text(), re.MULTILINE)}
    repositories = {"/".join(use.split("@")[0].split("/")[:2]) + "@" + use.partition("@")[2] for use in used}
    assert len(repositories) == len({each.partition("@")[0] for each in repositories})


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_job_may_write_only_what_it_says(path: Path) -> None:
    assert yaml.safe_load(path.read_text())["permissions"] == {"contents": "read"}
    for name, job in jobs(path).items():
        assert "uses" in job or job["timeout-minutes"], name


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_no_script_contains_what_somebody_else_may_write(path: Path) -> None:
    """A tag or a branch may be called anything; as a variable it is data."""
    assert [step["run"] for step in steps(path) if "${{" in step.get("run", "")] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_no_workflow_names_a_host(path: Path) -> None:
    """A copy of this repository publishes to its own registries: variables of the repository say where."""
    assert re.findall(r"(?<!oci)://\S+", path.read_text()) == []


def test_a_release_publishes_what_the_dry_run_has_made_once_the_tests_have_passed() -> None:
    path = ROOT / ".github/workflows/release.yaml"
    found = jobs(path)
    assert found["test"]["uses"] == "./.github/workflows/ci.yml"
    assert [step["run"].split()[:2] for step in found["build"]["steps"] if "make" in step.get("run", "")] == [
        ["make", "release-dry-run"]
    ]
    needs = {name: set(job.get("needs", [])) for name, job in found.items()}
    publishing = ("image", "chart", "pypi", "github")  # each after the one before it
    assert "test" in needs["image"]
    assert all(before in needs[after] for before, after in pairwise(publishing))
    last = found["github"]["steps"][-1]["run"]
    assert all(part in last for part in ("--notes-file notes.md", SBOM, "SHA256SUMS"))


def test_the_sums_of_a_release_are_those_of_its_files_as_they_are_downloaded(tmp_path: Path) -> None:
    (tmp_path / "dist").mkdir()
    for name in ("dist/a.whl", "a.tgz", SBOM, NOTES):
        (tmp_path / name).write_text(name)
    Release(tmp_path, "0.1.0", Place()).write_sums()
    scripts = [step.get("run", "") for step in jobs(ROOT / ".github/workflows/release.yaml")["github"]["steps"]]
    (edit,) = [line for script in scripts for line in script.splitlines() if line.startswith("sed ")]
    subprocess.run(["sh", "-c", edit], cwd=tmp_path, check=True)
    (tmp_path / "dist/a.whl").rename(tmp_path / "a.whl")
    (tmp_path / NOTES).unlink()  # it is the text of the release
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path, check=True)


def test_what_is_published_is_signed_and_attested() -> None:
    found = jobs(ROOT / ".github/workflows/release.yaml")
    for name in ("image", "chart", "github"):
        text = yaml.safe_dump(found[name]["steps"])
        assert "cosign sign" in text, name
        assert "actions/attest-build-provenance@" in text, name
    (pypi,) = [step for step in found["pypi"]["steps"] if "pypi-publish" in step.get("uses", "")]
    assert pypi["with"]["attestations"] is True
    assert "password" not in pypi["with"]
    (image,) = [step for step in found["image"]["steps"] if "build-push" in step.get("uses", "")]
    assert image["with"]["platforms"] == "linux/amd64,linux/arm64"
    assert image["with"]["sbom"] is True


def test_renovate_follows_the_pins() -> None:
    rules = json.loads((ROOT / "renovate.json").read_text())
    assert "config:best-practices" in rules["extends"]
    (pattern,) = rules["pip_requirements"]["managerFilePatterns"]
    assert re.search(pattern.strip("/"), "constraints.txt")
