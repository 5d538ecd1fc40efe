"""An event that could not be passed on is tried again, though nothing in it is news to the cache any more."""

import asyncio
from collections.abc import Callable, Collection
from typing import Any, NoReturn

import aiohttp
import pytest
from google.protobuf import json_format
from prometheus_client import CollectorRegistry

from grpc_etcd_operator.controller.event_handlers import PODS, SERVICES, EventHandlers
from grpc_etcd_operator.controller.resync import ResyncController
from grpc_etcd_operator.core.cluster import ASKING, ClusterCache, Verdict
from grpc_etcd_operator.core.pods import PodMessage
from grpc_etcd_operator.core.reasons import Reason
from grpc_etcd_operator.core.resync import ObjectRef
from grpc_etcd_operator.core.scope import Scope
from grpc_etcd_operator.core.services import GrpcService
from grpc_etcd_operator.isolation import Isolation
from grpc_etcd_operator.kube.client import Client
from grpc_etcd_operator.kube.messages import message_class
from grpc_etcd_operator.registry.cache import RegistryCache
from grpc_etcd_operator.sources.noting import Noting, identify_pod
from grpc_etcd_operator.telemetry.metrics import Timings
from testbed.conditions import until
from tests.unit.operator_core.conftest import make_raw_pod, make_raw_service

VERSION = "7"
SINCE = "2026-01-01T00:00:00.000000Z"
CLAIMS = [
    {"registry": "default", "prefix": prefix, "since": SINCE}
    for prefix in ("/jupiter/greeter/", "/grpc-etcd/policy/jupiter/greeter/")
]


class Registry:
    """A registry's controller that fails as often as it is told to: at the last thing that is done for an event.

    Or at the first or the one in the middle, where `fails_at` names it.
    """

    name, is_listed = "default", True

    def __init__(self) -> None:
        self.registry_cache = RegistryCache("c1")
        self.failures = 0
        self.fails_at = "enqueue"
        self.enqueued: list[str] = []
        self.followed: set[str] = set()
        self.other_statuses: list[str] = []

    def enqueue(self, uids: Collection[str], *, urgent: bool = False) -> None:
        del urgent
        self._fail("enqueue")
        self.enqueued += uids

    def learn(self, uid: str, forms: object) -> None:
        """Follow what a GrpcService writes under."""
        del forms
        self._fail("learn")
        self.followed.add(uid)

    def unlearn(self, uid: str) -> None:
        """Follow it no longer."""
        self._fail("unlearn")
        self.followed.discard(uid)

    def note_other_status(self, service: GrpcService, *, reaches: bool | None) -> None:
        """Take a status of another replica."""
        del reaches
        self.other_statuses.append(service.uid)

    def _fail(self, at: str) -> None:
        if self.failures and at == self.fails_at:
            self.failures -= 1
            raise RuntimeError("nobody foresaw this")


class FailingCache(ClusterCache):
    """Fails as often as it is told to while it judges a GrpcService."""

    failures = 0

    def verdict(self, uid: str) -> Verdict:
        """Return whether a GrpcService is accepted."""
        if self.failures:
            self.failures -= 1
            raise RuntimeError("nobody foresaw this")
        return super().verdict(uid)


def make_handlers(cluster_cache: ClusterCache | None = None) -> tuple[EventHandlers, Registry]:
    registries, registry = {"default": None}, Registry()
    handlers = EventHandlers(cluster_cache or ClusterCache(registries), registries, Timings(CollectorRegistry()))
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


def test_a_grpc_service_whose_predecessor_cannot_be_forgotten_at_once() -> None:
    handlers, registry = make_handlers()
    handlers.note_service("ADDED", make_service())
    handlers.note_pod("ADDED", make_pod())
    (old,) = handlers.cluster_cache.services
    new = make_service()
    new["metadata"] = {**new["metadata"], "uid": "another"}
    registry.failures, registry.fails_at = 1, "unlearn"
    with pytest.raises(RuntimeError):
        handlers.note_service("ADDED", new)
    handlers.note_service("ADDED", new)
    finish_all(handlers)
    assert old not in registry.followed


def test_a_status_of_another_replica() -> None:
    handlers, registry = make_handlers()
    handlers.note_service("ADDED", make_service())
    changed = make_service()
    changed["metadata"]["resourceVersion"] = "8"
    condition = {"type": "Accepted", "status": "False", "reason": "NameTaken", "message": "it is another's"}
    changed["status"] = {**changed["status"], "conditions": [condition]}
    registry.failures, registry.fails_at = 1, "learn"
    with pytest.raises(RuntimeError):
        handlers.note_service("MODIFIED", changed)
    handlers.note_service("MODIFIED", changed)
    assert registry.other_statuses == ["s1"]


@pytest.mark.parametrize("raw", [make_service(), {**make_service(), "spec": {"selector": {"matchLabels": {"a": "b"}}}}])
def test_a_grpc_service_that_cannot_be_judged_at_once(raw: dict[str, Any]) -> None:
    """New, or with a selector that finds the Pods no longer which it found before."""
    cache = FailingCache({"default": None})
    handlers, registry = make_handlers(cache)
    handlers.note_pod("ADDED", make_pod())
    if raw != make_service():
        handlers.note_service("ADDED", make_service())
        raw["metadata"]["resourceVersion"] = "8"
    cache.failures, registry.enqueued = 1, []
    with pytest.raises(RuntimeError):
        handlers.note_service("ADDED", raw)
    handlers.note_service("ADDED", raw)
    assert set(registry.enqueued) >= {"p1", "s1"}
    assert handlers.has_service("s1", raw["metadata"]["resourceVersion"])


def test_a_grpc_service_that_goes_while_it_cannot_be_judged() -> None:
    cache = FailingCache({"default": None})
    handlers, registry = make_handlers(cache)
    handlers.note_service("ADDED", make_service())
    handlers.note_pod("ADDED", make_pod())
    changed = make_service()
    changed["metadata"]["resourceVersion"] = "8"
    changed["spec"] = {**changed["spec"], "weight": 7}
    cache.failures, registry.enqueued = 1, []
    with pytest.raises(RuntimeError):
        handlers.note_service("MODIFIED", changed)
    handlers.forget_service("s1")
    assert set(registry.enqueued) >= {"p1", "s1"}
    assert not list(handlers.unfinished)


def test_who_waited_for_the_name_of_a_grpc_service_gets_it_though_that_cannot_be_judged_at_once() -> None:
    """What is gone is known no longer by then, and nobody reports a second time that it went."""
    cache = FailingCache({"default": None})
    handlers, registry = make_handlers(cache)
    handlers.note_service("ADDED", make_service())
    handlers.note_service("ADDED", make_raw_service(uid="s2", namespace="other"))
    assert cache.verdict("s2").reason == Reason.NAME_TAKEN
    cache.failures, registry.enqueued = 1, []
    with pytest.raises(RuntimeError):
        handlers.forget_service("s1")
    finish_all(handlers)
    assert cache.verdict("s2") is ASKING
    assert set(registry.enqueued) >= {"s1", "s2"}


def test_who_waits_for_a_name_that_was_not_granted_gets_it_though_that_cannot_be_judged_at_once() -> None:
    """As when the write of a claim has failed: no event reports that."""
    cache = FailingCache({"default": None})
    handlers, registry = make_handlers(cache)
    handlers.note_service("ADDED", make_raw_service())
    assert handlers.begin_grant("s1", SINCE)
    handlers.note_service("ADDED", make_raw_service(uid="s2", namespace="other"))
    assert cache.verdict("s2").reason == Reason.NAME_TAKEN
    cache.failures, registry.enqueued = 1, []
    with pytest.raises(RuntimeError):
        handlers.end_grant("s1")
    finish_all(handlers)
    assert (cache.verdict("s1"), cache.verdict("s2")) == (ASKING, ASKING)
    assert set(registry.enqueued) >= {"s1", "s2"}


def finish_all(handlers: EventHandlers) -> None:
    """Do what each resync begins with."""
    for uid in handlers.unfinished:
        handlers.finish(uid)
    assert not list(handlers.unfinished)


@pytest.mark.parametrize("what", ["a Pod", "a lost Pod", "a GrpcService", "a lost GrpcService", "an owner"])
def test_what_nobody_reports_a_second_time_is_passed_on_by_a_resync(what: str) -> None:
    """A Pod that a resync has missed is known to be gone then, and no later one misses it."""
    handlers, registry = make_handlers()
    if what != "a GrpcService":
        handlers.note_service("ADDED", make_service())
    if what != "a Pod":
        handlers.note_pod("ADDED", make_pod())
    events: dict[str, Callable[[], None]] = {
        "a Pod": lambda: handlers.note_listed_pod(make_pod()),
        "a lost Pod": lambda: handlers.forget_pod("p1"),
        "a GrpcService": lambda: handlers.note_service(None, make_service()),
        "a lost GrpcService": lambda: handlers.forget_service("s1"),
        "an owner": lambda: handlers.forget_owner(ObjectRef("p9", "shop", "old"), handlers.controllers["default"]),
    }
    registry.failures, registry.enqueued = 1, []
    with pytest.raises(RuntimeError):
        events[what]()
    finish_all(handlers)
    assert {"an owner": "p9"}.get(what, "p1") in registry.enqueued


async def test_each_resync_begins_with_what_is_left() -> None:
    handlers, registry = make_handlers()
    handlers.note_service("ADDED", make_service())
    handlers.note_pod("ADDED", make_pod())
    registry.failures, registry.enqueued = 1, []
    with pytest.raises(RuntimeError):
        handlers.forget_pod("p1")
    handlers.complete.clear()  # so that nothing else of a resync has anything to do
    async with aiohttp.ClientSession() as session:
        client = Client("http://127.0.0.1:1", session)
        resync = ResyncController(client, handlers, Scope(), lambda *_: None, lambda _: {}, Isolation())
        resync.check_owners()
        running = asyncio.create_task(resync.run())
        await until(lambda: registry.enqueued == ["p1"])
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize("is_gone", [False, True])
async def test_a_list_that_is_tried_again_is_passed_on_and_brings_nobody_back_who_is_gone_since(
    *, is_gone: bool
) -> None:
    """Else a Pod that is dead would be registered, until the next resync."""
    handlers, registry = make_handlers()
    handlers.note_service("ADDED", make_service())
    noting = Noting("pods", handlers.note_pod, identify_pod, Isolation())
    registry.failures, registry.enqueued = 1, []
    noting(None, make_pod())
    assert noting.waiting == {"p1"}
    if is_gone:
        handlers.forget_pod("p1")  # as a resync does it
    await until(lambda: not noting.waiting)
    assert set(handlers.cluster_cache.pods) == (set() if is_gone else {"p1"})
    assert "p1" in registry.enqueued


def test_a_gate_that_cannot_be_judged_keeps_no_other_closed() -> None:
    """When all has been listed, each gate is looked at once, and a Pod that waits at its own sends no more events."""
    handlers, _ = make_handlers()
    handlers.complete.discard(SERVICES)
    handlers.controllers.clear()
    for number in range(3):
        pod: Any = make_pod()
        pod.metadata.uid = f"p{number}"
        pod.spec.readinessGates.add().conditionType = "grpc-etcd.dev/registered"
        handlers.note_pod(None, pod)
    judge, failures = handlers._gates.judge, [RuntimeError("nobody foresaw this")]
    handlers._gates.judge = lambda *given: judge(*given) if not failures else throw(failures.pop())  # type: ignore[method-assign]  # as a defect in it
    with pytest.raises(RuntimeError):
        handlers.mark_complete(SERVICES)
    finish_all(handlers)
    assert set(handlers.statuses.gates.take(0.0)) == {"p0", "p1", "p2"}


def throw(error: Exception) -> NoReturn:
    raise error
