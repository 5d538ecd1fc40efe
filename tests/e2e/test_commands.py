"""The command line on real parts: what is printed when something is wrong, --dry-run, cleanup, exit codes."""

import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from testbed.apiserver import ApiServer
from testbed.conditions import free_port, wait_until
from testbed.etcd import EtcdServer
from testbed.manifests import wait_established
from testbed.proxy import TcpProxy
from tests.e2e.conftest import NEW, MakeScene, Scene


def run(*arguments: str, kubeconfig: Path | str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the operator's command line to its end."""
    return subprocess.run(
        [sys.executable, "-m", "grpc_etcd_operator", *arguments],
        env={**os.environ, "KUBECONFIG": str(kubeconfig), **environment},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def test_unknown_and_faulty_settings_are_all_named_and_end_with_code_2() -> None:
    answer = run("run", "--lease-ttl=1", "--prefix=a b", GRPC_ETCD_OPERATOR_ENDPOINT="x:1")
    assert answer.returncode == 2
    for part in (
        "--lease-ttl=1",
        "--prefix=a b",
        "GRPC_ETCD_OPERATOR_ENDPOINT",
        "did you mean GRPC_ETCD_OPERATOR_ENDPOINTS",
        "--etcd-endpoints is missing",
    ):
        assert part in answer.stderr
    assert "Traceback" not in answer.stderr


def test_without_any_cluster_the_remedy_is_named(tmp_path: Path) -> None:
    answer = run("run", "--etcd-endpoints=127.0.0.1:1", kubeconfig=tmp_path / "absent", HOME=str(tmp_path))
    assert answer.returncode == 2
    assert "KUBECONFIG" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_an_api_server_out_of_reach_is_waited_for(scene: Scene, tmp_path: Path) -> None:
    config = json.loads(scene.api.kubeconfig.read_text())
    config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{free_port()}"
    broken = tmp_path / "broken.kubeconfig"
    broken.write_text(json.dumps(config))
    replica = scene.start(kubeconfig=broken)
    wait_until(lambda: replica.lines("api_server_unreachable"), "it says so")
    assert replica.process.is_running
    assert replica.process.stop() == 0


def test_a_missing_crd_is_waited_for_and_one_of_another_version_ends_it(
    own_apiserver: ApiServer, etcd: EtcdServer, make_scene: MakeScene
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
    wait_established(own_apiserver.client)
    second = scene.start()
    wait_until(lambda: not second.process.is_running, "it ends")
    assert second.process.returncode == 2
    assert "is installed in version v2" in second.text()


def test_plan_prints_what_would_be_written_and_ends(scene: Scene) -> None:
    scene.apply()
    pod = scene.pod(gates=["grpc-etcd.dev/registered"])
    before = scene.registry.count_changes()
    flags = [
        f"--namespace={scene.namespace}",
        f"--cluster-id={scene.cluster}",
        f"--etcd-endpoints={scene.etcd.endpoints}",
    ]
    answer = run("plan", *flags, kubeconfig=scene.api.kubeconfig)
    assert answer.returncode == 0, answer.stderr
    plans = [json.loads(line) for line in answer.stdout.splitlines()]
    assert [plan["uid"] for plan in plans] == [pod.uid]
    assert f"/jupiter/greeter/providers/grpc://{pod.address}" in plans[0]["put"]
    assert scene.registry.count_changes() == before
    assert scene.status() == NEW


def test_a_plan_for_another_pod_selector_prints_what_it_would_deregister(scene: Scene) -> None:
    scene.start().wait_leading()
    scene.apply()
    stays, leaves = scene.pod(labels={"app": "greeter", "tier": "grpc"}), scene.pod()
    scene.registry.wait_addresses(stays.address, leaves.address)
    where = [f"--namespace={scene.namespace}", f"--cluster-id={scene.cluster}"]
    where.append(f"--etcd-endpoints={scene.etcd.endpoints}")
    answer = run("plan", *where, "--pod-selector=tier=grpc", kubeconfig=scene.api.kubeconfig)
    assert answer.returncode == 0, answer.stderr
    plans = [json.loads(line) for line in answer.stdout.splitlines()]
    deregistered = {key for plan in plans for key in plan["delete"] if "/providers/" in key}
    assert deregistered == {f"/jupiter/greeter/providers/grpc://{leaves.address}"}, answer.stderr
    assert not [key for plan in plans for key in plan["put"] if "/providers/" in key]
    assert scene.registry.addresses() == sorted([stays.address, leaves.address])


def test_a_plan_whose_etcd_answers_last_prints_what_it_would_deregister(scene: Scene, tmp_path: Path) -> None:
    """All owner records are checked, however late they come: a plan that left them out would promise no harm."""
    scene.start().wait_leading()
    scene.apply()
    stays, leaves = scene.pod(labels={"app": "greeter", "tier": "grpc"}), scene.pod()
    scene.registry.wait_addresses(stays.address, leaves.address)
    log, out = tmp_path / "log", tmp_path / "out"
    with TcpProxy.start(scene.etcd.members[0].endpoint) as proxy:
        proxy.refuse()
        where = [f"--namespace={scene.namespace}", f"--cluster-id={scene.cluster}", f"--etcd-endpoints={proxy.address}"]
        command = [sys.executable, "-m", "grpc_etcd_operator", "plan", *where, "--pod-selector=tier=grpc"]
        environment = {**os.environ, "KUBECONFIG": str(scene.api.kubeconfig)}
        with (
            log.open("w") as stderr,
            out.open("w") as stdout,
            subprocess.Popen(command, env=environment, stdout=stdout, stderr=stderr) as plan,
        ):
            wait_until(lambda: log.read_text().count('"event": "listed"') == 2, "Pods and GrpcServices are listed")
            proxy.heal()
            assert plan.wait(60) == 0, log.read_text()
    plans = [json.loads(line) for line in out.read_text().splitlines()]
    assert [key for plan in plans for key in plan["delete"] if "/providers/" in key] == [
        f"/jupiter/greeter/providers/grpc://{leaves.address}"
    ], log.read_text()
    assert not [key for plan in plans for key in plan["put"] if "/providers/" in key]


def test_a_plan_over_a_slow_line_lists_no_key_that_is_there(scene: Scene) -> None:
    """The owner records come first, and say nothing of the keys that are still under way."""
    scene.start().wait_leading()
    scene.apply(metadata={f"note{number}": "x" * 250 for number in range(30)})
    pods = [scene.pod() for _ in range(4)]
    scene.registry.wait_addresses(*(pod.address for pod in pods))
    with TcpProxy.start(scene.etcd.members[0].endpoint, bytes_per_second=10_000) as proxy:
        where = [f"--namespace={scene.namespace}", f"--cluster-id={scene.cluster}", f"--etcd-endpoints={proxy.address}"]
        answer = run("plan", *where, kubeconfig=scene.api.kubeconfig)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == ""


@pytest.mark.faults
@pytest.mark.timeout(600)  # the plan's own minute, and the start of three programs at once
def test_a_plan_that_cannot_be_made_ends_and_says_what_is_missing(scene: Scene, tmp_path: Path) -> None:
    config = json.loads(scene.api.kubeconfig.read_text())
    config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{free_port()}"
    unreachable = tmp_path / "unreachable.kubeconfig"
    unreachable.write_text(json.dumps(config))
    away, there = f"127.0.0.1:{free_port()}", scene.etcd.endpoints
    with socket.create_server(("127.0.0.1", 0)) as mute:  # accepts, and says nothing
        silent = f"127.0.0.1:{mute.getsockname()[1]}"
        trials = {
            "etcd refuses": (scene.api.kubeconfig, away, ("registry default", away, "--etcd-endpoints")),
            "etcd is silent": (scene.api.kubeconfig, silent, ("registry default", silent, "--etcd-endpoints")),
            "no API server": (unreachable, there, ("API server", "KUBECONFIG")),
        }
        with ThreadPoolExecutor() as pool:
            answers = {
                name: pool.submit(
                    run, "plan", f"--namespace={scene.namespace}", f"--etcd-endpoints={etcd}", kubeconfig=kubeconfig
                )
                for name, (kubeconfig, etcd, _) in trials.items()
            }
            for name, (_, _, parts) in trials.items():
                answer = answers[name].result()
                assert answer.returncode == 2, name
                assert answer.stdout == ""
                assert [part for part in parts if part not in answer.stderr.replace("\\/", "/")] == [], answer.stderr
                assert "Traceback" not in answer.stderr


def test_a_dry_run_stays_up_and_prints_the_plan_whenever_it_changes(scene: Scene) -> None:
    scene.apply()
    pod = scene.pod(gates=["grpc-etcd.dev/registered"])
    before = scene.registry.count_changes()
    replica = scene.start("--dry-run")

    def printed() -> list[Any]:
        """The plans of the last time."""
        lines = replica.lines()
        ends = [number for number, line in enumerate(lines) if line.get("event") == "dry_run_waiting"]
        start = next((number for number in reversed(ends) if number + 1 < (ends[-1] if ends else 0)), -1)
        return [line["put"] for line in lines[start + 1 : ends[-1]] if "put" in line] if ends else []

    def addresses() -> set[str]:
        return {key.rpartition("//")[2] for put in printed() for key in put if "/providers/" in key}

    wait_until(lambda: addresses() == {pod.address}, "the plan is printed")
    wait_until(lambda: replica.get("/readyz")[0] == 200, "it is ready")
    assert replica.get("/healthz")[0] == 200
    assert replica.metric("grpc_etcd_operator_registry_up") == 1
    second = scene.pod()
    wait_until(lambda: addresses() == {pod.address, second.address}, "the changed plan is printed")
    scene.kubelet.unready(pod)
    wait_until(lambda: addresses() == {second.address}, "and once more")
    assert replica.process.is_running
    wait_until(
        lambda: replica.metric("grpc_etcd_operator_no_leader_seconds") > 6,
        "no replica leads for longer than --leader-ttl",
    )
    assert replica.get("/readyz")[0] == 200
    assert replica.metric("grpc_etcd_operator_registry_up") == 1
    assert replica.process.is_running
    assert scene.registry.count_changes() == before
    assert scene.status() == NEW
    assert replica.process.stop() == 0


def test_the_dry_run_of_a_cleanup_deregisters_nothing(scene: Scene) -> None:
    replica = scene.start().wait_leading()
    scene.apply()
    pod = scene.pod()
    scene.registry.wait_addresses(pod.address)
    replica.process.stop()
    answer = run("cleanup", "--dry-run", f"--cluster-id={scene.cluster}", f"--etcd-endpoints={scene.etcd.endpoints}")
    assert answer.returncode == 0, answer.stderr
    assert scene.registry.addresses() == [pod.address]


def test_cleanup_deregisters_all_that_the_cluster_id_owns_and_nothing_else(scene: Scene) -> None:
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


def test_a_registry_that_is_out_of_reach_keeps_a_cleanup_from_no_other(scene: Scene) -> None:
    config = scene.folder / "settings.json"
    two = {"gone": {"endpoints": ["127.0.0.1:9"]}, "here": {"endpoints": [scene.etcd.endpoints]}}
    config.write_text(json.dumps({"registries": two}))
    replica = scene.start(f"--config={config}").wait_leading()
    scene.apply(registries=["here"])
    scene.registry.wait_addresses(scene.pod().address)
    replica.process.stop()
    answer = run("cleanup", f"--cluster-id={scene.cluster}", f"--config={config}")
    assert answer.returncode == 2
    assert "registry gone at 127.0.0.1:9: " in answer.stderr + answer.stdout
    assert set(scene.registry.keys("/")) <= {f"/grpc-etcd/leader/{scene.cluster}"}


def test_cleanup_deregisters_nothing_of_another_cluster_under_the_same_id(scene: Scene) -> None:
    replica = scene.start().wait_leading()
    scene.apply()
    pod = scene.pod()
    scene.registry.wait_addresses(pod.address)
    replica.process.stop()
    scene.client.put(f"/grpc-etcd/cluster/{scene.cluster}".encode(), b'{"kubeSystem":"another","ca":[]}')
    flags = [f"--cluster-id={scene.cluster}", f"--etcd-endpoints={scene.etcd.endpoints}"]
    answer = run("cleanup", *flags, kubeconfig=scene.api.kubeconfig)
    assert answer.returncode == 2
    assert "another Kubernetes cluster" in answer.stderr + answer.stdout
    assert scene.registry.addresses() == [pod.address]
