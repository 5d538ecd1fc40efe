"""Worlds of real greeter servers and a registry: the contract is tested on a real etcd, and on the one in memory.

A module that runs programs of their own, which can reach a real etcd only, overrides `world` with `etcd_world`.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Protocol, Self

import grpc
import pytest

import grpc_etcd
from grpc_etcd.etcd import Etcd
from grpc_etcd.layouts.index import make_layout
from grpc_etcd.registry.layout import KeyValue, Layout
from grpc_etcd.testing import MemoryEtcd, MemoryRegistry
from testbed.conditions import PATIENCE_SECONDS, wait_until
from testbed.etcd import EtcdServer
from testbed.greeter import GreeterServer, say_hello

SERVICE = "greeter"


class Store(Protocol):
    """Where a world's records are."""

    @property
    def etcd(self) -> Etcd | MemoryEtcd:
        """The client of its etcd, or the etcd in memory."""

    def registry(self, **options: Any) -> grpc_etcd.Registry:
        """Give a registry that reads it."""

    def kill(self) -> None:
        """Let it go away."""

    def restart(self, *, fresh: bool = False) -> None:
        """Let it come back, `fresh`: without its data."""

    def close(self) -> None:
        """Close what was opened for the world."""


class RealStore:
    """A real etcd."""

    def __init__(self, server: EtcdServer) -> None:
        self.server = server
        self.etcd = Etcd(server.endpoints, timeout_seconds=PATIENCE_SECONDS)
        self.kill, self.restart, self.close = server.kill, server.restart, self.etcd.close

    def registry(self, **options: Any) -> grpc_etcd.Registry:
        return grpc_etcd.Registry(self.server.endpoints, **options)


class MemoryStore:
    """What users test their own code with."""

    def __init__(self) -> None:
        self.etcd = MemoryEtcd()
        self.kill = self.etcd.stop

    def registry(self, **options: Any) -> grpc_etcd.Registry:
        return MemoryRegistry(self.etcd, **options)

    def restart(self, *, fresh: bool = False) -> None:
        self.etcd.start(fresh=fresh)

    def close(self) -> None:
        pass


class World:
    """What a test sets up and looks at: servers, their records, registries, channels."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.etcd = store.etcd
        self.layout: Layout = make_layout("jupiter")
        self._closers: list[Callable[[], object]] = [store.close]
        self._hosts = 0

    @property
    def server(self) -> EtcdServer:
        """The real etcd."""
        assert isinstance(self.store, RealStore)
        return self.store.server

    def greeter(self, **options: Any) -> GreeterServer:
        """Start a server on an address of its own."""
        self._hosts += 1
        server = GreeterServer(f"127.0.7.{self._hosts}:0", **options)
        self._closers.append(lambda: server.stop(0))
        return server

    def record(self, address: str, service: str = SERVICE, **attributes: Any) -> KeyValue:
        record = self.layout.encode(service, grpc_etcd.Endpoint(name=service, address=address, **attributes))
        assert isinstance(record, KeyValue), record
        return record

    def put(self, address: str, service: str = SERVICE, lease: int = 0, **attributes: Any) -> None:
        record = self.record(address, service, **attributes)
        self.etcd.put(record.key, record.value, lease=lease)

    def delete(self, address: str, service: str = SERVICE) -> None:
        assert self.etcd.delete(self.record(address, service).key)

    def serve(self, count: int = 1, service: str = SERVICE, **attributes: Any) -> list[GreeterServer]:
        """Start servers and put them into the registry."""
        servers = [self.greeter() for _ in range(count)]
        for server in servers:
            self.put(server.address, service, **attributes)
        return servers

    def registry(self, **options: Any) -> grpc_etcd.Registry:
        registry = self.store.registry(**options)
        self._closers.append(registry.close)
        return registry

    def channel(self, registry: grpc_etcd.Registry, service: str = SERVICE, **options: Any) -> grpc.Channel:
        channel = registry.insecure_channel(service, **options)
        self._closers.append(channel.close)
        return channel

    def close(self) -> None:
        for close in reversed(self._closers):
            close()


class Load:
    """Threads that call without pause and count who answered, and every failure."""

    def __init__(self, channel: grpc.Channel, threads: int = 2) -> None:
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []
        self._channel = channel
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(threads)]

    def _call(self) -> None:
        hello = say_hello(self._channel)
        while not self._stop.is_set():
            try:
                self.answers[hello("x", timeout=20)] += 1
            except grpc.RpcError as error:
                self.failures.append(str(error))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        wait_until(lambda: self.answers or self.failures, "the first answer")
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def opened(store: Store) -> Iterator[World]:
    made = World(store)
    yield made
    made.close()


def make_store(kind: str, server: str, request: pytest.FixtureRequest) -> Store:
    return MemoryStore() if kind == "memory" else RealStore(request.getfixturevalue(server))


@pytest.fixture(params=["etcd", "memory"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """A world on the shared etcd, and one in memory."""
    yield from opened(make_store(request.param, "etcd", request))


@pytest.fixture
def etcd_world(etcd: EtcdServer) -> Iterator[World]:
    """A world on the shared etcd."""
    yield from opened(RealStore(etcd))


@pytest.fixture(params=["etcd", "memory"])
def own_world(request: pytest.FixtureRequest) -> Iterator[World]:
    """A world whose store the test may kill: an etcd of its own, and one in memory."""
    yield from opened(make_store(request.param, "own_etcd", request))


@pytest.fixture
def own_etcd_world(own_etcd: EtcdServer) -> Iterator[World]:
    """A world on an etcd of its own."""
    yield from opened(RealStore(own_etcd))


@pytest.fixture
def load() -> type[Load]:
    return Load


def answers(channel: grpc.Channel, calls: int = 60) -> Counter[str]:
    """Call so many times; say who answered how often."""
    hello = say_hello(channel)
    return Counter(hello("x", timeout=20, wait_for_ready=True) for _ in range(calls))


def follows(channel: grpc.Channel, servers: list[GreeterServer] | list[str]) -> None:
    """Wait until the calls go to exactly these servers."""
    wanted = {each if isinstance(each, str) else each.address for each in servers}
    wait_until(lambda: set(answers(channel, 20 * len(wanted))) == wanted, f"calls to {sorted(wanted)}")
