"""What a registry ought to hold, worked out from the API server alone, as documented. No product code."""

from collections.abc import Iterable, Iterator
from typing import Any

Object = dict[str, Any]


def is_serving(pod: Object) -> bool:
    status = pod["status"]
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions", ()))
    running = status.get("phase") == "Running" and bool(status.get("podIP"))
    return ready and running and "deletionTimestamp" not in pod["metadata"]


def records_of(service: Object, pod: Object) -> Iterator[tuple[str, Object]]:
    spec, metadata = service["spec"], pod["metadata"]
    selected = spec["selector"]["matchLabels"].items() <= metadata.get("labels", {}).items()
    if not (selected and spec.get("enable", True) and is_serving(pod)):
        return
    name = spec.get("name") or service["metadata"]["name"]
    address = f"{pod['status']['podIP']}:{pod['spec']['containers'][0]['ports'][0]['containerPort']}"
    weight = metadata.get("annotations", {}).get("grpc-etcd.dev/weight", spec.get("weight", 100))
    value = {"name": name, "scheme": "grpc", "address": address, "weight": int(weight), "enable": True, "healthy": True}
    rest = {"kind": 1, "metadata": {"jupiterVersion": "0.2.0", **spec.get("metadata", {})}, "services": None}
    empty = dict.fromkeys(("appId", "region", "zone", "deployment", "group"), "")
    yield f"/jupiter/{name}/providers/grpc://{address}", value | rest | empty


def expected(services: Iterable[Object], pods: Iterable[Object]) -> dict[str, tuple[Object, str]]:
    """Key -> (value, UID of the Pod). Of two Pods with one address the newer has it."""
    by_age = sorted(pods, key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["uid"]))
    return {
        key: (value, pod["metadata"]["uid"])
        for service in services
        for pod in by_age
        for key, value in records_of(service, pod)
    }
