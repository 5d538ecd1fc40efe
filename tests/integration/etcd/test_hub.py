"""The watch hub on real etcd: many ranges over one stream, each with its own fate, through all that can go wrong."""

import asyncio
import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvloop

from grpc_etcd.etcd import (
    Compacted,
    DeadlineExceeded,
    Disconnected,
    Etcd,
    HistoryChanged,
    PermissionDenied,
    Progress,
    Unavailable,
    WatchSnapshot,
    WatchUpdate,
    aio,
    ops,
)
from grpc_etcd.etcd.aio import WatchHub
from grpc_etcd.etcd.aio.connection import Connection
from grpc_etcd.etcd.blocking.hub import WatchHub as BlockingHub
from grpc_etcd.etcd.calls import Method
from grpc_etcd.etcd.credentials import Credentials
from grpc_etcd.etcd.dialing import make_dialer
from grpc_etcd.etcd.faults import Faults
from testbed.conditions import until, wait_until
from testbed.etcd import EtcdServer
from testbed.proxy import TcpProxy

from .conftest import Follower, Hub, Opened

ADMIN = "root:secret"
WORD = "first"
STREAM_LIMIT = 100
REFUSED = 400
BYTES_PER_SECOND = 150_000


@pytest.fixture
def writer(own_etcd: EtcdServer, closing: contextlib.ExitStack) -> Etcd:
    return closing.enter_context(Etcd(own_etcd.endpoints))


@pytest.fixture
def proxy(own_etcd: EtcdServer, closing: contextlib.ExitStack) -> TcpProxy:
    return closing.enter_context(TcpProxy.start(own_etcd.members[0].endpoint))


@pytest.fixture
def guarded(closing: contextlib.ExitStack) -> EtcdServer:
    """An etcd with authentication; the user app may use app/ only."""
    server = closing.enter_context(EtcdServer.start())
    server.enable_auth("secret")
    server.add_user("app", WORD, ["app/"], admin=ADMIN)
    return server


def watchers(server: EtcdServer) -> float:
    return server.metric("etcd_debugging_mvcc_watcher_total")


def follow_all(hub: Hub, prefixes: list[bytes]) -> list[Follower]:
    followers = [hub.follow(prefix) for prefix in prefixes]
    wait_until(lambda: all(follower.of(WatchSnapshot) for follower in followers), "all listed", 60)
    return followers


def when_up(writer: Etcd, key: bytes, value: bytes) -> int:
    """Put a key as soon as etcd takes it."""

    def attempt() -> int:
        try:
            return writer.put(key, value)
        except (Unavailable, DeadlineExceeded):
            return 0

    return wait_until(attempt, "etcd takes a write", 60)


def test_each_range_gets_its_own_keys_and_overlapping_ones_theirs(etcd: EtcdServer, opened: Opened) -> None:
    client = opened(etcd.endpoints)
    client.put(b"a/1", b"old")
    hub = client.hub()
    wide, narrow, key = hub.follow(b"a/"), hub.follow(b"a/b/"), hub.follow_key(b"a/1")
    for follower in (wide, narrow, key):
        follower.wait_listed()
    for name in (b"a/1", b"a/12", b"a/b/1"):
        client.put(name, b"new")
    client.delete(b"a/b/1")
    wide.wait_events(4)
    narrow.wait_events(2)
    key.wait_events(1)
    assert wide.view() == {b"a/1": b"new", b"a/12": b"new"}
    assert narrow.view() == {}
    assert key.view() == {b"a/1": b"new"}
    wait_until(lambda: hub.state.connected, "connected")


def test_what_is_too_much_for_a_slow_way_is_listed_in_smaller_parts(
    own_etcd: EtcdServer, closing: contextlib.ExitStack, opened: Opened, writer: Etcd
) -> None:
    for number in range(1_000):  # one page, which takes two seconds, of ranges that take four together
        writer.put(f"large/{number}".encode(), bytes(200))
    groups = [f"group/{number}/".encode() for number in range(60)]
    for prefix in groups:
        writer.transaction([], [ops.put(prefix + str(number).encode(), bytes(500)) for number in range(15)])
    slow = closing.enter_context(TcpProxy.start(own_etcd.members[0].endpoint, bytes_per_second=BYTES_PER_SECOND))
    hub = opened(slow.address, timeout_seconds=1.0).hub()
    followers = follow_all(hub, [*groups, b"large/"])
    assert [len(follower.view()) for follower in followers] == [15] * len(groups) + [1_000]
    wait_until(lambda: hub.state.connected, "etcd counts as in reach", 60)


def test_a_thousand_ranges_need_one_stream(closing: contextlib.ExitStack, opened: Opened) -> None:
    server = closing.enter_context(EtcdServer.start(flags=[f"--max-concurrent-streams={STREAM_LIMIT}"]))
    client = opened(server.endpoints)
    prefixes = [b"%04d/" % number for number in range(1_000)]
    followers = follow_all(client.hub(), prefixes)
    for prefix in prefixes:
        client.put(prefix + b"key", b"value")
    wait_until(lambda: all(follower.events() for follower in followers), "an event of each", 60)
    assert [follower.view() for follower in followers] == [{prefix + b"key": b"value"} for prefix in prefixes]


def test_ranges_that_came_and_went_leave_nothing_behind(own_etcd: EtcdServer, opened: Opened) -> None:
    client = opened(own_etcd.endpoints)
    hub = client.hub()
    stays = hub.follow(b"stays/")
    stays.wait_listed()
    wait_until(lambda: watchers(own_etcd) == 1, "one watch")
    for follower in follow_all(hub, [b"%d/" % number for number in range(STREAM_LIMIT)]):
        hub.unfollow(follower)
    wait_until(lambda: watchers(own_etcd) == 1, "only the watch that stays")
    client.put(b"7/key", b"")
    client.put(b"stays/key", b"")
    stays.wait_events(1)


def test_a_range_is_closed_from_within_its_own_callback(etcd: EtcdServer, opened: Opened) -> None:
    client = opened(etcd.endpoints)
    hub = client.hub()
    other = hub.follow(b"k/other/")
    once: list[Follower] = []
    once.append(
        hub.follow(b"k/once/", lambda news: once[0].watch.close() if not isinstance(news, WatchSnapshot) else None)
    )
    once[0].wait_listed()
    other.wait_listed()
    client.put(b"k/once/0", b"")
    once[0].wait_events(1)
    for number in range(1, 3):
        client.put(b"k/once/%d" % number, b"")
    client.put(b"k/other/1", b"")
    other.wait_events(1)
    assert len(once[0].events()) == 1


def test_a_refused_range_disturbs_no_other_and_is_taken_up_once_granted(guarded: EtcdServer, opened: Opened) -> None:
    client = opened(guarded.endpoints, user="app", password="first")  # noqa: S106
    hub = client.hub()
    refused = hub.follow(b"other/")
    assert "grant-permission" in refused.wait_lost(PermissionDenied).error.remedy
    allowed = hub.follow(b"app/")
    allowed.wait_listed()
    client.put(b"app/1", b"x")
    allowed.wait_events(1)
    assert hub.state.error is None
    assert not allowed.of(Disconnected)
    guarded.etcdctl("role", "grant-permission", "--prefix=true", "app", "readwrite", "other/", user=ADMIN)
    refused.wait_listed()
    client.put(b"other/1", b"y")
    refused.wait_events(1)
    client.put(b"app/2", b"x")
    allowed.wait_events(2)
    assert not allowed.of(Disconnected)


@pytest.mark.faults
def test_many_refused_ranges_are_tried_again_on_uvloop_without_a_fault(guarded: EtcdServer) -> None:
    """Where there is much to be tried again something is soon due at once, and uvloop's handle is another then."""
    faults, refused = list[Exception](), Counter[int]()

    async def follow() -> None:
        async with aio.Etcd(guarded.endpoints, user="app", password=WORD) as client:
            hub = client.watch_hub(on_error=lambda _key, error: faults.append(error))
            for number in range(REFUSED):
                hub.follow(b"other/%d/" % number, partial(take, number))
            hub.follow(b"app/", partial(take, REFUSED))
            await until(lambda: len(refused) == REFUSED)
            began = time.monotonic()
            await until(lambda: bool(faults) or time.monotonic() - began > 10.0)
            await hub.close()

    def take(number: int, news: WatchUpdate) -> None:
        refused.update([number] if isinstance(news, Disconnected) else [])

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(follow())
    assert not faults
    assert refused[REFUSED] == 0


def test_a_right_that_is_taken_while_the_stream_is_away_stops_its_range_only(
    guarded: EtcdServer, opened: Opened, closing: contextlib.ExitStack
) -> None:
    guarded.etcdctl("role", "grant-permission", "--prefix=true", "app", "readwrite", "other/", user=ADMIN)
    proxy = closing.enter_context(TcpProxy.start(guarded.members[0].endpoint))
    client = opened(proxy.address, user="app", password="first")  # noqa: S106
    hub = client.hub()
    first, second = hub.follow(b"other/"), hub.follow(b"app/")
    for follower in (first, second):
        follower.wait_listed()
    client.put(b"other/newest", b"")  # the newest record of all: the one that would prove the history
    first.wait_events(1)
    guarded.etcdctl("role", "revoke-permission", "--prefix=true", "app", "other/", user=ADMIN)
    proxy.cut()
    first.wait_lost(PermissionDenied)
    client.put(b"app/1", b"")
    second.wait_events(1)
    assert len(second.of(WatchSnapshot)) == 1
    guarded.etcdctl("role", "grant-permission", "--prefix=true", "app", "readwrite", "other/", user=ADMIN)
    first.wait_connected()
    client.put(b"other/2", b"")
    first.wait(lambda: set(first.view()) == {b"other/newest", b"other/2"}, "both")


@pytest.mark.faults
def test_ranges_that_come_after_authentication_was_enabled(own_etcd: EtcdServer, opened: Opened) -> None:
    client = opened(own_etcd.endpoints, user="root", password="secret")  # noqa: S106
    hub = client.hub()
    old = hub.follow(b"old/")
    old.wait_listed()
    wait_until(lambda: hub.state.connected, "connected")
    own_etcd.enable_auth("secret")
    new = hub.follow(b"new/")  # its watch is asked for on a stream that was opened by nobody in particular
    new.wait_listed()
    client.put(b"new/1", b"")
    client.put(b"old/1", b"")
    new.wait(lambda: set(new.view()) == {b"new/1"}, "the key, told as an event or in a second listing")
    old.wait_events(1)
    assert len(old.of(WatchSnapshot)) == 1


@pytest.mark.faults
def test_a_compacted_range_is_listed_again_and_no_other(opened: Opened, proxy: TcpProxy, writer: Etcd) -> None:
    hub = opened(proxy.address).hub()
    quiet, busy = follow_all(hub, [b"quiet/", b"busy/"])
    writer.put(b"quiet/1", b"")
    revision = writer.put(b"busy/1", b"")
    quiet.wait_events(1)
    busy.wait_events(1)
    proxy.refuse()
    busy.wait_lost(Unavailable)
    writer.compact(revision)
    writer.put(b"quiet/2", b"")
    proxy.heal()
    quiet.wait(lambda: set(quiet.view()) == {b"quiet/1", b"quiet/2"}, "both")
    busy.wait_connected()
    assert len(busy.of(WatchSnapshot)) == 1
    assert len(quiet.of(WatchSnapshot)) == 1 + len(
        [lost for lost in quiet.of(Disconnected) if isinstance(lost.error, Compacted)]
    )
    assert {listed.history for listed in quiet.of(WatchSnapshot)} == {0}


@pytest.mark.faults
def test_a_range_that_was_compacted_away_keeps_etcd_from_no_answer(
    opened: Opened, proxy: TcpProxy, writer: Etcd
) -> None:
    hub = opened(proxy.address).hub()
    quiet, busy = follow_all(hub, [b"quiet/", b"busy/"])
    revisions = [writer.put(b"busy/1", b"") for _ in range(3)]
    busy.wait_events(3)
    proxy.refuse()
    busy.wait_lost(Unavailable)
    writer.compact(revisions[-1])
    proxy.heal()
    quiet.wait_lost(Compacted)
    busy.wait_connected()
    revision = writer.put(b"busy/2", b"")
    hub.await_revision(quiet, revision)
    quiet.wait(lambda: quiet.state.revision >= revision, "all is known of the quiet one too")
    assert not [lost for lost in busy.of(Disconnected) if isinstance(lost.error, DeadlineExceeded)], (
        "the stream was not stuck"
    )


@pytest.mark.faults
def test_lost_data_are_told_to_every_range_as_another_history(own_etcd: EtcdServer, opened: Opened) -> None:
    writer = Etcd(own_etcd.endpoints)
    with writer:
        hub = opened(own_etcd.endpoints).hub()
        for number in range(20):
            writer.put(b"%d/old" % (number % 4), b"")
        followers = follow_all(hub, [b"%d/" % number for number in range(4)])
        own_etcd.restart(fresh=True)
        when_up(writer, b"2/new", b"")
        for number, follower in enumerate(followers):
            follower.wait(lambda follower=follower: follower.of(WatchSnapshot)[-1].history == 1, "another history")
            follower.wait(
                lambda follower=follower, number=number: set(follower.view()) == ({b"2/new"} if number == 2 else set()),
                "what there is now",
            )
            assert follower.wait_lost(HistoryChanged)
        late = hub.follow(b"late/")
        late.wait_listed()
        assert late.of(WatchSnapshot)[0].history == 1


@pytest.mark.faults
def test_an_older_copy_is_another_history_even_when_it_has_caught_up(
    own_etcd: EtcdServer, opened: Opened, proxy: TcpProxy, writer: Etcd, tmp_path: Path
) -> None:
    hub = opened(proxy.address).hub()
    first, empty = follow_all(hub, [b"first/", b"empty/"])
    writer.put(b"first/kept", b"")
    own_etcd.save(tmp_path / "copy")
    newest = when_up(writer, b"first/lost", b"")
    first.wait(lambda: b"first/lost" in first.view(), "the key that will be lost")
    proxy.refuse()
    own_etcd.load(tmp_path / "copy")
    revision = when_up(writer, b"elsewhere", b"")
    while revision < newest + 5:
        revision = writer.put(b"elsewhere", b"")
    proxy.heal()
    for follower in (first, empty):
        follower.wait(lambda follower=follower: follower.of(WatchSnapshot)[-1].history == 1, "another history")
    first.wait(lambda: set(first.view()) == {b"first/kept"}, "what there is now")


@pytest.mark.faults
def test_more_ranges_than_streams_are_allowed_and_calls_go_on(closing: contextlib.ExitStack, opened: Opened) -> None:
    server = closing.enter_context(EtcdServer.start(flags=[f"--max-concurrent-streams={STREAM_LIMIT}"]))
    client = opened(server.endpoints)
    hub = client.hub()
    for number in range(STREAM_LIMIT + 30):
        hub.follow(b"%d/" % number).wait_listed()
        client.put(b"%d/key" % number, b"")
    followers = [client.follow(b"single/%d/" % number) for number in range(STREAM_LIMIT)]  # fill the connection
    wait_until(lambda: all(follower.of(WatchSnapshot) for follower in followers), "all listed", 60)
    keeper = client.keep_alive(lambda _: None)
    keeper.add(client.lease(60), 60, remaining_seconds=0)
    client.put(b"still", b"works")
    keeper.close()


@pytest.mark.faults
@pytest.mark.parametrize("fault", ["cut", "kill"])
def test_a_break_resumes_every_range_where_it_was(
    own_etcd: EtcdServer, opened: Opened, proxy: TcpProxy, writer: Etcd, fault: str
) -> None:
    hub = opened(proxy.address).hub()
    followers = follow_all(hub, [b"%d/" % number for number in range(30)])
    for number in range(30):
        writer.put(b"%d/before" % number, b"")
    wait_until(lambda: all(follower.events() for follower in followers), "an event of each")
    proxy.refuse()
    if fault == "kill":
        own_etcd.restart()
    for number in range(30):
        when_up(writer, b"%d/meanwhile" % number, b"")
        writer.delete(b"%d/before" % number)
    proxy.heal()
    for number, follower in enumerate(followers):
        follower.wait_events(3)
        assert [key for key, _, _ in follower.events()] == [
            b"%d/before" % number,
            b"%d/meanwhile" % number,
            b"%d/before" % number,
        ]
        assert len(follower.of(WatchSnapshot)) == 1
        lost, faults = follower.of(Disconnected), Faults()
        assert lost
        assert all(faults.is_change(each.error) for each in lost), "no try is reported that fails as the one before"
        assert len({each.since for each in lost}) == 1
        follower.wait_connected()
        assert follower.of(Progress)


@pytest.mark.faults
def test_a_black_hole_is_noticed_by_all(opened: Opened, proxy: TcpProxy, writer: Etcd) -> None:
    hub = opened(proxy.address).hub(progress_seconds=2.0)
    followers = follow_all(hub, [b"%d/" % number for number in range(3)])
    wait_until(lambda: hub.state.connected, "connected")
    proxy.black_hole()
    writer.put(b"1/key", b"")
    for follower in followers:
        follower.wait_lost()
    assert not hub.state.connected
    proxy.heal()
    followers[1].wait_events(1)
    for follower in followers:
        follower.wait_connected()


def failing_once(kind: type) -> Callable[[WatchUpdate], None]:
    """Return a consumer that fails at the first news of a kind."""
    failed: list[WatchUpdate] = []

    def take(news: WatchUpdate) -> None:
        if isinstance(news, kind) and not failed:
            failed.append(news)
            raise RuntimeError("a consumer's own fault")

    return take


@pytest.mark.parametrize("kind", [WatchSnapshot, object])
def test_a_consumer_that_fails_is_told_all_again_and_no_other(etcd: EtcdServer, opened: Opened, kind: type) -> None:
    client = opened(etcd.endpoints)
    failures: list[tuple[bytes, Exception]] = []
    hub = client.hub(on_error=lambda key, error: failures.append((key, error)))
    other = hub.follow(b"k/other/")
    other.wait_listed()
    failing = hub.follow(b"k/failing/", failing_once(kind))
    failing.wait_listed(2)
    client.put(b"k/failing/1", b"x")
    client.put(b"k/other/1", b"")
    failing.wait(lambda: failing.view() == {b"k/failing/1": b"x"}, "the key")
    other.wait_events(1)
    assert [key for key, _ in failures] == [b"k/failing/"]
    assert len(other.of(WatchSnapshot)) == 1


def test_quiet_ranges_keep_up_with_a_busy_one(own_etcd: EtcdServer, opened: Opened, writer: Etcd) -> None:
    hub = opened(own_etcd.endpoints).hub(progress_seconds=0.5)
    quiet, busy = follow_all(hub, [b"quiet/", b"busy/"])
    revisions: list[int] = []

    def has_kept_up() -> bool:
        revisions.append(writer.put(b"busy/key", b""))
        return bool(quiet.state.revision > revisions[0] and len(busy.events()) > 1)

    quiet.wait(has_kept_up, "progress of the quiet range while the stream is never silent")


class FailingLink(Connection):
    """The way to a real etcd on which the first stream is not opened, for a reason that nobody foresaw."""

    def __init__(self, endpoints: str, failure: BaseException) -> None:
        super().__init__(make_dialer(endpoints, None), Credentials("", ""), 5.0)
        self.failures = [failure]

    async def stream(self, method: Method) -> Any:
        if self.failures:
            raise self.failures.pop()
        return await super().stream(method)


@pytest.mark.parametrize(
    "failure", [ZeroDivisionError("unforeseen"), asyncio.CancelledError()], ids=["fault", "cancel"]
)
async def test_a_stream_that_is_not_opened_for_whatever_reason_is_not_waited_for(
    etcd: EtcdServer, failure: BaseException
) -> None:
    link, news = FailingLink(etcd.endpoints, failure), list[WatchUpdate]()
    hub = WatchHub(link, 5.0, lambda _key, _error: None)
    hub.follow(b"k", news.append)
    await until(lambda: any(isinstance(each, Disconnected) for each in news))
    assert not any(isinstance(each, Disconnected) and isinstance(each.error, DeadlineExceeded) for each in news)
    await until(lambda: hub.state.connected)
    await hub.close()
    await link.close()


class NoThreadForTheStream(BlockingHub):
    """Lets no thread be started for its stream."""

    def _open(self, number: int) -> None:
        before = threading.stack_size(1 << 47)  # bytes, as much as a process has addresses: no thread can have it
        try:
            super()._open(number)
        finally:
            threading.stack_size(before)


def test_a_stream_that_no_thread_can_read_keeps_no_range_from_being_listed(etcd: EtcdServer) -> None:
    with Etcd(etcd.endpoints) as client:
        client.put(b"9/key", b"")
        blocking = client.watch_hub()
        blocking.__class__ = NoThreadForTheStream
        hub = Hub(blocking, lambda work: work())
        followers = [hub.follow(b"%d/" % number) for number in range(10)]
        followers[0].wait_lost(Unavailable)
        blocking.__class__ = BlockingHub
        for follower in followers:
            follower.wait_listed()
            follower.wait_connected()
        assert followers[9].view() == {b"9/key": b""}
