"""What docs/services.md has an owner type works on the manifests that it shows, without a cluster."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

from testbed.build import ROOT
from tests.docs.test_commands import blocks

PAGE = ROOT / "docs/services.md"


def test_the_commands_of_the_page_work_on_its_manifests(tmp_path: Path) -> None:
    deployment, *grpcservices = blocks(PAGE, "yaml")
    (tmp_path / "k8s").mkdir()
    (tmp_path / "k8s/greeter.yaml").write_text(deployment)
    commands = next(each for each in blocks(PAGE, "") if each.startswith("grpc-etcd generate"))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "KUBECONFIG": "no.kubeconfig"}
    answer = subprocess.run(
        ["bash", "-ec", commands], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "warning" not in answer.stdout
    made = yaml.safe_load((tmp_path / "grpcservice.yaml").read_text())
    assert made["spec"] == {"selector": {"matchLabels": {"app": "greeter"}}, "port": "grpc"}
    stable, canary = map(yaml.safe_load, grpcservices)
    assert stable["metadata"]["name"] == canary["spec"]["name"]
    assert set(stable["spec"]["routes"][0]["groups"]) == {stable["spec"]["group"], canary["spec"]["group"]}


def test_the_pause_is_the_same_in_each_way_to_write_it() -> None:
    """Before Kubernetes 1.30 there is no `sleep`, and a program does the same."""
    for text in (PAGE.read_text(), (ROOT / "examples/greeter/server.yaml").read_text()):
        assert "sleep: {seconds: 5}" in text
        assert 'command: [sleep, "5"]' in text
