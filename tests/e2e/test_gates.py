"""A Pod's gate waits for what can be written, says why it is not open, and is tried again after a conflict."""

import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from testbed.apiserver import ApiServer
from testbed.conditions import wait_until
from testbed.etcd import EtcdServer
from testbed.kubelet import Pod
from tests.e2e.conftest import MakeScene, Scene

GATE = "grpc-etcd.dev/registered"
# Those that the API server fills in by default stay beside ours in a server-side apply.
LISTS: dict[str, Any] = {"layouts": ["jupiter"], "registries": ["default"]}


def read_gate(scene: Scene, pod: Pod) -> dict[str, str]:
    item = scene.api.client.get("v1", "Pod", pod.name, scene.namespace)
    return next((each for each in item["status"].get("conditions", []) if each["type"] == GATE), {})


def gate(scene: Scene, pod: Pod) -> tuple[str, str]:
    found = read_gate(scene, pod)
    return found.get("status", ""), found.get("reason", "")


def wait_gate(scene: Scene, pod: Pod, status: str, reason: str) -> None:
    wait_until(lambda: gate(scene, pod) == (status, reason), f"the gate is {status}, {reason}")


def fields_of_the_operator(scene: Scene, pod: Pod) -> list[dict[str, Any]]:
    """Return what the API server says that the operator has written to a Pod."""
    metadata = scene.api.client.get("v1", "Pod", pod.name, scene.namespace)["metadata"]
    return [each["fieldsV1"] for each in metadata["managedFields"] if each["manager"].startswith("grpc-etcd")]


def test_of_a_pod_the_operator_writes_the_condition_of_its_gate_and_nothing_else(scene: Scene) -> None:
    scene.start().wait_leading()
    scene.apply(metadataFromLabels=["app"], drain={"mode": "Disable"})
    gated, plain = scene.pod(gates=[GATE], hold=True), scene.pod(hold=True)
    scene.registry.wait_addresses(gated.address, plain.address)
    wait_gate(scene, gated, "True", "Registered")
    for pod in (gated, plain):
        scene.kubelet.unready(pod)
    scene.registry.wait_addresses()
    for pod in (gated, plain):
        scene.kubelet.ready(pod)
    scene.registry.wait_addresses(gated.address, plain.address)
    (written,) = fields_of_the_operator(scene, gated)
    assert list(written) == ["f:status"]
    assert list(written["f:status"]) == ["f:conditions"]
    assert list(written["f:status"]["f:conditions"]) == [f'k:{{"type":"{GATE}"}}']
    assert fields_of_the_operator(scene, plain) == []


@pytest.mark.parametrize(
    "bad",
    [
        {"port": "missing"},
        {"name": "other", "layouts": ["kitex"], "weight": 0},
        {"weight": 7},  # shadowed: the same keys as the older one
        {"registries": ["unknown"]},
        {"prefix": "elsewhere"},
    ],
    ids=["no port", "unwritable", "shadowed", "unknown registry", "prefix not allowed"],
)
def test_the_gate_waits_only_for_what_can_be_written(scene: Scene, bad: dict[str, Any]) -> None:
    scene.start().wait_leading()
    scene.apply("good", name="greeter", **LISTS)
    scene.wait_condition("Accepted", "True", "Accepted", "good")
    scene.apply("bad", **{"name": "greeter", **LISTS, **bad})
    pod = scene.pod(gates=[GATE])
    scene.registry.wait_addresses(pod.address)
    wait_gate(scene, pod, "True", "Registered")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"port": "missing"}, "PortNotFound"),
        ({"layouts": ["kitex"], "weight": 0}, "Unwritable"),
        ({"registries": ["unknown"]}, "UnknownRegistry"),
    ],
)
def test_a_fault_is_told_in_the_gates_condition_and_ends_with_it(
    scene: Scene, bad: dict[str, Any], reason: str
) -> None:
    scene.start().wait_leading()
    scene.apply(**{**LISTS, **bad})
    wait_until(lambda: scene.condition("Accepted")[0], "it is known")  # else the gate of one that nobody selects opens
    pod = scene.pod(gates=[GATE])
    wait_gate(scene, pod, "False", reason)
    scene.apply(**LISTS)
    wait_gate(scene, pod, "True", "Registered")


@pytest.mark.faults
def test_a_gate_that_waits_for_a_registry_says_so(
    apiserver: ApiServer, own_etcd: EtcdServer, make_scene: MakeScene
) -> None:
    scene = make_scene(apiserver, own_etcd)
    scene.start().wait_leading()
    scene.apply()
    scene.wait_condition("Accepted", "True", "Accepted")
    own_etcd.kill()
    pod = scene.pod(gates=[GATE])
    wait_gate(scene, pod, "False", "RegistryUnavailable")
    message = read_gate(scene, pod)["message"]
    assert re.search(r"\(\w+\)\. Check ", message)  # the error, and what to do about it
    told = "Warning  RegistryUnavailable"
    wait_until(
        lambda: told in scene.api.kubectl("describe", "pod", pod.name, "-n", scene.namespace),
        "kubectl describe tells it",
    )
    own_etcd.restart()
    wait_gate(scene, pod, "True", "Registered")


def test_a_gate_whose_key_somebody_else_holds_says_so(scene: Scene) -> None:
    scene.start().wait_leading()
    scene.apply()
    scene.wait_condition("Accepted", "True", "Accepted")
    pod = scene.pod(gates=[GATE], ready=False)
    key = f"/jupiter/greeter/providers/grpc://{pod.address}".encode()
    scene.client.put(key, b"{}")
    scene.kubelet.ready(pod)
    wait_gate(scene, pod, "False", "KeyTaken")
    assert key.decode() in read_gate(scene, pod)["message"]
    scene.client.delete(key)
    wait_gate(scene, pod, "True", "Registered")


@pytest.mark.faults
def test_a_gate_waits_for_the_registries_of_its_own_grpcservices_alone(
    scene: Scene, own_etcd: EtcdServer, tmp_path: Path
) -> None:
    config = tmp_path / "registries.yaml"
    config.write_text(json.dumps({"registries": {"second": {"endpoints": own_etcd.endpoints}}}))
    scene.start(f"--config={config}").wait_leading()
    wishes = {"first": ["default"], "second": ["second"], "both": ["default", "second"]}
    for name, registries in wishes.items():
        scene.apply(name, selector={"matchLabels": {"app": name}}, registries=registries)
        scene.wait_condition("Programmed", "False", "NoPods", name)
    own_etcd.kill()
    pods = {name: scene.pod(labels={"app": name}, gates=[GATE]) for name in wishes}
    wait_gate(scene, pods["first"], "True", "Registered")
    for name in ("second", "both"):
        wait_gate(scene, pods[name], "False", "RegistryUnavailable")
    own_etcd.restart()
    for name in ("second", "both"):
        wait_gate(scene, pods[name], "True", "Registered")


def test_the_gate_opens_while_others_write_the_pods_status(scene: Scene) -> None:
    """Each write of somebody else's makes ours a conflict now and then."""
    scene.start().wait_leading()
    scene.apply()
    pods = [scene.pod(gates=[GATE], ready=False) for _ in range(6)]
    stop = threading.Event()

    def disturb(pod: Pod) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            condition = {"type": "example.com/other", "status": "True", "reason": f"R{number}"}
            change = {"status": {"conditions": [condition]}}
            scene.api.client.patch(pod.item, change, "status", "application/strategic-merge-patch+json")

    threads = [threading.Thread(target=disturb, args=(pod,)) for pod in pods]
    for thread in threads:
        thread.start()
    try:
        for pod in pods:
            scene.kubelet.ready(pod)
        for pod in pods:
            wait_gate(scene, pod, "True", "Registered")
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_statuses_and_open_gates_stay_as_they_were_when_nobody_updates_them(scene: Scene) -> None:
    """As after an uninstall, when the leases have expired."""
    replica = scene.start("--lease-ttl=10").wait_leading()
    scene.apply()
    pod = scene.pod(gates=[GATE])
    scene.registry.wait_addresses(pod.address)
    wait_gate(scene, pod, "True", "Registered")
    scene.wait_condition("Programmed", "True", "Programmed")
    replica.process.stop()
    before = scene.status()
    scene.registry.wait_addresses()
    wait_gate(scene, pod, "True", "Registered")
    assert scene.status() == before
