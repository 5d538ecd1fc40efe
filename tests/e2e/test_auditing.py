"""The comparison of what is remembered with what a real etcd holds finds what a watch has missed, and nothing else."""

from collections.abc import AsyncIterator

import pytest

from grpc_etcd.etcd.aio import Etcd
from grpc_etcd.etcd.model import LeaseId, Record, Revision
from grpc_etcd.registry.own import OwnerRecord, owner_key, owner_prefix
from grpc_etcd_operator.registry.audit import Audit
from grpc_etcd_operator.registry.cache import Mirror
from testbed.etcd import EtcdServer

WORD = "word"
CLUSTER, PREFIX = "c1", b"/jupiter/greeter/providers/"
KEYS = [PREFIX + b"grpc://10.0.0.%d:9000" % number for number in range(1, 5)]


@pytest.fixture
async def client(etcd: EtcdServer) -> AsyncIterator[Etcd]:
    async with Etcd(etcd.endpoints) as opened:
        yield opened


async def list_all(client: Etcd, mirror: Mirror) -> None:
    for prefix in (owner_prefix(CLUSTER), PREFIX):
        listing = await client.get_prefix(prefix)
        mirror.replace((prefix,), listing.records, listing.revision)


async def test_what_was_missed_is_found_and_told_to_whom_it_concerns(client: Etcd) -> None:
    owner = OwnerRecord(namespace="shop", keys=tuple(KEYS))
    await client.put(owner_key(CLUSTER, "p1"), owner.to_json())
    for key in KEYS[:3]:
        await client.put(key, b"old")
    mirror, concerned = Mirror(CLUSTER), set[str]()
    await list_all(client, mirror)
    audit = Audit(client, mirror, lambda: [owner_prefix(CLUSTER), PREFIX], concerned.update, grace_seconds=0.0)
    await audit.compare()
    assert (audit.missed, concerned) == (0, set())
    await client.put(KEYS[0], b"new")
    await client.delete(KEYS[1])
    await client.put(KEYS[3], b"new")
    await audit.compare()
    assert (audit.missed, concerned) == (3, {"p1"})
    held = {record.key: record for record in (await client.get_prefix(PREFIX)).records}
    assert {key: record for key, record in mirror.records.items() if key.startswith(PREFIX)} == held
    await audit.compare()
    assert audit.missed == 3


async def test_a_record_of_a_later_revision_than_etcd_has_is_corrected(client: Etcd) -> None:
    await client.put(KEYS[0], b"old")
    mirror = Mirror(CLUSTER)
    listing = await client.get_prefix(PREFIX)
    of_another_history = listing.records[0]._replace(mod_revision=Revision(listing.revision + 1000))
    mirror.replace((PREFIX,), [of_another_history], listing.revision + 1000)
    audit = Audit(client, mirror, lambda: [PREFIX], lambda _: None, grace_seconds=0.0)
    await audit.compare()
    assert mirror.record(KEYS[0]) == listing.records[0]


async def test_a_prefix_that_may_not_be_read_any_more_keeps_no_other_from_being_compared(own_etcd: EtcdServer) -> None:
    admin = own_etcd.enable_auth("secret")
    own_etcd.add_user("operator", WORD, [PREFIX.decode()], admin=admin)
    async with Etcd(own_etcd.endpoints, user="operator", password=WORD) as client:
        mirror, concerned = Mirror(CLUSTER), set[str]()
        record = OwnerRecord(namespace="shop", keys=(KEYS[0],)).to_json()
        owner = Record(owner_key(CLUSTER, "p1"), record, LeaseId(0), Revision(1), Revision(1), 1)
        mirror.replace((owner_prefix(CLUSTER),), [owner], Revision(1))
        await client.put(KEYS[0], b"new")
        prefixes = [b"/jupiter/refused/", PREFIX]
        audit = Audit(client, mirror, lambda: prefixes, concerned.update, grace_seconds=0.0)
        await audit.compare()
    assert (audit.missed, concerned) == (1, {"p1"})
