"""The ADS server and clients that misbehave: none costs another anything, and one that does not read no memory."""

import base64
import json
import queue
import threading
from collections import Counter
from collections.abc import Iterable, Iterator

import grpc
import pytest

from grpc_etcd.client.ads import serve
from grpc_etcd.registry.endpoint import Endpoint
from grpc_etcd.registry.policy import Policy
from grpc_etcd.testing import MemoryRegistry
from grpc_etcd.xds import wire
from grpc_etcd.xds.admission import MOST_NAMES
from grpc_etcd.xds.ads_stream import Refusal
from grpc_etcd.xds.localities import Dialable, Here
from grpc_etcd.xds.names import ResourceName, ServiceName
from grpc_etcd.xds.resource_cache import ResourceCache
from grpc_etcd.xds.resources import ASSIGNMENT, CLUSTER, LISTENER, Socket
from grpc_etcd.xds.retries import write_retries
from grpc_etcd.xds.server import AdsServer, Listener
from grpc_etcd.xds.service import MethodRoute, ServiceResources, make_service_resources
from testbed.conditions import wait_until

METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
LARGE = 1 << 20  # bytes: far more than gRPC holds for who does not read
UPDATES = 60


class Numbered:
    """A resource that says which one it is."""

    is_known = True

    def __init__(self, resource_cache: "Board", number: int, size: int) -> None:
        self._resource_cache, self._number, self._size = resource_cache, number, size

    def answer(self, _type_url: str, _requested: str, name: ResourceName) -> bytes:
        self._resource_cache.answers[name.owner.service] += 1
        return wire.text(1, f"<{self._number}>{'x' * self._size}")

    def spared(self) -> None:
        pass

    def plain(self) -> "Numbered":
        return self


class Board:
    """A board with two services, a large one and a small one."""

    def __init__(self) -> None:
        self.answers: Counter[str] = Counter()
        self._sizes = {"large": LARGE, "small": 1}
        self._found = {name: Numbered(self, 0, size) for name, size in self._sizes.items()}
        self.listeners: dict[str, Listener] = {}

    def put(self, service: str, number: int) -> None:
        self._found[service] = Numbered(self, number, self._sizes[service])
        self.listeners[service].wake()

    def look_up(self, owner: ServiceName) -> Numbered:
        return self._found[owner.service]

    def join(self, owner: ServiceName, listener: Listener) -> bool:
        self.listeners[owner.service] = listener
        return False

    def leave(self, owner: ServiceName, listener: Listener) -> None:
        pass

    def refused(self, refusals: Iterable[Refusal]) -> None:
        pass


def follow(channel: grpc.Channel, service: str, over: threading.Event) -> Iterator[bytes]:
    def requests() -> Iterator[bytes]:
        yield wire.text(3, service) + wire.text(4, ASSIGNMENT)
        over.wait(120)

    method: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(METHOD)
    return method(requests())


def read_until(replies: Iterator[bytes], number: int) -> None:
    while f"<{number}>".encode() not in next(replies):
        pass


@pytest.mark.parametrize("threads", [False, True], ids=["batches", "threads"])
def test_a_client_that_does_not_read_is_told_the_newest_alone(threads: bool) -> None:  # noqa: FBT001 - drawn
    resource_cache, over = Board(), threading.Event()
    server = AdsServer("127.0.0.1:0", resource_cache, threads=threads)
    with (
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        grpc.insecure_channel(f"127.0.0.1:{server.port}", [("grpc.use_local_subchannel_pool", 1)]) as other,
    ):
        silent, reading = follow(channel, "large", over), follow(other, "small", over)
        read_until(reading, 0)
        wait_until(lambda: "large" in resource_cache.listeners, "the client that does not read")
        for number in range(1, UPDATES):
            resource_cache.put("large", number)
            resource_cache.put("small", number)
            read_until(reading, number)  # one thread speaks for all: it has been through the other's news
        assert resource_cache.answers["large"] < UPDATES / 2
        read_until(silent, UPDATES - 1)
        over.set()
    server.stop()


def request(*names: str, nonce: str = "", refusal: str = "", type_url: str = LISTENER) -> bytes:
    status = wire.message(6, wire.text(2, refusal)) if refusal else b""
    return b"".join(wire.text(3, name) for name in names) + wire.text(4, type_url) + wire.text(5, nonce) + status


class Client:
    """Speaks as it is told, and keeps the answers."""

    def __init__(self, port: int) -> None:
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)])
        self._said: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        method: grpc.StreamStreamMultiCallable[bytes, bytes] = self._channel.stream_stream(METHOD)
        self._replies = method(iter(self._said.get, None))
        self.heard: list[bytes] = []
        self.is_over = False
        self.end: grpc.StatusCode | None = None
        threading.Thread(target=self._listen, daemon=True).start()

    def say(self, *messages: bytes) -> None:
        for message in messages:
            self._said.put(message)

    def answer(self, *names: str, refusal: str = "") -> None:
        nonce = next(bytes(value).decode() for field, value in wire.read_fields(self.heard[-1]) if field == 5)
        self.say(request(*names, nonce=nonce, refusal=refusal))

    def _listen(self) -> None:
        try:
            self.heard.extend(self._replies)
        except grpc.RpcError as error:
            self.end = error.code()
        self.is_over = True

    def close(self) -> None:
        self._said.put(None)
        self._channel.close()


def many_retries(count: int) -> str:
    rows = [[f"/a.B/m{number}"] for number in range(count)]
    return base64.urlsafe_b64encode(json.dumps(rows).encode()).decode().rstrip("=")


HOSTILE = {
    "a number without end": (b"\xff" * 1_000_000,),
    "more fields than names": (b"\x08\x01" * (8 << 20),),
    "a long refusal of many names": (
        request(*(f"s{number}" for number in range(2000))),
        request(*(f"s{number}" for number in range(2000)), nonce="1", refusal="default/x " * 300_000),
    ),
    "a virtual host without end": (request("s"), request("s", nonce="1", refusal=f"virtual_hosts[{'9' * 5000}]")),
    "retries of very many methods": (request(f"default/s/retries/{many_retries(300_000)}"),),
}


@pytest.mark.parametrize("messages", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_client_that_says_what_none_should_keeps_no_other_waiting(messages: tuple[bytes, ...]) -> None:
    server = AdsServer("127.0.0.1:0", ResourceCache())
    hostile, other = Client(server.port), Client(server.port)
    other.say(request("first"))
    wait_until(lambda: other.heard, "an answer before")
    hostile.say(*messages, request("last"))
    wait_until(lambda: hostile.is_over or b"last" in b"".join(hostile.heard), "the end of what it says", 25)
    other.answer("first", "second")
    wait_until(lambda: len(other.heard) > 1, "an answer afterwards", 25)
    for client in (hostile, other):
        client.close()
    server.stop()


def test_a_client_that_asks_for_services_without_end_keeps_no_other_waiting() -> None:
    """Each is followed, which costs every thread something; what others follow must not wait until all are."""
    names = [f"none-{number}" for number in range(20_000)]
    with MemoryRegistry() as registry:
        registry.set_endpoints("greeter", "127.0.7.1:1")
        server = serve("127.0.0.1:0", registry)
        hostile, other = Client(server.port), Client(server.port)
        other.say(request("greeter", type_url=ASSIGNMENT))
        wait_until(lambda: b"127.0.7.1" in b"".join(other.heard), "the first endpoint")
        hostile.say(request(*names, type_url=ASSIGNMENT))
        wait_until(lambda: len(registry.stats()) > 1, "the first of so many services to be followed")
        registry.set_endpoints("greeter", "127.0.7.2:1")
        wait_until(lambda: b"127.0.7.2" in b"".join(other.heard), "the next endpoint", 120)
        assert len(registry.stats()) < len(names) / 2
        hostile.say(request("greeter", "none-1", type_url=ASSIGNMENT))
        wait_until(lambda: b"127.0.7.2" in b"".join(hostile.heard), "what it asks for instead")
        for client in (hostile, other):
            client.close()
        server.stop()


def test_all_services_are_followed_of_a_client_that_names_more_than_are_awaited_at_once() -> None:
    names = [f"s-{number}." for number in range(200)]
    with MemoryRegistry() as registry:
        for name in names[::2]:
            registry.set_endpoints(name, "127.0.7.1:1")
        server = serve("127.0.0.1:0", registry)
        client = Client(server.port)
        client.say(request(*names, type_url=ASSIGNMENT))
        wait_until(lambda: all(name.encode() in b"".join(client.heard) for name in names), "an answer about each")
        registry.set_endpoints(names[-1], "127.0.7.2:1")
        wait_until(lambda: b"127.0.7.2" in b"".join(client.heard), "news of one of them")
        client.close()
        server.stop()


def test_a_client_may_follow_so_many_services_and_no_more(caplog: pytest.LogCaptureFixture) -> None:
    names = [f"none-{number}" for number in range(40)]
    with MemoryRegistry() as registry:
        registry.set_endpoints("greeter", "127.0.7.1:1")
        server = serve("127.0.0.1:0", registry, max_services_per_client=30)
        client, other = Client(server.port), Client(server.port)
        client.say(request(*names))
        wait_until(lambda: all(name.encode() in b"".join(client.heard) for name in names), "an answer about each")
        wait_until(lambda: len(registry.stats()) == 30, "so many are followed")
        other.say(request("greeter", type_url=CLUSTER))
        wait_until(lambda: b"lets a client follow 30 services" in b"".join(other.heard), "the reason: it has no room")
        other.say(request("greeter", nonce="1", type_url=CLUSTER))
        client.say(request(*names[:10]))
        wait_until(lambda: "greeter" in registry.stats(), "it is followed once there is")
        wait_until(lambda: len(other.heard) > 1 and b"lets a client" not in other.heard[-1], "and the reason is gone")
        for each in (client, other):
            each.close()
        server.stop()
    assert caplog.text.count("Clients ask for more services than are followed") == 1


def test_services_that_do_not_exist_are_forgotten_with_the_last_who_asks_for_them() -> None:
    with MemoryRegistry() as registry:
        registry.set_endpoints("greeter", "127.0.7.1:1")
        server = serve("127.0.0.1:0", registry)
        client, other = Client(server.port), Client(server.port)
        client.say(request("none-1", "none-2", "greeter", type_url=ASSIGNMENT))
        other.say(request("none-2", type_url=ASSIGNMENT))
        wait_until(lambda: b"127.0.7.1" in b"".join(client.heard) and other.heard, "both are answered")
        client.close()
        wait_until(lambda: "none-1" not in registry.stats(), "nobody asks for it any more")
        assert set(registry.stats()) == {"none-2", "greeter"}
        other.close()
        wait_until(lambda: set(registry.stats()) == {"greeter"}, "nor for the other")
        server.stop()


@pytest.mark.parametrize("threads", [False, True], ids=["batches", "threads"])
def test_a_request_with_too_many_names_ends_its_stream(threads: bool) -> None:  # noqa: FBT001 - drawn
    server = AdsServer("127.0.0.1:0", ResourceCache(), threads=threads, serves_others=True)
    hostile, other = Client(server.port), Client(server.port)
    hostile.say(request(*map(str, range(MOST_NAMES + 1))))
    wait_until(lambda: hostile.is_over, "its end")
    assert hostile.end is grpc.StatusCode.RESOURCE_EXHAUSTED
    other.say(request("first"))
    wait_until(lambda: other.heard, "another is answered")
    for client in (hostile, other):
        client.close()
    server.stop()


def test_retries_that_are_too_many_are_refused_where_they_are_given() -> None:
    retries = tuple((f"/a.B/m{number}", None) for number in range(100_000))
    with pytest.raises(ValueError, match="the retries of 100000 methods"):
        write_retries(retries)


def test_what_one_client_refuses_stays_with_the_others() -> None:
    owner, address = ServiceName("default", "greeter"), "127.0.0.1:50052"
    dialable = Dialable(Endpoint(name="greeter", address=address), (Socket("127.0.0.1", 50052),))
    made = make_service_resources([dialable], Policy(), [MethodRoute("/a/b", addresses={address: 1})], Here())
    resource_cache = ResourceCache()
    resource_cache.publish(owner, made)
    server = AdsServer("127.0.0.1:0", resource_cache)
    pleased, particular = Client(server.port), Client(server.port)
    for client in (pleased, particular):
        client.say(request("greeter"))
        wait_until(lambda client=client: client.heard, "an answer")
        assert address.encode() in client.heard[-1]
    pleased.answer("greeter")
    particular.answer("greeter", refusal="greeter: no routes, please")
    wait_until(lambda: len(particular.heard) > 1, "what is left without the route", 25)
    assert address.encode() not in particular.heard[-1]
    particular.answer("greeter", refusal="greeter: nor that")
    particular.say(request("greeter", "other"))
    wait_until(lambda: len(particular.heard) > 2, "an answer about another service", 25)
    assert resource_cache.look_up(owner) == made
    assert len(pleased.heard) == 1
    resource_cache.publish(owner, ServiceResources(clusters={}))
    wait_until(lambda: len(pleased.heard) > 1, "news", 25)
    for client in (pleased, particular):
        client.close()
    server.stop()
