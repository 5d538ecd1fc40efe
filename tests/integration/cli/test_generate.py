"""`grpc-etcd generate` reads what people have: files, folders, pipes, and files that are no manifests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from grpc_etcd.cli.files import UnreadableError, list_files

from .conftest import CommandLine

SERVICE = """
kind: Service
metadata: {name: NAME}
spec:
  selector: {app: NAME}
  ports: [{name: grpc, port: 9000}]
---
# nothing
---
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_folders_files_and_lists_are_read(shell: CommandLine, tmp_path: Path) -> None:
    write(tmp_path, "k8s/a.yaml", SERVICE.replace("NAME", "a"))
    write(tmp_path, "k8s/deep/b.yml", SERVICE.replace("NAME", "b"))
    write(tmp_path, "k8s/notes.txt", "no: [manifest")
    listed = {"kind": "List", "items": [yaml.safe_load(SERVICE.replace("NAME", "c").partition("---")[0])]}
    path = write(tmp_path, "c.json", yaml.safe_dump(listed))
    printed = shell.run("generate", "-f", str(tmp_path / "k8s"), "-f", str(path), "-n", "shop")
    found = list(yaml.safe_load_all(printed))
    assert [each["metadata"] for each in found] == [{"name": name, "namespace": "shop"} for name in "abc"]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("chart.yaml", "name: {{ .Values.name }}\n", "Render templates first"),
        (
            "web.yaml",
            SERVICE.replace("grpc", "http").replace("NAME", "web"),
            "skipped: Service web: none of its ports is known to serve gRPC: nothing to do, unless it does",
        ),
        ("empty.yaml", "", "no GrpcService generated"),
    ],
)
def test_why_nothing_is_generated_is_said(
    shell: CommandLine, tmp_path: Path, name: str, text: str, reason: str
) -> None:
    assert reason in shell.run("generate", "-f", str(write(tmp_path, name, text)), code=1)


def test_a_file_that_is_missing_is_named(shell: CommandLine, tmp_path: Path) -> None:
    assert "cannot read" in shell.run("generate", "-f", str(tmp_path / "nothing.yaml"), code=1)
    assert "it contains no file" in shell.run("generate", "-f", str(tmp_path), code=1)


class Vanishing(type(Path())):  # type: ignore[misc]  # the class of paths of this system
    """A folder in which another one goes while it is looked through, as below /proc."""

    def rglob(self, pattern: str) -> Iterator[Path]:
        yield self / pattern
        raise FileNotFoundError(2, "No such file or directory", "gone")


def test_a_folder_that_goes_while_it_is_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match="No such file or directory"):
        list_files(Vanishing(tmp_path))
