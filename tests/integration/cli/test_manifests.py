"""`grpc-etcd check -f` on a machine without a cluster, as a pipeline runs it."""

from pathlib import Path

from .conftest import CommandLine

MANIFESTS = """
apiVersion: grpc-etcd.dev/v1alpha1
kind: GrpcService
metadata: {name: cart}
spec: {serviceRef: {name: cart}}
---
kind: Service
metadata: {name: cart}
spec: {ports: [{name: grpc, port: 9000}]}
"""


def test_without_a_cluster_the_files_are_checked_against_themselves(shell: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "cart.yaml"
    path.write_text(MANIFESTS)
    printed = shell.run("check", "-f", str(path), code=1)
    assert "GE0109" in printed
    assert "checked against their own files only" in printed
    assert "to check etcd alone" not in printed


def test_a_fault_of_yaml_names_the_line_and_no_name_of_the_readers(shell: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "cart.yaml"
    path.write_text("a: {b: c\nd: e\n")
    printed = shell.run("check", "-f", str(path), code=1)
    assert "at line 2, column 2" in printed
    assert "unicode string" not in printed
