"""The main job on a real API server and a real etcd: a provider key exists exactly while its Pod is ready to serve."""

import json
from collections.abc import Callable
from typing import Any

from testbed.kubelet import Kubelet
from testbed.replica import RegistryView, Replica


def test_a_ready_pod_has_its_key_with_value_and_lease(
    start_operator: Callable[..., Replica],
    registry: RegistryView,
    kubelet: Kubelet,
    namespace: str,
    apply_service: Callable[..., Any],
    lease: Callable[[str], int],
) -> None:
    start_operator()
    apply_service(
        weight=7,
        metadata={"team": "shop"},
        metadataFromLabels=["version"],
        group="g",
        zone="z",
        region="r",
        appId="a",
        deployment="d",
    )
    pod = kubelet.create_pod("one", namespace, labels={"app": "greeter", "version": "v1"})
    registry.wait_addresses(pod.address)
    record = registry.keys()[f"/jupiter/greeter/providers/grpc://{pod.address}"]
    assert record.lease == lease(pod.uid)
    assert json.loads(record.value) == {
        "name": "greeter",
        "appId": "a",
        "scheme": "grpc",
        "address": pod.address,
        "weight": 7,
        "enable": True,
        "healthy": True,
        "metadata": {"jupiterVersion": "0.2.0", "team": "shop", "version": "v1"},
        "region": "r",
        "zone": "z",
        "kind": 1,
        "deployment": "d",
        "group": "g",
        "services": None,
    }
