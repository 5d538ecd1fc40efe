"""Every unary call on a real etcd, and the errors that it can answer with."""

import contextlib

import pytest

from grpc_etcd.etcd import (
    Compacted,
    Compare,
    DeadlineExceeded,
    DuplicateKey,
    FutureRevision,
    InvalidRequest,
    LeaseExists,
    LeaseNotFound,
    Listing,
    Op,
    RequestTooLarge,
    TooManyOperations,
    Unavailable,
    compare,
    ops,
)
from testbed.conditions import existing, wait_until
from testbed.etcd import EtcdServer

from .conftest import Opened


def test_a_key_is_put_read_and_deleted(etcd: EtcdServer, opened: Opened) -> None:
    client = opened(etcd.endpoints)
    revision = client.put(b"k", b"v")
    record = existing(client.get(b"k"))
    assert (record.key, record.value, record.lease, record.version) == (b"k", b"v", 0, 1)
    assert record.create_revision == record.mod_revision == revision
    assert etcdctl_value(etcd, "k") == "v"
    assert client.delete(b"k") is True
    assert client.delete(b"k") is False
    assert client.get(b"k") is None
    assert client.get(b"k", revision=revision) == record


def etcdctl_value(etcd: EtcdServer, key: str) -> str:
    return etcd.etcdctl("get", key, "--print-value-only").strip()


@pytest.mark.parametrize("prefix", [b"p/", b"\xff", b"", b"a\xff\xff"])
def test_a_prefix_is_read_whole_and_sorted(etcd: EtcdServer, opened: Opened, prefix: bytes) -> None:
    client = opened(etcd.endpoints)
    keys = [b"a", b"a\xff\xff", b"a\xff\xff1", b"b", b"p/", b"p/1", b"p/2", b"p0", b"\xff", b"\xff\xff", b"\xff1"]
    for key in keys:
        client.put(key, b"v" + key)
    listing = client.get_prefix(prefix)
    assert [record.key for record in listing.records] == sorted(key for key in keys if key.startswith(prefix))
    assert all(record.value == b"v" + record.key for record in listing.records)
    assert client.delete_prefix(prefix) == len(listing.records)
    assert client.get_prefix(prefix).records == ()


def test_a_listing_of_many_pages_is_of_one_revision(etcd: EtcdServer, opened: Opened) -> None:
    client = opened(etcd.endpoints)
    for start in range(0, 3000, 100):
        client.transaction([], [ops.put(b"many/%05d" % number, b"x" * 2000) for number in range(start, start + 100)])
    listing = client.get_prefix(b"many/")
    assert [record.key for record in listing.records] == [b"many/%05d" % number for number in range(3000)]
    client.put(b"many/00000", b"later")
    assert client.get_prefix(b"many/", revision=listing.revision) == listing
    bare = client.get_prefix(b"many/", keys_only=True)
    assert {record.value for record in bare.records} == {b""}
    assert len(bare.records) == 3000


def test_a_transaction_takes_the_branch_that_its_comparisons_say(etcd: EtcdServer, opened: Opened) -> None:
    client = opened(etcd.endpoints)
    lease = client.lease(60)
    absent = compare.version(b"t", "==", 0)
    first = client.transaction([absent], [ops.put(b"t", b"1", lease), ops.get(b"t")], [ops.get(b"t")])
    assert first.succeeded
    assert first.responses[0] == first.revision
    read = first.responses[1]
    assert isinstance(read, Listing)
    assert read.records[0].lease == lease
    otherwise: list[Op] = [ops.get_prefix(b"t"), ops.delete(b"t"), ops.delete_prefix(b"t")]
    second = client.transaction([absent], [ops.put(b"t", b"2")], otherwise)
    assert not second.succeeded
    read = second.responses[0]
    assert isinstance(read, Listing)
    assert read.records[0].value == b"1"
    assert second.responses[1:] == (1, 0)
    client.revoke(lease)


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        (compare.version(b"c", ">", 0), True),
        (compare.create_revision(b"c", "==", 0), False),
        (compare.mod_revision(b"c", "!=", 0), True),
        (compare.value(b"c", "==", b"v"), True),
        (compare.value(b"c", "<", b"a"), False),
        (compare.lease(b"c", "==", 0), True),
    ],
)
def test_each_comparison_means_what_it_says(
    etcd: EtcdServer, opened: Opened, condition: Compare, *, holds: bool
) -> None:
    client = opened(etcd.endpoints)
    client.put(b"c", b"v")
    assert client.transaction([condition], []).succeeded is holds


def test_a_lease_is_granted_by_id_listed_and_revoked_with_its_keys(etcd: EtcdServer, opened: Opened) -> None:
    client = opened(etcd.endpoints)
    lease = client.lease(60, 4711)
    assert lease == 4711
    with pytest.raises(LeaseExists) as caught:
        client.lease(60, 4711)
    assert "Adopt" in caught.value.remedy
    client.put(b"l", b"v", lease=lease)
    found = existing(client.time_to_live(lease, keys=True))
    assert (found.granted_seconds, found.keys) == (60, (b"l",))
    assert 0 <= found.remaining_seconds <= 60
    assert lease in client.leases()
    client.revoke(lease)
    assert client.get(b"l") is None
    assert client.time_to_live(lease) is None
    with pytest.raises(LeaseNotFound):
        client.revoke(lease)


def test_refused_requests_say_what_to_change(etcd: EtcdServer, opened: Opened) -> None:
    client = opened(etcd.endpoints)
    with pytest.raises(RequestTooLarge):
        client.put(b"big", b"x" * 3_000_000)
    with pytest.raises(TooManyOperations):
        client.transaction([], [ops.put(b"%d" % number, b"") for number in range(129)])
    with pytest.raises(DuplicateKey):
        client.transaction([], [ops.put(b"twice", b""), ops.put(b"twice", b"")])
    with pytest.raises(InvalidRequest):
        client.put(b"", b"v")
    with pytest.raises(LeaseNotFound):
        client.put(b"k", b"v", lease=99)
    old = client.put(b"k", b"1")
    new = client.put(b"k", b"2")
    client.compact(new)
    with pytest.raises(Compacted):
        client.get(b"k", revision=old)
    with pytest.raises(FutureRevision):
        client.get(b"k", revision=new + 1000)


def test_a_server_that_is_away_or_frozen_fails_within_the_deadline(own_etcd: EtcdServer, opened: Opened) -> None:
    client = opened(own_etcd.endpoints, timeout_seconds=2)

    def is_put() -> bool:
        with contextlib.suppress(DeadlineExceeded):  # on a busy machine
            client.put(b"k", b"v")
            return True
        return False

    wait_until(is_put, "a connection")
    own_etcd.pause()
    with pytest.raises(DeadlineExceeded):
        client.get(b"k")
    own_etcd.resume()
    own_etcd.kill()
    with pytest.raises((Unavailable, DeadlineExceeded)):
        client.get(b"k")


def test_the_server_tells_its_version(etcd: EtcdServer, opened: Opened) -> None:
    status = opened(etcd.endpoints).status()
    assert status.version.startswith("3.")
    assert status.leader_id == status.member_id
    assert status.database_bytes > 0
