"""`make demo` does what it shows, says so by its exit code, and tidies up in a cluster of somebody else's."""

import os
import subprocess
import sys

import pytest

from testbed.apiserver import ApiServer
from testbed.build import ROOT
from testbed.demo import NAMESPACE

DEMO_SECONDS = 170


def run_demo(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "testbed.demo", *options],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=DEMO_SECONDS,
        check=False,
    )


def test_demo_takes_every_step_on_a_given_cluster_and_tidies_up(apiserver: ApiServer) -> None:
    done = run_demo("--cluster", KUBECONFIG=str(apiserver.kubeconfig))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "calls failed: 0" in done.stdout
    assert "finds greeter-2 unready" in done.stdout
    left = [item for kind in ("Pod", "Node") for item in apiserver.client.list("v1", kind)["items"]]
    assert [item for item in left if NAMESPACE in str(item["metadata"])] == []


def test_demo_fails_when_a_step_does_not_happen(apiserver: ApiServer) -> None:
    """With a setting that the operator refuses it ends at once, so no key ever appears."""
    done = run_demo("--cluster", KUBECONFIG=str(apiserver.kubeconfig), GRPC_ETCD_LEASE_TTL="nonsense")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "the operator has ended" in done.stdout
    assert "nonsense" in done.stdout


@pytest.mark.parametrize("kubeconfig", ["", "/nonexistent/kubeconfig"])
def test_demo_on_a_cluster_needs_a_kubeconfig(kubeconfig: str) -> None:
    done = run_demo("--cluster", KUBECONFIG=kubeconfig)
    assert done.returncode == 1
    assert "set it to a kubeconfig file that exists" in done.stderr
