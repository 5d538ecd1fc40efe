"""A standby of two registries, one of which is never listed: what has come and gone leaves nothing behind in any part.

Everything that the parts hold is counted, whatever it is called, so that a new map that only grows is found as well.
"""

import asyncio
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from itertools import count
from typing import Any

from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from grpc_etcd.etcd.aio import Etcd
from grpc_etcd.etcd.model import Deleted, Event, LeaseId, Put, Record, Revision, WatchEvents, WatchSnapshot
from grpc_etcd.registry.own import OwnerRecord, owner_key, owner_prefix
from grpc_etcd_operator.controller.event_handlers import PODS, SERVICES, EventHandlers
from grpc_etcd_operator.controller.registry_controller import RegistryController, Views
from grpc_etcd_operator.controller.resync import MOST_GONE, ResyncController
from grpc_etcd_operator.core.cluster import ClusterCache
from grpc_etcd_operator.core.desired import Owner
from grpc_etcd_operator.core.leases import lease_id
from grpc_etcd_operator.core.pods import PodMessage
from grpc_etcd_operator.core.scope import Candidate, Scope
from grpc_etcd_operator.isolation import Isolation
from grpc_etcd_operator.kube.client import Client
from grpc_etcd_operator.kube.messages import message_class
from grpc_etcd_operator.telemetry.metrics import Timings
from testbed.examples import examples
from tests.unit.operator_core.conftest import make_raw_pod, make_raw_service

CLUSTER, LISTED, NEVER = "c1", "listed", "never"
OURS = ("grpc_etcd_operator.", "grpc_etcd.", __name__)
NO_MAPS = ("Timings", "Etcd", "Client")  # of libraries, or of what is sent


def make_pod(uid: str, where: str) -> PodMessage:
    raw = make_raw_pod(uid, namespace=where, labels={"app": where})
    return json_format.ParseDict(raw, message_class("Pod")(), ignore_unknown_fields=True)  # type: ignore[no-any-return]  # made at run time


class Standby:
    """One replica that never leads. Its watches are played, and its loops are turned by hand."""

    def __init__(self) -> None:
        registries = (LISTED, NEVER)
        self.handlers = EventHandlers(ClusterCache(registries), dict.fromkeys(registries), Timings(CollectorRegistry()))
        self.handlers.grants_in_memory = True
        self.handlers.controllers.update({name: self.make_controller(name) for name in registries})
        self.handlers.mark_complete(PODS)
        self.handlers.mark_complete(SERVICES)
        client = Client("http://127.0.0.1:1", None)  # type: ignore[arg-type]  # nothing is asked
        self.resync = ResyncController(
            client,
            self.handlers,
            Scope(),
            lambda *_: None,
            lambda _: {},
            Isolation(),
            deletions=self.handlers.deletions,
        )
        self.revision = count(1)
        self.list(owner_prefix(CLUSTER))

    def make_controller(self, name: str) -> RegistryController:
        handlers = self.handlers
        seen = (lambda: True, lambda: 0.0, lambda: False)
        views = Views(handlers, *seen, str, handlers.take_outcome, lambda: None, units=handlers.units)
        etcd, ttls = Etcd("127.0.0.1:1"), {"lease_ttl_seconds": 30, "leader_ttl_seconds": 10}
        return RegistryController(name, CLUSTER, etcd, Candidate("standby"), views, Isolation(), **ttls)

    def close(self) -> None:
        for controller in self.handlers.controllers.values():
            asyncio.run(controller.close())

    @property
    def controller(self) -> RegistryController:
        return self.handlers.controllers[LISTED]

    def list(self, prefix: bytes) -> None:
        self.controller.feed._take(prefix, WatchSnapshot((), Revision(next(self.revision))))

    def see(self, prefix: bytes, *events: Event) -> None:
        self.controller.feed._take(prefix, WatchEvents(events, Revision(next(self.revision))))

    def put(self, key: bytes, value: bytes, uid: str) -> Put:
        revision = Revision(next(self.revision))
        return Put(Record(key, value, LeaseId(lease_id(CLUSTER, uid)), revision, revision, 1))

    def work(self) -> None:
        for controller in self.handlers.controllers.values():
            while controller.writer._plan_some():
                pass
            controller.writer.wake()  # as whatever is listed does
            controller._look_once()
            controller._tidy()
        self.resync._prune_gone()

    def live(self, number: int, keys: int, *, has_flush: bool, is_swift: bool) -> None:
        """Let a GrpcService and a Pod come, be written by whoever leads, and go; `is_swift`: before they are judged."""
        pod, service, where = f"p{number}", f"s{number}", f"n{number}"
        spec: dict[str, Any] = {"selector": {"matchLabels": {"app": where}}, "registries": [LISTED, NEVER]}
        raw = make_raw_service(service, name=where, namespace=where, **spec)
        self.handlers.note_service("ADDED", raw)
        prefix = f"/jupiter/{where}/".encode()
        self.list(prefix)
        self.handlers.note_pod("ADDED", make_pod(pod, where))
        if not is_swift:
            self.work()
        written = [prefix + f"providers/grpc://10.0.0.{each}:9000".encode() for each in range(keys)]
        record = OwnerRecord(
            namespace=where, pod=pod, node="node-1", grpc_services=(f"{where}/{where}",), keys=tuple(written)
        ).to_json()
        self.see(prefix, *(self.put(key, b"{}", pod) for key in written))
        self.see(owner_prefix(CLUSTER), self.put(owner_key(CLUSTER, pod), record, pod))
        if has_flush:
            self.see(prefix, self.put(prefix + b"settled/c1", b"settled", "settled"))
        if not is_swift:
            self.work()
        self.handlers.note_pod("DELETED", make_pod(pod, where))
        self.see(prefix, *(Deleted(key, Revision(next(self.revision))) for key in written))
        self.see(owner_prefix(CLUSTER), Deleted(owner_key(CLUSTER, pod), Revision(next(self.revision))))
        self.handlers.forget_service(service)
        self.work()
        self.work()


def sizes(root: object) -> dict[str, int]:
    """Count what each map, set and list holds that can be reached through our own objects."""
    found: dict[str, int] = {}
    seen, waiting = set[int](), [(type(root).__name__, root)]
    while waiting:
        path, each = waiting.pop()
        if id(each) in seen or isinstance(each, str | bytes | type):
            continue
        seen.add(id(each))
        if isinstance(each, Collection):
            found[path] = found.get(path, 0) + len(each)
            waiting += [(f"{path}.*", item) for item in (each.values() if isinstance(each, Mapping) else each)]
        waiting += [(f"{path}.{name}", part) for name, part in parts_of(each)]
    return found


def parts_of(each: object) -> Iterator[tuple[str, object]]:
    """Return the attributes of an object of ours."""
    if type(each).__module__.startswith(OURS) and type(each).__name__ not in NO_MAPS:
        names = [*getattr(each, "__dict__", ()), *getattr(type(each), "__slots__", ())]
        yield from ((name, getattr(each, name)) for name in names if hasattr(each, name))


lives = st.lists(st.tuples(st.integers(1, 4), st.booleans(), st.booleans()), min_size=2, max_size=6)


@given(lives)
@settings(max_examples=examples(15), deadline=None)
def test_what_has_come_and_gone_leaves_nothing_behind_in_a_standby(lives: list[tuple[int, bool, bool]]) -> None:
    with closing(Standby()) as standby:
        standby.live(0, 2, has_flush=True, is_swift=False)
        before = sizes(standby)
        for number, (keys, has_flush, is_swift) in enumerate(lives, 1):
            standby.live(number, keys, has_flush=has_flush, is_swift=is_swift)
        after = sizes(standby)
    grown = {path: (before.get(path, 0), held) for path, held in after.items() if held > before.get(path, 0)}
    assert list(grown) == [path for path in grown if path.endswith("cluster_cache.gone")], grown


@given(st.integers(0, 3))
@settings(max_examples=examples(4), deadline=None)
def test_the_dead_are_forgotten_though_a_registry_is_never_listed(more: int) -> None:
    with closing(Standby()) as standby:
        gone = standby.handlers.cluster_cache.gone
        standby.handlers.note_pod("ADDED", make_pod("held", "shop"))
        record = OwnerRecord(namespace="shop", pod="held", node="", grpc_services=(), keys=()).to_json()
        standby.see(owner_prefix(CLUSTER), standby.put(owner_key(CLUSTER, "held"), record, "held"))
        standby.handlers.note_pod("DELETED", make_pod("held", "shop"))
        for number in range(MOST_GONE + more):
            standby.handlers.cluster_cache.mark_gone(Owner(f"p{number}", "shop"))
        standby.resync._prune_gone()
        assert set(gone) == {"held", *(f"p{number}" for number in range(more, MOST_GONE + more))}
