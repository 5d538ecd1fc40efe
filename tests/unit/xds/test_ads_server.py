"""The ADS server and clients that misbehave: one that does not read costs no memory, and hears the newest at last."""

import threading
from collections import Counter
from collections.abc import Iterable, Iterator

import grpc
import pytest

from grpc_etcd.xds import wire
from grpc_etcd.xds.conversation import Refusal
from grpc_etcd.xds.names import ResourceName, ServiceName
from grpc_etcd.xds.resources import ASSIGNMENT
from grpc_etcd.xds.server import AdsServer, Listener
from testbed.conditions import wait_until

METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
LARGE = 1 << 20  # bytes: far more than gRPC holds for who does not read
UPDATES = 60


class Numbered:
    """A resource that says which one it is."""

    def __init__(self, board: "Board", number: int, size: int) -> None:
        self._board, self._number, self._size = board, number, size

    def answer(self, _type_url: str, _requested: str, name: ResourceName) -> bytes:
        self._board.answers[name.owner.service] += 1
        return wire.text(1, f"<{self._number}>{'x' * self._size}")

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

    def join(self, owner: ServiceName, listener: Listener) -> None:
        self.listeners[owner.service] = listener

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
    board, over = Board(), threading.Event()
    server = AdsServer("127.0.0.1:0", board, threads=threads)
    with (
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        grpc.insecure_channel(f"127.0.0.1:{server.port}", [("grpc.use_local_subchannel_pool", 1)]) as other,
    ):
        silent, reading = follow(channel, "large", over), follow(other, "small", over)
        read_until(reading, 0)
        wait_until(lambda: "large" in board.listeners, "the client that does not read")
        for number in range(1, UPDATES):
            board.put("large", number)
            board.put("small", number)
            read_until(reading, number)  # one thread speaks for all: it has been through the other's news
        assert board.answers["large"] < UPDATES / 2
        read_until(silent, UPDATES - 1)
        over.set()
    server.stop()
