"""Builders for facts that the tests of the operator's core share; all examples of a test may use the same one."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from google.protobuf import json_format

from grpc_etcd_operator.core.pods import Pod, parse_pod
from grpc_etcd_operator.core.services import GrpcService, parse_service
from grpc_etcd_operator.kube.messages import message_class


def make_raw_pod(
    uid: str = "p1",
    *,
    ip: str = "10.0.0.1",
    ready: bool = True,
    labels: dict[str, str] | None = None,
    namespace: str = "shop",
    ports: dict[str, int] | None = None,
    **metadata: Any,
) -> dict[str, Any]:
    return {
        "metadata": {
            "uid": uid,
            "namespace": namespace,
            "name": f"pod-{uid}",
            "labels": {"app": "greeter"} if labels is None else labels,
            "creationTimestamp": {"seconds": 1_767_225_600},
            **metadata,
        },
        "spec": {
            "nodeName": "node-1",
            "containers": [{"ports": [{"name": n, "containerPort": p} for n, p in (ports or {"grpc": 9000}).items()]}],
        },
        "status": {
            "phase": "Running",
            "podIP": ip,
            "conditions": [
                {"type": "Ready", "status": str(ready), "lastTransitionTime": {"seconds": 1_767_225_601}},
                {"type": "ContainersReady", "status": str(ready)},
            ],
        },
    }


def read_raw_pod(raw: dict[str, Any], known: Pod | None = None) -> Pod:
    return parse_pod(json_format.ParseDict(raw, message_class("Pod")(), ignore_unknown_fields=True), known)


def make_raw_service(
    uid: str = "s1",
    *,
    name: str = "greeter",
    namespace: str = "shop",
    created: str = "2026-01-01T00:00:00Z",
    **spec: Any,
) -> dict[str, Any]:
    return {
        "metadata": {"uid": uid, "namespace": namespace, "name": name, "creationTimestamp": created, "generation": 1},
        "spec": {"selector": {"matchLabels": {"app": "greeter"}}, **spec},
    }


@pytest.fixture(scope="session")
def pod() -> Callable[..., Pod]:
    return lambda *args, **more: read_raw_pod(make_raw_pod(*args, **more))


@pytest.fixture(scope="session")
def read_pod() -> Callable[..., Pod]:
    return read_raw_pod


@pytest.fixture(scope="session")
def raw_pod() -> Callable[..., dict[str, Any]]:
    return make_raw_pod


@pytest.fixture(scope="session")
def service() -> Callable[..., GrpcService]:
    return lambda *args, **more: parse_service(make_raw_service(*args, **more))


def count_lines(module: str, work: Callable[[], object]) -> int:
    """Count the lines of a module that a piece of work runs: its cost, whatever the machine does meanwhile."""
    lines = 0

    def note(frame: FrameType, what: str, _: object) -> Any:
        nonlocal lines
        lines += what == "line" and frame.f_globals["__name__"] == module
        return note

    before = sys.gettrace()
    sys.settrace(note)
    try:
        work()
    finally:
        sys.settrace(before)
    return lines
