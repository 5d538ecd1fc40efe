"""Statuses are written and gates are opened in turns of their namespaces, however many of one are due."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry

from grpc_etcd_operator.controller.event_handlers import PODS, SERVICES, EventHandlers
from grpc_etcd_operator.controller.status_writer import GATES_AT_ONCE, STATUSES_AT_ONCE, TURNS, StatusWriter
from grpc_etcd_operator.core.cluster import ClusterCache
from grpc_etcd_operator.core.pods import GATE
from grpc_etcd_operator.core.services import GrpcService
from grpc_etcd_operator.kube.client import Client
from grpc_etcd_operator.telemetry.metrics import Timings
from tests.unit.operator_core.conftest import make_raw_pod, make_raw_service, read_raw_pod

MANY = 5 * TURNS


class Taking(Client):
    """An API server that takes all; it calls `on_write` with how much it has been given before."""

    def __init__(self, on_write: Callable[[int], None]) -> None:
        super().__init__("http://127.0.0.1:1", None)  # type: ignore[arg-type]  # nothing is sent
        self.written, self._on_write = list[str](), on_write

    def _take(self, what: str) -> None:
        self._on_write(len(self.written))
        self.written.append(what)

    async def patch_service_status(self, service: GrpcService, status: Mapping[str, Any], *_: object) -> dict[str, Any]:
        self._take(service.reference)
        raw = make_raw_service(service.uid, name=service.name, namespace=service.namespace)
        return {**raw, "status": {**service.status, **status}}

    async def open_gate(self, namespace: str, name: str, uid: str, condition: Mapping[str, Any]) -> dict[str, Any]:
        self._take(f"{namespace}/{name}")
        return {"metadata": {"uid": uid}, "status": {"conditions": [condition]}}

    async def post_event(self, namespace: str, event: Mapping[str, Any]) -> None:
        pass


class Reporting:
    """A status writer that reports; `on_write` may let more come meanwhile."""

    def __init__(self, on_write: Callable[[int], None] = lambda _: None) -> None:
        self.client = Taking(on_write)
        self.handlers = EventHandlers(ClusterCache(["default"]), {"default": None}, Timings(CollectorRegistry()))
        self.handlers.grants_in_memory = True
        for resource in (PODS, SERVICES):
            self.handlers.mark_complete(resource)
        self.statuses = self.handlers.statuses
        self.writer = StatusWriter(self.client, self.handlers, self.statuses, lambda: True, dict)

    def note_service(self, namespace: str, name: str) -> None:
        """Let a GrpcService come whose status is due."""
        self.handlers.note_service("ADDED", make_raw_service(f"{namespace}-{name}", name=name, namespace=namespace))
        self.statuses.schedule._waiting.advance(f"{namespace}-{name}", 0.0)  # no test is to wait for that

    def note_pod(self, namespace: str, name: str) -> None:
        """Let a Pod come whose gate is to be opened: nobody selects it."""
        raw = make_raw_pod(f"{namespace}-{name}", namespace=namespace, name=name)
        raw["spec"]["readinessGates"] = [{"conditionType": GATE}]
        self.handlers.cluster_cache.note_pod(read_raw_pod(raw))
        self.statuses.look_at_gate(f"{namespace}-{name}")

    def report(self) -> list[str]:
        """Report all that is due; return on what, in this order."""
        asyncio.run(self.writer._report())
        return self.client.written


def test_a_status_is_written_beside_thousands_of_another_namespace() -> None:
    reporting = Reporting()
    for number in range(MANY):
        reporting.note_service("noisy", f"s{number}")
    reporting.note_service("quiet", "s")
    order = reporting.report()
    assert len(set(order)) == MANY + 1
    assert order.index("quiet/s") < STATUSES_AT_ONCE


def test_a_status_that_is_due_meanwhile_does_not_wait_for_thousands_of_another_namespace() -> None:
    reporting = Reporting(lambda count: reporting.note_service("quiet", "s") if count == 1 else None)
    for number in range(MANY):
        reporting.note_service("noisy", f"s{number}")
    assert "quiet/s" in reporting.report()[: TURNS + STATUSES_AT_ONCE]


def test_a_gate_is_opened_beside_thousands_of_another_namespace() -> None:
    reporting = Reporting()
    for number in range(MANY):
        reporting.note_pod("noisy", f"p{number}")
    reporting.note_pod("quiet", "p")
    order = reporting.report()
    assert len(set(order)) == MANY + 1
    assert order.index("quiet/p") < GATES_AT_ONCE


def test_a_gate_that_is_due_meanwhile_does_not_wait_for_thousands_of_another_namespace() -> None:
    reporting = Reporting(lambda count: reporting.note_pod("quiet", "p") if count == 1 else None)
    for number in range(MANY):
        reporting.note_pod("noisy", f"p{number}")
    assert "quiet/p" in reporting.report()[: TURNS + GATES_AT_ONCE]


def test_gates_of_more_namespaces_than_have_a_turn_at_once_are_all_served_soon() -> None:
    reporting, namespaces = Reporting(), TURNS + GATES_AT_ONCE
    for number in range(3 * namespaces):
        reporting.note_pod(f"n{number // 3}", f"p{number}")
    order = reporting.report()
    assert len(set(order)) == 3 * namespaces
    assert len({each.partition("/")[0] for each in order[: 2 * TURNS]}) == namespaces


def test_statuses_of_more_namespaces_than_have_a_turn_at_once_are_all_written_soon() -> None:
    reporting, namespaces = Reporting(), TURNS + STATUSES_AT_ONCE
    for number in range(3 * namespaces):
        reporting.note_service(f"n{number // 3}", f"s{number}")
    order = reporting.report()
    assert len(set(order)) == 3 * namespaces
    assert len({each.partition("/")[0] for each in order[: 2 * TURNS]}) == namespaces
