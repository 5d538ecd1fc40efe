"""A process that may start no further thread: it is told so, nothing is left behind, and what is tried again works."""

import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from grpc_etcd import CompoundRegistry, Endpoint
from grpc_etcd.discovery.disk_cache import Cache, CachedRecords
from grpc_etcd.etcd import Disconnected, Etcd, WatchUpdate
from grpc_etcd.etcd.blocking.hub import WatchHub
from grpc_etcd.layouts.jupiter import Jupiter
from grpc_etcd.registration.health import SERVING, HealthWatch
from grpc_etcd.registration.registrar import Registrar
from grpc_etcd.testing import MemoryEtcd, MemoryRegistry
from grpc_etcd.xds.control_plane import ControlPlane
from grpc_etcd.xds.hosts import HostNames
from testbed.conditions import free_port, wait_until
from testbed.greeter import GreeterServer, say_hello

GREETER = Endpoint(name="greeter", address="10.0.0.1:1")
MORE_THAN_THERE_IS = 1 << 47  # bytes of stack, as much as a process has addresses: no thread can have it
LIMIT = "ulimit -u"


@contextmanager
def no_threads() -> Iterator[None]:
    """Let no thread be started in this process meanwhile."""
    before = threading.stack_size(MORE_THAN_THERE_IS)
    try:
        yield
    finally:
        threading.stack_size(before)


def test_no_thread_can_be_started_here() -> None:
    with no_threads(), pytest.raises(RuntimeError):
        threading.Thread(target=print).start()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for temporary files that no other process uses; its path is short enough for one of a socket."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="g-") as folder:
        tempfile.tempdir = folder
        yield Path(folder)
        tempfile.tempdir = before


@pytest.fixture
def registry() -> Iterator[MemoryRegistry]:
    with MemoryRegistry(name="threads", stop_seconds=1) as registry:
        yield registry


def running() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("grpc-etcd")}


def test_a_channel_that_could_not_be_made_is_made_later(registry: MemoryRegistry) -> None:
    with no_threads():
        for _ in range(2):
            with pytest.raises(RuntimeError, match=LIMIT):
                registry.insecure_channel("greeter")
    assert not registry.stats()
    registry.set_endpoints("greeter", "127.0.0.1:1")
    with registry.insecure_channel("greeter"):
        assert registry.wait_for_endpoints("greeter", 60).endpoints


def test_what_follows_and_what_waits_leaves_nothing_behind(registry: MemoryRegistry) -> None:
    heard = threading.Event()
    with no_threads():
        with pytest.raises(RuntimeError, match=LIMIT):
            registry.on_change("greeter", lambda _: heard.set())
        with pytest.raises(RuntimeError, match=LIMIT):
            registry.endpoints("greeter", 0.1)
        with pytest.raises(RuntimeError, match=LIMIT):
            registry.target("greeter")
    registry.set_endpoints("greeter", "127.0.0.1:1")
    with registry.on_change("greeter", lambda _: heard.set()):
        assert heard.wait(60)


def test_a_server_for_xds_that_could_not_be_started_leaves_no_folder_and_starts_later(folder: Path) -> None:
    control_plane = ControlPlane(forks=99, inherited=True)
    with no_threads():
        for _ in range(2):
            with pytest.raises(RuntimeError):
                control_plane.channel_options()
    assert not list(folder.iterdir())
    assert control_plane.channel_options()
    assert list(folder.iterdir())
    with no_threads():
        control_plane.before_fork()
        with pytest.raises(RuntimeError):
            control_plane.after_fork_in_parent()
    control_plane.look_after()
    control_plane.before_fork()
    control_plane.after_fork_in_parent()
    control_plane.before_fork()  # which stops the server


def test_what_could_not_be_registered_is_not(registry: MemoryRegistry) -> None:
    with no_threads(), pytest.raises(RuntimeError, match=LIMIT):
        registry.register(GREETER)
    assert registry.registrar.registrations == ()
    assert registry.register(GREETER).wait(60)
    assert registry.unregister(GREETER, 60)
    assert not registry.memory.get_prefix(b"/").records


class NoThreadForTheWatch(MemoryEtcd):
    """Lets no thread be started from the first watch on."""

    def list_watch(self, *prefixes: bytes) -> Any:
        threading.stack_size(MORE_THAN_THERE_IS)
        return super().list_watch(*prefixes)


def test_a_watch_that_nobody_can_listen_to_is_opened_again() -> None:
    etcd: MemoryEtcd = NoThreadForTheWatch()
    registrar = Registrar(etcd, [Jupiter()])
    before = threading.stack_size()
    try:
        registration = registrar.register(GREETER)
        wait_until(lambda: LIMIT in str(registration.status.fault), "it is told", 60)
    finally:
        etcd.__class__ = MemoryEtcd
        threading.stack_size(before)
    assert registration.wait(60)
    assert registrar.close()
    assert not etcd.get_prefix(b"/").records


class OneThreadForTheHub(WatchHub):
    """Lets no thread be started after its first one."""

    def _spawn(self, run: Callable[[], None]) -> threading.Thread:
        thread = super()._spawn(run)
        threading.stack_size(MORE_THAN_THERE_IS)
        return thread


def test_a_watch_hub_that_has_only_some_of_its_threads_gets_the_others_later() -> None:
    news: list[WatchUpdate] = []
    before = threading.stack_size()
    with Etcd(f"127.0.0.1:{free_port()}") as etcd:
        hub = etcd.watch_hub()
        hub.__class__ = OneThreadForTheHub
        try:
            with pytest.raises(RuntimeError, match=LIMIT):
                hub.follow(b"a/", news.append)
        finally:
            hub.__class__ = WatchHub
            threading.stack_size(before)
        hub.follow(b"a/", news.append)
        wait_until(lambda: any(isinstance(each, Disconnected) for each in news), "etcd is asked, and is not there", 60)
    wait_until(lambda: "grpc-etcd-watch-hub" not in running(), "they have ended", 60)


def test_a_watch_hub_that_never_got_all_of_its_threads_leaves_none_behind() -> None:
    before = threading.stack_size()
    with Etcd(f"127.0.0.1:{free_port()}") as etcd:
        hub = etcd.watch_hub()
        hub.__class__ = OneThreadForTheHub
        try:
            with pytest.raises(RuntimeError, match=LIMIT):
                hub.follow(b"a/", print)
        finally:
            hub.__class__ = WatchHub
            threading.stack_size(before)
    wait_until(lambda: "grpc-etcd-watch-hub" not in running(), "they have ended", 60)


def test_what_one_of_several_registries_cannot_register_no_other_keeps(registry: MemoryRegistry) -> None:
    assert registry.register(Endpoint(name="other", address="10.0.0.1:1")).wait(60)  # so it has its thread
    with MemoryRegistry(name="second") as second, CompoundRegistry([registry, second]) as both:
        server = both.bind(grpc.server(ThreadPoolExecutor(1)), "greeter", drain_seconds=0, allow_unroutable=True)
        server.add_insecure_port("127.0.0.1:0")
        with no_threads():
            with pytest.raises(RuntimeError, match=LIMIT):
                both.register(GREETER)
            with pytest.raises(RuntimeError):
                server.start()
        assert [each.endpoint.name for each in registry.registrar.registrations] == ["other"]
        assert all(each.wait(60) for each in both.register(GREETER))
    wait_until(lambda: not second.memory.get_prefix(b"/jupiter/").records, "all is deregistered with its registry", 60)


def test_a_bound_server_starts_later_and_stops_even_then(registry: MemoryRegistry) -> None:
    server = registry.bind(grpc.server(ThreadPoolExecutor(1)), "greeter", drain_seconds=0, allow_unroutable=True)
    server.add_insecure_port("127.0.0.1:0")
    with no_threads(), pytest.raises(RuntimeError):
        server.start()
    assert server.registrations == ()
    another = registry.bind(grpc.server(ThreadPoolExecutor(1)), "greeter", drain_seconds=0, allow_unroutable=True)
    another.add_insecure_port("127.0.0.1:0")
    another.start()
    assert another.registrations[0].wait(60)
    with no_threads():
        assert another.stop(0).wait(60)
    assert not registry.memory.get_prefix(b"/").records


def test_calls_go_on_where_no_thread_may_be_started_when_gRPC_asks_for_endpoints(registry: MemoryRegistry) -> None:  # noqa: N802
    with GreeterServer("127.0.0.1:0", threads=1) as one, GreeterServer("127.0.0.1:0", threads=1) as other:
        for server in (one, other):
            with grpc.insecure_channel(server.address) as plain:
                assert say_hello(plain)("so that it has its thread", timeout=60) == server.address
        registry.set_endpoints("greeter", one.address)
        with registry.insecure_channel("greeter") as channel:
            registry.wait_for_endpoints("greeter", 60)
            with no_threads():
                assert say_hello(channel)("the first stream", timeout=60) == one.address
                with registry.insecure_channel("greeter", [("grpc.default_authority", "own")]) as apart:
                    assert say_hello(apart)("another one", timeout=60) == one.address
            registry.set_endpoints("greeter", other.address)
            wait_until(lambda: say_hello(channel)("news", timeout=60) == other.address, "the news", 60)


def test_host_names_are_looked_up_as_soon_as_threads_may_be_started_again() -> None:
    names = HostNames(lambda: None, lambda _: ("10.0.0.1",), refresh_seconds=0.1)
    names.use(["first"])
    wait_until(lambda: names.sockets("first", 80), "a name", 60)
    with no_threads():
        names.use(["first", "second"])
        wait_until(lambda: LIMIT in str(names.fault("second")), "it is told", 60)
        assert names.sockets("first", 80)
    wait_until(lambda: names.sockets("second", 80), "another name", 60)
    names.close()


def test_an_endpoint_with_a_host_name_is_called_later(registry: MemoryRegistry) -> None:
    registry.set_endpoints("greeter", "127.0.0.1:1")
    registry.endpoints("greeter", 60)
    with GreeterServer("localhost:0") as server, registry.insecure_channel("greeter") as channel:
        with no_threads():
            registry.set_endpoints("greeter", server.address)
            wait_until(lambda: LIMIT in registry.stats()["greeter"].reason, "it is told", 60)
        assert say_hello(channel)("you", timeout=60, wait_for_ready=True) == server.address


def test_a_set_is_kept_on_disk_though_no_thread_can_be_started_to_write_it(folder: Path) -> None:
    cache = Cache(folder, "etcd:2379", "greeter")
    with no_threads():
        cache.replace([(b"key", b"first")], 7)
    assert Cache(folder, "etcd:2379", "greeter").load() == CachedRecords(7, {b"key": b"first"})
    second = CachedRecords(8, {b"key": b"second"})
    cache.replace(second.records.items(), second.revision)
    wait_until(lambda: Cache(folder, "etcd:2379", "greeter").load() == second, "the next set", 60)


class ScarceHealthWatch(HealthWatch):
    """May start no thread for its first stream."""

    tries = 0

    def _open(self) -> Any:
        self.tries += 1
        if self.tries > 1:
            return super()._open()
        with no_threads():
            return super()._open()


def test_the_health_of_a_server_is_followed_later() -> None:
    pool, heard = ThreadPoolExecutor(1), threading.Event()
    pool.submit(print).result()  # so that it has its thread
    server = grpc.server(pool)
    watch: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_stream_rpc_method_handler(
        lambda _request, _context: iter([SERVING])
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Watch": watch}),))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    followed = ScarceHealthWatch("greeter", address, "", lambda _is_serving: heard.set())
    followed.start()
    assert heard.wait(60)
    assert followed.tries > 1
    followed.close()
    server.stop(None).wait()
