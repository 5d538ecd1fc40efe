"""What can go wrong between etcd and a list-watch, on real processes: nothing lost, twice, out of order, or silent."""

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest

from grpc_etcd.etcd import (
    Compacted,
    DeadlineExceeded,
    Disconnected,
    Etcd,
    HistoryChanged,
    NoLeader,
    Unavailable,
    WatchSnapshot,
    ops,
)
from testbed.conditions import wait_until
from testbed.etcd import EtcdServer, Member
from testbed.proxy import TcpProxy

from .conftest import Opened

pytestmark = pytest.mark.faults

# A dead peer is noticed by a ping after 10 s that is not answered within 5 s.
NOTICED_SECONDS = 20.0
QUIET_SECONDS = 35.0

T = TypeVar("T")
Event = tuple[bytes, bytes | None, int]


@pytest.fixture
def writer(own_etcd: EtcdServer, closing: contextlib.ExitStack) -> Etcd:
    return closing.enter_context(Etcd(own_etcd.endpoints))


@pytest.fixture
def proxy(own_etcd: EtcdServer, closing: contextlib.ExitStack) -> TcpProxy:
    return closing.enter_context(TcpProxy.start(own_etcd.members[0].endpoint))


def put_many(writer: Etcd, prefix: bytes, count: int, value: bytes = b"x") -> list[Event]:
    """Put keys and return the events that a watch owes for them."""
    return [(key, value, writer.put(key, value)) for key in (b"%s%06d" % (prefix, n) for n in range(count))]


def when_up(action: Callable[[], T]) -> T:
    """Do it as soon as etcd takes it."""

    def attempt() -> list[T]:
        try:
            return [action()]
        except (Unavailable, DeadlineExceeded):
            return []

    return wait_until(attempt, "etcd takes a write again")[0]


def test_kill_9_and_restart_with_writes_at_once(own_etcd: EtcdServer, opened: Opened, writer: Etcd) -> None:
    follower = opened(own_etcd.endpoints).follow(b"k/")
    follower.wait_listed()
    owed = put_many(writer, b"k/before/", 10)
    follower.wait_events(10)
    own_etcd.kill()
    lost = follower.wait_lost(Unavailable)
    assert not follower.state.connected
    assert follower.state.stale_since == lost.since
    own_etcd.restart()
    when_up(lambda: writer.get(b"k"))
    owed += put_many(writer, b"k/after/", 50)
    follower.wait_events(60)
    assert follower.events() == owed
    assert len(follower.of(WatchSnapshot)) == 1


def test_cut_with_writes_and_deletes_in_the_gap(opened: Opened, proxy: TcpProxy, writer: Etcd) -> None:
    follower = opened(proxy.address).follow(b"k/")
    follower.wait_listed()
    owed = put_many(writer, b"k/", 20)
    follower.wait_events(20)
    proxy.refuse()
    follower.wait_lost(Unavailable)
    owed += put_many(writer, b"k/gap/", 100)
    for number in range(20):
        assert writer.delete(b"k/%06d" % number)
        owed.append((b"k/%06d" % number, None, owed[-1][2] + 1))
    proxy.heal()
    follower.wait_events(140)
    assert follower.events() == owed
    assert follower.state.connected


def test_cut_before_the_first_event_loses_nothing(opened: Opened, proxy: TcpProxy, writer: Etcd) -> None:
    follower = opened(proxy.address).follow(b"k/")
    follower.wait_listed()
    proxy.refuse()
    follower.wait_lost(Unavailable)
    owed = put_many(writer, b"k/", 30)
    proxy.heal()
    follower.wait_events(30)
    assert follower.events() == owed


def test_half_open_connection_is_noticed(opened: Opened, proxy: TcpProxy, writer: Etcd) -> None:
    follower = opened(proxy.address).follow(b"k/")
    follower.wait_listed()
    end = time.monotonic() + QUIET_SECONDS
    wait_until(lambda: time.monotonic() > end, "a watch that has been quiet for more than two pings")
    proxy.black_hole()
    owed = put_many(writer, b"k/", 30)
    follower.wait_lost(Unavailable, 2 * NOTICED_SECONDS)
    assert not follower.state.connected
    proxy.heal()
    follower.wait_events(30)
    assert follower.events() == owed


class MutingProxy(grpc.GenericRpcHandler):
    """Stands before etcd as a proxy for gRPC, and may keep to itself what a watch is told."""

    def __init__(self, upstream: str, closing: contextlib.ExitStack) -> None:
        self._channel = closing.enter_context(grpc.insecure_channel(upstream))
        self.is_mute = False
        self.streams = 0
        pool = closing.enter_context(futures.ThreadPoolExecutor())
        server = grpc.server(pool, handlers=[self])
        self.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        closing.callback(lambda: server.stop(0).wait())

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = handler_call_details.method
        if method.endswith("/Watch"):
            return grpc.stream_stream_rpc_method_handler(partial(self._watch, method))
        return grpc.unary_unary_rpc_method_handler(lambda request, _: self._channel.unary_unary(method)(request))

    def _watch(self, method: str, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        self.streams += 1
        call: grpc.StreamStreamMultiCallable[bytes, bytes] = self._channel.stream_stream(method)
        upstream = call(requests)

        def cancel() -> None:
            upstream.cancel()

        context.add_callback(cancel)
        with contextlib.suppress(grpc.RpcError):
            yield from (reply for reply in upstream if not self.is_mute)


def test_a_watch_that_falls_silent_is_opened_anew(
    own_etcd: EtcdServer, opened: Opened, writer: Etcd, closing: contextlib.ExitStack
) -> None:
    """The connection is well and unary calls are answered, so nothing but etcd's revision tells of it."""
    proxy = MutingProxy(own_etcd.endpoints, closing)
    follower = opened(proxy.address).follow(b"k/", progress_seconds=1)
    follower.wait_listed()
    owed = put_many(writer, b"k/a", 3)
    follower.wait_events(3)
    proxy.is_mute = True
    owed += put_many(writer, b"k/b", 3)
    follower.wait_lost(DeadlineExceeded)
    follower.wait(lambda: proxy.streams > 2, "an opening that is not answered either ends as well")
    assert not follower.state.connected
    proxy.is_mute = False
    follower.wait_events(6)
    assert follower.events() == owed


def test_an_etcd_in_which_nothing_happens_is_no_fault(own_etcd: EtcdServer, opened: Opened, writer: Etcd) -> None:
    """Such an etcd does not answer even progress requests: its revision is below that which the watch waits for."""
    follower = opened(own_etcd.endpoints).follow(b"k/", progress_seconds=0.5)
    follower.wait_listed()
    end = time.monotonic() + NOTICED_SECONDS
    wait_until(lambda: time.monotonic() > end, "a silence in which a stuck stream would be noticed")
    assert follower.state.connected
    assert not follower.of(Disconnected)
    writer.put(b"k/1", b"x")
    follower.wait_events(1)


def test_frozen_server_is_noticed(own_etcd: EtcdServer, opened: Opened, writer: Etcd) -> None:
    follower = opened(own_etcd.endpoints).follow(b"k/")
    follower.wait_listed()
    owed = put_many(writer, b"k/a/", 5)
    follower.wait_events(5)
    own_etcd.pause()
    follower.wait_lost(Unavailable, 2 * NOTICED_SECONDS)
    own_etcd.resume()
    when_up(lambda: writer.get(b"k"))
    owed += put_many(writer, b"k/b/", 20)
    follower.wait_events(25)
    assert follower.events() == owed


def test_compaction_in_the_gap_lists_again(opened: Opened, proxy: TcpProxy, writer: Etcd) -> None:
    follower = opened(proxy.address).follow(b"k/")
    follower.wait_listed()
    put_many(writer, b"k/", 10)
    follower.wait_events(10)
    proxy.refuse()
    follower.wait_lost(Unavailable)
    put_many(writer, b"k/", 10, b"y")
    writer.delete(b"k/000000")
    writer.compact(writer.put(b"k/last", b"z"))
    proxy.heal()
    follower.wait_listed(2)
    assert follower.of(Disconnected)[-1].error.__class__ is Compacted
    expected = {record.key: record.value for record in writer.get_prefix(b"k/").records}
    assert follower.view() == expected
    put_many(writer, b"k/later/", 3)
    follower.wait(lambda: len(follower.view()) == len(expected) + 3, "events after the second listing")


def test_a_start_below_the_compaction_lists(opened: Opened, proxy: TcpProxy, writer: Etcd) -> None:
    writer.put(b"k/1", b"old")
    writer.compact(writer.put(b"k/1", b"new"))
    follower = opened(proxy.address).follow(b"k/", start_revision=1)
    follower.wait_lost(Compacted)
    follower.wait_listed()
    assert follower.view() == {b"k/1": b"new"}
    writer.put(b"k/2", b"later")
    follower.wait_events(1)


def test_a_start_beyond_the_history_lists(opened: Opened, proxy: TcpProxy, writer: Etcd) -> None:
    """As after a restored snapshot: that revision may come some day, with something else in it."""
    now = writer.put(b"k/1", b"x")
    follower = opened(proxy.address).follow(b"k/", start_revision=now + 100)
    follower.wait_lost(HistoryChanged)
    follower.wait_listed()
    assert follower.view() == {b"k/1": b"x"}


def test_quorum_lost_and_regained(etcd_cluster: EtcdServer, opened: Opened, closing: contextlib.ExitStack) -> None:
    """The client sits on the member that survives: only `hasleader` makes that one speak up."""
    survivor = etcd_cluster.members[0]
    follower = opened(survivor.endpoint).follow(b"k/")
    follower.wait_listed()
    for member in etcd_cluster.members[1:]:
        member.kill()
    follower.wait_lost(NoLeader)
    for member in etcd_cluster.members[1:]:
        member.process.start()
    writer = closing.enter_context(Etcd(etcd_cluster.endpoints))
    when_up(lambda: writer.put(b"ready", b""))
    owed = put_many(writer, b"k/", 20)
    follower.wait_events(20)
    assert follower.events() == owed


def test_leader_killed(etcd_cluster: EtcdServer, opened: Opened, closing: contextlib.ExitStack) -> None:
    client = opened(etcd_cluster.endpoints)
    writer = closing.enter_context(Etcd(etcd_cluster.endpoints))
    follower = client.follow(b"k/")
    follower.wait_listed()
    owed = put_many(writer, b"k/a/", 20)
    leader = writer.status().leader_id
    (killed,) = [member for member in etcd_cluster.members if member_id(member) == leader]
    killed.kill()
    when_up(lambda: writer.put(b"ready", b""))
    owed += put_many(writer, b"k/b/", 50)
    follower.wait_events(70)
    assert follower.events() == owed
    killed.restart()


def member_id(member: Member) -> int:
    with Etcd(member.endpoint) as client:
        return client.status().member_id


@pytest.mark.parametrize("cuts", [4])
def test_catch_up_of_thousands_of_revisions_cut_in_the_middle(
    opened: Opened, proxy: TcpProxy, writer: Etcd, cuts: int
) -> None:
    follower = opened(proxy.address).follow(b"k/")
    follower.wait_listed()
    proxy.refuse()
    follower.wait_lost(Unavailable)
    owed = put_many(writer, b"k/", 5000, b"x" * 500)
    proxy.heal()
    for part in range(1, cuts + 1):
        follower.wait_events(part * 5000 // (cuts + 2))
        proxy.cut()
    follower.wait_events(5000)
    assert follower.events() == owed
    assert len(follower.of(WatchSnapshot)) == 1


def test_one_reply_larger_than_4_mb(opened: Opened, proxy: TcpProxy, writer: Etcd) -> None:
    follower = opened(proxy.address).follow(b"k/")
    follower.wait_listed()
    proxy.refuse()
    follower.wait_lost(Unavailable)
    owed = put_many(writer, b"k/", 12, b"x" * 1_000_000)
    proxy.heal()
    follower.wait_events(12)
    assert follower.events() == owed
    listed = opened(proxy.address).follow(b"k/")
    listed.wait_listed()
    (first, *_) = listed.news
    assert isinstance(first, WatchSnapshot)
    assert len(first.records) == 12


def test_a_lease_with_100_000_keys_revoked(own_etcd: EtcdServer, opened: Opened, writer: Etcd) -> None:
    lease = writer.lease(600)
    keys = [b"k/%06d" % number for number in range(100_000)]
    for start in range(0, len(keys), 100):
        writer.transaction([], [ops.put(key, b"x", lease) for key in keys[start : start + 100]])
    client = opened(own_etcd.endpoints)
    follower = client.follow(b"k/")
    follower.wait_listed()
    (first, *_) = follower.news
    assert isinstance(first, WatchSnapshot)
    assert len(first.records) == 100_000
    with contextlib.suppress(Unavailable, DeadlineExceeded):  # a slow machine needs longer than the server waits
        writer.revoke(lease)
    follower.wait_events(100_000)
    assert [event[0] for event in follower.events()] == keys
    assert {event[1] for event in follower.events()} == {None}
    assert follower.view() == {}


@pytest.mark.parametrize("position", [0, 1])
def test_one_of_the_endpoints_is_dead(own_etcd: EtcdServer, opened: Opened, writer: Etcd, position: int) -> None:
    with TcpProxy.start(own_etcd.members[0].endpoint) as dead:
        dead.refuse()
        endpoints = [own_etcd.members[0].endpoint]
        endpoints.insert(position, dead.address)
        client = opened(endpoints)
        for number in range(20):
            client.put(b"k/%d" % number, b"")
        follower = client.follow(b"k/")
        follower.wait_listed()
        writer.put(b"k/new", b"")
        follower.wait_events(1)
        assert not follower.of(Disconnected)


def test_etcd_restored_from_an_old_backup(own_etcd: EtcdServer, opened: Opened, tmp_path: Path) -> None:
    """Revisions go back: a watch from the old revision would wait for ever."""
    client = opened(own_etcd.endpoints)
    client.put(b"k/old", b"1")
    own_etcd.save(tmp_path)
    when_up(lambda: client.put(b"k/lost", b"2"))
    follower = client.follow(b"k/")
    follower.wait_listed()
    for number in range(50):
        client.put(b"k/%d" % number, b"")
    follower.wait_events(50)
    own_etcd.load(tmp_path)
    follower.wait_listed(2)
    follower.wait_lost(HistoryChanged)
    assert follower.view() == {b"k/old": b"1"}
    client.put(b"k/new", b"3")
    follower.wait(lambda: b"k/new" in follower.view(), "the new history is followed")


def test_etcd_restored_and_already_past_the_revision_that_was_seen(
    own_etcd: EtcdServer, opened: Opened, tmp_path: Path, closing: contextlib.ExitStack
) -> None:
    """The new history has caught up while the client was cut off: only the proof of rule 3 explains to them apart."""
    writer = closing.enter_context(Etcd(own_etcd.endpoints))
    writer.put(b"k/old", b"1")
    own_etcd.save(tmp_path)
    proxy = closing.enter_context(TcpProxy.start(own_etcd.members[0].endpoint))
    follower = opened(proxy.address).follow(b"k/")
    follower.wait_listed()
    when_up(lambda: writer.put(b"k/lost", b"2"))
    follower.wait_events(1)
    proxy.refuse()
    own_etcd.load(tmp_path)
    when_up(lambda: writer.put(b"k/new", b"3"))
    for number in range(50):
        writer.put(b"other/%d" % number, b"")
    proxy.heal()
    follower.wait_listed(2)
    assert follower.view() == {b"k/old": b"1", b"k/new": b"3"}


def test_etcd_replaced_by_an_empty_one(own_etcd: EtcdServer, opened: Opened) -> None:
    client = opened(own_etcd.endpoints)
    client.put(b"k/1", b"1")
    follower = client.follow(b"k/")
    follower.wait_listed()
    own_etcd.restart(fresh=True)
    follower.wait_listed(2)
    assert follower.view() == {}
    when_up(lambda: client.put(b"k/2", b"2"))
    follower.wait(lambda: follower.view() == {b"k/2": b"2"}, "the new etcd is followed")


RANDOM_SECONDS = 60


@pytest.mark.timeout(300)
def test_a_minute_of_random_faults(
    opened: Opened, closing: contextlib.ExitStack, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kills, freezes, cuts, refusals and black holes under a steady writer: events seen == writes acknowledged.

    RANDOM_FAULTS_SEED in the environment repeats a run's faults.
    """
    seed = int(os.environ.get("RANDOM_FAULTS_SEED") or random.randrange(1 << 32))  # noqa: S311  no secret
    with capsys.disabled():
        print(f" seed {seed} ", end="", flush=True)  # noqa: T201  also where the test passes
    dice = random.Random(seed)  # noqa: S311
    server = closing.enter_context(EtcdServer.start())
    proxy = closing.enter_context(TcpProxy.start(server.members[0].endpoint))
    writer = closing.enter_context(Etcd(server.endpoints, timeout_seconds=2))
    follower = opened(proxy.address).follow(b"k/")
    follower.wait_listed()
    acknowledged = write_under_faults(writer, server, proxy, dice)
    server.resume()
    proxy.heal()
    last = (b"k/last", b"", when_up(lambda: writer.put(b"k/last", b"")))
    follower.wait(lambda: last in follower.events(), f"the last event (seed {seed})")

    def is_level() -> bool:
        """What a frozen server had received and not yet written may come even after the last write."""
        stored = [(record.key, record.value, record.mod_revision) for record in writer.get_prefix(b"k/").records]
        return sorted(follower.events()) == sorted(stored)

    follower.wait(is_level, f"seen is what etcd holds (seed {seed})")
    events = follower.events()
    revisions = [event[2] for event in events]
    assert revisions == sorted(set(revisions)), f"seed {seed}: twice or out of order"
    assert set(acknowledged) <= set(events), f"seed {seed}: lost"
    assert len(follower.of(WatchSnapshot)) == 1
    assert len(acknowledged) > 1000


def write_under_faults(writer: Etcd, server: EtcdServer, proxy: TcpProxy, dice: random.Random) -> list[Event]:
    """Write keys that are put once, while faults come and go; return the acknowledged ones."""
    acknowledged: list[Event] = []
    end = time.monotonic() + RANDOM_SECONDS
    healing = 0.0
    heal: Callable[[], None] = proxy.heal
    number = 0
    while time.monotonic() < end:
        if time.monotonic() >= healing:
            heal()
            wait, heal = break_something(server, proxy, dice)
            healing = time.monotonic() + wait
        key = b"k/%07d" % number
        number += 1
        try:
            acknowledged.append((key, b"v", writer.put(key, b"v")))
        except (Unavailable, DeadlineExceeded):
            time.sleep(0.05)  # the server is away: paces the writer, waits for nothing
    heal()
    return acknowledged


def break_something(server: EtcdServer, proxy: TcpProxy, dice: random.Random) -> tuple[float, Callable[[], None]]:
    """Break one thing; return how long, and what mends it."""
    match dice.choice(["kill", "freeze", "cut", "refuse", "swallow", "nothing"]):
        case "kill":
            server.kill()
            return dice.uniform(0.1, 2), server.restart
        case "freeze":
            server.pause()
            return dice.uniform(0.1, 5), server.resume
        case "cut":
            proxy.cut()
            return dice.uniform(0.1, 1), proxy.heal
        case "refuse":
            proxy.refuse()
            return dice.uniform(0.1, 3), proxy.heal
        case "swallow":
            proxy.black_hole()
            return dice.uniform(0.1, 6), proxy.heal
        case _:
            return dice.uniform(0.5, 2), proxy.heal
