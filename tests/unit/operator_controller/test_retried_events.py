"""An event that could not be passed on is tried again, though nothing in it is news to the cache any more."""

from collections.abc import Callable, Collection
from typing import Any

import pytest
from google.protobuf import json_format
from prometheus_client import CollectorRegistry

from grpc_etcd_operator.controller.event_handlers import PODS, SERVICES, EventHandlers
from grpc_etcd_operator.core.cluster import ClusterCache
from grpc_etcd_operator.core.pods import PodMessage
from grpc_etcd_operator.kube.messages import message_class
from grpc_etcd_operator.registry.cache import RegistryCache
from grpc_etcd_operator.telemetry.metrics import Timings
from tests.unit.operator_core.conftest import make_raw_pod, make_raw_service

VERSION = "7"
SINCE = "2026-01-01T00:00:00.000000Z"
CLAIMS = [
    {"registry": "default", "prefix": prefix, "since": SINCE}
    for prefix in ("/jupiter/greeter/", "/grpc-etcd/policy/jupiter/greeter/")
]


class Registry:
    """A registry's controller that fails as often as it is told to, at the last thing that is done for an event."""

    name, is_listed = "default", True

    def __init__(self) -> None:
        self.registry_cache = RegistryCache("c1")
        self.failures = 0
        self.enqueued: list[str] = []

    def enqueue(self, uids: Collection[str], *, urgent: bool = False) -> None:
        del urgent
        if self.failures:
            self.failures -= 1
            raise RuntimeError("nobody foresaw this")
        self.enqueued += uids

    def learn(self, uid: str, forms: object) -> None:
        """Follow what a GrpcService writes under."""

    def unlearn(self, uid: str) -> None:
        """Follow it no longer."""


def make_handlers() -> tuple[EventHandlers, Registry]:
    registries = {"default": None}
    handlers, registry = EventHandlers(ClusterCache(registries), registries, Timings(CollectorRegistry())), Registry()
    handlers.controllers["default"] = registry  # type: ignore[assignment]  # what is asked of one
    handlers.complete |= {PODS, SERVICES}
    return handlers, registry


def make_service() -> dict[str, Any]:
    raw = make_raw_service()
    raw["metadata"]["resourceVersion"] = VERSION
    return {**raw, "status": {"claims": CLAIMS}}


def make_pod() -> PodMessage:
    pod = json_format.ParseDict(make_raw_pod(), message_class("Pod")(), ignore_unknown_fields=True)
    pod.metadata.resourceVersion = VERSION
    return pod  # type: ignore[no-any-return]  # made at run time


def twice(event: Callable[[], None], registry: Registry) -> list[str]:
    """Let an event fail, and try it again; return which units are looked at for it."""
    registry.failures, registry.enqueued = 1, []
    with pytest.raises(RuntimeError):
        event()
    assert registry.enqueued == []
    event()
    return registry.enqueued


def test_a_pod_that_comes() -> None:
    handlers, registry = make_handlers()
    handlers.note_service("ADDED", make_service())
    assert twice(lambda: handlers.note_pod("ADDED", make_pod()), registry) == ["p1"]
    assert handlers.has_pod("p1", VERSION), "the same event once more is nothing new"


def test_a_pod_whose_event_failed_is_not_taken_for_known() -> None:
    """Sources drop what is known before anybody reads it, the second try too."""
    handlers, registry = make_handlers()
    handlers.note_service("ADDED", make_service())
    registry.failures = 1
    with pytest.raises(RuntimeError):
        handlers.note_pod("ADDED", make_pod())
    assert not handlers.has_pod("p1", VERSION)


def test_a_pod_that_goes() -> None:
    handlers, registry = make_handlers()
    handlers.note_service("ADDED", make_service())
    handlers.note_pod("ADDED", make_pod())
    assert twice(lambda: handlers.note_pod("DELETED", make_pod()), registry) == ["p1"]


def test_a_pod_that_goes_while_its_coming_has_failed() -> None:
    handlers, registry = make_handlers()
    handlers.note_service("ADDED", make_service())
    registry.failures = 1
    with pytest.raises(RuntimeError):
        handlers.note_pod("ADDED", make_pod())
    handlers.note_pod("DELETED", make_pod())
    handlers.note_pod("ADDED", make_pod())  # tried again, late
    assert registry.enqueued[-1:] == ["p1"]
    assert not handlers.cluster_cache.pods


def test_a_grpc_service_that_comes() -> None:
    handlers, registry = make_handlers()
    handlers.note_pod("ADDED", make_pod())
    assert set(twice(lambda: handlers.note_service("ADDED", make_service()), registry)) >= {"p1"}


def test_a_grpc_service_that_takes_the_place_of_another() -> None:
    handlers, registry = make_handlers()
    handlers.note_service("ADDED", make_service())
    (old,) = handlers.cluster_cache.services
    new = make_service()
    new["metadata"] = {**new["metadata"], "uid": "another"}
    twice(lambda: handlers.note_service("ADDED", new), registry)
    assert old in handlers.cluster_cache.gone
    assert set(handlers.cluster_cache.services) == {"another"}


def test_a_grpc_service_that_goes() -> None:
    handlers, registry = make_handlers()
    handlers.note_service("ADDED", make_service())
    handlers.note_pod("ADDED", make_pod())
    (uid,) = handlers.cluster_cache.services
    assert set(twice(lambda: handlers.forget_service(uid), registry)) >= {"p1"}
