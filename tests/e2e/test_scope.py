"""What an installation takes care of: its namespaces and no other, and names that an admin lets several share."""

import json
import time

from testbed.conditions import existing, wait_until
from tests.e2e.conftest import NEW, Scene
from tests.e2e.pod_watches import with_both


def make_namespace(scene: Scene) -> str:
    name = f"{scene.namespace}-other"
    item = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    scene.api.client.create(item)
    return name


@with_both
def test_with_namespaces_set_nothing_outside_of_them_is_served_or_told(scene: Scene) -> None:
    other = make_namespace(scene)
    scene.start().wait_leading()
    scene.apply("theirs", other)
    scene.pod(namespace=other)
    scene.apply("mine")
    pod = scene.pod()
    scene.registry.wait_addresses(pod.address, name="mine")
    scene.wait_condition("Programmed", "True", "Programmed", "mine")
    assert scene.registry.addresses("theirs") == []
    assert scene.status("theirs", other) == NEW
    leader = json.loads(existing(scene.client.get(f"/grpc-etcd/leader/{scene.cluster}".encode())).value)
    assert leader["namespaces"] == [scene.namespace]


def test_a_name_is_shared_across_namespaces_where_the_admin_allows_it(scene: Scene) -> None:
    other = make_namespace(scene)
    scene.start(f"--namespace={other}", "--allow-shared-names").wait_leading()
    scene.apply()
    time.sleep(1.1)  # creation times are whole seconds, and the tie would be broken by UID
    scene.apply("greeter", other)
    mine, theirs = scene.pod(), scene.pod(namespace=other)
    scene.registry.wait_addresses(mine.address, theirs.address)
    scene.wait_condition("Accepted", "True", "Accepted")
    scene.wait_condition("Accepted", "True", "Accepted", "greeter", other)
    scene.delete("greeter", other)
    scene.registry.wait_addresses(mine.address)


@with_both
def test_a_pod_selector_limits_what_is_seen(scene: Scene) -> None:
    replica = scene.start("--pod-selector=tier=grpc").wait_leading()
    scene.apply()
    scene.pod()
    seen = scene.pod(labels={"app": "greeter", "tier": "grpc"})
    scene.registry.wait_addresses(seen.address)
    wait_until(lambda: replica.metric("grpc_etcd_operator_cached_pods") == 1, "memory holds one Pod")


@with_both
def test_a_pod_selector_that_cannot_be_read_is_told_with_its_setting(scene: Scene) -> None:
    replica = scene.start("--pod-selector=tier in (grpc")
    named = "--pod-selector (podSelector in the chart's values)"
    wait_until(lambda: any(named in line.get("remedy", "") for line in replica.lines()), "the log names the setting")
