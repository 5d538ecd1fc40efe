"""A new leader waits for the claims that were asked for when all became known, and for no later ones."""

import time
from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry

from grpc_etcd.etcd.model import LeaseId, Put, Record, Revision
from grpc_etcd.registry.own import OwnerRecord, owner_key
from grpc_etcd_operator.controller.event_handlers import SERVICES, EventHandlers
from grpc_etcd_operator.controller.open_claims import PRUNE_AT, OpenClaims
from grpc_etcd_operator.core.claims import Claim
from grpc_etcd_operator.core.cluster import ClusterCache
from grpc_etcd_operator.core.leases import lease_id
from grpc_etcd_operator.registry.cache import RegistryCache
from grpc_etcd_operator.telemetry.metrics import Timings
from tests.unit.operator_controller.test_services import CountedOwners
from tests.unit.operator_core.conftest import make_raw_service


def raw_service(uid: str, name: str, generation: int) -> dict[str, Any]:
    raw = make_raw_service(uid, name=name)
    raw["metadata"]["generation"] = generation
    return raw


def test_claims_that_are_asked_for_later_are_not_waited_for() -> None:
    reconciler = EventHandlers(ClusterCache(["default"]), {"default": None}, Timings(CollectorRegistry()))
    reconciler.grants_in_memory = True
    reconciler.mark_complete(SERVICES)
    reconciler.note_service("ADDED", make_raw_service("calm"))
    reconciler.grants_in_memory = False
    reconciler.note_service("ADDED", raw_service("early", "early", 1))
    moment = time.monotonic()
    reconciler.note_service("ADDED", raw_service("late", "late", 1))
    assert reconciler.has_open_claims(moment)
    reconciler.note_service("MODIFIED", raw_service("early", "renamed", 2))
    assert not reconciler.has_open_claims(moment)
    assert reconciler.has_open_claims(time.monotonic())


class Etcd:
    """A registry as the operator knows it, and who looks for keys in it."""

    def __init__(self) -> None:
        self.registry_cache, self.revision = RegistryCache("c1"), 1
        self.owners = self.registry_cache.owners = CountedOwners()
        controller: Any = SimpleNamespace(name="default", registry_cache=self.registry_cache, is_listed=True)
        self.open_claims = OpenClaims(ClusterCache(["default"]), {"default": controller}, {})

    def put(self, uid: str, namespace: str, *keys: bytes) -> None:
        self.revision += 1
        now, lease = Revision(self.revision), LeaseId(lease_id("c1", uid))
        owner = OwnerRecord(namespace=namespace, pod=uid, node="", grpc_services=(), keys=keys)
        self.registry_cache.apply([Put(Record(owner_key("c1", uid), owner.to_json(), lease, now, now, 1))])

    def has_keys(self, namespace: str, prefix: bytes) -> bool:
        handlers = EventHandlers(ClusterCache(["default"]), {"default": None}, Timings(CollectorRegistry()))
        service = handlers.read_service(make_raw_service("s", namespace=namespace))
        return self.open_claims.has_keys(service, Claim("default", prefix))


def test_to_look_for_keys_of_a_namespace_costs_the_same_however_many_others_have() -> None:
    looked = []
    for others in (1, 300):
        etcd = Etcd()
        etcd.put("p", "shop", b"/jupiter/greeter/providers/p")
        for number in range(others):
            etcd.put(f"other-{number}", "other", b"/jupiter/another/providers/p%d" % number)
        assert etcd.has_keys("shop", b"/jupiter/greeter/")
        etcd.owners.looked = 0
        for number in range(10):  # each second it is looked again, while Pods of others come and go
            etcd.put("other-0", "other", b"/jupiter/another/providers/new%d" % number)
            assert etcd.has_keys("shop", b"/jupiter/greeter/")
            assert not etcd.has_keys("shop", b"/jupiter/another/")
        looked.append(etcd.owners.looked)
    assert looked[0] == looked[1]


def test_keys_that_come_and_go_are_known() -> None:
    etcd = Etcd()
    assert not etcd.has_keys("shop", b"/jupiter/greeter/")
    etcd.put("p", "shop", b"/jupiter/greeter/providers/p")
    assert etcd.has_keys("shop", b"/jupiter/greeter/")
    etcd.put("p", "shop", b"/jupiter/another/providers/p")
    assert not etcd.has_keys("shop", b"/jupiter/greeter/")
    etcd.put("p", "moved", b"/jupiter/greeter/providers/p")
    assert (etcd.has_keys("shop", b"/jupiter/another/"), etcd.has_keys("moved", b"/jupiter/greeter/")) == (False, True)
    etcd.put("p", "shop", b"/jupiter/greeter/providers/p")
    assert etcd.has_keys("shop", b"/jupiter/greeter/")


def test_nothing_is_kept_of_namespaces_that_have_no_keys_any_more() -> None:
    etcd = Etcd()
    for number in range(10 * PRUNE_AT):
        etcd.put("p", f"n{number}", b"/jupiter/greeter/providers/p")
        assert etcd.has_keys(f"n{number}", b"/jupiter/greeter/")
    assert len(etcd.open_claims._keys) <= PRUNE_AT  # which shows nowhere else
