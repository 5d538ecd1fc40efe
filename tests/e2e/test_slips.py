"""A spec that cannot be obeyed deregisters nothing: keys of ready Pods stay, others go, and the status says so."""

import json
from pathlib import Path
from typing import Any

import pytest

from testbed.conditions import wait_until
from testbed.etcd import EtcdServer
from testbed.kubelet import random_loopback_ip
from testbed.replica import Replica
from tests.e2e.conftest import Scene

# All lists are named: those that the API server fills in by default stay beside ours in a server-side apply.
GOOD: dict[str, Any] = {"port": "grpc", "layouts": ["jupiter"], "registries": ["default"]}
SLIPS: dict[str, tuple[dict[str, Any], str]] = {
    "port": ({"port": "gprc"}, "PortNotFound"),
    "registries": ({"registries": ["defualt"]}, "UnknownRegistry"),
    "one registry of two": ({"registries": ["default", "second"]}, "UnknownRegistry"),
    "prefix": ({"prefix": "elsewhere"}, "PrefixNotAllowed"),
    "name": ({"name": "taken"}, "NameTaken"),
    "a label that no Pod can have": ({"selector": {"matchLabels": {"app": "greeter "}}}, "InvalidSpec"),
    "a label of an expression that no Pod can have": (
        {"selector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["x "]}]}},
        "InvalidSpec",
    ),
    "reserved name": ({"name": "kitex", "layouts": ["etcd-naming"]}, "NameReserved"),
}


def message(scene: Scene, kind: str) -> str:
    return next((each["message"] for each in scene.status().get("conditions", []) if each["type"] == kind), "")


def start(scene: Scene) -> Replica:
    return scene.start(f"--namespace={scene.namespace}-other").wait_leading()


@pytest.mark.parametrize("slip", SLIPS)
def test_keys_stay_whatever_the_slip_before_and_after_a_restart(scene: Scene, slip: str) -> None:
    spec, reason = SLIPS[slip]
    other = f"{scene.namespace}-other"
    scene.api.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other}})
    replica = start(scene)
    scene.apply("taken", other)
    scene.wait_condition("Accepted", "True", "Accepted", "taken", other)
    scene.apply(**GOOD)
    pods = [scene.pod() for _ in range(3)]
    addresses = [pod.address for pod in pods]
    scene.registry.wait_addresses(*addresses)
    scene.wait_condition("Programmed", "True", "Programmed")
    scene.apply(**{**GOOD, **spec})
    scene.wait_condition("Accepted", "False", reason)
    assert scene.registry.addresses() == sorted(addresses)
    assert replica.metric("grpc_etcd_operator_not_accepted", reason=reason) == 1
    wait_until(lambda: "stay" in message(scene, "Programmed"), "the status says so")
    scene.kubelet.unready(pods[0])
    scene.registry.wait_addresses(*addresses[1:])
    replica.process.stop()
    start(scene)
    scene.kubelet.unready(pods[1])
    scene.registry.wait_addresses(addresses[2])
    wait_until(lambda: "stay" in message(scene, "Programmed"), "the status still says so")
    scene.apply(**GOOD)
    scene.wait_condition("Programmed", "True", "Programmed")
    scene.kubelet.ready(pods[0])
    scene.registry.wait_addresses(addresses[0], addresses[2])


def test_a_key_that_stays_for_a_fault_goes_when_its_pod_has_another_address(scene: Scene) -> None:
    """Another Pod may have the old one by now."""
    start(scene)
    scene.apply(**{**GOOD, "layouts": ["jupiter", "kitex"]}, weight=0)
    pod = scene.pod()
    scene.registry.wait_addresses(pod.address)
    scene.wait_condition("Programmed", "False", "Unwritable")
    pod.ip = random_loopback_ip()
    scene.kubelet.ready(pod)
    scene.registry.wait_addresses(pod.address)


def test_a_key_that_stays_for_a_slip_goes_when_its_pod_has_another_address_after_a_restart(scene: Scene) -> None:
    replica = start(scene)
    scene.apply(**GOOD)
    moved, stays = scene.pod(), scene.pod()
    scene.registry.wait_addresses(moved.address, stays.address)
    scene.apply(**GOOD, prefix="elsewhere")
    scene.wait_condition("Accepted", "False", "PrefixNotAllowed")
    replica.process.stop()
    moved.ip = random_loopback_ip()
    scene.kubelet.ready(moved)
    start(scene)
    scene.registry.wait_addresses(stays.address)


def test_a_registry_that_is_taken_from_the_settings_concerns_that_registry_alone(
    scene: Scene, own_etcd: EtcdServer, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"registries": {"second": {"endpoints": [own_etcd.endpoints]}}}))
    replica = scene.start(f"--config={config}").wait_leading()
    scene.apply(registries=["default", "second"])
    pod = scene.pod()
    scene.registry.wait_addresses(pod.address)
    wait_until(lambda: pod.address in own_etcd.etcdctl("get", "--keys-only", "--prefix", "/jupiter/"), "in both")
    scene.wait_condition("Programmed", "True", "Programmed")
    replica.process.stop()
    scene.start().wait_leading()
    scene.wait_condition("Accepted", "False", "UnknownRegistry")
    late = scene.pod()
    scene.registry.wait_addresses(pod.address, late.address)
    wait_until(lambda: "2 of 2 ready Pods are registered in default" in message(scene, "Programmed"), "it says where")
    assert pod.address in own_etcd.etcdctl("get", "--keys-only", "--prefix", "/jupiter/")


def test_keys_stay_while_a_name_is_taken_and_new_pods_get_theirs_too(scene: Scene) -> None:
    other = f"{scene.namespace}-other"
    scene.api.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other}})
    start(scene)
    scene.apply("taken", other)
    scene.wait_condition("Accepted", "True", "Accepted", "taken", other)
    scene.apply()
    first = scene.pod()
    scene.registry.wait_addresses(first.address)
    scene.apply(name="taken")
    scene.wait_condition("Accepted", "False", "NameTaken")
    late = scene.pod()
    scene.registry.wait_addresses(first.address, late.address)
    scene.delete("taken", other)
    scene.registry.wait_addresses(first.address, late.address, name="taken")
    scene.registry.wait_addresses()


def test_the_owners_clear_wish_deregisters(scene: Scene) -> None:
    scene.start().wait_leading()
    for wish in ({"enable": False}, {"selector": {"matchLabels": {"app": "nobody"}}}, {"layouts": ["go-zero"]}):
        scene.apply(**GOOD)
        pod = scene.pod()
        wait_until(lambda pod=pod: pod.address in scene.registry.addresses(), "it is registered")
        scene.apply(**{**GOOD, **wish})
        scene.registry.wait_addresses()


def test_policy_and_routes_stay_after_a_slip_and_a_restart(scene: Scene) -> None:
    replica = scene.start().wait_leading()
    scene.apply(policy={"timeout": "5s"})
    wait_until(lambda: scene.client.get(b"/grpc-etcd/policy/jupiter/greeter"), "the policy is there")
    scene.apply(policy={"timeout": "5s"}, prefix="elsewhere")
    scene.wait_condition("Accepted", "False", "PrefixNotAllowed")
    replica.process.stop()
    scene.start().wait_leading()
    scene.wait_condition("Accepted", "False", "PrefixNotAllowed")
    assert scene.client.get(b"/grpc-etcd/policy/jupiter/greeter")
    scene.delete()
    wait_until(lambda: not scene.client.get(b"/grpc-etcd/policy/jupiter/greeter"), "it goes with the service")


@pytest.mark.parametrize(("flags", "spec"), [((), {}), (("--allowed-prefix=elsewhere",), {"prefix": "elsewhere"})])
def test_keys_of_a_release_without_claims_stay_and_are_claimed(
    scene: Scene, flags: tuple[str, ...], spec: dict[str, Any]
) -> None:
    replica = scene.start(*flags).wait_leading()
    item = scene.apply(**{**GOOD, **spec})
    prefix = spec.get("prefix", "jupiter")
    pod = scene.pod()
    scene.registry.wait_addresses(pod.address, prefix=prefix)
    scene.wait_condition("Programmed", "True", "Programmed")
    replica.process.stop()
    scene.api.client.patch(item, {"status": {"claims": None}}, "status")
    before = {key: record.mod_revision for key, record in scene.registry.keys(f"/{prefix}/").items()}
    scene.start().wait_leading()
    if spec:
        scene.wait_condition("Accepted", "False", "PrefixNotAllowed")
    else:
        wait_until(lambda: scene.status().get("claims"), "it is claimed")
    late = scene.pod(labels={"app": "other"})
    scene.apply("other", **{**GOOD, "selector": {"matchLabels": {"app": "other"}}})
    scene.registry.wait_addresses(late.address, name="other")
    after = {key: record.mod_revision for key, record in scene.registry.keys(f"/{prefix}/").items()}
    assert before.items() <= after.items()


def test_a_service_that_was_disabled_before_its_slip_is_not_missed(scene: Scene) -> None:
    """Nothing is to be written by the spec that is still in force, whatever the one says that cannot be obeyed."""
    replica = scene.start().wait_leading()
    scene.apply(enable=False)
    scene.pod()
    wait_until(lambda: scene.status().get("endpoints", {}).get("ready") == 1, "its Pod is known")
    scene.apply(prefix="not/allowed", enable=True)
    scene.wait_condition("Accepted", "False", "PrefixNotAllowed")
    assert replica.metric("grpc_etcd_operator_ready_not_registered") == 0
