"""Keys are found by prefix as if all had been looked at, and nothing is left of those that were dropped."""

from hypothesis import given
from hypothesis import strategies as st

from grpc_etcd.etcd.model import LeaseId, Record, Revision
from grpc_etcd.registry.own import OwnerRecord, owner_key
from grpc_etcd_operator.core.leases import lease_id
from grpc_etcd_operator.registry.cache import Mirror
from grpc_etcd_operator.registry.keys import KeyTree
from grpc_etcd_operator.registry.prefixes import Streams

paths = st.text("ab/", max_size=6).map(str.encode)


@given(st.lists(paths), st.lists(paths), paths)
def test_keys_under_a_prefix_are_those_that_begin_with_it(
    added: list[bytes], dropped: list[bytes], prefix: bytes
) -> None:
    tree = KeyTree()
    for key in added:
        tree.add(key)
    for key in dropped:
        tree.discard(key)
    left = set(added) - set(dropped)
    found = tree.under(prefix)
    assert sorted(found) == sorted(key for key in left if key.startswith(prefix))
    for key in left:
        tree.discard(key)
    assert vars(tree) == vars(KeyTree())


@given(st.lists(st.tuples(paths, st.integers(1, 9))), st.lists(paths), st.integers(0, 9))
def test_a_listing_replaces_what_is_known_under_its_prefixes_and_nothing_else(
    held: list[tuple[bytes, int]], prefixes: list[bytes], revision: int
) -> None:
    mirror = Mirror("c1")
    for key, at in held:
        mirror.correct(key, make_record(key, at))
    before = dict(mirror.records)
    mirror.replace(prefixes, [], revision)
    assert mirror.records == {
        key: record
        for key, record in before.items()
        if not (key.startswith(tuple(prefixes)) and record.mod_revision <= revision)
    }
    mirror.forget(prefixes)
    assert mirror.records == {key: record for key, record in before.items() if not key.startswith(tuple(prefixes))}


def make_record(key: bytes, revision: int) -> Record:
    return Record(key, b"", LeaseId(7), Revision(revision), Revision(revision), 1)


def test_of_units_that_wait_no_more_nothing_is_kept() -> None:
    mirror, empty = Mirror("c1"), vars(Mirror("c1"))
    mirror.contest("p1", [b"/a/x", b"/a/y"])
    mirror.contest("p2", [b"/a/x"])
    mirror.contest("p1", [b"/a/y"])
    assert mirror.correct(b"/a/x", make_record(b"/a/x", 2)) == {"p2"}
    mirror.contest("p1", [])
    mirror.contest("p3", [])
    mirror.forget([b""])
    assert {name: vars(mirror)[name] for name in ("_contested", "_contests")} == {
        name: empty[name] for name in ("_contested", "_contests")
    }


def test_of_keys_that_were_deleted_nothing_is_kept_once_no_older_event_can_come() -> None:
    mirror = Mirror("c1")
    for key in (b"/a/x", b"/b/x"):
        mirror.correct(key, make_record(key, 2))
    mirror.note_deleted(b"/a/x", 3)
    mirror.note_deleted(b"/b/x", 3, is_followed=False)
    mirror.replace([b"/a/"], [], 4)
    assert not vars(mirror)["_buried"]


def test_what_was_read_of_units_that_are_gone_is_forgotten() -> None:
    streams = Streams(lambda _: True)
    mine, theirs = (
        OwnerRecord(namespace="shop", pod=name, node="", grpc_services=(), keys=(f"/x/{name}".encode(),))
        for name in ("p1", "p2")
    )
    streams.note_read((*mine.keys, *theirs.keys))
    streams.keep_reads([mine])
    assert streams.strangers(mine) == ()
    assert streams.strangers(theirs) == theirs.keys


def test_a_key_that_was_read_is_read_once_more_when_its_owner_record_names_it_no_longer() -> None:
    streams = Streams(lambda _: True)
    owner = OwnerRecord(namespace="shop", pod="p1", node="", grpc_services=(), keys=(b"x/1",))
    streams.note_read(streams.strangers(owner))
    assert streams.strangers(owner) == ()
    assert streams.strangers(None, [b"x/1"]) == (b"x/1",)
    streams.note_read([b"x/1"], [b"x/1"])
    assert streams.strangers(None, [b"x/1"]) == ()
    streams.learn_plain(b"y/")
    assert streams.strangers(None, [b"y/1"]) == ()  # a watch tells of it


def test_a_key_under_a_units_lease_that_only_anothers_owner_record_names_is_not_read_for_ever() -> None:
    mirror, streams, lease = Mirror("c1"), Streams(lambda _: True), lease_id("c1", "p1")
    key, now = b"x/1", Revision(3)
    record = Record(key, b"", LeaseId(lease), now, now, 1)
    theirs = OwnerRecord(namespace="shop", pod="p2", keys=(key,)).to_json()
    mirror.correct(owner_key("c1", "p2"), Record(owner_key("c1", "p2"), theirs, LeaseId(7), now, now, 1))
    mirror.correct(key, record)
    assert streams.strangers(mirror.owner("p1"), mirror.unnamed(lease)) == (key,)
    mirror.note_seen(key, record, 4)
    streams.note_read([key], filter(mirror.is_unnamed, [key]))
    assert streams.strangers(mirror.owner("p1"), mirror.unnamed(lease)) == ()
