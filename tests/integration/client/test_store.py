"""The store in memory answers as a real etcd does, call by call: what registries rely on, in both."""

import threading
from collections.abc import Iterator

import pytest

from grpc_etcd.etcd import (
    Compare,
    Deleted,
    Disconnected,
    Etcd,
    LeaseNotFound,
    Listing,
    Op,
    Put,
    Revision,
    WatchEvents,
    WatchSnapshot,
    WatchUpdate,
    compare,
    ops,
)
from grpc_etcd.testing import MemoryEtcd
from testbed.conditions import existing, wait_until

from .conftest import World

KEY = b"/jupiter/a"


@pytest.fixture
def store(world: World) -> Etcd | MemoryEtcd:
    return world.etcd


def test_records_count_their_revisions(store: Etcd | MemoryEtcd) -> None:
    first, second = store.put(KEY, b"1"), store.put(KEY, b"2")
    record = existing(store.get(KEY))
    assert second == first + 1
    assert (record.create_revision, record.mod_revision, record.version, record.value) == (first, second, 2, b"2")
    assert store.delete(KEY)
    assert not store.delete(KEY)
    assert store.get(KEY) is None
    again = store.put(KEY, b"3")
    assert (existing(store.get(KEY)).create_revision, existing(store.get(KEY)).version) == (again, 1)
    assert again == second + 2, "a delete that finds nothing makes no revision"


CONDITIONS = [
    (compare.version(KEY, "==", 2), True),
    (compare.version(KEY, "<", 2), False),
    (compare.value(KEY, "==", b"2"), True),
    (compare.value(KEY, "!=", b"2"), False),
    (compare.lease(KEY, "==", 0), True),
    (compare.mod_revision(KEY, ">", 1), True),
    (compare.create_revision(KEY, "==", 0), False),
    (compare.create_revision(b"/absent", "==", 0), True),
    (compare.version(b"/absent", ">", 0), False),
    (compare.value(b"/absent", "==", b""), False),
    (compare.value(b"/absent", "!=", b"x"), False),
]


@pytest.mark.parametrize(("condition", "holds"), CONDITIONS, ids=lambda each: repr(each)[:60])
def test_conditions(store: Etcd | MemoryEtcd, condition: Compare, holds: bool) -> None:  # noqa: FBT001 - a parameter of the test
    store.put(KEY, b"1")
    store.put(KEY, b"2")
    assert store.transaction([condition], [], [ops.get(KEY)]).succeeded is holds


def test_a_transaction_answers_each_operation_and_is_one_revision(store: Etcd | MemoryEtcd) -> None:
    before = store.put(KEY, b"1")
    edits: list[Op] = [
        ops.put(b"/jupiter/b", b"2"),
        ops.delete(KEY),
        ops.get(b"/jupiter/b"),
        ops.delete_prefix(b"/other/"),
    ]
    result = store.transaction([compare.version(KEY, "==", 1)], edits)
    put, deleted, got, nothing = result.responses
    assert (result.succeeded, result.revision, put, deleted, nothing) == (True, before + 1, before + 1, 1, 0)
    assert isinstance(got, Listing)
    assert [(record.key, record.value) for record in got.records] == [(b"/jupiter/b", b"2")]


def test_prefixes(store: Etcd | MemoryEtcd) -> None:
    for key in (b"/jupiter/b", b"/jupiter/a/1", b"/jupiter/a/2", b"/jupiteri", b"/jupite"):
        store.put(key, b"")
    assert [record.key for record in store.get_prefix(b"/jupiter/a/").records] == [b"/jupiter/a/1", b"/jupiter/a/2"]
    assert len(store.get_prefix(b"/jupiter/").records) == 3
    assert store.transaction([], [ops.delete_prefix(b"/jupiter/a/")]).responses == (2,)
    assert len(store.get_prefix(b"/jup").records) == 3


def test_leases(store: Etcd | MemoryEtcd) -> None:
    lease = store.lease(60)
    assert lease in store.leases()
    store.put(KEY, b"", lease=lease)
    assert existing(store.get(KEY)).lease == lease
    assert existing(store.time_to_live(lease)).granted_seconds == 60
    store.revoke(lease)
    assert store.get(KEY) is None
    assert store.time_to_live(lease) is None
    assert lease not in store.leases()
    with pytest.raises(LeaseNotFound):
        store.put(KEY, b"", lease=lease)
    with pytest.raises(LeaseNotFound):
        store.revoke(lease)
    assert store.get(KEY) is None


@pytest.fixture
def watch(store: Etcd | MemoryEtcd) -> Iterator[Iterator[WatchUpdate]]:
    store.put(KEY, b"1")
    watch = store.list_watch(b"/jupiter/", b"/jupiter/a", b"/other/")
    yield iter(watch)
    watch.close()


def test_a_list_watch_lists_and_then_tells_each_event_once(
    store: Etcd | MemoryEtcd, watch: Iterator[WatchUpdate]
) -> None:
    listed = next(watch)
    assert isinstance(listed, WatchSnapshot)
    assert [(record.key, record.value) for record in listed.records] == [(KEY, b"1")]
    store.put(b"/elsewhere", b"")
    store.transaction([], [ops.put(KEY, b"2"), ops.delete(b"/other/absent"), ops.put(b"/jupiter/b", b"")])
    changed = next(watch)
    assert isinstance(changed, WatchEvents)
    assert [(type(event), event.key) for event in changed.events] == [(Put, KEY), (Put, b"/jupiter/b")]
    assert {event.revision for event in changed.events} == {changed.revision}
    store.delete(KEY)
    gone = next(watch)
    assert isinstance(gone, WatchEvents)
    assert gone.events == (Deleted(KEY, Revision(changed.revision + 1)),)


def test_a_list_watch_is_ended_by_another_thread_while_it_waits(store: Etcd | MemoryEtcd) -> None:
    watch = store.list_watch(b"/jupiter/")
    heard: list[object] = []
    thread = threading.Thread(target=lambda: heard.extend(watch))
    thread.start()
    wait_until(lambda: heard, "the listing")
    watch.close()
    thread.join(30)
    assert not thread.is_alive()
    assert list(watch) == []


def test_a_stopped_store_answers_nobody_and_tells_who_watches() -> None:
    store = MemoryEtcd()
    watch = iter(store.list_watch(b"/jupiter/"))
    assert isinstance(next(watch), WatchSnapshot)
    store.stop()
    assert isinstance(next(watch), Disconnected)
    store.start(fresh=True)
    assert next(watch) == WatchSnapshot((), Revision(1))
