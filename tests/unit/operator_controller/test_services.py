"""GrpcServices that take each other's place, told in any order."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from google.protobuf import json_format
from prometheus_client import CollectorRegistry

from grpc_etcd.etcd.model import Deleted, LeaseId, Put, Record, Revision
from grpc_etcd.registry.own import OwnerRecord, owner_key
from grpc_etcd_operator.controller.event_handlers import PODS, SERVICES, EventHandlers
from grpc_etcd_operator.core.claims import Claim
from grpc_etcd_operator.core.cluster import ClusterCache
from grpc_etcd_operator.core.leases import lease_id
from grpc_etcd_operator.core.plan import make_plan
from grpc_etcd_operator.core.pods import GATE
from grpc_etcd_operator.core.services import parse_service
from grpc_etcd_operator.core.waiting import Turns
from grpc_etcd_operator.kube.messages import message_class
from grpc_etcd_operator.registry.cache import Announcement, RegistryCache
from grpc_etcd_operator.telemetry.metrics import Timings
from tests.unit.operator_core.conftest import make_raw_pod, make_raw_service


def raw_service(uid: str) -> dict[str, Any]:
    metadata = {"uid": uid, "namespace": "shop", "name": "greeter", "creationTimestamp": "2026-01-01T00:00:00Z"}
    return {"metadata": metadata, "spec": {"selector": {"matchLabels": {"app": "greeter"}}}}


def test_late_news_of_a_replaced_service_do_not_remove_the_one_in_its_place() -> None:
    registries = {"default": None}
    reconciler = EventHandlers(ClusterCache(registries), registries, Timings(CollectorRegistry()))
    reconciler.note_service("ADDED", raw_service("old"))
    reconciler.note_service("ADDED", raw_service("new"))
    assert set(reconciler.cluster_cache.services) == {"new"}
    reconciler.note_service("MODIFIED", raw_service("old"))
    assert set(reconciler.cluster_cache.services) == {"new"}


SHOPS = b"/jupiter/greeter/providers/grpc://10.0.0.1:9000"
POLICY = b"/grpc-etcd/policy/jupiter/greeter"


class CountedOwners(dict[str, OwnerRecord]):
    """Counts how many of them are looked at."""

    looked = 0

    def values(self) -> Any:
        self.looked += len(self)
        return super().values()

    def __getitem__(self, uid: str) -> OwnerRecord:
        self.looked += 1
        return super().__getitem__(uid)


def put(key: bytes, value: bytes, revision: int, lease: str = "") -> Put:
    now = Revision(revision)
    return Put(Record(key, value, LeaseId(lease_id("c1", lease) if lease else 0), now, now, 1))


def put_owner(uid: str, namespace: str, *keys: bytes, revision: int) -> Put:
    return put(owner_key("c1", uid), OwnerRecord(namespace=namespace, pod=uid, keys=keys).to_json(), revision, uid)


def asking(registry_cache: RegistryCache) -> Callable[[bytes], bool]:
    """Ask whether keys of shop/greeter stand below a prefix."""
    registries = {"default": None}
    reconciler = EventHandlers(ClusterCache(registries), registries, Timings(CollectorRegistry()))
    reconciler.controllers["default"] = SimpleNamespace(name="default", registry_cache=registry_cache, is_listed=True)  # type: ignore[assignment]  # what is asked of one
    service = parse_service(raw_service("s1"))
    return lambda prefix: reconciler.open_claims.has_keys(service, Claim("default", prefix))


def test_however_many_ask_whether_keys_stand_the_owner_records_are_gone_through_once() -> None:
    """Whoever gives a name back asks once a second; a tenant may let thousands of GrpcServices do so for ever."""
    registry_cache = RegistryCache("c1")
    owners = registry_cache.owners = CountedOwners()
    registry_cache.apply(
        [
            put_owner("p1", "shop", SHOPS, revision=2),
            put_owner("p2", "till", b"/jupiter/till/providers/grpc://10.0.0.2:9000", revision=3),
            put_owner("s1", "shop", POLICY, revision=4),
        ]
    )
    has = asking(registry_cache)
    assert has(b"/jupiter/greeter/")
    assert has(POLICY + b"/")
    assert not has(b"/jupiter/greet/")
    assert not has(b"/jupiter/till/")
    assert not any(has(f"/jupiter/name-{number}/".encode()) for number in range(100))
    assert owners.looked == 2, "those of shop, once"
    registry_cache.apply([Deleted(owner_key("c1", "s1"), Revision(5))])
    assert not has(POLICY + b"/")
    assert has(b"/jupiter/greeter/")


def test_a_name_is_free_once_the_owner_record_says_so_though_other_news_of_that_revision_came_before() -> None:
    """Keys and owner records are watched apart, so one transaction is told of in several messages."""
    registry_cache = RegistryCache("c1")
    registry_cache.apply([put(SHOPS, b"{}", 2, "p1"), put_owner("p1", "shop", SHOPS, revision=2)])
    has = asking(registry_cache)
    renamed = SHOPS.replace(b"greeter", b"renamed")
    registry_cache.apply([put(renamed, b"{}", 3, "p1"), Deleted(SHOPS, Revision(3))])
    assert has(b"/jupiter/greeter/")
    registry_cache.apply([put_owner("p1", "shop", renamed, revision=3)])
    assert not has(b"/jupiter/greeter/")
    assert has(b"/jupiter/renamed/")


def test_a_name_is_not_free_while_a_key_below_it_is_being_written() -> None:
    registry_cache = RegistryCache("c1")
    has, writing = asking(registry_cache), Announcement({SHOPS: (lease_id("c1", "p1"), b"{}")}, [SHOPS], [])
    registry_cache.expect(writing)
    assert has(b"/jupiter/greeter/")
    registry_cache.expect_no_more(writing)
    assert not has(b"/jupiter/greeter/")


def test_what_no_owner_record_names_stays_while_grpcservices_that_it_may_be_of_are_awaited() -> None:
    registries, registry_cache = {"default": None}, RegistryCache("c1")
    reconciler = EventHandlers(ClusterCache(registries), registries, Timings(CollectorRegistry()))
    controller = SimpleNamespace(cluster="c1", registry_cache=registry_cache, enqueue=lambda *_, **_more: None)
    reconciler.controllers["default"] = controller  # type: ignore[assignment]  # what is asked of one
    reconciler.note_listed_pod(json_format.ParseDict(make_raw_pod("p1"), message_class("Pod")()))
    registry_cache.apply([put(SHOPS, b"{}", 2, "p1")])

    def keys() -> set[bytes]:
        desired = reconciler.desired("p1", "default")
        assert desired is not None
        plan = make_plan(desired, "c1", registry_cache, lambda _key, _lease: None)
        return {each.key for each in plan.deletes}

    assert keys() == {SHOPS}
    reconciler.await_return()
    assert not keys()
    reconciler.end_return()
    assert keys() == {SHOPS}


def awaiting(*awaited: str) -> tuple[EventHandlers, Turns]:
    """Give one that waits for GrpcServices, with two Pods that nobody selects yet, and whose gates it would open."""
    registries, registry_cache = {"default": None}, RegistryCache("c1")
    reconciler = EventHandlers(ClusterCache(registries), registries, Timings(CollectorRegistry()))
    controller = SimpleNamespace(
        cluster="c1",
        registry_cache=registry_cache,
        writer=SimpleNamespace(wake=lambda: None),
        enqueue=lambda *_, **_more: None,
        learn=lambda *_: None,
    )
    reconciler.controllers["default"] = controller  # type: ignore[assignment]  # it asks this much of it
    owner = OwnerRecord(namespace="shop", pod="p1", keys=(SHOPS,), grpc_services=awaited)
    registry_cache.apply([put(owner_key("c1", "p1"), owner.to_json(), 2, "p1")])
    reconciler.await_return()
    reconciler.mark_complete(PODS)
    reconciler.mark_complete(SERVICES)
    for uid, namespace in (("new", "shop"), ("elsewhere", "till")):
        raw = make_raw_pod(uid, namespace=namespace)
        raw["metadata"]["labels"] = {"app": "nobody-selects-it"}
        raw["spec"]["readinessGates"] = [{"conditionType": GATE}]
        reconciler.note_listed_pod(json_format.ParseDict(raw, message_class("Pod")()))
    return reconciler, reconciler.statuses.gates


def test_a_gate_stays_shut_while_grpcservices_that_may_select_its_pod_are_awaited() -> None:
    reconciler, gates = awaiting("shop/greeter")
    assert gates.take(0.0) == ["elsewhere"]
    reconciler.end_return()
    assert set(gates.take(0.0)) == {"new", "elsewhere"}


def test_a_gate_opens_once_the_last_grpcservice_that_might_select_its_pod_has_come_back() -> None:
    reconciler, gates = awaiting("shop/greeter", "shop/orders")
    reconciler.note_service("ADDED", raw_service("1"))
    assert gates.take(0.0) == ["elsewhere"]
    orders = raw_service("2")
    orders["metadata"]["name"] = "orders"
    reconciler.note_service("ADDED", orders)
    assert gates.take(0.0) == ["new"]


def counting(registry_cache: RegistryCache) -> tuple[EventHandlers, list[str]]:
    """Give event handlers, and a list of whom they enqueue."""
    registries, enqueued = {"default": None}, list[str]()
    reconciler = EventHandlers(ClusterCache(registries), registries, Timings(CollectorRegistry()))
    controller = SimpleNamespace(
        name="default",
        registry_cache=registry_cache,
        enqueue=lambda uids, **_: enqueued.extend(uids),
        learn=lambda *_: None,
        unlearn=lambda *_: None,
    )
    reconciler.controllers["default"] = controller  # type: ignore[assignment]  # it asks this much of it
    return reconciler, enqueued


def grant(reconciler: EventHandlers, raw: dict[str, Any]) -> None:
    reconciler.note_service("ADDED", raw)
    uid = raw["metadata"]["uid"]
    claims = reconciler.begin_grant(uid, "2026-01-01T00:00:00.000001Z")
    metadata = {**raw["metadata"], "resourceVersion": "9"}
    reconciler.note_written({**raw, "metadata": metadata, "status": {"claims": claims}})
    reconciler.end_grant(uid)


def test_a_new_grpcservice_concerns_none_of_the_pods_that_it_does_not_select() -> None:
    """A namespace with many of both would take minutes to start."""
    reconciler, enqueued = counting(RegistryCache("c1"))
    for number in range(100):
        raw = make_raw_pod(f"p{number}")
        raw["metadata"]["labels"] = {"app": "other"}
        reconciler.note_listed_pod(json_format.ParseDict(raw, message_class("Pod")()))
    enqueued.clear()
    grant(reconciler, raw_service("s1"))
    assert set(enqueued) == {"s1"}


def test_a_grpcservice_concerns_the_pods_that_have_records_of_it_though_it_does_not_select_them() -> None:
    registry_cache = RegistryCache("c1")
    reconciler, enqueued = counting(registry_cache)
    owner = OwnerRecord(namespace="shop", pod="p1", keys=(SHOPS,), grpc_services=("shop/greeter",))
    registry_cache.apply([put(owner_key("c1", "p1"), owner.to_json(), 2, "p1"), put(SHOPS, b"{}", 2, "p1")])
    raw = make_raw_pod("p1")
    raw["metadata"]["labels"] = {"app": "other"}
    reconciler.note_listed_pod(json_format.ParseDict(raw, message_class("Pod")()))
    enqueued.clear()
    grant(reconciler, raw_service("s1"))
    assert "p1" in enqueued
    enqueued.clear()
    reconciler.forget_service("s1")
    assert "p1" in enqueued
    assert list(registry_cache.owners_of("shop/greeter")) == ["p1"]
    registry_cache.apply([Deleted(owner_key("c1", "p1"), Revision(3))])
    assert not registry_cache.owners_of("shop/greeter")


def test_a_change_of_a_pod_that_is_older_than_what_a_sweep_has_read_is_passed_over_and_a_list_counts() -> None:
    """The watch is some seconds late; but what a list says is so, also after a backup was restored."""
    handlers = EventHandlers(ClusterCache({"default": None}), {"default": None}, Timings(CollectorRegistry()))

    def make_pod(version: int, *, ready: bool) -> Any:
        return json_format.ParseDict(make_raw_pod(resourceVersion=str(version), ready=ready), message_class("Pod")())

    def is_ready() -> bool:
        return handlers.cluster_cache.pods["p1"].ready

    handlers.note_listed_pod(make_pod(9, ready=True))
    handlers.note_pod("MODIFIED", make_pod(7, ready=False))
    assert is_ready()
    handlers.note_pod("MODIFIED", make_pod(10, ready=False))
    assert not is_ready()
    handlers.note_pod(None, make_pod(5, ready=True))
    assert is_ready()


def test_a_name_that_is_taken_is_a_conflict_of_the_registry_in_which_it_is() -> None:
    registries = {"default": None, "second": None}
    handlers = EventHandlers(ClusterCache(registries), registries, Timings(CollectorRegistry()))
    handlers.mark_complete(SERVICES)
    handlers.grants_in_memory = True
    handlers.note_service("ADDED", make_raw_service("s1", registries=["second"]))
    handlers.note_service("ADDED", make_raw_service("s2", namespace="till", registries=["second"]))
    assert {name: handlers.conflicts(name) for name in registries} == {"default": 0, "second": 1}
    handlers.forget_service("s1")
    assert handlers.conflicts("second") == 0
