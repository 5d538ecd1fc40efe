"""The command line on real parts: what is printed when something is wrong, --dry-run, cleanup, exit codes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from testbed.conditions import free_port, wait_until


def run(*arguments: str, kubeconfig: Path | str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the operator's command line to its end."""
    return subprocess.run(
        [sys.executable, "-m", "grpc_etcd_operator", *arguments],
        env={**os.environ, "KUBECONFIG": str(kubeconfig), **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_unknown_and_faulty_settings_are_all_named_and_end_with_code_2() -> None:
    answer = run("run", "--lease-ttl=1", "--prefix=a b", GRPC_ETCD_ENDPOINT="x:1")
    assert answer.returncode == 2
    for part in (
        "--lease-ttl=1",
        "--prefix=a b",
        "GRPC_ETCD_ENDPOINT",
        "did you mean GRPC_ETCD_ENDPOINTS",
        "--etcd-endpoints is missing",
    ):
        assert part in answer.stderr
    assert "Traceback" not in answer.stderr


def test_without_any_cluster_the_remedy_is_named(tmp_path: Path) -> None:
    answer = run("run", "--etcd-endpoints=127.0.0.1:1", kubeconfig=tmp_path / "absent", HOME=str(tmp_path))
    assert answer.returncode == 2
    assert "KUBECONFIG" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_an_api_server_out_of_reach_is_waited_for(scene: Any, tmp_path: Path) -> None:
    config = json.loads(scene.api.kubeconfig.read_text())
    config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{free_port()}"
    broken = tmp_path / "broken.kubeconfig"
    broken.write_text(json.dumps(config))
    replica = scene.start(kubeconfig=broken)
    wait_until(lambda: "cannot be reached: check KUBECONFIG" in replica.text(), "it says so")
    assert replica.process.is_running
    assert replica.process.stop() == 0


def test_a_missing_crd_is_waited_for_and_one_of_another_version_ends_it(
    own_apiserver: Any, etcd: Any, make_scene: Callable[..., Any]
) -> None:
    scene = make_scene(own_apiserver, etcd)
    crd = own_apiserver.client.get("apiextensions.k8s.io/v1", "CustomResourceDefinition", "grpcservices.grpc-etcd.dev")
    own_apiserver.kubectl("delete", "crd", "grpcservices.grpc-etcd.dev")
    replica = scene.start()
    wait_until(lambda: "kubectl apply -f crds/grpcservices.yaml" in replica.text(), "it names the remedy")
    spec = crd["spec"]
    spec["versions"][0]["name"] = "v2"
    metadata = {"name": crd["metadata"]["name"]}
    own_apiserver.client.create(
        {"apiVersion": crd["apiVersion"], "kind": crd["kind"], "metadata": metadata, "spec": spec}
    )
    own_apiserver.kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd/grpcservices.grpc-etcd.dev")
    second = scene.start()
    wait_until(lambda: not second.process.is_running, "it ends")
    assert second.process.returncode == 2
    assert "is installed in version v2" in second.text()


def test_a_dry_run_prints_the_plan_and_writes_nothing(scene: Any) -> None:
    scene.apply()
    pod = scene.pod(gates=["grpc-etcd.dev/registered"])
    before = scene.registry.revision()
    flags = [
        f"--namespace={scene.namespace}",
        f"--cluster-id={scene.cluster}",
        f"--etcd-endpoints={scene.etcd.endpoints}",
    ]
    answer = run("run", "--dry-run", *flags, kubeconfig=scene.api.kubeconfig)
    assert answer.returncode == 0, answer.stderr
    plans = [json.loads(line) for line in answer.stdout.splitlines()]
    assert [plan["uid"] for plan in plans] == [pod.uid]
    assert f"/jupiter/greeter/providers/grpc://{pod.address}" in plans[0]["put"]
    assert scene.registry.revision() == before
    assert scene.status() == {}


def test_cleanup_withdraws_all_that_the_cluster_id_owns_and_nothing_else(scene: Any) -> None:
    replica = scene.start().wait_leading()
    scene.apply(policy={"timeout": "5s"}, metricsPort="grpc")
    pods = [scene.pod() for _ in range(3)]
    scene.registry.wait_addresses(*(pod.address for pod in pods))
    wait_until(lambda: scene.client.get(b"/grpc-etcd/policy/jupiter/greeter"), "the policy is there")
    scene.client.put(b"/jupiter/greeter/providers/grpc://10.9.9.9:1", b"{}")
    replica.process.stop()
    answer = run("cleanup", f"--cluster-id={scene.cluster}", f"--etcd-endpoints={scene.etcd.endpoints}")
    assert answer.returncode == 0, answer.stderr
    left = set(scene.registry.keys("/")) - {f"/grpc-etcd/leader/{scene.cluster}"}
    assert left == {"/jupiter/greeter/providers/grpc://10.9.9.9:1"}
