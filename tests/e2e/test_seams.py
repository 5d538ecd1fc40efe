"""Seams between the parts of the operator, on a real etcd: what one takes for known must be what another tells."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from google.protobuf import json_format
from prometheus_client import CollectorRegistry

from grpc_etcd.etcd import ops
from grpc_etcd.etcd.aio import Etcd
from grpc_etcd.etcd.compare import Compare
from grpc_etcd.etcd.errors import PermissionDenied
from grpc_etcd.etcd.model import LeaseId, TransactionResult
from grpc_etcd.layouts.index import LAYOUT_NAMES
from grpc_etcd.layouts.jupiter import Jupiter
from grpc_etcd.registry.layout import KeyValue, WriteLimits
from grpc_etcd.registry.own import OwnerRecord, leader_key, owner_key, owner_prefix
from grpc_etcd_operator.controller.cleanup import LeadLostError, RefusedError, deregister_all
from grpc_etcd_operator.controller.event_handlers import PODS, SERVICES, EventHandlers
from grpc_etcd_operator.controller.open_claims import GRANT_SECONDS
from grpc_etcd_operator.controller.registry_controller import TIDY_SECONDS, RegistryController, Views
from grpc_etcd_operator.controller.resync import ResyncController
from grpc_etcd_operator.core.cluster import ClusterCache
from grpc_etcd_operator.core.leases import lease_id
from grpc_etcd_operator.core.reasons import Reason
from grpc_etcd_operator.core.scope import Candidate, Fingerprint, Scope, write_leader
from grpc_etcd_operator.isolation import Isolation
from grpc_etcd_operator.kube.messages import message_class
from grpc_etcd_operator.registry.synced_key import OVERDUE_SECONDS
from grpc_etcd_operator.telemetry.metrics import Timings
from testbed.conditions import until
from testbed.etcd import EtcdServer
from tests.e2e.conftest import Scene
from tests.e2e.test_lists import open_client
from tests.unit.operator_core.conftest import make_raw_pod, make_raw_service

PROVIDERS = b"/jupiter/greeter/providers/"
SETTLED = b"/settled/"
ROOT_WORD, WORD = "secret", "word"


class SlowEtcd(Etcd):
    """A real client that sends what puts a Pod's key only while `sending` is set, as before an etcd that is frozen.

    The same is true of flush keys and `touching`. Those under a lease in `bound` are refused, as where that has a key
    which may not be written.
    """

    sending: asyncio.Event
    touching: asyncio.Event
    bound: frozenset[int] = frozenset()
    waiting = flushes = 0

    async def transaction(
        self, compare: Sequence[Compare], success: Sequence[ops.Op], failure: Sequence[ops.Op] = ()
    ) -> TransactionResult:
        if any(isinstance(each, ops.PutOp) and SETTLED in each.key for each in success):
            if any(isinstance(each, ops.PutOp) and each.lease in self.bound for each in success):
                raise PermissionDenied("etcdserver: permission denied")
            self.flushes += 1
            try:
                await self.touching.wait()
            finally:
                self.flushes -= 1
        if any(isinstance(each, ops.PutOp) and each.key.startswith(PROVIDERS) for each in success):
            self.waiting += 1
            await self.sending.wait()
            self.waiting -= 1
        return await super().transaction(compare, success, failure)


@dataclass
class Parts:
    reconciler: EventHandlers
    controller: RegistryController
    client: SlowEtcd

    async def keys(self) -> set[bytes]:
        """Give all keys of the service."""
        return {record.key for record in (await self.client.get_prefix(b"/jupiter/greeter/")).records}

    async def addresses(self) -> set[bytes]:
        """Give the addresses that are registered."""
        found = await self.client.get_prefix(PROVIDERS)
        return {record.key.rpartition(b"://")[2] for record in found.records}


def note_pod(reconciler: EventHandlers, uid: str, **more: Any) -> None:
    reconciler.note_listed_pod(json_format.ParseDict(make_raw_pod(uid, **more), message_class("Pod")()))


@asynccontextmanager
async def parts(
    etcd: EtcdServer,
    layout: Jupiter | None = None,
    *,
    grants: bool = True,
    overdue_seconds: float = OVERDUE_SECONDS,
    tenant: Callable[[EventHandlers], Coroutine[Any, Any, None]] | None = None,
    begin: Callable[[EventHandlers], None] = lambda _: None,
    grant_seconds: float = GRANT_SECONDS,
    leads: bool = True,
) -> AsyncIterator[Parts]:
    timings, isolation = Timings(CollectorRegistry()), Isolation()
    reconciler = EventHandlers(ClusterCache(["default"]), {}, timings, grant_seconds=grant_seconds)
    reconciler.grants_in_memory = True
    client = SlowEtcd(etcd.endpoints)
    client.sending, client.touching = asyncio.Event(), asyncio.Event()
    client.sending.set()
    client.touching.set()
    views = Views(
        reconciler,
        lambda: True,
        lambda: 0.0,
        lambda: False,
        str,
        reconciler.take_outcome,
        lambda: None,
        units=reconciler.units,
    )
    controller = RegistryController(
        "default",
        "c1",
        client,
        Candidate("test"),
        views,
        isolation,
        lease_ttl_seconds=30,
        leader_ttl_seconds=60,  # which no stall of a busy machine lets run out
        overdue_seconds=overdue_seconds,
    )
    if layout:
        controller.streams.learn(layout, "greeter")
    reconciler.controllers["default"] = controller
    reconciler.mark_complete(PODS)
    reconciler.mark_complete(SERVICES)
    reconciler.note_service("ADDED", make_raw_service("s1"))
    reconciler.grants_in_memory = grants
    if not grants:
        reconciler.note_service("ADDED", make_raw_service("s2", name="other"))
    begin(reconciler)
    tasks = [asyncio.create_task(controller.run()), *([asyncio.create_task(tenant(reconciler))] if tenant else [])]
    await until(lambda: controller.synced_key.is_put or not leads)
    yield Parts(reconciler, controller, client)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await controller.close()


async def wait_addresses(made: Parts, *addresses: bytes) -> None:
    async with asyncio.timeout(60):
        while await made.addresses() != set(addresses):  # noqa: ASYNC110  etcd decides
            await asyncio.sleep(0.02)


async def test_a_pod_that_nobody_selects_any_more_while_its_key_is_on_its_way_is_deregistered(etcd: EtcdServer) -> None:
    async with parts(etcd) as made:
        made.client.sending.clear()
        note_pod(made.reconciler, "p1", ip="10.0.0.1")
        await until(lambda: made.client.waiting)
        note_pod(made.reconciler, "p1", ip="10.0.0.1", labels={})
        made.client.sending.set()
        note_pod(made.reconciler, "p2", ip="10.0.0.2")
        await wait_addresses(made, b"10.0.0.2:9000")


async def test_a_flush_key_under_a_lease_of_its_own_goes_with_its_service(etcd: EtcdServer) -> None:
    shared, own = (lease_id("c1", each) for each in ("settled", f"settled {b'/jupiter/greeter/'.hex()}"))
    async with parts(etcd) as made:
        made.client.bound = frozenset([shared])
        for number in range(3):  # a burst, after which clients are owed a flush key
            note_pod(made.reconciler, f"p{number}", ip=f"10.0.0.{number}")
        await until(lambda: own in made.controller.leases._kept)
        made.controller.writer._flush_keys._tidy_at = 0.0
        made.controller.writer._flush_keys._tidy_seconds = 0.0
        made.reconciler.forget_service("s1")
        await until(lambda: own not in made.controller.leases._kept)


class Unhurried(Jupiter):
    """Its clients tolerate so few changes a second that all of them take twice as long as what is overdue."""

    limits: ClassVar[WriteLimits] = WriteLimits(keys_per_second=4, keys_per_transaction=2)


async def test_a_long_queue_that_moves_is_not_overdue_and_one_that_stands_still_is(etcd: EtcdServer) -> None:
    async with parts(etcd, Unhurried(), overdue_seconds=8.0) as made:
        pods = [f"10.0.1.{number}" for number in range(64)]
        for address in pods:
            note_pod(made.reconciler, address, ip=address)
        async with asyncio.timeout(60):
            while len(await made.addresses()) < len(pods):
                assert made.controller.synced_key.is_put, await made.addresses()
                await asyncio.sleep(0.05)
        made.client.sending.clear()
        note_pod(made.reconciler, "late", ip="10.0.2.1")
        await until(lambda: not made.controller.synced_key.is_put)
        made.client.sending.set()
        await until(lambda: made.controller.synced_key.is_put)


class Unsettled(Jupiter):
    """Fails, once, at something that nobody foresaw: its flush key."""

    failures = 1

    def settled(self, service: str, cluster: str) -> KeyValue:
        if self.failures:
            object.__setattr__(self, "failures", 0)
            raise ZeroDivisionError(service)
        return super().settled(service, cluster)


async def test_a_writer_that_fails_takes_up_what_was_under_way(etcd: EtcdServer) -> None:
    async with parts(etcd, Unsettled()) as made:
        for number in (1, 2, 3):
            note_pod(made.reconciler, f"p{number}", ip=f"10.0.0.{number}")
        made.client.sending.clear()
        note_pod(made.reconciler, "p4", ip="10.0.0.4")
        await until(lambda: made.client.waiting)
        await until(lambda: not made.client.waiting or made.controller.writer.in_flight == 0)
        made.client.sending.set()
        await wait_addresses(made, *(f"10.0.0.{number}:9000".encode() for number in (1, 2, 3, 4)))
        await until(lambda: made.controller.writer.overdue_seconds() == 0 and made.controller.writer.may_settle())


class Fragile(Jupiter):
    """Fails, once it is broken, at the flush key of one service."""

    broken = False

    def settled(self, service: str, cluster: str) -> KeyValue:
        if self.broken and service == "other":
            object.__setattr__(self, "broken", False)
            raise ZeroDivisionError(service)
        return super().settled(service, cluster)


async def test_a_settling_touch_that_is_under_way_when_the_writer_fails_is_put_later(etcd: EtcdServer) -> None:
    layout = Fragile()
    async with parts(etcd, layout) as made:
        made.controller.streams.learn(layout, "other")
        made.client.touching.clear()
        for number in (1, 2):
            note_pod(made.reconciler, f"p{number}", ip=f"10.0.0.{number}")
        await until(lambda: made.client.flushes)
        object.__setattr__(layout, "broken", True)
        made.reconciler.note_service(
            "ADDED", make_raw_service("s2", name="other", selector={"matchLabels": {"app": "other"}})
        )
        for number in (3, 4):
            note_pod(made.reconciler, f"p{number}", ip=f"10.0.0.{number}", labels={"app": "other"})
        await until(lambda: not made.client.flushes)
        made.client.touching.set()
        async with asyncio.timeout(60):
            while not any(SETTLED in key for key in await made.keys()):  # noqa: ASYNC110  etcd decides
                await asyncio.sleep(0.02)


async def test_a_settling_touch_of_a_term_that_ends_meanwhile_is_put_in_the_next(etcd: EtcdServer) -> None:
    async with parts(etcd) as made:
        made.client.touching.clear()
        for number in (1, 2):
            note_pod(made.reconciler, f"p{number}", ip=f"10.0.0.{number}")
        await until(lambda: made.client.flushes)
        await made.client.delete(leader_key("c1"))
        await until(lambda: made.controller.election.number > 1)
        made.client.touching.set()
        async with asyncio.timeout(60):
            while not any(SETTLED in key for key in await made.keys()):  # noqa: ASYNC110  etcd decides
                await asyncio.sleep(0.02)


async def test_what_is_wrong_with_a_pod_ends_with_it_though_only_a_sweep_found_out(
    scene: Scene, etcd: EtcdServer
) -> None:
    async with parts(etcd) as made, open_client(scene.api, scene.api.token) as client:
        note_pod(made.reconciler, "p1", namespace=scene.namespace, ports={"a": 1, "b": 2})
        raw = make_raw_service("s2", name="mine", namespace=scene.namespace, port="grpc")
        made.reconciler.note_service("ADDED", raw)
        endpoint_counts = made.reconciler.endpoint_counts
        await until(lambda: endpoint_counts.counts("s2").faults)
        made.reconciler.cluster_cache.services.pop("s1")  # no such object: the sweep is about the Pod
        resync = ResyncController(
            client, made.reconciler, Scope((scene.namespace,)), lambda *_: None, lambda _: {}, Isolation()
        )
        resync.resync_soon(PODS, scene.namespace)
        sweeping = asyncio.create_task(resync.run())
        await until(lambda: "p1" not in made.reconciler.cluster_cache.pods)
        await until(lambda: not endpoint_counts.counts("s2").faults)
        sweeping.cancel()


async def ask_on_and_on(reconciler: EventHandlers) -> None:
    """Be a tenant whose GrpcServices come and go without a pause, each with names that have to be listed first."""
    for number in itertools.count():
        wish: dict[str, Any] = {"name": f"restless-{number}", "layouts": list(LAYOUT_NAMES)}
        reconciler.note_service("ADDED", make_raw_service(f"restless-{number}", namespace="evil", **wish))
        reconciler.forget_service(f"restless-{number - 100}")
        await asyncio.sleep(0.001)


async def test_a_tenant_that_asks_on_and_on_keeps_no_new_leader_from_vouching(etcd: EtcdServer) -> None:
    async with parts(etcd, tenant=ask_on_and_on) as made:
        assert made.controller.has_settled


async def test_pods_that_a_namespace_removes_all_at_once_keep_none_of_another_registered(etcd: EtcdServer) -> None:
    """Without a grace period a deletion is the first word of it: whose Pod it was is known only from before.

    Each of the Pods is of many GrpcServices, and of one that has no other, so that no two wait for their turn together.
    """
    shared, pods = [f"evil-shared-{number}" for number in range(60)], [f"evil-{number}" for number in range(60)]
    async with parts(etcd) as made:
        for name in (*shared, *pods):
            labels = {"app": "greeter"} if name in shared else {"name": name}
            spec = {"selector": {"matchLabels": labels}, "layouts": ["etcd-naming"]}  # whose clients tolerate any pace
            made.reconciler.note_service("ADDED", {**make_raw_service(name, name=name, namespace="evil"), "spec": spec})
        for number, uid in enumerate(pods):
            labels = {"app": "greeter", "name": uid}
            note_pod(made.reconciler, f"pod-of-{uid}", namespace="evil", ip=f"10.1.0.{number}", labels=labels)
        note_pod(made.reconciler, "p1", ip="10.0.0.1")

        async def count_theirs() -> int:
            return len((await made.client.get_prefix(b"evil-", keys_only=True)).records)

        wanted = len(pods) * (len(shared) + 1)
        await wait_addresses(made, b"10.0.0.1:9000")
        async with asyncio.timeout(60):
            while await count_theirs() < wanted:  # noqa: ASYNC110  etcd decides
                await asyncio.sleep(0.02)
        for uid in (*(f"pod-of-{each}" for each in pods), "p1"):
            made.reconciler.forget_pod(uid)
        async with asyncio.timeout(60):
            while await made.addresses():  # noqa: ASYNC110  etcd decides
                await asyncio.sleep(0.002)
        assert await count_theirs() > wanted / 2


def versioned(raw: dict[str, Any], version: int) -> dict[str, Any]:
    return {**raw, "metadata": {**raw["metadata"], "resourceVersion": str(version)}}


async def test_what_a_late_watch_says_of_a_grpcservice_that_was_read_since_takes_no_key_back(etcd: EtcdServer) -> None:
    async with parts(etcd) as made:
        note_pod(made.reconciler, "p1", ip="10.0.0.1")
        await wait_addresses(made, b"10.0.0.1:9000")
        made.reconciler.note_service(None, versioned(make_raw_service("s1"), 7))
        made.reconciler.note_service("MODIFIED", versioned(make_raw_service("s1", enable=False), 5))
        note_pod(made.reconciler, "p2", ip="10.0.0.2")
        await wait_addresses(made, b"10.0.0.1:9000", b"10.0.0.2:9000")
        made.reconciler.note_service("MODIFIED", versioned(make_raw_service("s1", enable=False), 8))
        await wait_addresses(made)
        made.reconciler.note_service(None, versioned(make_raw_service("s1"), 3))  # a backup was restored
        await wait_addresses(made, b"10.0.0.1:9000", b"10.0.0.2:9000")


async def test_what_a_late_watch_says_of_a_pod_that_was_out_of_scope_takes_no_key_back(
    scene: Scene, etcd: EtcdServer
) -> None:
    async with parts(etcd) as made, open_client(scene.api, scene.api.token) as client:
        scope = Scope((), "app=greeter")
        resync = ResyncController(client, made.reconciler, scope, lambda *_: None, lambda _: {}, Isolation())

        def report_deleted(version: int) -> None:
            raw = make_raw_pod("p1", labels={}, resourceVersion=str(version))
            resync.note_pod("DELETED", json_format.ParseDict(raw, message_class("Pod")()))

        note_pod(made.reconciler, "p1", ip="10.0.0.1", resourceVersion="7")
        await wait_addresses(made, b"10.0.0.1:9000")
        report_deleted(5)
        note_pod(made.reconciler, "p2", ip="10.0.0.2")
        await wait_addresses(made, b"10.0.0.1:9000", b"10.0.0.2:9000")
        report_deleted(8)
        await wait_addresses(made, b"10.0.0.2:9000")


async def test_a_claim_that_nobody_grants_holds_up_no_mark(etcd: EtcdServer) -> None:
    async with parts(etcd, grants=False, grant_seconds=0.5) as made:
        assert list(made.reconciler.cluster_cache.asking) == ["s2"]


class RobbedEtcd(Etcd):
    """A real client to which somebody else becomes the leader just before the first owner record is deleted."""

    is_robbed = False

    async def transaction(
        self, compare: Sequence[Compare], success: Sequence[ops.Op], failure: Sequence[ops.Op] = ()
    ) -> TransactionResult:
        is_owners = any(
            isinstance(each, ops.DeleteOp) and each.key.startswith(owner_prefix("robbed")) for each in success
        )
        if is_owners and not self.is_robbed:
            self.is_robbed = True
            await self.put(leader_key("robbed"), b"another")
            await self.delete(leader_key("robbed"))
        return await super().transaction(compare, success, failure)


async def test_a_cleanup_that_leads_no_longer_touches_nothing_more_and_says_so(etcd: EtcdServer) -> None:
    lease = lease_id("robbed", "p1")
    async with RobbedEtcd(etcd.endpoints) as client:
        await client.lease(300, lease)
        record = OwnerRecord(namespace="shop", pod="pod-p1", node="", grpc_services=("shop/greeter",), keys=(b"/k",))
        await client.put(owner_key("robbed", "p1"), record.to_json(), lease=lease)
        with pytest.raises(LeadLostError):
            await deregister_all(client, "robbed", Fingerprint(), 5)
        assert lease in await client.leases()


async def test_a_cleanup_takes_along_what_an_admin_has_edited(etcd: EtcdServer) -> None:
    lease = lease_id("edited", "p2")
    async with Etcd(etcd.endpoints) as client:
        await client.lease(300, lease)
        record = OwnerRecord(namespace="shop", pod="pod-p1", node="", grpc_services=("shop/greeter",), keys=(b"/k",))
        await client.put(owner_key("edited", "p2"), record.to_json(), lease=lease)
        await client.put(b"/k", b"edited")
        await deregister_all(client, "edited", Fingerprint(), 5)
        assert await client.get(b"/k") is None


async def test_what_is_in_force_is_watched_while_a_wish_cannot_be_obeyed(etcd: EtcdServer) -> None:
    async with parts(etcd) as made:
        note_pod(made.reconciler, "p1", ip="10.0.0.1")
        await wait_addresses(made, b"10.0.0.1:9000")
        status = {"claims": made.reconciler.cluster_cache.services["s1"].status["claims"]}
        made.reconciler.note_service("MODIFIED", {**make_raw_service("s1", weight=-1), "status": status})
        assert made.reconciler.cluster_cache.verdict("s1").reason == "InvalidSpec"
        note_pod(made.reconciler, "p1", ip="10.0.0.1", ready=False)
        await wait_addresses(made)
        await until(lambda: not made.controller.registry_cache.owners)
        made.controller._tidy()
        note_pod(made.reconciler, "p1", ip="10.0.0.1")
        await wait_addresses(made, b"10.0.0.1:9000")
        await made.client.delete_prefix(PROVIDERS)
        await wait_addresses(made, b"10.0.0.1:9000")


@pytest.mark.parametrize("turns", range(8))
async def test_a_pod_whose_owner_record_is_deleted_as_it_turns_unready_is_deregistered(
    etcd: EtcdServer, turns: int
) -> None:
    """In whatever order both become known: the deregistration is made from a record that etcd has no more, or not."""
    async with parts(etcd) as made, Etcd(etcd.endpoints) as admin:
        note_pod(made.reconciler, "p1", ip="10.0.0.1")
        await wait_addresses(made, b"10.0.0.1:9000")
        await until(lambda: "p1" in made.controller.registry_cache.owners and made.controller.writer.may_settle())
        deletion = asyncio.create_task(admin.delete(owner_key("c1", "p1")))
        for _ in range(turns):
            await asyncio.sleep(0)
        note_pod(made.reconciler, "p1", ip="10.0.0.1", ready=False)
        await deletion
        await wait_addresses(made)
        await until(lambda: made.controller.writer.may_settle() and not made.controller.registry_cache.owners)


async def test_what_nobody_has_named_is_found_of_pods_that_were_judged_before_it_was_listed(etcd: EtcdServer) -> None:
    async with Etcd(etcd.endpoints) as admin:
        lease = LeaseId(lease_id("c1", "nameless"))
        await admin.lease(300, lease)
        await admin.put(PROVIDERS + b"grpc://10.0.0.1:9000", b"{}", lease=lease)
    async with parts(etcd, begin=lambda reconciler: note_pod(reconciler, "nameless", ready=False)) as made:
        assert not await made.addresses(), "the mark is put, so all is true"


async def test_a_cleanup_leaves_only_what_it_may_not_deregister_and_says_so(own_etcd: EtcdServer) -> None:
    admin = own_etcd.enable_auth(ROOT_WORD)
    own_etcd.add_user("operator", WORD, ["/jupiter/", "/grpc-etcd/"], admin=admin)
    refused, *deregistered = b"/microservices/greeter/a", b"/jupiter/greeter/a", b"/jupiter/greeter/b"
    async with (
        Etcd(own_etcd.endpoints, user="root", password=ROOT_WORD) as root,
        Etcd(own_etcd.endpoints, user="operator", password=WORD) as client,
    ):
        for uid, keys in (("1", (refused, deregistered[0])), ("2", (deregistered[1],))):
            lease = await root.lease(60, lease_id("rights", uid))
            for key in keys:
                await root.put(key, b"value", lease=lease)
            await root.put(owner_key("rights", uid), OwnerRecord(namespace="shop", keys=keys).to_json(), lease=lease)
        with pytest.raises(RefusedError, match="/microservices/greeter/"):
            await deregister_all(client, "rights", Fingerprint(), 5)
        assert [await root.get(key) for key in deregistered] == [None, None]
        own_etcd.etcdctl("role", "grant-permission", "--prefix=true", "operator", "readwrite", "/m", user=admin)
        await deregister_all(client, "rights", Fingerprint(), 5)
        assert await root.get(refused) is None
        assert not (await root.get_prefix(owner_prefix("rights"))).records


async def test_a_standby_hears_that_somebody_else_has_put_what_it_would_put(own_etcd: EtcdServer) -> None:
    key = PROVIDERS + b"grpc://10.0.0.1:9000"
    async with Etcd(own_etcd.endpoints) as client:
        await client.put(leader_key("c1"), write_leader(Candidate("leader")), lease=await client.lease(300))
        async with parts(own_etcd, leads=False) as made:
            await until(lambda: made.controller.has_settled)
            note_pod(made.reconciler, "p1", ip="10.0.0.1")
            await until(lambda: made.controller.writer.is_waiting("p1") and made.controller.writer.has_judged_all)
            await client.put(key, b"of the server itself", lease=await client.lease(300))
            await until(lambda: made.controller.registry_cache.record(key))
            await until(lambda: made.reconciler.endpoint_counts.counts("s1").faults)
            [faults] = made.reconciler.endpoint_counts.counts("s1").faults.values()
            assert [fault.reason for fault in faults] == [Reason.KEY_TAKEN]


async def test_a_key_without_an_owner_record_goes_though_its_service_has_moved_while_nobody_led(
    own_etcd: EtcdServer,
) -> None:
    key, lease = PROVIDERS + b"grpc://10.0.0.1:9000", lease_id("c1", "p1")
    async with Etcd(own_etcd.endpoints) as client:
        await client.put(leader_key("c1"), write_leader(Candidate("leader")), lease=await client.lease(300))
        await client.lease(300, lease)
        await client.put(key, b"value", lease=lease)
        record = OwnerRecord(namespace="shop", pod="pod-p1", grpc_services=("shop/greeter",), keys=(key,))
        await client.put(owner_key("c1", "p1"), record.to_json(), lease=lease)
        async with parts(own_etcd, leads=False) as made:
            note_pod(made.reconciler, "p1", ip="10.0.0.1")
            await until(lambda: made.controller.has_settled and made.controller.registry_cache.record(key))
            await client.delete(owner_key("c1", "p1"))
            await until(lambda: not made.controller.registry_cache.owners)
            made.reconciler.note_service("MODIFIED", make_raw_service("s1", layouts=["kratos"]))
            await asyncio.sleep(2 * TIDY_SECONDS)
            await client.delete(leader_key("c1"))
            async with asyncio.timeout(60):
                while await client.get(key):  # noqa: ASYNC110  etcd decides
                    await asyncio.sleep(0.05)
