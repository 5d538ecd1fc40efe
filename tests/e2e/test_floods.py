"""A namespace that writes without end fills nobody's etcd: see core/write_budget.py."""

import json
from collections.abc import Iterator
from itertools import count
from typing import Any

from grpc_etcd.etcd import Etcd
from grpc_etcd.layouts.index import LAYOUT_NAMES
from grpc_etcd_operator.core.write_budget import MIB, REWRITES
from testbed.conditions import PATIENCE_SECONDS, wait_until
from testbed.etcd import EtcdServer
from testbed.kubelet import Pod
from testbed.replica import RegistryView
from tests.e2e.conftest import Scene

WEIGHT = "grpc-etcd.dev/weight"
# Two GrpcServices of which each change of their Pod rewrites almost a megabyte.
LARGE: dict[str, Any] = {
    "layouts": list(LAYOUT_NAMES),
    "metadata": {f"key-{number}": "v" * 1024 for number in range(64)},
    "selector": {"matchLabels": {"app": "noisy"}},
}
# What etcd needs for the bytes that the bucket lets through, with its indexes and the free space of its pages.
MOST_GROWTH = 1.5 * REWRITES.burst_bytes
MOST_GROWTH_LATER = 8 * MIB  # while 60 changes of a megabyte are asked for
LATER_CHANGES = 60


def measure(etcd: EtcdServer) -> int:
    """Return the bytes that an etcd's database takes."""
    (member,) = json.loads(etcd.etcdctl("endpoint", "status", "--write-out=json"))
    return int(member["Status"]["dbSize"])


def change(scene: Scene, pod: Pod, weights: Iterator[int]) -> int:
    """Give a Pod another weight, and return it."""
    weight = next(weights)
    scene.api.client.patch(pod.item, {"metadata": {"annotations": {WEIGHT: str(weight)}}})
    return weight


def test_a_namespace_whose_values_change_on_and_on_fills_no_etcd(scene: Scene, own_etcd: EtcdServer) -> None:
    noisy = f"{scene.namespace}-noisy"
    scene.api.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": noisy}})
    replica = scene.start(f"--namespace={noisy}", etcd=own_etcd.endpoints).wait_leading()
    for name in ("large-1", "large-2"):
        scene.apply(name, noisy, **LARGE)
    scene.apply()
    loud = scene.pod(namespace=noisy, labels={"app": "noisy"})
    leaves = scene.pod(namespace=noisy, labels={"app": "noisy"})
    with Etcd(own_etcd.endpoints, timeout_seconds=PATIENCE_SECONDS) as client:
        registry = RegistryView(client)
        registry.wait_addresses(loud.address, leaves.address, name="large-2")
        weights, before = count(1), measure(own_etcd)
        while scene.condition("Programmed", "large-1", noisy) != ("False", "RateLimited"):
            change(scene, loud, weights)
            assert measure(own_etcd) - before < MOST_GROWTH
        limited = measure(own_etcd)
        for _ in range(LATER_CHANGES):
            last = change(scene, loud, weights)
        pod = scene.pod()
        registry.wait_addresses(pod.address)
        scene.wait_condition("Programmed", "True", "Programmed")
        scene.kubelet.unready(leaves)
        registry.wait_addresses(loud.address, name="large-2")
        assert measure(own_etcd) - limited < MOST_GROWTH_LATER
        assert client.get(f"/grpc-etcd/synced/{scene.cluster}".encode())
        assert len(replica.lines("writes_rate_limited")) == 1
        assert replica.metric("grpc_etcd_operator_rate_limited_objects", registry="default") == 1

        def is_written() -> bool:
            found = registry.values("/jupiter/large-")
            return [each["weight"] for each in found.values()] == [last, last]

        wait_until(is_written, "the last weight is written", 4 * PATIENCE_SECONDS)
        scene.wait_condition("Programmed", "True", "Programmed", "large-1", noisy)
