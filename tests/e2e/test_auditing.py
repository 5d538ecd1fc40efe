"""The comparison of what is remembered with what a real etcd holds finds what a watch has missed, and nothing else."""

from collections.abc import AsyncIterator, Callable

import pytest

from grpc_etcd.etcd.aio import Etcd
from grpc_etcd.etcd.errors import Compacted
from grpc_etcd.etcd.model import LeaseId, Listing, Record, Revision
from grpc_etcd.registry.own import OwnerRecord, owner_key, owner_prefix
from grpc_etcd_operator.registry.audit import Audit
from grpc_etcd_operator.registry.cache import RegistryCache
from testbed.etcd import EtcdServer

WORD = "word"
CLUSTER, PREFIX = "c1", b"/jupiter/greeter/providers/"
KEYS = [PREFIX + b"grpc://10.0.0.%d:9000" % number for number in range(1, 5)]


class CompactedBetweenPages(Etcd):
    """Fails to list one prefix, as one of many pages fails that etcd has compacted away meanwhile."""

    async def get_prefix(self, prefix: bytes, *, revision: int = 0, keys_only: bool = False) -> Listing:
        if prefix == b"/jupiter/large/":
            raise Compacted("required revision has been compacted")
        return await super().get_prefix(prefix, revision=revision, keys_only=keys_only)


@pytest.fixture
async def client(etcd: EtcdServer) -> AsyncIterator[Etcd]:
    async with Etcd(etcd.endpoints) as opened:
        yield opened


async def list_all(client: Etcd, registry_cache: RegistryCache) -> None:
    for prefix in (owner_prefix(CLUSTER), PREFIX):
        listing = await client.get_prefix(prefix)
        registry_cache.replace((prefix,), listing.records, listing.revision)


async def test_what_was_missed_is_found_and_told_to_whom_it_concerns(client: Etcd) -> None:
    owner = OwnerRecord(namespace="shop", keys=tuple(KEYS))
    await client.put(owner_key(CLUSTER, "p1"), owner.to_json())
    for key in KEYS[:3]:
        await client.put(key, b"old")
    registry_cache, concerned = RegistryCache(CLUSTER), set[str]()
    await list_all(client, registry_cache)
    audit = Audit(client, registry_cache, lambda: [owner_prefix(CLUSTER), PREFIX], concerned.update, grace_seconds=0.0)
    await audit.compare()
    assert (audit.missed, concerned) == (0, set())
    await client.put(KEYS[0], b"new")
    await client.delete(KEYS[1])
    await client.put(KEYS[3], b"new")
    await audit.compare()
    assert (audit.missed, concerned) == (3, {"p1"})
    held = {record.key: record for record in (await client.get_prefix(PREFIX)).records}
    assert {key: record for key, record in registry_cache.records.items() if key.startswith(PREFIX)} == held
    await audit.compare()
    assert audit.missed == 3


async def test_a_record_of_a_later_revision_than_etcd_has_is_corrected(client: Etcd) -> None:
    await client.put(KEYS[0], b"old")
    registry_cache = RegistryCache(CLUSTER)
    listing = await client.get_prefix(PREFIX)
    of_another_history = listing.records[0]._replace(mod_revision=Revision(listing.revision + 1000))
    registry_cache.replace((PREFIX,), [of_another_history], listing.revision + 1000)
    audit = Audit(client, registry_cache, lambda: [PREFIX], lambda _: None, grace_seconds=0.0)
    await audit.compare()
    assert registry_cache.record(KEYS[0]) == listing.records[0]


async def test_a_prefix_that_may_not_be_read_any_more_keeps_no_other_from_being_compared(own_etcd: EtcdServer) -> None:
    admin = own_etcd.enable_auth("secret")
    own_etcd.add_user("operator", WORD, [PREFIX.decode()], admin=admin)
    async with Etcd(own_etcd.endpoints, user="operator", password=WORD) as client:
        registry_cache, concerned = RegistryCache(CLUSTER), set[str]()
        record = OwnerRecord(namespace="shop", keys=(KEYS[0],)).to_json()
        owner = Record(owner_key(CLUSTER, "p1"), record, LeaseId(0), Revision(1), Revision(1), 1)
        registry_cache.replace((owner_prefix(CLUSTER),), [owner], Revision(1))
        await client.put(KEYS[0], b"new")
        prefixes = [b"/jupiter/refused/", PREFIX]
        audit = Audit(client, registry_cache, lambda: prefixes, concerned.update, grace_seconds=0.0)
        await audit.compare()
    assert (audit.missed, concerned) == (1, {"p1"})


class Watched(Etcd):
    """Calls `on_listing` before each listing."""

    on_listing: Callable[[bytes], None]

    async def get_prefix(self, prefix: bytes, *, revision: int = 0, keys_only: bool = False) -> Listing:
        self.on_listing(prefix)
        return await super().get_prefix(prefix, revision=revision, keys_only=keys_only)


@pytest.mark.parametrize("during", [owner_prefix(CLUSTER), PREFIX])
async def test_a_prefix_that_is_let_go_during_the_comparison_has_missed_nothing(
    etcd: EtcdServer, during: bytes
) -> None:
    """Its GrpcService is deleted, and below it stand keys of servers that have registered themselves."""
    prefixes, registry_cache = [owner_prefix(CLUSTER), PREFIX], RegistryCache(CLUSTER)

    def let_go(listed: bytes) -> None:
        if listed == during and PREFIX in prefixes:
            prefixes.remove(PREFIX)
            registry_cache.forget([PREFIX])

    async with Watched(etcd.endpoints) as client:
        client.on_listing = lambda _: None
        await client.put(KEYS[0], b"foreign")
        await list_all(client, registry_cache)
        client.on_listing = let_go
        audit = Audit(client, registry_cache, lambda: prefixes, lambda _: None, grace_seconds=0.0)
        await audit.compare()
    assert (audit.missed, dict(registry_cache.records)) == (0, {})


async def test_a_prefix_that_cannot_be_listed_just_then_keeps_no_other_from_being_compared(etcd: EtcdServer) -> None:
    async with CompactedBetweenPages(etcd.endpoints) as client:
        await client.put(KEYS[0], b"new")
        prefixes = [b"/jupiter/large/", PREFIX]
        audit = Audit(client, RegistryCache(CLUSTER), lambda: prefixes, lambda _: None, grace_seconds=0.0)
        await audit.compare()
    assert audit.missed == 1
