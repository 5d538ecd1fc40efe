"""Has GrpcServices judged again when the Services change that they name.

A change of one Service may concern thousands of GrpcServices of its namespace. They are judged one after the other, and
the namespace rests in between, so that it holds up no other.
"""

from collections.abc import Collection, Mapping
from typing import Any

from grpc_etcd_operator.controller.event_handlers import EventHandlers
from grpc_etcd_operator.core.targets import Target
from grpc_etcd_operator.isolation import Isolation
from grpc_etcd_operator.sources.noting import Noting, Resting, identify_raw

TARGETS = "services"


class Targets:
    """Takes what is known of Services."""

    def __init__(self, handlers: EventHandlers, isolation: Isolation) -> None:
        self._handlers, self._references = handlers, handlers.cluster_cache.references
        self._noting = Noting("grpcservices", self._judge, identify_raw, isolation)
        self._resting = Resting(self._noting, short_seconds=0.0)

    def note(self, kind: str | None, target: Target) -> None:
        """Take a Service's watch event, or (no kind) one that was listed."""
        self._judge_soon((self._references.forget if kind == "DELETED" else self._references.note)(target))

    def take_list(self, namespace: str, listed: frozenset[str]) -> None:
        """Take the UIDs of a complete list in a namespace (empty: in all), each of which has been noted."""
        self._judge_soon(self._references.take_list(namespace, listed))

    def note_fault(self, namespace: str, fault: str | None) -> None:
        """Take why the Services of a namespace (empty: of all) may not be read; None: they may. Empty: it may pass."""
        if fault != "":
            self._judge_soon(self._references.note_fault(namespace, fault or ""))

    def close(self) -> None:
        """Judge nothing any more."""
        self._resting.close()
        self._noting.close()

    def _judge_soon(self, uids: Collection[str]) -> None:
        for service in filter(None, map(self._handlers.cluster_cache.services.get, uids)):
            metadata = {"uid": service.uid, "namespace": service.namespace, "name": service.name}
            self._resting("MODIFIED", {"metadata": metadata})

    def _judge(self, _: str | None, raw: Mapping[str, Any]) -> None:
        self._handlers.follow_reference(raw["metadata"]["uid"])
