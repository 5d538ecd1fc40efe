"""Following: what goes wrong with one service, or one channel, leaves nothing behind and costs no other anything."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from grpc_etcd import CompoundRegistry, Endpoint
from grpc_etcd.discovery.registry_watch import SharedRange
from grpc_etcd.discovery.state import SYNCED
from grpc_etcd.etcd import Disconnected, PermissionDenied, Progress, Revision, WatchSnapshot, WatchUpdate
from grpc_etcd.memory.hub import MemorySubscription
from grpc_etcd.testing import MemoryEtcd, MemoryRegistry
from testbed.conditions import until, wait_until
from testbed.greeter import say_hello


class Denying(MemoryEtcd):
    """Lets nobody read providers."""

    def introduce(self, subscription: MemorySubscription) -> None:
        if subscription.holds(b"/jupiter/greeter/providers/"):
            subscription.put(Disconnected(PermissionDenied("permission denied"), time.time()))
        else:
            super().introduce(subscription)


def test_a_first_call_does_not_wait_for_what_may_not_be_read() -> None:
    with MemoryRegistry(Denying()) as registry, registry.insecure_channel("greeter") as channel:
        wait_until(lambda: registry.stats()["greeter"].cause == "permission denied", "the refusal")
        assert registry.is_policy_known("greeter")
        with pytest.raises(grpc.RpcError) as failed:
            say_hello(channel)("x")
        assert "denies reading /jupiter/greeter/" in str(failed.value.details())


async def test_nor_does_one_on_asyncio() -> None:
    with MemoryRegistry(Denying()) as registry:
        async with registry.aio.insecure_channel("greeter") as channel:
            await until(lambda: registry.stats()["greeter"].cause == "permission denied")
            with pytest.raises(grpc.RpcError) as failed:
                await say_hello(channel)("x")
            assert "denies reading /jupiter/greeter/" in str(failed.value.details())


def test_a_closed_part_is_said_each_time_and_leaves_nothing_half_followed() -> None:
    closed = MemoryRegistry()
    closed.close()
    with MemoryRegistry() as part, CompoundRegistry([part, closed]) as both:
        for _ in range(2):
            with pytest.raises(ValueError, match="cannot be used any more"):
                both.endpoints("greeter", 0.1)
        assert dict(both.stats()) == {}
        assert not part.stats()["greeter"].wanted


def test_a_channel_that_cannot_be_made_holds_no_service() -> None:
    with MemoryRegistry() as registry:
        options: Any = [("grpc.max_send_message_length", object())]
        with pytest.raises(TypeError):
            registry.insecure_channel("greeter", options)
        assert not registry.stats()["greeter"].wanted
        assert registry.ready()
    assert not registry.ready(), "it has been closed"
    with MemoryRegistry() as part, CompoundRegistry([part]) as both, part.select(metadata={"version": "v2"}) as some:
        assert both.ready()
        assert some.ready()
    assert not both.ready()
    assert not some.ready()


class Hub:
    """A hub whose news the test tells."""

    def __init__(self) -> None:
        self.tell: Callable[[WatchUpdate], None] = lambda _: None
        self.awaited: list[int] = []

    def follow(self, _prefix: bytes, on_update: Callable[[WatchUpdate], None]) -> "Hub":
        self.tell = on_update
        return self

    def await_revision(self, revision: int) -> None:
        self.awaited.append(revision)


def test_progress_of_a_shared_range_is_told_to_who_awaits_it_and_costs_no_other() -> None:
    hub: Any = Hub()
    shared = SharedRange(SYNCED, hub)
    heard: dict[str, list[WatchUpdate]] = {"one": [], "other": []}
    for name, news in heard.items():
        shared.join(name, news.append)
    hub.tell(WatchSnapshot((), Revision(5), 0))
    shared.await_revision("one", 7)
    hub.tell(Progress(Revision(6)))  # as etcd tells from time to time: for all
    hub.tell(Progress(Revision(7)))
    assert hub.awaited == [7]
    assert heard["one"][1:] == [Progress(Revision(6)), Progress(Revision(7))]
    assert heard["other"][1:] == [Progress(Revision(6))]
    hub.tell(Progress(Revision(8)))
    assert heard["one"][-1] == heard["other"][-1] == Progress(Revision(8))
    shared.await_revision("one", 9)
    shared.leave("one")
    hub.tell(Progress(Revision(9)))
    assert heard["other"][-1] == Progress(Revision(9))


def test_all_who_share_a_range_are_told_that_it_is_watched_again() -> None:
    hub: Any = Hub()
    shared = SharedRange(SYNCED, hub)
    heard: dict[str, list[WatchUpdate]] = {"one": [], "other": []}
    for name, news in heard.items():
        shared.join(name, news.append)
    hub.tell(WatchSnapshot((), Revision(5), 0))
    shared.await_revision("one", 5)
    hub.tell(resumed := Progress(Revision(5), store=Revision(9)))
    assert heard["one"][-1] == heard["other"][-1] == resumed


def test_the_loss_of_an_endpoint_is_news_for_its_own_service_alone() -> None:
    """Many lose endpoints at once, and each is judged."""
    services = [f"service-{number}" for number in range(20)]
    with MemoryRegistry() as registry, ThreadPoolExecutor(len(services)) as pool:
        for service in services:
            registry.set_endpoints(service, "10.0.0.1:1", "10.0.0.2:1")
        for service in services:
            registry.wait_for_endpoints(service, 30, at_least=2)
        list(pool.map(lambda service: registry.set_endpoints(service, "10.0.0.1:1"), services))
        for service in services:
            wait_until(lambda service=service: len(registry.endpoints(service).endpoints) == 1, service)


def test_changes_that_wait_for_one_another_are_judged_together() -> None:
    """A set of 10,000 takes 6 ms to judge: one that changes 1,000 times a second would be received minutes late."""
    may_go_on = threading.Event()
    with MemoryRegistry() as registry, registry.pinned("greeter") as followed:
        registry.set_endpoints("greeter", "10.0.0.1:1")
        registry.wait_for_endpoints("greeter", 30)
        with followed.feed.notifying(lambda: may_go_on.wait(60)):
            for number in range(300):
                registry.set_endpoints("greeter", *(f"10.0.{each}.1:1" for each in range(number % 20 + 1)))
            before = followed.feed.changes
            may_go_on.set()
            wait_until(lambda: len(registry.endpoints("greeter", 30).endpoints) == 20, "the last known endpoints")
        assert followed.feed.changes - before < 10


def test_a_selection_that_nothing_matches_says_what_it_asks_for() -> None:
    with MemoryRegistry() as registry:
        registry.set_endpoints("greeter", Endpoint(name="greeter", address="10.0.0.1:1", metadata={"version": "v1"}))
        selection = registry.select(metadata={"version": "v2"})
        assert selection.endpoints("greeter", 30).endpoints == ()
        with pytest.raises(TimeoutError, match=r"0 endpoints under /jupiter/greeter/ .* with the metadata .*v2"):
            selection.wait_for_endpoints("greeter", 0.1)


async def test_who_waited_for_several_learns_how_many_there_are_and_what_keeps_the_others_out() -> None:
    disabled = Endpoint(name="greeter", address="10.0.0.2:1", enable=False)
    with MemoryRegistry() as registry:
        registry.set_endpoints("greeter", "10.0.0.1:1", disabled)
        registry.memory.put(b"/jupiter/greeter/providers/grpc://10.0.0.3:1", b"no JSON")
        registry.wait_for_endpoints("greeter", 30)
        wait_until(lambda: registry.stats()["greeter"].rejected, "the broken record is known")
        said = r"calls can go to 1 of at least 3 endpoints .*//10\.0\.0\.3:1 \(.*JSON.*10\.0\.0\.2:1 \(disabled\)"
        with pytest.raises(TimeoutError, match=said):
            registry.wait_for_endpoints("greeter", 0.1, at_least=3)
        with pytest.raises(TimeoutError, match=said):
            await registry.aio.wait_for_endpoints("greeter", 0.1, at_least=3)
        with registry.outage():
            wait_until(lambda: registry.stats()["greeter"].reason, "the outage is known")
            with pytest.raises(TimeoutError, match=r"1 of at least 3 .*last known endpoints"):
                registry.wait_for_endpoints("greeter", 0.1, at_least=3)


def test_several_registries_name_what_is_nearly_the_same_in_one_of_them() -> None:
    with MemoryRegistry() as here, MemoryRegistry() as there, CompoundRegistry([here, there]) as both:
        there.set_endpoints("greeters", "10.0.0.1:1")
        with both.pinned("greeter") as followed:
            wait_until(lambda: "did you mean greeters" in followed.explain(0), "the hint")


class SlowWatch:
    """A watch of which a thread is in a call to etcd, for which whoever closes it waits."""

    def __init__(self, watch: Any) -> None:
        self._watch, self.waited = watch, threading.Event()

    def __next__(self) -> WatchUpdate:
        news: WatchUpdate = next(self._watch)
        return news

    def begin_close(self) -> None:
        self._watch.close()

    def close(self) -> None:
        self._watch.close()
        self.waited.set()


class SlowToClose(MemoryEtcd):
    def list_watch(self, *prefixes: bytes) -> Any:
        self.made = SlowWatch(super().list_watch(*prefixes))
        return self.made


async def test_whoever_ends_watching_all_services_on_asyncio_waits_for_no_thread() -> None:
    """The event loop stood still for as long as etcd took to answer, or its timeout."""
    etcd = SlowToClose()
    registry = MemoryRegistry(etcd)
    watch = registry.aio.watch_all()
    assert dict(await anext(watch)) == {}
    await watch.aclose()  # type: ignore[attr-defined]  # it is a generator
    assert not etcd.made.waited.is_set()
    await registry.aio.close()
