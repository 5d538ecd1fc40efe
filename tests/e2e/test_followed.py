"""Which prefixes a registry is followed and paced by: what is refused changes neither, on a real etcd."""

from typing import Any

import pytest

from grpc_etcd.registry.own import owner_prefix
from testbed.conditions import until
from testbed.etcd import EtcdServer
from tests.e2e.test_seams import Parts, note_pod, parts, wait_addresses
from tests.unit.operator_core.conftest import make_raw_service

TOUCHED = b"/jupiter/greeter/settled/c1"


def note(made: Parts, uid: str, **spec: Any) -> None:
    """Let another namespace's tenant apply a GrpcService."""
    made.reconciler.note_service("ADDED", make_raw_service(uid, namespace="evil", **spec))


async def burst(made: Parts) -> None:
    """Register some Pods at once, for which readers of the layout jupiter need a flush key."""
    addresses = [f"10.0.1.{number}" for number in range(1, 21)]
    for address in addresses:
        note_pod(made.reconciler, f"pod-{address}", ip=address)
    await wait_addresses(made, *(f"{address}:9000".encode() for address in addresses))


@pytest.mark.parametrize(
    "theirs",
    [
        {"name": "c1", "prefix": "grpc-etcd/owner"},
        {"name": "owner", "prefix": "grpc-etcd"},
        {"name": "policy", "prefix": "grpc-etcd"},
    ],
)
async def test_a_refused_wish_for_the_operators_own_keys_comes_and_goes_without_a_trace(
    etcd: EtcdServer, theirs: dict[str, Any]
) -> None:
    async with parts(etcd) as made:
        made.reconciler.grants_in_memory = True
        note_pod(made.reconciler, "p1", ip="10.0.0.1")
        await wait_addresses(made, b"10.0.0.1:9000")
        note(made, "evil", **theirs)
        assert not made.reconciler.cluster_cache.verdict("evil").accepted
        await burst_beside(made)
        below = {record.key for record in (await made.client.get_prefix(b"/grpc-etcd/")).records}
        assert not [key for key in below if b"settled" in key]
        note(made, "known", name="passing")
        await until(lambda: made.controller.feed.has([b"/jupiter/passing/"]))
        made.reconciler.forget_service("evil")
        made.reconciler.forget_service("known")
        await until(
            lambda: not made.controller.feed.is_followed(b"/jupiter/passing/")
        )  # with the others that have gone
        assert made.controller.feed.has([owner_prefix("c1"), b"/grpc-etcd/policy/"])
        assert made.controller.registry_cache.owner("p1")
        await until(lambda: made.controller.synced_key.is_put)


async def burst_beside(made: Parts) -> None:
    """Register some Pods more, and wait until the readers' flush key is written."""
    note_pod(made.reconciler, "p2", ip="10.0.0.2")
    note_pod(made.reconciler, "p3", ip="10.0.0.3")
    await wait_addresses(made, b"10.0.0.1:9000", b"10.0.0.2:9000", b"10.0.0.3:9000")
    await until(lambda: TOUCHED in made.controller.registry_cache.records)


@pytest.mark.parametrize("layout", ["kratos", "jupiter"])
async def test_a_refused_wish_below_a_service_does_not_change_how_its_readers_are_spared(
    etcd: EtcdServer, layout: str
) -> None:
    async with parts(etcd) as made:
        prefix = "jupiter/greeter" if layout == "jupiter" else "/jupiter/greeter"
        note(made, "evil", name="providers", prefix=prefix, layouts=[layout])
        assert not made.reconciler.cluster_cache.verdict("evil").accepted
        await burst(made)
        await until(lambda: TOUCHED in made.controller.registry_cache.records)
        settled = {key for key in await made.keys() if b"/settled/" in key}
        assert settled == {TOUCHED}


async def test_a_wish_that_may_be_obeyed_after_all_is_followed_and_written(etcd: EtcdServer) -> None:
    async with parts(etcd) as made:
        made.reconciler.grants_in_memory = True
        note(made, "waiting", name="late")
        note_pod(made.reconciler, "p1", ip="10.0.0.1")
        await wait_addresses(made, b"10.0.0.1:9000")
        made.reconciler.note_service("MODIFIED", make_raw_service("waiting", namespace="evil", name="greeter"))
        assert made.reconciler.cluster_cache.verdict("waiting").reason == "NameTaken"
        note_pod(made.reconciler, "theirs", ip="10.0.0.9", namespace="evil")
        made.reconciler.forget_service("s1")
        await wait_addresses(made, b"10.0.0.9:9000")


async def test_readers_are_spared_as_the_layout_needs_that_a_service_has_now(etcd: EtcdServer) -> None:
    """Two layouts may have the same keys' prefix: it is the present one whose readers must miss nothing."""
    async with parts(etcd) as made:
        made.reconciler.grants_in_memory = True
        made.reconciler.forget_service("s1")
        service = make_raw_service("s3", layouts=["etcd-naming"])
        service["spec"]["name"] = "grpc:greeter:v1:unknown-mode"
        made.reconciler.note_service("ADDED", service)
        await until(lambda: made.controller.feed.has([b"grpc:greeter:v1:unknown-mode/"]))
        service = make_raw_service("s3", layouts=["jupiter-v2"])
        service["metadata"]["generation"] = 2
        made.reconciler.note_service("MODIFIED", service)
        for number in range(5):
            note_pod(made.reconciler, f"p{number}", ip=f"10.0.0.{number + 1}")
        settled = b"grpc:greeter:v1:unknown-mode/settled"
        await until(lambda: settled in made.controller.registry_cache.records)
