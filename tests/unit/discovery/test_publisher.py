"""The publisher: what goes wrong about one service is told there, and disturbs no other."""

import math
import threading
import time
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from grpc_etcd.client.stats import make_service_stats
from grpc_etcd.discovery.publisher import FollowedService, Publisher, Rendered, SentState, Wishes
from grpc_etcd.discovery.state import ResolverState, Source
from grpc_etcd.discovery.subscription import StateSource
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.policy import Policy, SlowStart
from grpc_etcd.registry.snapshot import Snapshot
from grpc_etcd.xds.hosts import HostNames
from grpc_etcd.xds.localities import Here
from testbed.conditions import wait_until

if TYPE_CHECKING:
    from grpc_etcd.xds.service import ServiceResources


class Given(StateSource):
    """A source that is told what it sees."""

    def start(self) -> None:
        """Nothing to do."""

    def show(self, *addresses: str) -> None:
        endpoints = tuple(Endpoint(name="x", address=address) for address in addresses)
        self._announce(ResolverState(Source.REGISTRY, Snapshot("x", 1, endpoints)))


class Counted(FollowedService):
    """A service that counts how often its addresses are looked through for host names."""

    looked_through = 0

    def hosts(self) -> set[str]:
        self.looked_through += 1
        return super().hosts()


class Published:
    """A publisher and what it has published."""

    def __init__(self) -> None:
        self.found: dict[str, ServiceResources] = {}
        self.publisher = Publisher(Here(), lambda service, made: self.found.update({service.name: made}), lambda: None)
        self.publisher.start()

    def service(self, name: str, *addresses: str) -> "Counted":
        feed = Given()
        feed.show(*addresses)
        service = Counted(name, lambda _: feed, self.publisher.changed)
        self.publisher.follow(service)
        return service


def test_a_service_that_cannot_be_rendered_disturbs_no_other_and_is_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    published = Published()
    bad, good = published.service("bad", "10.0.0.1:1"), published.service("good", "10.0.0.2:1")
    bad.wishes = Wishes(routes=(None,))  # type: ignore[arg-type]  # that is what is bad
    published.publisher.changed(bad)
    published.publisher.changed(good)
    wait_until(lambda: "good" in published.found, "the good one")
    wait_until(lambda: make_service_stats(bad).cause == "internal error", "the fault to be told")
    assert "bad" not in published.found
    assert "Traceback" in caplog.text
    bad.wishes = Wishes()
    wait_until(lambda: "bad" in published.found, "the next try")
    assert make_service_stats(bad).cause == "none"
    published.publisher.close()


def test_what_is_published_says_what_is_wrong_and_is_no_new_set_for_that(caplog: pytest.LogCaptureFixture) -> None:
    published = Published()
    service = published.service("greeter")
    published.publisher.changed(service)
    wait_until(lambda: "greeter" in published.found, "the empty set")
    assert "the registry has 0 endpoints" in published.found["greeter"].reason
    assert len([line for line in caplog.messages if "0 endpoints" in line]) == 1
    service.feed.names = ("greeters",)
    published.publisher.changed(service)
    wait_until(lambda: "did you mean greeters" in published.found["greeter"].reason, "the hint")
    assert service.updates == 1
    published.publisher.close()


def test_an_endpoint_whose_name_server_is_away_is_used_and_not_told_to_be_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    zone: dict[str, tuple[str, ...] | str] = {"greeter.internal": ("10.0.0.1",)}
    noticed = threading.Semaphore(0)
    names = HostNames(noticed.release, zone.__getitem__, refresh_seconds=0.01)
    service = Published().service("greeter", "greeter.internal:80")
    names.use(service.hosts())
    assert noticed.acquire(timeout=30)
    zone["greeter.internal"] = "no DNS server responds"
    assert noticed.acquire(timeout=30)
    made = service.render(names, Here())
    names.close()
    assert made is not None
    assert made.size == 1
    stats = make_service_stats(service)
    assert (stats.cause, stats.callable_endpoints, stats.unusable) == ("none", 1, {})
    assert "skipped" not in caplog.text


def test_endpoints_are_waited_for_until_a_name_server_knows_them() -> None:
    zone: dict[str, tuple[str, ...] | str] = {"greeter.internal": "no such name"}
    published = Published()
    publisher = published.publisher
    publisher._names = HostNames(publisher._names_changed, zone.__getitem__, refresh_seconds=0.01)
    service = published.service("greeter", "greeter.internal:80")
    assert not service.sent.has_endpoints(service.sent.view, 0), "nothing is known yet"
    publisher.changed(service)
    wait_until(lambda: service.unusable, "the fault of the name")
    wait_until(lambda: service.sent.has_endpoints(service.sent.view, 0), "the set to be sent")
    assert not service.sent.has_endpoints(service.sent.view, 1)
    zone["greeter.internal"] = ("10.0.0.1",)
    assert service.sent.wait_until(lambda view: service.sent.has_endpoints(view, 1), 30)
    publisher.close()


def test_who_looks_at_an_older_view_than_channels_have_has_no_endpoints_yet() -> None:
    """On asyncio nobody holds a lock: `wait_for_endpoints` returned a snapshot without the endpoints it waited for."""
    sent, older, newer = SentState(), *(ResolverState(Source.REGISTRY, Snapshot("x", each)) for each in (1, 2))
    sent.note_sent(Rendered(older, 0))
    sent.note_sent(Rendered(newer, 1))
    assert not sent.has_endpoints(older, 1)
    assert sent.has_endpoints(newer, 1)


def test_a_slow_start_has_no_shorter_pauses_than_changes_have() -> None:
    """Each step of each endpoint is an update of the whole set, which costs gRPC time and, with ring hash, memory."""
    sent: list[tuple[float, int]] = []
    publisher = Publisher(Here(), lambda _, made: sent.append((time.monotonic(), made.size)), lambda: None)
    feed = Given()
    feed.show("10.0.0.0:1")
    service = FollowedService("greeter", lambda _: feed, publisher.changed)
    service.wishes = Wishes(Policy(slow_start=SlowStart(window_seconds=5)))
    publisher.follow(service)
    publisher.start()
    for count in range(2, 42):
        publisher.changed(service)
        wait_until(lambda count=count: sent and sent[-1][1] >= count - 1, "the set before")
        feed.show(*(f"10.0.0.{number}:1" for number in range(count)))
    publisher.changed(service)
    wait_until(lambda: len(sent) > 70, "the steps of the slow start")
    publisher.close()
    pauses = [(after - before, size) for (before, size), (after, _) in pairwise(sent)]
    assert all(pause >= 0.01 + 0.0003 * size for pause, size in pauses)


class Restless(FollowedService):
    """A service that has changed again whenever it was looked at, and is the same as before."""

    def __init__(self, feed: Given, publisher: Publisher) -> None:
        super().__init__("greeter", lambda _: feed, publisher.changed)
        self.looks: list[tuple[float, float]] = []
        self._publisher = publisher

    def render(self, names: HostNames, here: Here) -> "ServiceResources | None":
        begun = time.monotonic()
        made = super().render(names, here)
        while time.monotonic() < begun + 0.005:  # as long as with a thousand endpoints
            pass
        self.looks.append((begun, time.monotonic()))
        self._publisher.changed(self)
        return made


def test_changes_that_change_nothing_take_no_more_than_a_fifth_of_a_core() -> None:
    publisher, feed = Publisher(Here(), lambda *_: None, lambda: None), Given()
    feed.show("10.0.0.1:1")
    service = Restless(feed, publisher)
    publisher.follow(service)
    publisher.start()
    publisher.changed(service)
    wait_until(lambda: len(service.looks) > 10, "some looks")
    publisher.close()
    assert all(after - ended >= 0.01 for (_, ended), (after, _) in pairwise(service.looks))


def test_a_service_that_is_followed_no_longer_is_published_no_more() -> None:
    """Else whoever follows it again begins with the set of long ago."""
    published = Published()
    gone, other = published.service("gone", "10.0.0.1:1"), published.service("other", "10.0.0.2:1")
    gone.feed.close()
    published.publisher.changed(gone)
    published.publisher.changed(other)
    wait_until(lambda: "other" in published.found, "the one that is followed")
    assert "gone" not in published.found
    published.publisher.close()


def test_a_service_is_held_by_whoever_holds_it_and_releasing_twice_is_once() -> None:
    service = Published().service("greeter")
    first, second = service.hold(), service.hold()
    assert service.pins == 2
    first()
    first()
    assert service.pins == 1
    second()
    assert service.pins == 0


def test_what_nobody_wants_any_more_is_not_put_up_again() -> None:
    published = Published()
    gone, other = published.service("gone", "10.0.0.1:1"), published.service("other", "10.0.0.2:1")
    published.publisher.leave(gone)
    published.publisher.changed(gone)
    published.publisher.changed(other)
    wait_until(lambda: "other" in published.found, "the other one")
    assert "gone" not in published.found
    published.publisher.close()


def test_a_set_that_waits_for_names_is_not_rendered_again_and_again() -> None:
    service = Published().service("greeter", "10.0.0.1:1")
    service.wishes = Wishes(Policy(slow_start=SlowStart(window_seconds=3600)))
    names, feed = HostNames(lambda: None), service.feed
    assert isinstance(feed, Given)
    assert service.render(names, Here())
    feed.show("10.0.0.1:1", "10.0.0.2:1")
    assert service.render(names, Here())
    assert service.due < math.inf
    feed.show("not-looked-up-yet:1")
    assert service.render(names, Here()) is None
    assert service.due == math.inf  # what is due already would be tried again at once, without end


def test_a_change_of_one_service_does_not_look_through_the_others_for_host_names() -> None:
    published = Published()
    named, other = published.service("named", "localhost:1"), published.service("other", "10.0.0.2:1")
    for service in (named, other):
        published.publisher.changed(service)
    wait_until(lambda: len(published.found) == 2, "both")
    before = other.looked_through
    for number in range(1, 6):
        feed = named.feed
        assert isinstance(feed, Given)
        feed.show("localhost:1", f"10.0.0.{number}:1")
        published.publisher.changed(named)
        wait_until(lambda number=number: published.found["named"].size >= 2 and named.updates > number, "the change")
    assert other.looked_through == before
    published.publisher.leave(named)
    published.publisher.changed(other)
    published.publisher.close()
