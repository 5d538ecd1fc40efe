"""What a registry ought to hold, worked out from the API server alone, as documented. No product code."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

Object = dict[str, Any]
SCOPE_LABEL = "in-scope"
GATE = "grpc-etcd.dev/registered"
EVIL = "evil"


def condition(item: Object, kind: str) -> str:
    """Give the status of a condition of an object; empty where it has none."""
    conditions = item.get("status", {}).get("conditions", ())
    return next((str(each["status"]) for each in conditions if each["type"] == kind), "")


def reason_of(item: Object, kind: str) -> str:
    """Give the reason of a condition of an object; empty where it has none."""
    conditions = item.get("status", {}).get("conditions", ())
    return next((str(each.get("reason", "")) for each in conditions if each["type"] == kind), "")


def is_serving(pod: Object) -> bool:
    """Judge a Pod; one with readiness gates has none but ours, so its containers decide."""
    status = pod["status"]
    ready = condition(pod, "ContainersReady" if pod["spec"].get("readinessGates") else "Ready") == "True"
    running = status.get("phase") == "Running" and bool(status.get("podIP"))
    return ready and running and is_in_scope(pod) and not is_given_up(pod)


def is_given_up(pod: Object) -> bool:
    """Say whether a gated Pod's node has died: whoever finds that turns Ready to False, and gives no reason."""
    unready = condition(pod, "Ready") == "False" and not reason_of(pod, "Ready")
    return unready and condition(pod, GATE) == "True"


def is_in_scope(pod: Object) -> bool:
    """Say whether the operator is to serve a Pod, ready or not."""
    return SCOPE_LABEL in pod["metadata"].get("labels", {}) and "deletionTimestamp" not in pod["metadata"]


def is_reported_vacant(service: Object) -> bool:
    """Say whether its owner is told that its selector matches nothing."""
    conditions = service.get("status", {}).get("conditions", ())
    return any((each["status"], each["reason"]) == ("False", "NoPods") for each in conditions)


def selects(service: Object, pod: Object) -> bool:
    """Say whether a GrpcService selects a Pod."""
    return bool(service["spec"]["selector"]["matchLabels"].items() <= pod["metadata"].get("labels", {}).items())


def records_of(service: Object, pod: Object) -> Iterator[tuple[str, Object]]:
    """Give the records that a GrpcService ought to have of a Pod."""
    spec, metadata = service["spec"], pod["metadata"]
    if not (selects(service, pod) and spec.get("enable", True) and is_serving(pod)):
        return
    name = spec.get("name") or service["metadata"]["name"]
    address = f"{pod['status']['podIP']}:{pod['spec']['containers'][0]['ports'][0]['containerPort']}"
    weight = metadata.get("annotations", {}).get("grpc-etcd.dev/weight", spec.get("weight", 100))
    value = {"name": name, "scheme": "grpc", "address": address, "weight": int(weight), "enable": True, "healthy": True}
    rest = {"kind": 1, "metadata": {"jupiterVersion": "0.2.0", **spec.get("metadata", {})}, "services": None}
    empty = dict.fromkeys(("appId", "region", "zone", "deployment", "group"), "")
    yield f"/jupiter/{name}/providers/grpc://{address}", value | rest | empty


def expected(services: Iterable[Object], pods: Iterable[Object], registry: str) -> dict[str, tuple[Object, str]]:
    """Key -> (value, UID of the Pod), in one registry. Of two Pods with one address the newer has it."""
    by_age = sorted(pods, key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["uid"]))
    return {
        key: (value, pod["metadata"]["uid"])
        for service in services
        if registry in service["spec"].get("registries", ["default"])
        for pod in by_age
        for key, value in records_of(service, pod)
    }


def displaced(service: Object, pods: Sequence[Object]) -> set[str]:
    """Give the Pods (by UID) whose key a newer one with the same address has, as after a restored backup."""
    holders = expected([service], pods, service["spec"].get("registries", ["default"])[0])
    return {
        pod["metadata"]["uid"]
        for pod in pods
        for key, _ in records_of(service, pod)
        if holders[key][1] != pod["metadata"]["uid"]
    }


def gates_due(services: Sequence[Object], pods: Sequence[Object], gate: str) -> list[str]:
    """Name the Pods whose gate ought to be open and is not: they serve, and whatever is wanted of them is written."""
    without = {uid for service in services for uid in displaced(service, pods)}
    return [
        pod["metadata"]["name"]
        for pod in pods
        if pod["spec"].get("readinessGates")
        and is_serving(pod)
        and condition(pod, gate) != "True"
        and pod["metadata"]["uid"] not in without
    ]


def statuses(services: Iterable[Object], pods: Sequence[Object]) -> dict[str, Any]:
    """Name what is wrong with the statuses of GrpcServices whose specs are sound."""
    wrong = {}
    for service in services:
        name, status = service["metadata"]["name"], service.get("status", {})
        serving, without = sum(is_serving(pod) and selects(service, pod) for pod in pods), displaced(service, pods)
        wanted = serving - len(without) if service["spec"].get("enable", True) else 0
        told = (condition(service, "Accepted"), condition(service, "Programmed"))
        if without:
            told = (told[0], "True" if reason_of(service, "Programmed") == "KeyTaken" else "not KeyTaken")
        if is_reported_vacant(service) and not any(is_in_scope(pod) and selects(service, pod) for pod in pods):
            told = ("True", "True")  # after half a minute without a Pod; before that it is as it was
        counts = status.get("endpoints", {})
        if told != ("True", "True") or counts.get("registered") != wanted or counts.get("ready") != serving:
            words = [
                (each["reason"], each["message"]) for each in status.get("conditions", ()) if each["status"] != "True"
            ]
            wrong[f"status of {name}"] = (told, counts, f"{wanted} of {serving}", words)
    return wrong
