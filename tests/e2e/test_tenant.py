"""What one tenant does, by malice or by mistake, stays with that tenant; what an owner slips on can be mended."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from grpc_etcd.etcd import Etcd
from grpc_etcd.layouts.index import LAYOUT_NAMES
from grpc_etcd_operator.controller.registry_controller import TIDY_SECONDS
from testbed.apiserver import ApiServer
from testbed.conditions import PATIENCE_SECONDS, wait_until
from testbed.etcd import EtcdServer
from testbed.kubelet import Pod
from testbed.kubernetes_api import ApiError
from testbed.replica import RegistryView
from tests.e2e.conftest import NEW, MakeScene, Scene, install_crd

GATE = "grpc-etcd.dev/registered"
# All lists are named: those that the API server fills in by default stay beside ours in a server-side apply.
GOOD: dict[str, Any] = {"port": "grpc", "layouts": ["jupiter"], "registries": ["default"]}


def selects(app: str) -> dict[str, Any]:
    return {"selector": {"matchLabels": {"app": app}}}


def gate(scene: Scene, pod: Pod) -> tuple[str, str]:
    item = scene.api.client.get("v1", "Pod", pod.name, scene.namespace)
    found: dict[str, str] = next((each for each in item["status"].get("conditions", []) if each["type"] == GATE), {})
    return found.get("status", ""), found.get("reason", "")


def wait_gate(scene: Scene, pod: Pod, status: str, reason: str) -> None:
    wait_until(lambda: gate(scene, pod) == (status, reason), f"the gate is {status}, {reason}")


@pytest.mark.parametrize("after", ["at once", "after a restart"])
def test_a_slip_that_moves_the_selector_too_leaves_no_gate_waiting(scene: Scene, after: str) -> None:
    replica = scene.start().wait_leading()
    scene.apply("slips", **GOOD, **selects("old"))
    scene.apply("good", **GOOD, **selects("new"))
    scene.wait_condition("Accepted", "True", "Accepted", "slips")
    scene.wait_condition("Accepted", "True", "Accepted", "good")
    scene.apply("slips", **GOOD, **selects("new"), prefix="elsewhere")
    scene.wait_condition("Accepted", "False", "PrefixNotAllowed", "slips")
    if after == "after a restart":
        replica.process.stop()
        scene.start().wait_leading()
    pod = scene.pod(labels={"app": "new"}, gates=[GATE])
    scene.registry.wait_addresses(pod.address, name="good")
    wait_gate(scene, pod, "True", "Registered")


def test_a_gate_says_which_slip_keeps_it_shut(scene: Scene) -> None:
    scene.start().wait_leading()
    scene.apply("slips", **GOOD, **selects("old"))
    scene.wait_condition("Accepted", "True", "Accepted", "slips")
    scene.apply("slips", **GOOD, **selects("new"), prefix="elsewhere")
    scene.wait_condition("Accepted", "False", "PrefixNotAllowed", "slips")
    pod = scene.pod(labels={"app": "new"}, gates=[GATE])
    wait_until(lambda: gate(scene, pod)[0] == "False", "it says something")
    assert gate(scene, pod) == ("False", "PrefixNotAllowed")


def test_a_gate_stays_shut_while_the_spec_that_selects_its_pod_is_invalid(scene: Scene) -> None:
    replica = scene.start().wait_leading()
    scene.apply(**GOOD)
    old = scene.pod(gates=[GATE])
    scene.registry.wait_addresses(old.address)
    too_long = {"policy": {"timeout": "48h"}}
    scene.apply("never", **GOOD, **selects("new"), **too_long)
    scene.apply(**GOOD, **too_long)
    for name in ("greeter", "never"):
        scene.wait_condition("Accepted", "False", "InvalidSpec", name)
    replica.process.stop()
    scene.start().wait_leading()
    pods = [scene.pod(gates=[GATE]), scene.pod(labels={"app": "new"}, gates=[GATE])]
    for pod in pods:
        wait_gate(scene, pod, "False", "InvalidSpec")
    scene.apply(**GOOD)
    scene.delete("never")
    for pod in pods:
        wait_gate(scene, pod, "True", "Registered")
    scene.registry.wait_addresses(old.address, pods[0].address)


def test_an_unknown_registry_and_another_selector_leave_no_gate_waiting(
    scene: Scene, own_etcd: EtcdServer, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"registries": {"second": {"endpoints": [own_etcd.endpoints]}}}))
    scene.start(f"--config={config}").wait_leading()
    scene.apply(**{**GOOD, "registries": ["default", "second"]}, **selects("old"))
    scene.wait_condition("Accepted", "True", "Accepted")
    scene.apply(**{**GOOD, "registries": ["default", "unknown"]}, **selects("new"))
    scene.wait_condition("Accepted", "False", "UnknownRegistry")
    pod = scene.pod(labels={"app": "new"}, gates=[GATE])
    scene.registry.wait_addresses(pod.address)
    wait_gate(scene, pod, "True", "Registered")


def test_an_absurd_weight_of_a_pod_is_passed_over(scene: Scene) -> None:
    scene.start().wait_leading()
    scene.apply(**GOOD)
    pod = scene.pod(annotations={"grpc-etcd.dev/weight": "9" * 5000})
    scene.registry.wait_addresses(pod.address)
    scene.wait_condition("Programmed", "False", "BadWeight")


def test_a_pod_with_very_many_services_is_written_and_deregistered(scene: Scene) -> None:
    scene.start().wait_leading()
    layouts = ["jupiter", "kratos", "go-zero", "etcd-naming"]
    for number in range(60):
        scene.apply(f"many-{number}", **{**GOOD, "layouts": layouts})
    scene.apply("quiet", **GOOD, **selects("quiet"))
    pod = scene.pod()
    quiet = scene.pod(labels={"app": "quiet"})
    scene.registry.wait_addresses(quiet.address, name="quiet")
    for number in range(60):
        scene.registry.wait_addresses(pod.address, name=f"many-{number}")
    scene.kubelet.unready(pod)
    for number in range(60):
        scene.registry.wait_addresses(name=f"many-{number}")


def test_a_name_survives_its_crd_though_another_is_put_back_first(
    own_apiserver: ApiServer, etcd: EtcdServer, make_scene: MakeScene
) -> None:
    scene = make_scene(own_apiserver, etcd)
    evil = f"{scene.namespace}-evil"
    scene.api.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": evil}})
    replica = scene.start(f"--namespace={evil}").wait_leading()
    scene.apply()
    mine = scene.pod()
    scene.registry.wait_addresses(mine.address)
    scene.apply("parked", evil, name="greeter")
    theirs = scene.pod(namespace=evil)
    scene.wait_condition("Accepted", "False", "NameTaken", "parked", evil)
    before = scene.registry.keys("/jupiter/greeter/providers/")
    scene.api.kubectl("delete", "crd", "grpcservices.grpc-etcd.dev")
    wait_until(lambda: replica.lines("crd_missing"), "it waits for the CRD")
    install_crd(scene.api)
    scene.apply("parked", evil, name="greeter")
    scene.wait_condition("Accepted", "False", "NameTaken", "parked", evil)
    scene.apply()
    scene.wait_condition("Accepted", "True", "Accepted")
    assert theirs.address not in scene.registry.addresses()
    assert scene.registry.keys("/jupiter/greeter/providers/") == before


def test_a_slip_with_no_pod_left_does_not_let_go_of_what_is_in_force(scene: Scene) -> None:
    other = f"{scene.namespace}-other"
    scene.api.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other}})
    scene.start(f"--namespace={other}").wait_leading()
    scene.apply("taken", other)
    scene.wait_condition("Accepted", "True", "Accepted", "taken", other)
    scene.apply(**GOOD)
    first = scene.pod()
    scene.registry.wait_addresses(first.address)
    scene.kubelet.unready(first)
    scene.registry.wait_addresses()
    scene.apply(**GOOD, name="taken")
    scene.wait_condition("Accepted", "False", "NameTaken")
    time.sleep(2.5 * TIDY_SECONDS)  # nothing tells that a prefix is no longer followed
    scene.kubelet.ready(first)
    scene.registry.wait_addresses(first.address)
    key = f"/jupiter/greeter/providers/grpc://{first.address}"
    scene.client.delete(key.encode())
    scene.registry.wait_addresses(first.address)


def fill(scene: Scene, name: str, namespace: str, **spec: Any) -> None:
    """Create a GrpcService as large as the API server's etcd takes one, so that no status finds room beside it."""

    def manifest(size: int) -> dict[str, Any]:
        value = "v" * 63
        labels = {f"l{number:06d}": value for number in range(size // 76)}
        labels["pad"] = "p" * (size % 76 % 63)
        return {
            "apiVersion": "grpc-etcd.dev/v1alpha1",
            "kind": "GrpcService",
            "metadata": {"name": name, "namespace": namespace, "labels": labels},
            "spec": spec,
        }

    small, large = 1_000_000, 1_600_000
    while large - small > 40:
        size = (small + large) // 2
        try:
            made = scene.api.client.create(manifest(size))
        except ApiError:
            large = size
        else:
            small = size
            scene.api.client.delete(made)
    scene.api.client.create(manifest(small))


def test_a_claim_that_cannot_be_written_holds_up_no_other_registration(scene: Scene) -> None:
    evil = f"{scene.namespace}-evil"
    scene.api.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": evil}})
    fill(scene, "huge", evil, **GOOD, **selects("x"))
    scene.apply()
    pod = scene.pod()
    scene.start(f"--namespace={evil}")
    scene.registry.wait_addresses(pod.address)
    wait_until(scene.has_mark, "the mark is put")
    assert scene.status("huge", evil) == NEW


def test_a_tenant_who_makes_and_unmakes_services_does_not_shake_the_mark(scene: Scene) -> None:
    evil = f"{scene.namespace}-evil"
    scene.api.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": evil}})
    replica = scene.start(f"--namespace={evil}", "--leader-ttl=60").wait_leading()
    scene.apply(**GOOD)
    pod = scene.pod()
    scene.registry.wait_addresses(pod.address)
    for number in range(40):
        scene.apply(f"made-{number}", evil, **GOOD, **selects("nobody"))
        assert scene.has_mark()
        if number:
            scene.delete(f"made-{number - 1}", evil)
    assert not replica.lines("synced_key_deleted")


def test_a_pod_whose_address_a_newer_one_had_for_a_while_gets_its_key_again(scene: Scene) -> None:
    """Pods on the host's network may share address and port, as in a rollout with SO_REUSEPORT."""
    scene.start().wait_leading()
    scene.apply(**GOOD)
    old = scene.pod()
    scene.registry.wait_addresses(old.address)
    key = f"/jupiter/greeter/providers/grpc://{old.address}"

    def wait_holder(pod: Pod) -> None:
        wait_until(
            lambda: getattr(scene.registry.keys(key).get(key), "lease", 0) == scene.lease(pod.uid), "it holds it"
        )

    wait_for_another_second()  # which is what decides
    new = scene.pod(ip=old.ip)
    wait_holder(new)
    scene.wait_condition("Programmed", "False", "KeyTaken")
    scene.kubelet.unready(new)
    wait_holder(old)
    scene.wait_condition("Programmed", "True", "Programmed")
    scene.kubelet.ready(new)
    wait_holder(new)
    scene.kubelet.terminate(new)
    wait_holder(old)


def wait_for_another_second() -> None:
    """Let what is created from now on be younger for the API server than what there is."""
    now = time.time()
    wait_until(lambda: time.time() > now + 1, "another second")


def test_a_namespace_that_asks_for_very_much_keeps_nobody_from_leading_and_fills_no_etcd(
    scene: Scene, own_etcd: EtcdServer
) -> None:
    """A hundred GrpcServices with all the metadata that the CRD takes, in all layouts, select the same Pods."""
    evil, many = f"{scene.namespace}-evil", 100
    scene.api.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": evil}})
    large = {"layouts": list(LAYOUT_NAMES), "metadata": {f"key-{number}": "v" * 1024 for number in range(64)}}
    for number in range(many):
        if number in (1, many - 1):
            wait_for_another_second()  # so that the first is the oldest, and the last the youngest
        scene.apply(f"large-{number}", evil, **{**GOOD, **large}, **selects("evil"))
    pods = [scene.pod(namespace=evil, labels={"app": "evil"}) for _ in range(60)]
    replica = scene.start(f"--namespace={evil}", etcd=own_etcd.endpoints)
    scene.apply(**GOOD)
    pod = scene.pod()
    with Etcd(own_etcd.endpoints, timeout_seconds=PATIENCE_SECONDS) as client:
        registry = RegistryView(client)
        registry.wait_addresses(pod.address)
        replica.wait_leading()
        registry.wait_addresses(*(each.address for each in pods), name="large-0")
        scene.wait_condition("Programmed", "True", "Programmed")
        scene.wait_condition("Programmed", "False", "Unwritable", f"large-{many - 1}", evil)

        def is_told(number: int) -> bool:
            return scene.condition("Programmed", f"large-{number}", evil) == ("False", "Unwritable")

        wait_until(lambda: sum(map(is_told, range(many))) >= many - 2, "those that go beyond the bound are told")
        scene.kubelet.unready(pod)
        registry.wait_addresses()
        assert client.get(f"/grpc-etcd/synced/{scene.cluster}".encode())
    assert not replica.lines("leadership_lost")
