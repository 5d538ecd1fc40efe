"""List, then follow: the ordinary course of a list-watch on a real etcd."""

from grpc_etcd.etcd import Progress, WatchEvents, WatchSnapshot, ops
from testbed.conditions import existing
from testbed.etcd import EtcdServer

from .conftest import Opened


def test_a_list_watch_lists_and_then_tells_every_change(etcd: EtcdServer, opened: Opened) -> None:
    client = opened(etcd.endpoints)
    first = client.put(b"w/1", b"a")
    follower = client.follow(b"w/")
    follower.wait_listed()
    assert follower.news[0] == WatchSnapshot((existing(client.get(b"w/1")),), first)
    second = client.put(b"w/2", b"b")
    client.put(b"other", b"x")
    client.delete(b"w/1")
    follower.wait_events(2)
    assert follower.events() == [(b"w/2", b"b", second), (b"w/1", None, second + 2)]
    assert follower.state.connected
    assert follower.state.stale_since is None
    assert follower.state.revision == second + 2


def test_a_start_revision_tells_all_since_without_a_listing(etcd: EtcdServer, opened: Opened) -> None:
    client = opened(etcd.endpoints)
    client.put(b"w/1", b"before")
    listing = client.get_prefix(b"w/")
    since = [client.put(b"w/1", b"a"), client.put(b"w/2", b"b")]
    follower = client.follow(b"w/", start_revision=listing.revision + 1)
    follower.wait_events(2)
    assert follower.events() == [(b"w/1", b"a", since[0]), (b"w/2", b"b", since[1])]
    assert follower.of(WatchSnapshot) == []
    assert follower.state.connected


def test_several_prefixes_come_over_one_stream_and_overlapping_ones_once(etcd: EtcdServer, opened: Opened) -> None:
    client = opened(etcd.endpoints)
    for key in (b"a/1", b"a/b/1", b"c/1", b"d/1"):
        client.put(key, b"0")
    follower = client.follow(b"c/", b"a/", b"a/b/", b"c/")
    follower.wait_listed()
    listed = follower.news[0]
    assert isinstance(listed, WatchSnapshot)
    assert [record.key for record in listed.records] == [b"a/1", b"a/b/1", b"c/1"]
    client.put(b"a/b/1", b"1")
    client.put(b"d/1", b"1")
    client.put(b"c/1", b"1")
    follower.wait_events(2)
    assert sorted(event[:2] for event in follower.events()) == [(b"a/b/1", b"1"), (b"c/1", b"1")]


def test_a_transaction_is_one_piece_of_news(etcd: EtcdServer, opened: Opened) -> None:
    client = opened(etcd.endpoints)
    follower = client.follow(b"t/")
    follower.wait_listed()
    client.transaction([], [ops.put(b"t/%d" % number, b"") for number in range(100)])
    follower.wait_events(100)
    (change,) = follower.of(WatchEvents)
    assert len(change.events) == 100


def test_progress_moves_a_quiet_prefix_on(etcd: EtcdServer, opened: Opened) -> None:
    client = opened(etcd.endpoints)
    follower = client.follow(b"quiet/", progress_seconds=0.2)
    follower.wait_listed()
    revision = client.put(b"busy", b"")
    follower.wait(lambda: follower.state.revision >= revision, "progress")
    assert follower.of(Progress)
    assert not follower.of(WatchEvents)
    client.put(b"quiet/1", b"x")
    follower.wait_events(1)


def test_a_list_watch_of_the_whole_store(etcd: EtcdServer, opened: Opened) -> None:
    client = opened(etcd.endpoints)
    follower = client.follow(b"")
    follower.wait_listed()
    client.put(b"\x00", b"lowest")
    client.put(b"\xff\xff", b"highest")
    follower.wait_events(2)
    assert follower.view() == {b"\x00": b"lowest", b"\xff\xff": b"highest"}
