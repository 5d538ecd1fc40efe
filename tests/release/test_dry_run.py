"""`make release-dry-run` without the image, which tests/image builds: what it makes is whole, what is wrong ends it."""

import hashlib
import json
import tarfile
from pathlib import Path

import pytest
import yaml

from testbed import chart, release
from testbed.helm import run_helm

IMAGE = "images.example/team/grpc-etcd-operator"
# An environment is made and filled inside.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("release")
    release.main(["--out", str(out), "--image", IMAGE, "--no-image"])
    return out


def test_every_file_is_there_with_its_digest(made: Path) -> None:
    lines = [line.split("  ") for line in (made / "SHA256SUMS").read_text().splitlines()]
    listed = {name: digest for digest, name in lines}
    version = chart.version()
    assert set(listed) == {
        f"dist/grpc_etcd-{version}-py3-none-any.whl",
        f"dist/grpc_etcd-{version}.tar.gz",
        f"grpc-etcd-operator-{version}.tgz",
        "grpc-etcd.cdx.json",
        "notes.md",
    }
    for name, digest in listed.items():
        assert hashlib.sha256((made / name).read_bytes()).hexdigest() == digest


def test_the_packaged_chart_installs_the_published_image(made: Path) -> None:
    (package,) = made.glob("*.tgz")
    rendered = run_helm("template", "x", package, values={"etcd": {"endpoints": ["etcd:2379"]}})
    images = {line.split()[-1] for line in rendered.splitlines() if line.strip().startswith("image:")}
    assert images == {f"{IMAGE}:{chart.version()}"}
    with tarfile.open(package) as archive:
        annotations = yaml.safe_load(release.read_member(archive, "grpc-etcd-operator/Chart.yaml"))["annotations"]
    assert (
        yaml.safe_load(annotations["artifacthub.io/changes"])[0] == release.changes((made / "notes.md").read_text())[0]
    )


def test_the_sbom_names_what_the_operator_is_made_of(made: Path) -> None:
    sbom = json.loads((made / "grpc-etcd.cdx.json").read_text())
    assert sbom["bomFormat"] == "CycloneDX"
    assert {"kopf", "grpcio", "protobuf", "aiohttp", "click"} <= {each["name"] for each in sbom["components"]}
    assert not {"pytest", "mypy", "pip"} & {each["name"] for each in sbom["components"]}


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(SystemExit, match="holds something that is no release"):
        release.main(["--out", str(tmp_path), "--no-image"])
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--tag", "v9.9.9"], "the tag v9.9.9 is not that of version"),
        # A tag needs a section of its own; where the changelog has one by now, the version is too new for this test.
        (["--tag", f"v{chart.version()}"], f'no section "## {chart.version()}"'),
    ],
)
def test_what_is_wrong_ends_it_before_anything_is_built(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    if "section" in sentence and f"\n## {chart.version()}" in (chart.ROOT / "CHANGELOG.md").read_text():
        pytest.skip("this version is released")
    with pytest.raises(SystemExit, match=sentence):
        release.main(["--out", str(tmp_path / "out"), "--no-image", *arguments])
    assert not list((tmp_path / "out").iterdir())
