"""Make and check everything that a release publishes, without publishing any of it: `make release-dry-run`.

The same program makes the files in the workflow .github/workflows/release.yaml, so what a tag would publish has been
tried by whoever ran it before. What is right is decided by the pure functions in the first half, from texts and lists
of names; the second half builds, unpacks and installs. Whatever is wrong ends it with exit code 1, and a sentence each.
"""

import argparse
import email
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from testbed import chart, environments, helm, image
from testbed.build import ROOT

PACKAGES = ("grpc_etcd", "grpc_etcd_entry", "grpc_etcd_operator")
COMMANDS = ("grpc-etcd", "grpc-etcd-operator")
# What a wheel holds beside Python files: without one of these the library or its types do not work.
DATA = (
    "grpc_etcd/py.typed",
    "grpc_etcd/etcd/etcd.proto",
    "grpc_etcd/inspect/grpcservice.schema.json",
    "grpc_etcd_operator/py.typed",
)
SDIST = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "crds/grpcservices.yaml")
IN_CHART = ("Chart.yaml", "values.yaml", "values.schema.json", "README.md", "files/grpcservices.yaml")
UNRELEASED = "Unreleased"
# In an environment of its own: what it needs makes each import of the package kubernetes take seconds longer.
SBOM_TOOL = "cyclonedx-bom==7.5.0"
MOST_CHANGES = 50  # that Artifact Hub is given; arbitrary: each Secret of a Helm release holds them
LONGEST_NOTES = 125_000  # that GitHub takes as the text of a release
SBOM = "grpc-etcd.cdx.json"
NOTES = "notes.md"


class ReleaseError(Exception):
    """What is to be published is not right; the message has a line for each fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a release is published: empty texts stand for what only the workflow knows."""

    tag: str = ""
    image: str = ""  # repository of the image, without a tag
    url: str = ""  # of the source


# What is right: all of this is pure.


def find_version_faults(versions: Mapping[str, str], expected: str) -> list[str]:
    """Name each place whose version is another one."""
    return [
        f"{place} has the version {found}, not {expected}" for place, found in versions.items() if found != expected
    ]


def find_tag_faults(tag: str, version: str) -> list[str]:
    """Report a tag that is not this version's; without a tag, as in a dry run, there is nothing to compare."""
    return [] if tag in {"", f"v{version}"} else [f"the tag {tag} is not that of version {version}: v{version}"]


def release_notes(changelog: str, version: str, tag: str) -> str:
    """Return the changelog's section of a version; without a tag that of what is not released yet will do."""
    sections = dict(re.findall(r"^## (\S+)[^\n]*\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL))
    found: str = sections.get(version) or ("" if tag else sections.get(UNRELEASED, ""))
    if not changes(found):
        raise ReleaseError(f'CHANGELOG.md has no section "## {version}" with changes: rename "## {UNRELEASED}" to it')
    if len(found) > LONGEST_NOTES:
        raise ReleaseError(f"the notes have {len(found)} characters, and GitHub takes {LONGEST_NOTES}")
    return found.strip() + "\n"


def changes(notes: str) -> list[str]:
    """Return the entries of a section, newest first."""
    return [" ".join(each.split()) for each in re.findall(r"^\* (.*(?:\n  .*)*)", notes, re.MULTILINE)]


def write_chart(text: str, notes: str, place: Place) -> str:
    """Add to Chart.yaml what only a release knows: its changes, its image, and where its source is."""
    document = yaml.safe_load(text)
    listed = changes(notes)
    if more := len(listed) - MOST_CHANGES:
        listed = [*listed[:MOST_CHANGES], *([f"{more} more changes, which CHANGELOG.md lists"] if more > 0 else [])]
    document["annotations"] |= {"artifacthub.io/changes": chart.write_yaml(listed)}
    if place.image:
        images = yaml.safe_load(document["annotations"]["artifacthub.io/images"])
        images[0]["image"] = f"{place.image}:{document['appVersion']}"
        document["annotations"]["artifacthub.io/images"] = chart.write_yaml(images)
    if place.url:
        links = [{"name": page, "url": f"{place.url}/blob/v{document['version']}/{page}"} for page in LINKS]
        document["annotations"]["artifacthub.io/links"] = chart.write_yaml(links)
        document |= {"home": place.url, "sources": [place.url]}
    return chart.write_yaml(document)


LINKS = ("docs/operations.md", "CHANGELOG.md", "SUPPORT.md", "SECURITY.md")


def write_values(text: str, place: Place) -> str:
    """Set the image's repository as the default, so that a published chart needs none."""
    own = f"repository: {yaml.safe_load(text)['image']['repository']}\n"
    return text.replace(own, f"repository: {place.image}\n", 1) if place.image else text


def find_wheel_faults(names: Sequence[str]) -> list[str]:
    """Report what a wheel lacks and what has no place in it."""
    missing = [f"the wheel lacks {name}" for name in DATA if name not in names]
    missing += [
        f"the wheel lacks {each}" for each in ("licenses/LICENSE", "entry_points.txt") if not _ends(names, each)
    ]
    tops = {name.partition("/")[0] for name in names}
    strange = [top for top in tops if top not in PACKAGES and not top.endswith(".dist-info")]
    return [*missing, *(f"the wheel has {top}, which is no part of it" for top in sorted(strange))]


def _ends(names: Sequence[str], end: str) -> bool:
    return any(name.endswith(f".dist-info/{end}") for name in names)


def find_metadata_faults(metadata: str, readme: str) -> list[str]:
    """Report what the package's page would lack."""
    fields = email.message_from_string(metadata)
    missing = [
        f"the metadata lack {name}"
        for name in ("Summary", "License-Expression", "Requires-Python", "Description-Content-Type")
        if not fields[name]
    ]
    same = str(fields.get_payload()).strip() == readme.strip()
    return missing if same else [*missing, "the metadata's description is not README.md"]


def find_sdist_faults(names: Sequence[str]) -> list[str]:
    """Report what a source distribution lacks and what has no place in it; names begin with its folder's."""
    inner = {name.partition("/")[2] for name in names}
    lacking = [f"the sdist lacks {name}" for name in SDIST if name not in inner]
    strange = sorted(name for name in inner if name.startswith(("tests/", "testbed/", ".github/", ".venv/")))
    return [*lacking, *(f"the sdist has {name}, which is no part of it" for name in strange)]


def find_sbom_faults(sbom: Mapping[str, Any], version: str, installed: Mapping[str, str]) -> list[str]:
    """Report what a CycloneDX document does not name of what is installed, or names in another version."""
    main = sbom["metadata"]["component"]
    listed = {normal(each["name"]): each for each in [main, *sbom["components"]]}
    faults = find_version_faults({"the SBOM": str(main.get("version"))}, version)
    for name, found in installed.items():
        component = listed.get(normal(name), {})
        if component.get("version") != found:
            faults.append(f"the SBOM lacks {name} {found}")
        elif component is not main and not component.get("purl"):
            faults.append(f"the SBOM has no package URL of {name}")
    paths = re.findall(r'"(file:[^"]*)"', json.dumps(sbom))
    return [*faults, *(f"the SBOM names a path of this machine: {path}" for path in paths)]


def normal(name: str) -> str:
    """Return a distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def find_chart_faults(names: Sequence[str], packaged: Mapping[str, Any], place: Place) -> list[str]:
    """Report what a packaged chart lacks; names begin with its folder's."""
    inner = {name.partition("/")[2] for name in names}
    faults = [f"the chart's package lacks {name}" for name in IN_CHART if name not in inner]
    listed = yaml.safe_load(packaged["annotations"]["artifacthub.io/images"])
    if place.image and not listed[0]["image"].startswith(f"{place.image}:"):
        faults.append(f"the chart's annotations name the image {listed[0]['image']}, not {place.image}")
    return faults


# The edges build, unpack and install.


@dataclass(frozen=True, slots=True)
class Release:
    """The files of a release in the making."""

    out: Path
    version: str
    place: Place

    def check(self, faults: Sequence[str]) -> None:
        """Raise ReleaseError where there are any."""
        if faults:
            raise ReleaseError("\n".join(faults))

    def make_notes(self) -> str:
        """Write the release notes."""
        self.check(find_tag_faults(self.place.tag, self.version))
        notes = release_notes((ROOT / "CHANGELOG.md").read_text(), self.version, self.place.tag)
        (self.out / NOTES).write_text(notes)
        return notes

    def make_distributions(self) -> Path:
        """Build wheel and sdist, and a second wheel from the sdist, which must be the same; return the wheel."""
        run([sys.executable, "-m", "hatchling", "build", "--directory", self.out / "dist"])
        (wheel,), (sdist,) = (list((self.out / "dist").glob(pattern)) for pattern in ("*.whl", "*.tar.gz"))
        names, metadata = read_wheel(wheel)
        faults = find_wheel_faults(names) + find_metadata_faults(metadata, (ROOT / "README.md").read_text())
        faults += find_version_faults({"the wheel": str(email.message_from_string(metadata)["Version"])}, self.version)
        with tarfile.open(sdist) as archive, tempfile.TemporaryDirectory() as folder:
            faults += find_sdist_faults(archive.getnames())
            archive.extractall(folder, filter="data")
            source = next(Path(folder).iterdir())
            faults += find_version_faults({"the sdist": source.name.rpartition("-")[2]}, self.version)
            run([sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder], source)
            (again,) = Path(folder).glob("*.whl")
            if again.read_bytes() != wheel.read_bytes():
                faults.append("the wheel that is built from the sdist differs from the one that is built from here")
        self.check(faults)
        return wheel

    def try_distributions(self, wheel: Path, home: Path) -> Path:
        """Install the wheel into an environment of its own, and use it; return that environment's Python."""
        environments.install(
            home, ("--constraint", str(environments.CONSTRAINTS), f"{wheel}[operator,cli]"), sys.executable
        )
        python = home / "bin/python"
        run([*PIP, "--python", python, "check"])
        run([python, "-c", f"import {', '.join(PACKAGES)}, grpc_etcd.aio, grpc_etcd.testing"], home)
        said = {name: run([home / "bin" / name, "--version"], home).split()[-1] for name in COMMANDS}
        self.check(find_version_faults(said, self.version))
        return python

    def make_sbom(self, python: Path) -> None:
        """List what the operator's environment consists of, as CycloneDX."""
        listed = json.loads(run([*PIP, "--python", python, "list", "--format", "json"]))
        installed = {each["name"]: each["version"] for each in listed}
        tool = str(environments.environment(SBOM_TOOL))
        command = [tool, "-m", "cyclonedx_py", "environment", "--short-PURLs", "--output-reproducible"]
        text = run([*command, "--pyproject", ROOT / "pyproject.toml", python])
        sbom = without_paths(json.loads(text))
        (self.out / SBOM).write_text(json.dumps(sbom, indent=2) + "\n")
        self.check(find_sbom_faults(sbom, self.version, installed))

    def make_chart(self, notes: str, folder: Path) -> None:
        """Package the chart with the release's changes and image."""
        copy = folder / chart.CHART.name
        shutil.copytree(chart.CHART, copy)
        for name, text in (
            ("Chart.yaml", write_chart((copy / "Chart.yaml").read_text(), notes, self.place)),
            ("values.yaml", write_values((copy / "values.yaml").read_text(), self.place)),
        ):
            (copy / name).write_text(text)
        helm.run_helm("lint", "--strict", copy, values={"etcd": {"endpoints": ["etcd:2379"]}})
        helm.run_helm("package", copy, "--destination", self.out)
        (package,) = self.out.glob(f"{copy.name}-*.tgz")
        with tarfile.open(package) as archive:
            packaged = yaml.safe_load(read_member(archive, f"{copy.name}/Chart.yaml"))
            faults = find_chart_faults(archive.getnames(), packaged, self.place)
        versions = {"the chart": packaged["version"], "the chart's appVersion": packaged["appVersion"]}
        self.check(faults + find_version_faults(versions, self.version))

    def make_image(self) -> str:
        """Build the image for this machine's architecture; return what was done."""
        if reason := image.why_impossible():
            return f"not built: {reason}"
        labels = image.configuration(image.build())["Labels"]
        named = labels["org.opencontainers.image.version"] if isinstance(labels, dict) else ""
        self.check(find_version_faults({"the image's label": named}, self.version))
        return "built for this machine's architecture alone: others need an emulator, which the workflow has"

    def write_sums(self) -> None:
        """Write the digest of each file that is published."""
        files = sorted(path for path in self.out.rglob("*") if path.is_file() and path.name != "SHA256SUMS")
        lines = (f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(self.out)}\n" for path in files)
        (self.out / "SHA256SUMS").write_text("".join(lines))


PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


def run(command: Sequence[str | Path], folder: Path = ROOT) -> str:
    """Run a program to its end and return its output; raise ReleaseError with its last words."""
    answer = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True, check=False)
    if answer.returncode:
        last = "\n".join((answer.stdout + answer.stderr).splitlines()[-20:])
        raise ReleaseError(f"{' '.join(map(str, command))} failed with {answer.returncode}:\n{last}")
    return answer.stdout


def read_wheel(wheel: Path) -> tuple[list[str], str]:
    """Return a wheel's names and its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        return names, archive.read(next(name for name in names if name.endswith(".dist-info/METADATA"))).decode()


def read_member(archive: tarfile.TarFile, name: str) -> bytes:
    """Return a file of an archive."""
    file = archive.extractfile(name)
    if file is None:
        raise ReleaseError(f"{name} is no file of the archive")
    return file.read()


def without_paths(sbom: dict[str, Any]) -> dict[str, Any]:
    """Leave out where the wheel lay on this machine when it was installed."""
    for component in [sbom["metadata"]["component"], *sbom["components"]]:
        references = component.get("externalReferences", [])
        kept = [each for each in references if not each["url"].startswith("file:")]
        component.pop("externalReferences", None)
        if kept:
            component["externalReferences"] = kept
    return sbom


def _empty(out: Path) -> None:
    """Make a folder, or empty one that holds a release; refuse any other, which somebody may still want."""
    if out.exists() and any(out.iterdir()) and not (out / NOTES).exists():
        raise ReleaseError(f"{out} holds something that is no release: name another folder, or empty it")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)


def make(out: Path, place: Place, *, with_image: bool) -> Iterator[str]:
    """Make everything in a folder, which is emptied first; yield a line for each thing that was made and checked."""
    _empty(out)
    release = Release(out, chart.version(), place)
    notes = release.make_notes()
    yield f"version {release.version}, {len(changes(notes))} changes in {NOTES}"
    wheel = release.make_distributions()
    yield f"{wheel.name} and the sdist: contents, metadata, the same wheel from either"
    with tempfile.TemporaryDirectory() as folder:
        python = release.try_distributions(wheel, Path(folder) / "environment")
        yield "the wheel in a fresh environment: imports and commands"
        release.make_sbom(python)
        yield f"{SBOM}: every distribution of that environment"
        release.make_chart(notes, Path(folder))
        yield "the chart's package: lint, versions, annotations"
    if with_image:
        yield f"image: {release.make_image()}"
    release.write_sums()
    yield f"SHA256SUMS of all of these, in {out}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Make a release's files, or end with what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m testbed.release", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist/release", help="folder, which is emptied first")
    parser.add_argument("--tag", default="", help="the tag that is released; none: a dry run of what comes next")
    parser.add_argument("--image", default="", help="repository of the published image, without a tag")
    parser.add_argument("--url", default="", help="URL of the source repository")
    parser.add_argument("--no-image", action="store_true", help="build no image")
    given = parser.parse_args(arguments)
    try:
        for line in make(
            given.out, Place(tag=given.tag, image=given.image, url=given.url), with_image=not given.no_image
        ):
            print(f"ok: {line}", flush=True)
    except (ReleaseError, environments.InstallError, helm.HelmError, image.ImageError) as error:
        sys.exit(f"this cannot be released:\n{error}")


if __name__ == "__main__":
    main()
