"""Every field of a GrpcService is obeyed, on real parts; the rest of them stand in test_main_job.py."""

import json
from typing import Any

from testbed.conditions import existing, wait_until
from testbed.kubelet import Pod
from tests.e2e.conftest import Scene
from tests.e2e.pod_watches import with_both

GATE = "grpc-etcd.dev/registered"


def only_value(scene: Scene, name: str = "greeter") -> Any:
    values = list(scene.registry.values(f"/jupiter/{name}/providers/").values())
    return values[0] if len(values) == 1 else {}


def test_match_expressions_select(scene: Scene) -> None:
    scene.start()
    scene.apply(selector={"matchExpressions": [{"key": "tier", "operator": "In", "values": ["a", "b"]}]})
    chosen, _ = scene.pod(labels={"tier": "b"}), scene.pod(labels={"tier": "c"})
    scene.registry.wait_addresses(chosen.address)
    scene.apply(selector={"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["a", "b"]}]})
    wait_until(lambda: scene.registry.addresses() != [chosen.address], "the selector's change is obeyed")


@with_both
def test_a_pod_that_declares_no_port_is_registered_by_its_grpc_probe(scene: Scene) -> None:
    scene.start()
    scene.apply()
    pod = scene.pod(probed_port=8080)
    assert pod.port == 8080
    scene.registry.wait_addresses(pod.address)


def test_a_port_that_looks_like_grpc_is_suggested_where_there_are_several(scene: Scene) -> None:
    scene.start()
    scene.apply()
    scene.pod(ports={"metrics": 1, "grpc-api": 2})
    scene.wait_condition("Accepted", "False", "PortNotFound")
    message = next(each["message"] for each in scene.status()["conditions"] if each["type"] == "Accepted")
    assert message.endswith("set spec.port, perhaps to grpc-api")


def test_the_annotation_sets_the_weight_and_a_bad_one_is_reported(scene: Scene) -> None:
    scene.start()
    scene.apply(weight=10)
    pod = scene.pod(annotations={"grpc-etcd.dev/weight": "77"})
    wait_until(lambda: only_value(scene).get("weight") == 77, "the annotation counts")
    scene.api.client.patch(pod.item, {"metadata": {"annotations": {"grpc-etcd.dev/weight": "heavy"}}})
    wait_until(lambda: only_value(scene).get("weight") == 10, "a bad one does not")
    scene.wait_condition("Programmed", "False", "BadWeight")


def test_zone_and_region_default_to_the_nodes(scene: Scene) -> None:
    scene.kubelet.create_node("zoned", zone="z1", region="r1")
    scene.start()
    scene.apply()
    scene.pod(node="zoned")
    wait_until(lambda: (only_value(scene).get("zone"), only_value(scene).get("region")) == ("z1", "r1"), "topology")


def test_enable_false_deregisters_and_forgets_nothing(scene: Scene) -> None:
    scene.start()
    scene.apply()
    pod = scene.pod()
    scene.registry.wait_addresses(pod.address)
    scene.apply(enable=False)
    scene.registry.wait_addresses()
    scene.wait_condition("Programmed", "True", "Disabled")
    scene.apply(enable=True)
    scene.registry.wait_addresses(pod.address)


def test_publish_not_ready_takes_running_pods(scene: Scene) -> None:
    scene.start()
    scene.apply(publishNotReady=True)
    pod = scene.pod(ready=False)
    scene.registry.wait_addresses(pod.address)
    scene.kubelet.set_phase(pod, "Failed")
    scene.registry.wait_addresses()


def test_drain_disable_disables_first_and_deletes_when_the_pod_is_gone(scene: Scene) -> None:
    scene.start()
    scene.apply(drain={"mode": "Disable"})
    pod, never = scene.pod(hold=True), scene.pod(ready=False)
    scene.registry.wait_addresses(pod.address)
    scene.kubelet.terminate(pod)
    wait_until(lambda: only_value(scene).get("enable") is False, "disabled")
    assert scene.registry.addresses() == [pod.address]
    scene.kubelet.finish(pod)
    scene.registry.wait_addresses()
    assert never.address not in scene.registry.addresses()


def test_a_pod_that_turns_unready_is_deregistered_and_not_drained(scene: Scene) -> None:
    """It may stay so for hours, and not every client obeys enable=false."""
    scene.start()
    scene.apply(drain={"mode": "Disable"})
    pod = scene.pod()
    scene.registry.wait_addresses(pod.address)
    scene.kubelet.unready(pod)
    scene.registry.wait_addresses()


def test_a_pod_that_has_ended_is_not_drained(scene: Scene) -> None:
    """An evicted Pod may stay as an object for days, while another Pod has its address."""
    scene.start()
    scene.apply(drain={"mode": "Disable"})
    pod, other = scene.pod(), scene.pod()
    scene.registry.wait_addresses(pod.address, other.address)
    scene.kubelet.set_phase(pod, "Failed")
    scene.registry.wait_addresses(other.address)


def test_the_metrics_port_has_a_prometheus_target(scene: Scene) -> None:
    scene.start()
    scene.apply(metricsPort="metrics")
    pod = scene.pod("one", ports={"grpc": 9000, "metrics": 9100})
    target = f"{pod.ip}:9100"
    wait_until(lambda: scene.registry.keys("/prometheus/"), "the target is there")
    found = {key: (record.value, record.lease) for key, record in scene.registry.keys("/prometheus/").items()}
    assert found == {f"/prometheus/job/greeter/one/{target}": (target.encode(), scene.lease(pod.uid))}
    scene.kubelet.unready(pod)
    wait_until(lambda: not scene.registry.keys("/prometheus/"), "the target goes with the Pod")


def test_policy_and_routes_stand_under_a_lease_of_the_service(scene: Scene) -> None:
    scene.start()
    policy = {
        "loadBalancing": {"type": "RoundRobin"},
        "localityPreference": {"mode": "PreferCluster", "minEndpoints": 2, "minPercent": 10},
        "slowStart": {"window": "30s", "minWeightPercent": 10},
        "matchMetadata": {"version": "v2"},
        "timeout": "5s",
    }
    routes = [{"id": "canary", "method": "/shop.Greeter/SayHello", "groups": {"blue": 90, "green": 10}}]
    uid = scene.apply(policy=policy, routes=routes)["metadata"]["uid"]
    wait_until(lambda: scene.client.get(b"/grpc-etcd/policy/jupiter/greeter"), "the policy is there")
    record = existing(scene.client.get(b"/grpc-etcd/policy/jupiter/greeter"))
    assert (json.loads(record.value), record.lease) == (policy, scene.lease(uid))
    route = existing(scene.client.get(b"/jupiter/greeter/configurators/grpc:///routes/canary"))
    assert route.lease == scene.lease(uid)
    assert json.loads(route.value) == {
        "id": "canary",
        "scheme": "grpc",
        "host": "",
        "deployment": "",
        "uri": "/shop.Greeter/SayHello",
        "upstream": {"nodes": None, "groups": {"blue": 90, "green": 10}},
    }
    scene.delete()
    wait_until(lambda: not scene.client.get(b"/grpc-etcd/policy/jupiter/greeter"), "it goes with the service")
    wait_until(lambda: not scene.client.get(b"/jupiter/greeter/configurators/grpc:///routes/canary"), "so do routes")


def test_a_policy_belongs_to_the_name_and_the_older_one_counts(scene: Scene) -> None:
    scene.start()
    scene.apply(policy={"timeout": "5s"})
    scene.wait_condition("Programmed", "False", "NoPods")
    scene.apply("greeter-canary", name="greeter", policy={"timeout": "6s"})
    scene.wait_condition("Programmed", "False", "KeyTaken", "greeter-canary")
    record = existing(scene.client.get(b"/grpc-etcd/policy/jupiter/greeter"))
    assert json.loads(record.value) == {"timeout": "5s"}


def test_the_gate_opens_once_the_keys_are_written_and_for_pods_that_nobody_selects(scene: Scene) -> None:
    scene.start()
    scene.apply()
    gated = scene.pod(gates=[GATE])
    scene.registry.wait_addresses(gated.address)
    unselected = scene.pod(gates=[GATE], labels={"app": "other"})
    for pod in (gated, unselected):
        wait_until(lambda pod=pod: is_ready(scene, pod), "the Pod is ready, its gate is open")
    scene.kubelet.unready(gated)
    scene.registry.wait_addresses()


def is_ready(scene: Scene, pod: Pod) -> bool:
    item = scene.api.client.get("v1", "Pod", pod.name, scene.namespace)
    return any(each["type"] == "Ready" and each["status"] == "True" for each in item["status"]["conditions"])


def test_a_change_that_changes_no_value_writes_nothing(scene: Scene) -> None:
    scene.start("--leader-ttl=60").wait_leading()
    scene.apply()
    pod = scene.pod()
    scene.registry.wait_addresses(pod.address)
    scene.wait_condition("Programmed", "True", "Programmed")
    before = scene.registry.count_changes()
    scene.apply(
        selector={"matchLabels": {"app": "greeter"}, "matchExpressions": [{"key": "app", "operator": "Exists"}]}
    )
    wait_until(lambda: scene.status()["observedGeneration"] == 2, "the change has been seen")
    assert scene.registry.count_changes() == before
