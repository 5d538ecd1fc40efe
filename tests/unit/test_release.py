"""What may be released: each thing that is wrong with it is refused by name, and what is right is not."""

from collections.abc import Callable
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from testbed import chart, release
from testbed.release import Place, ReleaseError

CHANGELOG = """# Changelog

## Unreleased

* The newest.

## 0.2.0 (2026-12-01)

* A change whose text
  goes on.
* Another one.

## 0.1.0

Nothing was listed.
"""
WHEEL = [
    *release.DATA,
    "grpc_etcd/__init__.py",
    "grpc_etcd_operator/__init__.py",
    "grpc_etcd-0.1.0.dist-info/licenses/LICENSE",
    "grpc_etcd-0.1.0.dist-info/entry_points.txt",
]
METADATA = """Name: grpc-etcd
Version: 0.1.0
Summary: s
License-Expression: Apache-2.0
Requires-Python: >=3.11
Description-Content-Type: text/markdown

# Title
"""
SDIST = [f"grpc_etcd-0.1.0/{name}" for name in (*release.SDIST, "resolver/grpc_etcd/__init__.py")]
SBOM = {
    "metadata": {"component": {"name": "grpc-etcd", "version": "0.1.0"}},
    "components": [{"name": "PyYAML", "version": "6.0.4", "purl": "pkg:pypi/pyyaml@6.0.4"}],
}
INSTALLED = {"grpc_etcd": "0.1.0", "pyyaml": "6.0.4"}
CHART = [f"grpc-etcd-operator/{name}" for name in release.IN_CHART]
PUBLISHED = Place(tag="v0.1.0", image="images.example/team/grpc-etcd-operator", url="https://forge.example/grpc-etcd")
TEXT = (chart.CHART / "Chart.yaml").read_text()


def test_versions_that_differ_are_named() -> None:
    found = release.find_version_faults({"the wheel": "0.1.0", "the chart": "0.1.1"}, "0.1.0")
    assert found == ["the chart has the version 0.1.1, not 0.1.0"]


@pytest.mark.parametrize(("tag", "is_right"), [("", True), ("v0.1.0", True), ("0.1.0", False), ("v0.1.1", False)])
def test_a_tag_is_that_of_the_version(tag: str, *, is_right: bool) -> None:
    assert (release.find_tag_faults(tag, "0.1.0") == []) is is_right


def test_notes_are_the_section_of_the_version() -> None:
    notes = release.release_notes(CHANGELOG, "0.2.0", "v0.2.0")
    assert release.changes(notes) == ["A change whose text goes on.", "Another one."]


def test_a_dry_run_takes_what_is_not_released_yet_and_a_tag_does_not() -> None:
    assert release.changes(release.release_notes(CHANGELOG, "0.3.0", "")) == ["The newest."]
    with pytest.raises(ReleaseError, match=r'no section "## 0\.3\.0"'):
        release.release_notes(CHANGELOG, "0.3.0", "v0.3.0")


@pytest.mark.parametrize("version", ["0.1.0", "0.1", "2.0"])
def test_a_section_without_changes_or_of_another_version_is_none(version: str) -> None:
    with pytest.raises(ReleaseError, match="with changes"):
        release.release_notes(CHANGELOG, version, f"v{version}")


def test_notes_that_github_would_not_take_are_refused() -> None:
    with pytest.raises(ReleaseError, match="characters"):
        release.release_notes("## 1.0.0\n\n" + "* A change.\n" * 20_000, "1.0.0", "v1.0.0")


@given(st.lists(st.text("abc *#`", min_size=1).map(str.strip).filter(bool), min_size=1))
def test_every_entry_is_a_change(entries: list[str]) -> None:
    notes = "".join(f"* {each}\n" for each in entries)
    assert release.changes(notes) == [" ".join(each.split()) for each in entries]


FAULTS: dict[str, tuple[Callable[[], list[str]], str]] = {
    "a wheel without a schema": (lambda: release.find_wheel_faults(WHEEL[:2] + WHEEL[3:]), "schema.json"),
    "a wheel without its license": (lambda: release.find_wheel_faults([*WHEEL[:-2], WHEEL[-1]]), "licenses/LICENSE"),
    "a wheel with tests": (lambda: release.find_wheel_faults([*WHEEL, "tests/conftest.py"]), "tests"),
    "metadata without a license": (
        lambda: release.find_metadata_faults(METADATA.replace("License-Expression: Apache-2.0\n", ""), "# Title"),
        "License-Expression",
    ),
    "another description": (lambda: release.find_metadata_faults(METADATA, "# Other"), "README.md"),
    "an sdist without the CRD": (
        lambda: release.find_sdist_faults([name for name in SDIST if "crds" not in name]),
        "crds/grpcservices.yaml",
    ),
    "an sdist with an environment": (
        lambda: release.find_sdist_faults([*SDIST, "grpc_etcd-0.1.0/.venv/bin/python"]),
        ".venv/bin/python",
    ),
    "an SBOM of another version": (lambda: release.find_sbom_faults(SBOM, "0.2.0", {}), "the SBOM has the version"),
    "an SBOM that lacks a package": (
        lambda: release.find_sbom_faults(SBOM, "0.1.0", INSTALLED | {"click": "8.5.1"}),
        "lacks click 8.5.1",
    ),
    "an SBOM without a package URL": (
        lambda: release.find_sbom_faults(
            {**SBOM, "components": [{"name": "pyyaml", "version": "6.0.4"}]}, "0.1.0", INSTALLED
        ),
        "no package URL of pyyaml",
    ),
    "an SBOM with a path": (
        lambda: release.find_sbom_faults({**SBOM, "x": "file:///somewhere/a.whl"}, "0.1.0", INSTALLED),
        "file:///somewhere/a.whl",
    ),
    "a chart without its schema": (
        lambda: release.find_chart_faults(
            [name for name in CHART if "schema" not in name], yaml.safe_load(TEXT), Place()
        ),
        "values.schema.json",
    ),
    "a chart with another image": (
        lambda: release.find_chart_faults(CHART, yaml.safe_load(TEXT), PUBLISHED),
        "not images.example/team/grpc-etcd-operator",
    ),
}


@pytest.mark.parametrize(("find", "part"), FAULTS.values(), ids=FAULTS.keys())
def test_what_is_wrong_is_named(find: Callable[[], list[str]], part: str) -> None:
    (fault,) = find()
    assert part in fault


def test_what_is_right_has_no_fault() -> None:
    assert release.find_wheel_faults(WHEEL) == []
    assert release.find_metadata_faults(METADATA, "# Title\n") == []
    assert release.find_sdist_faults(SDIST) == []
    assert release.find_sbom_faults(SBOM, "0.1.0", INSTALLED) == []
    published = yaml.safe_load(release.write_chart(TEXT, "* A change.\n", PUBLISHED))
    assert release.find_chart_faults(CHART, published, PUBLISHED) == []


def test_a_published_chart_names_its_changes_its_image_and_its_source() -> None:
    published = yaml.safe_load(release.write_chart(TEXT, "* `a`: b.\n* C.\n", PUBLISHED))
    before = yaml.safe_load(TEXT)
    listed = {name: yaml.safe_load(text) for name, text in published["annotations"].items()}
    assert listed["artifacthub.io/changes"] == ["`a`: b.", "C."]
    assert listed["artifacthub.io/images"][0]["image"] == f"{PUBLISHED.image}:{before['appVersion']}"
    assert {each["url"].partition("/blob/")[0] for each in listed["artifacthub.io/links"]} == {PUBLISHED.url}
    assert all((chart.ROOT / each["name"]).exists() for each in listed["artifacthub.io/links"])
    assert published["sources"] == [PUBLISHED.url]
    assert {name: value for name, value in published.items() if name in before and name != "annotations"} == {
        name: value for name, value in before.items() if name != "annotations"
    }


def test_values_of_a_published_chart_differ_in_the_image_alone() -> None:
    text = (chart.CHART / "values.yaml").read_text()
    before: dict[str, Any] = yaml.safe_load(text)
    after = yaml.safe_load(release.write_values(text, PUBLISHED))
    assert after["image"] == before["image"] | {"repository": PUBLISHED.image}
    assert {**after, "image": None} == {**before, "image": None}
    assert release.write_values(text, Place()) == text


@given(st.integers(1, 200))
def test_a_chart_lists_no_more_changes_than_each_secret_of_a_release_should_hold(number: int) -> None:
    notes = "".join(f"* Change {each}.\n" for each in range(number))
    annotations = yaml.safe_load(release.write_chart(TEXT, notes, Place()))["annotations"]
    listed = yaml.safe_load(annotations["artifacthub.io/changes"])
    assert len(listed) == min(number, release.MOST_CHANGES + 1)
    assert listed[0] == "Change 0."
    assert ("more changes" in listed[-1]) is (number > release.MOST_CHANGES)
