"""Endpoints that a process registers for itself, on a real etcd."""

import asyncio
import json
import time
from functools import partial

import pytest

from grpc_etcd import CompoundRegistry, Endpoint, Registry
from grpc_etcd.etcd import Etcd, Record
from grpc_etcd.layouts.index import LAYOUT_NAMES, make_layout
from grpc_etcd.registration.registrar import Registrar, State
from grpc_etcd.settings import host_name
from testbed.conditions import existing, free_port, wait_until
from testbed.etcd import EtcdServer

from .conftest import ADDRESS, ENDPOINT, KEY, SERVICE, Admin


def test_an_endpoint_is_there_while_it_is_registered_and_the_lease_goes_with_the_process(
    admin: Admin, registry: Registry
) -> None:
    with registry.registered(ENDPOINT, allow_unroutable=True) as registration:
        assert registration.wait(30)
        record = admin.record(KEY)
        assert json.loads(record.value)["address"] == ADDRESS
        assert registry.list_services(SERVICE)[0].address == ADDRESS
        granted = existing(admin.etcd.time_to_live(record.lease)).granted_seconds
        assert (granted, registration.status.state) == (30, State.REGISTERED)
    assert admin.records() == {}
    assert registration.status.state is State.DEREGISTERED
    registry.close()
    assert record.lease not in admin.etcd.leases()


def test_a_wildcard_is_published_as_the_pods_address_and_loopback_is_refused(admin: Admin) -> None:
    with admin.registry(pod_ip="10.7.7.7") as registry:
        registration = registry.register(Endpoint(name=SERVICE, address="[::]:9000"))
        assert registration.endpoint.address == "10.7.7.7:9000"
        assert registration.wait(30)
        assert list(admin.records()) == [b"/jupiter/greeter/providers/grpc://10.7.7.7:9000"]
        with pytest.raises(ValueError, match="loopback"):
            registry.register(ENDPOINT)
        with pytest.raises(ValueError, match="'/'"):
            registry.register(Endpoint(name="a/b", address="10.0.0.1:1"))
        assert len(admin.records()) == 1


def test_ipv6_and_every_layout(admin: Admin, registry: Registry) -> None:
    endpoint = Endpoint(name=SERVICE, address="[2001:db8::5]:9000")
    layouts = [make_layout(name) for name in LAYOUT_NAMES if name not in ("kitex", "go-zero")]
    assert registry.register(endpoint, layouts=layouts).wait(30)
    for layout in layouts:
        found = [
            layout.decode(SERVICE, record.key, record.value)
            for record in admin.etcd.get_prefix(layout.prefix(SERVICE)).records
        ]
        assert [each.address for each in found if isinstance(each, Endpoint)] == [endpoint.address], layout.name


def test_a_metric_target_is_written_as_jupiter_does(admin: Admin, registry: Registry) -> None:
    registration = registry.register(ENDPOINT, metrics_address="127.0.9.1:9100", allow_unroutable=True)
    assert registration.wait(30)
    key = f"/prometheus/job/{SERVICE}/{host_name()}/127.0.9.1:9100".encode()
    assert admin.record(key).value == b"127.0.9.1:9100"
    assert registry.unregister(registration)
    assert admin.etcd.get(key) is None


def test_one_lease_for_all_and_unchanged_values_are_never_rewritten(admin: Admin, registry: Registry) -> None:
    first = registry.register(ENDPOINT, allow_unroutable=True)
    second = registry.register(Endpoint(name="other", address="127.0.9.1:9001"), allow_unroutable=True)
    assert first.wait(30)
    assert second.wait(30)
    again = registry.register(ENDPOINT, allow_unroutable=True)
    assert again.wait(30)
    records = admin.records().values()
    assert len({record.lease for record in records}) == 1
    assert {record.version for record in records} == {1}
    changed = registry.register(Endpoint(name=SERVICE, address=ADDRESS, weight=7), allow_unroutable=True)
    assert changed.wait(30)
    assert json.loads(admin.record(KEY).value)["weight"] == 7
    assert admin.record(KEY).version == 2


def test_a_foreign_delete_is_repaired(admin: Admin, registry: Registry) -> None:
    registration = registry.register(ENDPOINT, allow_unroutable=True)
    assert registration.wait(30)
    for _ in range(3):
        before = admin.record(KEY)
        admin.etcd.delete(KEY)
        after = existing(admin.wait_for(lambda record: record))
        assert after.value == before.value
        assert after.lease == before.lease
    assert registration.wait(30)


def has_another_lease(lost: int, record: Record | None) -> bool:
    return record is not None and record.lease not in (0, lost)


def test_a_revoked_lease_is_replaced(admin: Admin, registry: Registry) -> None:
    registration = registry.register(ENDPOINT, allow_unroutable=True)
    assert registration.wait(30)
    for _ in range(2):
        lost = admin.record(KEY).lease
        admin.etcd.revoke(lost)
        admin.wait_for(partial(has_another_lease, lost))
    assert registration.wait(30)


def test_an_admin_who_disables_the_endpoint_in_place_is_obeyed_and_the_lease_comes_back(
    admin: Admin, registry: Registry
) -> None:
    assert registry.register(ENDPOINT, allow_unroutable=True).wait(30)
    record = admin.record(KEY)
    edited = json.loads(record.value) | {"enable": False, "weight": 3}
    admin.etcd.put(KEY, json.dumps(edited).encode())
    kept = existing(admin.wait_for(lambda now: now and now.lease == record.lease))
    assert json.loads(kept.value)["enable"] is False
    assert json.loads(kept.value)["weight"] == 3
    admin.etcd.delete(KEY)
    again = existing(admin.wait_for(lambda now: now))
    assert json.loads(again.value)["enable"] is False


def test_a_key_that_another_process_took_is_left_to_it_and_taken_back_when_it_goes(
    admin: Admin, registry: Registry
) -> None:
    registration = registry.register(ENDPOINT, allow_unroutable=True)
    assert registration.wait(30)
    other = admin.etcd.lease(600)
    admin.etcd.put(KEY, admin.record(KEY).value, lease=other)
    wait_until(lambda: registration.status.state is State.TAKEN, "the loss is reported")
    assert admin.record(KEY).lease == other
    admin.etcd.revoke(other)
    assert registration.wait(30)
    assert admin.record(KEY).lease not in (0, other)


def test_a_successor_at_the_same_address_takes_over_and_the_dead_lease_takes_nothing_away(
    admin: Admin, registry: Registry
) -> None:
    dead = admin.etcd.lease(600)
    admin.etcd.put(KEY, b"left by a process that was killed", lease=dead)
    assert registry.register(ENDPOINT, allow_unroutable=True).wait(30)
    admin.etcd.revoke(dead)
    assert admin.record(KEY).lease not in (0, dead)


def test_what_another_process_has_taken_is_not_deregistered(admin: Admin, registry: Registry) -> None:
    registration = registry.register(ENDPOINT, allow_unroutable=True)
    assert registration.wait(30)
    other = admin.etcd.lease(600)
    admin.etcd.put(KEY, b"theirs", lease=other)
    assert registration.unregister()
    registry.close()
    assert admin.record(KEY).value == b"theirs"


def test_a_burst_is_paced_and_settled_by_one_touch(admin: Admin, registry: Registry) -> None:
    endpoints = [Endpoint(name=SERVICE, address=f"127.0.9.1:{port}") for port in range(9000, 9020)]
    registrations = [registry.register(each, allow_unroutable=True) for each in endpoints]
    assert all(each.wait(30) for each in registrations)
    touch = b"/jupiter/greeter/settled/self-registered"
    records = admin.records(b"/jupiter/greeter/providers/").values()
    assert len(records) == 20
    by_revision = [record.mod_revision for record in records]
    assert max(by_revision.count(revision) for revision in by_revision) <= 8
    settled = admin.wait_for(lambda record: record and record.mod_revision > max(by_revision), touch)
    assert settled
    # One, unless a busy machine makes more than one burst of it.
    assert settled.version < len(set(by_revision))
    registry.close()
    assert admin.records() == {}


def test_an_etcd_that_is_away_at_the_start_is_waited_for() -> None:
    port = free_port()
    with Registry(f"127.0.0.1:{port}") as registry:
        began = time.monotonic()
        registration = registry.register(ENDPOINT, allow_unroutable=True)
        assert time.monotonic() - began < 4  # on a busy machine; a call of etcd's that nobody answers takes 5 s
        wait_until(lambda: registration.status.fault, "the reason is told")
        assert registration.status.state is State.PENDING
        assert not registration.wait(0.1)


def test_several_registries_each_report_for_themselves(admin: Admin) -> None:
    with admin.registry() as here, Registry(f"127.0.0.1:{free_port()}") as away:
        both = CompoundRegistry([away, here])
        with both.registered(ENDPOINT, allow_unroutable=True) as (dead, alive):
            assert alive.wait(30)
            wait_until(lambda: dead.status.fault, "the reason is told")
            assert dead.status.state is State.PENDING
            assert KEY in admin.records()
        assert admin.records() == {}
        both.close()


def test_several_registries_may_be_one_of_several(admin: Admin) -> None:
    with admin.registry() as here, Registry(f"127.0.0.1:{free_port()}") as away:
        inner = CompoundRegistry([here])
        outer = CompoundRegistry([away, inner])  # type: ignore[list-item]  # it is one in all but name
        with outer.registered(ENDPOINT, allow_unroutable=True) as (_, alive):
            assert alive.wait(30)
            assert KEY in admin.records()
        assert admin.records() == {}
        outer.close()
        inner.close()


async def test_asyncio_registers_through_the_same_thread_and_a_blocked_loop_does_no_harm(
    etcd_admin: Admin, etcd: EtcdServer
) -> None:
    admin = etcd_admin
    client = Etcd(etcd.endpoints)
    registrar = Registrar(client, [make_layout("jupiter")], lease_ttl_seconds=8)
    registration = registrar.register(ENDPOINT, allow_unroutable=True)
    assert await registration.wait_async(30)
    created = admin.record(KEY).create_revision
    time.sleep(10)  # noqa: ASYNC251 - the loop is blocked on purpose, for longer than the lease lasts
    assert admin.record(KEY).create_revision == created
    await asyncio.to_thread(registrar.close)
    client.close()
    assert admin.records() == {}


async def test_the_asyncio_registry(admin: Admin, registry: Registry) -> None:
    async with registry.aio.registered(ENDPOINT, allow_unroutable=True) as registration:
        assert await registration.wait_async(30)
        assert [each.address for each in await registry.aio.list_services(SERVICE)] == [ADDRESS]
    assert admin.records() == {}
    again = await registry.aio.register(ENDPOINT, allow_unroutable=True)
    assert await again.wait_async(30)
    assert await registry.aio.unregister(again)
    assert admin.records() == {}
