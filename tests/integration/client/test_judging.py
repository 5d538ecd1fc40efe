"""A set is judged where everything that decides about it is known: no channel sees a moment that never was."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc
import pytest

import grpc_etcd
from grpc_etcd.etcd import Etcd, Listing, ops
from grpc_etcd.layouts.index import make_layout
from grpc_etcd.registry.layout import KeyValue
from grpc_etcd.registry.own import policy_key, synced_key
from grpc_etcd.registry.policy import Policy, write_policy
from testbed.conditions import free_port, wait_until
from testbed.greeter import say_hello
from testbed.proxy import TcpProxy

from .conftest import SERVICE, World, answers, follows

MARK = synced_key("c1")
CLIENTS = 12


class Recorder:
    """Notes every view of a service from now on."""

    def __init__(self, registry: grpc_etcd.Registry) -> None:
        self.registry = registry
        self.feed = registry.follow(SERVICE).feed
        self.seen: list[int] = []
        self.shown: set[str] = set()

    def note(self) -> None:
        snapshot = self.feed.view.snapshot
        self.seen.append(-1 if snapshot is None else sum(each.enable for each in snapshot.endpoints))
        self.shown |= {each.address for each in snapshot.endpoints} if snapshot else set()

    @property
    def source(self) -> str:
        return self.feed.view.source.value


@contextmanager
def recorders(address: str, **options: Any) -> Iterator[list[Recorder]]:
    with ExitStack() as stack:
        made = []
        for _ in range(CLIENTS):
            registry = stack.enter_context(grpc_etcd.Registry(address, **options))
            stack.enter_context(registry.pinned(SERVICE))
            registry.wait_for_endpoints(SERVICE, 60)
            recorder = Recorder(registry)
            stack.enter_context(recorder.feed.notifying(recorder.note))
            made.append(recorder)
        yield made


def test_a_reconnect_after_the_operator_has_gone_never_empties_a_set(own_etcd_world: World) -> None:
    world = own_etcd_world
    world.etcd.put(MARK, b"")
    world.put("10.0.0.1:1")
    world.put("10.0.0.2:1")
    with TcpProxy.start(world.server.endpoints) as proxy, recorders(proxy.address) as clients:
        proxy.refuse()
        world.etcd.delete(MARK)
        world.delete("10.0.0.1:1")
        world.delete("10.0.0.2:1")
        proxy.heal()
        for client in clients:
            wait_until(lambda client=client: client.source == "stale", "the last good set")
        assert not [client.seen for client in clients if not all(client.seen)]


def test_a_reconnect_after_the_operator_has_come_back_never_empties_a_set(own_etcd_world: World) -> None:
    world = own_etcd_world
    world.etcd.put(MARK, b"")
    world.put("10.0.0.1:1")
    with TcpProxy.start(world.server.endpoints) as proxy, recorders(proxy.address) as clients:
        proxy.refuse()
        world.etcd.delete(MARK)
        world.delete("10.0.0.1:1")
        world.put("10.0.0.2:1")
        world.etcd.put(MARK, b"")
        world.put("10.0.0.3:1")
        proxy.heal()
        for client in clients:
            wait_until(
                lambda client=client: (
                    [e.address for e in client.feed.view.snapshot.endpoints] == ["10.0.0.2:1", "10.0.0.3:1"]
                ),
                "what etcd holds",
            )
        assert not [client.seen for client in clients if not all(client.seen)]


@pytest.mark.parametrize("changes", [1, 1_200])
def test_a_reconnect_shows_no_endpoint_that_came_and_went_while_nobody_saw_it(
    own_etcd_world: World, changes: int
) -> None:
    """A watch from the past is sent 1,000 revisions at a time, and 100 ms later the next."""
    world = own_etcd_world
    world.etcd.put(MARK, b"")
    world.put("10.0.0.1:1")
    with TcpProxy.start(world.server.endpoints) as proxy, recorders(proxy.address) as clients:
        proxy.refuse()
        world.put("10.0.0.2:1")
        for weight in range(1, changes + 1):
            world.put("10.0.0.1:1", weight=weight)
        world.delete("10.0.0.2:1")
        world.put("10.0.0.3:1")
        world.delete("10.0.0.1:1")
        proxy.heal()
        for client in clients:
            wait_until(
                lambda client=client: [e.address for e in client.feed.view.snapshot.endpoints] == ["10.0.0.3:1"],
                "what etcd holds",
            )
        assert [client.shown - {"10.0.0.1:1"} for client in clients] == [{"10.0.0.3:1"}] * CLIENTS
        assert not [client.seen for client in clients if not all(client.seen)]


def test_keys_that_move_to_another_layout_in_one_transaction_are_never_missed(world: World) -> None:
    layouts = make_layout("jupiter"), make_layout("kratos")

    def record(number: int) -> KeyValue:
        made = layouts[number].encode(SERVICE, grpc_etcd.Endpoint(name=SERVICE, address="10.0.0.1:1"))
        assert isinstance(made, KeyValue)
        return made

    world.etcd.put(record(0).key, record(0).value)
    registry = world.registry(layouts=("jupiter", "kratos"))
    with registry.pinned(SERVICE):
        registry.wait_for_endpoints(SERVICE, 60)
        recorder = Recorder(registry)
        with recorder.feed.notifying(recorder.note):
            for turn in range(60):
                old, new = record(turn % 2), record(1 - turn % 2)
                world.etcd.transaction([], [ops.delete(old.key), ops.put(new.key, new.value)])
            world.put("10.0.0.2:1")
            wait_until(lambda: len(registry.endpoints(SERVICE).endpoints) == 2, "the last change")
        assert all(recorder.seen)


def test_keys_that_move_to_another_layout_while_nobody_sees_it_are_never_missed(own_etcd_world: World) -> None:
    world = own_etcd_world
    endpoint = grpc_etcd.Endpoint(name=SERVICE, address="10.0.0.1:1")
    records = [make_layout(name).encode(SERVICE, endpoint) for name in LAYOUTS]
    old, new = (record for record in records if isinstance(record, KeyValue))
    world.etcd.put(old.key, old.value)
    with TcpProxy.start(world.server.endpoints) as proxy, recorders(proxy.address, layouts=LAYOUTS) as clients:
        for _ in range(4):
            proxy.refuse()
            moved = world.etcd.transaction([], [ops.delete(old.key), ops.put(new.key, new.value)])
            proxy.heal()
            for client in clients:
                wait_until(
                    lambda client=client, revision=moved.revision: client.feed.view.snapshot.revision >= revision,
                    "the move",
                )
            old, new = new, old
        assert not [client.seen for client in clients if not all(client.seen)]


class Moving(Etcd):
    """A client that is slow: after each listing the key has moved on to the other layout."""

    turn = 0

    def get_prefix(self, prefix: bytes, *, revision: int = 0, keys_only: bool = False) -> Listing:
        listing = super().get_prefix(prefix, revision=revision, keys_only=keys_only)
        self.turn += 1
        old, new = (make_layout(name).encode(SERVICE, MOVING) for name in LAYOUTS[:: 1 if self.turn % 2 else -1])
        assert isinstance(old, KeyValue)
        assert isinstance(new, KeyValue)
        self.transaction([], [ops.delete(old.key), ops.put(new.key, new.value)])
        return listing


MOVING = grpc_etcd.Endpoint(name=SERVICE, address="10.0.0.1:1")
LAYOUTS = ("kratos", "jupiter")


def test_keys_that_move_while_they_are_read_are_never_missed(etcd_world: World) -> None:
    record = make_layout("kratos").encode(SERVICE, MOVING)
    assert isinstance(record, KeyValue)
    etcd_world.etcd.put(record.key, record.value)
    with (
        Moving(etcd_world.server.endpoints) as etcd,
        grpc_etcd.Registry(etcd, layouts=("jupiter", "kratos")) as registry,
    ):
        for _ in range(2):
            assert [each.address for each in registry.read_endpoints(SERVICE)] == [MOVING.address]
            assert [each.address for each in registry.services()[SERVICE]] == [MOVING.address]


def test_a_store_that_lost_its_data_and_has_overtaken_them_takes_nothing_away(own_etcd_world: World) -> None:
    world = own_etcd_world
    servers = world.serve(2)
    with TcpProxy.start(world.server.endpoints) as proxy, grpc_etcd.Registry(proxy.address) as registry:
        channel = world.channel(registry)
        follows(channel, servers)
        proxy.refuse()
        world.store.restart(fresh=True)
        with Etcd(world.server.endpoints) as etcd:
            for number in range(200):
                etcd.put(b"/other", str(number).encode())
            proxy.heal()
            wait_until(lambda: registry.stats()[SERVICE].source == "stale", "the other history to be noticed", 90)
            assert set(answers(channel)) == {server.address for server in servers}
            record = world.record(servers[0].address)
            etcd.put(record.key, record.value)
            wait_until(lambda: "1 endpoints are kept" in registry.stats()[SERVICE].reason, "the one to be confirmed")
            assert set(answers(channel)) == {server.address for server in servers}
            etcd.put(MARK, b"")
            follows(channel, servers[:1])
            assert registry.stats()[SERVICE].source == "registry"


def test_rights_that_are_granted_later_are_used(own_etcd_world: World) -> None:
    world = own_etcd_world
    world.put("10.0.0.1:1")
    world.etcd.put(policy_key("jupiter", SERVICE), write_policy(Policy(timeout_seconds=2)))
    etcdctl = world.server.etcdctl
    etcdctl("role", "add", "reader")
    etcdctl("role", "grant-permission", "reader", "--prefix=true", "read", "/jupiter/greeter/")
    etcdctl("user", "add", "reader:secret")
    etcdctl("user", "grant-role", "reader", "reader")
    world.server.enable_auth("rootpw")
    registry = world.registry(user="reader", password="secret", layouts=("jupiter", "kratos"))  # noqa: S106
    with registry.pinned(SERVICE):
        assert len(registry.wait_for_endpoints(SERVICE, 60).endpoints) == 1
        reason = wait_until(lambda: registry.stats()[SERVICE].reason, "the refusal to be told")
        assert "/microservices/greeter/" in reason
        assert "permission denied" in reason
        world.server.etcdctl(
            "--user=root:rootpw", "role", "grant-permission", "reader", "--prefix=true", "read", "/grpc-etcd/"
        )
        wait_until(lambda: registry.default_timeout(SERVICE) == 2, "the policy")
        world.server.etcdctl(
            "--user=root:rootpw",
            "role",
            "grant-permission",
            "reader",
            "--prefix=true",
            "read",
            "/microservices/greeter/",
        )
        wait_until(lambda: not registry.stats()[SERVICE].reason, "all to be well")


def test_a_password_that_cannot_be_had_for_a_moment_ends_nothing(own_etcd_world: World) -> None:
    world = own_etcd_world
    world.put("10.0.0.1:1")
    etcdctl = world.server.etcdctl
    etcdctl("role", "add", "reader")
    etcdctl("role", "grant-permission", "reader", "--prefix=true", "read", "/")
    etcdctl("user", "add", "reader:secret")
    etcdctl("user", "grant-role", "reader", "reader")
    world.server.enable_auth("rootpw")
    asked: list[int] = []

    def password() -> str:
        asked.append(1)
        if len(asked) < 4:
            raise RuntimeError("the vault is sealed")
        return "secret"

    registry = world.registry(user="reader", password=password)
    assert len(registry.wait_for_endpoints(SERVICE, 90).endpoints) == 1
    assert len(asked) >= 4


def test_a_policy_that_cannot_be_parsed_disturbs_no_service(world: World) -> None:
    server = world.serve(1)[0]
    registry = world.registry()
    channel = world.channel(registry)
    follows(channel, [server])
    world.etcd.put(policy_key("jupiter", SERVICE), b"[" * 100_000)
    wait_until(lambda: registry.stats()[SERVICE].policy_faults, "the fault")
    added = world.serve(1)[0]
    follows(channel, [server, added])
    assert set(answers(world.channel(world.registry()))) <= {server.address, added.address}


def test_the_first_calls_wait_for_the_part_that_is_alive(etcd_world: World) -> None:
    world = etcd_world
    server = world.serve(1)[0]
    with TcpProxy.start(world.server.endpoints) as proxy:
        proxy.black_hole()
        dead, alive = grpc_etcd.Registry(f"127.0.0.1:{free_port()}"), grpc_etcd.Registry(proxy.address)
        with dead, alive, grpc_etcd.CompoundRegistry([dead, alive]) as both, both.insecure_channel(SERVICE) as channel:
            found: list[object] = []

            def call() -> None:
                try:
                    found.append(say_hello(channel)("x", timeout=60))
                except grpc.RpcError as error:
                    found.append(error)

            thread = threading.Thread(target=call)
            thread.start()
            wait_until(lambda: dead.stats()[SERVICE].error, "the dead part to be known as such")
            proxy.heal()
            thread.join(90)
            assert found == [server.address]


def test_many_services_of_a_registry_need_a_few_threads(world: World) -> None:
    before = threading.active_count()
    registry = world.registry()
    world.put("10.0.0.1:1", "s99")
    for number in range(100):
        registry.follow(f"s{number}")
    assert len(registry.wait_for_endpoints("s99", 60).endpoints) == 1
    wait_until(lambda: all(stats.source == "registry" for stats in registry.stats().services), "all to be known")
    wait_until(lambda: threading.active_count() - before <= 15, f"few threads more than {before}")


class Trap:
    """A layout that fails at one service in a way that nobody foresaw, until it is mended."""

    name = "jupiter"

    def __init__(self) -> None:
        self.is_broken = True
        self._layout = make_layout("jupiter")

    def __getattr__(self, name: str) -> object:
        return getattr(self._layout, name)

    def decode(self, service: str, key: bytes, value: bytes) -> object:
        if service == "trap" and self.is_broken:
            raise RuntimeError("nobody foresaw this")
        return self._layout.decode(service, key, value)


def test_an_unforeseen_error_about_one_service_is_told_there_and_tried_again(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    trap = Trap()
    world.put("10.0.0.1:1", "trap")
    world.put("10.0.0.2:1", "good")
    registry = world.registry(layouts=(trap,))
    with registry.pinned("trap"), registry.pinned("good"):
        assert len(registry.wait_for_endpoints("good", 60).endpoints) == 1
        wait_until(lambda: "nobody foresaw this" in registry.stats()["trap"].reason, "the error to be told")
        assert registry.stats()["trap"].cause == "internal error"
        assert "Traceback" in caplog.text
        world.put("10.0.0.3:1", "good")
        assert len(registry.wait_for_endpoints("good", 60, at_least=2).endpoints) == 2
        trap.is_broken = False
        assert len(registry.wait_for_endpoints("trap", 60).endpoints) == 1
        wait_until(lambda: not registry.stats()["trap"].reason, "all to be well")
