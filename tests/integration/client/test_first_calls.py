"""First calls wait for what is not known yet, and fail for what is known alone: without `wait_for_ready`."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

import grpc_etcd
from grpc_etcd import Policy
from grpc_etcd.memory.hub import MemorySubscription
from grpc_etcd.testing import MemoryEtcd, MemoryRegistry
from testbed.conditions import wait_until
from testbed.greeter import GreeterServer, say_hello
from testbed.proxy import TcpProxy

from .conftest import SERVICE, World

SERVICES = 60


@pytest.fixture
def proxy(etcd_world: World) -> Iterator[TcpProxy]:
    """The way to the shared etcd."""
    with TcpProxy.start(etcd_world.server.endpoints) as started:
        yield started


def first_call(registry: grpc_etcd.Registry | grpc_etcd.CompoundRegistry, service: str = SERVICE) -> str:
    with registry.insecure_channel(service) as channel:
        answer: str = say_hello(channel)("x", timeout=60)
        return answer


def test_a_connection_to_etcd_that_breaks_costs_no_first_call(etcd_world: World, proxy: TcpProxy) -> None:
    server = etcd_world.greeter()
    for number in range(SERVICES):
        etcd_world.put(server.address, f"first-{number}")
    with grpc_etcd.Registry(proxy.address) as registry:
        for number in range(SERVICES):
            proxy.cut()
            assert first_call(registry, f"first-{number}") == server.address


async def test_nor_one_on_asyncio(etcd_world: World, proxy: TcpProxy) -> None:
    server = etcd_world.greeter()
    for number in range(SERVICES):
        etcd_world.put(server.address, f"first-{number}")
    with grpc_etcd.Registry(proxy.address) as registry:
        for number in range(SERVICES):
            proxy.cut()
            async with registry.aio.insecure_channel(f"first-{number}") as channel:
                assert await say_hello(channel)("x") == server.address


def test_an_empty_set_on_disk_fails_no_first_call(etcd_world: World, proxy: TcpProxy, tmp_path: Path) -> None:
    etcd_world.put("127.0.9.9:1")
    with grpc_etcd.Registry(proxy.address, cache_dir=tmp_path) as before, before.pinned(SERVICE):
        assert before.wait_for_endpoints(SERVICE, 60)
        etcd_world.delete("127.0.9.9:1")
        wait_until(lambda: not before.endpoints(SERVICE).endpoints, "the loss")
    (server,) = etcd_world.serve()
    proxy.black_hole()
    with grpc_etcd.Registry(proxy.address, cache_dir=tmp_path) as registry:
        selected = registry.select(metadata={"version": "v2"})
        with registry.insecure_channel(SERVICE) as channel, selected.insecure_channel(SERVICE) as narrow:
            calls = [say_hello(each).future("x", timeout=60) for each in (channel, narrow)]
            assert registry.stats()[SERVICE].source == "cache"
            assert {each.stats()[SERVICE].cause for each in (registry, selected)} == {"not known yet"}
            proxy.heal()
            assert calls[0].result() == server.address
            assert "version=v2" in calls[1].details()


def test_a_first_call_goes_to_nobody_who_is_on_disk_alone(etcd_world: World, proxy: TcpProxy, tmp_path: Path) -> None:
    """Whoever has the address now may be another service."""
    before, after = etcd_world.greeter(), etcd_world.greeter()
    etcd_world.put(before.address)
    with grpc_etcd.Registry(proxy.address, cache_dir=tmp_path) as registry:
        assert first_call(registry) == before.address
    etcd_world.put(after.address)
    etcd_world.delete(before.address)
    with grpc_etcd.Registry(proxy.address, cache_dir=tmp_path) as registry:
        assert first_call(registry) == after.address


def test_a_first_call_with_etcd_away_goes_where_the_disk_says(own_world: World, tmp_path: Path) -> None:
    (server,) = own_world.serve()
    with own_world.store.registry(cache_dir=tmp_path) as registry:
        assert first_call(registry) == server.address
    own_world.store.kill()
    assert first_call(own_world.registry(cache_dir=tmp_path)) == server.address


def test_host_names_are_waited_for_beside_endpoints_that_may_not_be_called(world: World) -> None:
    server = GreeterServer("127.0.0.1:0")
    world.put("127.0.9.9:1", enable=False)
    world.put(f"localhost:{server.address.rpartition(':')[2]}")
    assert first_call(world.registry()) == server.address
    server.stop(0)


def test_host_names_are_waited_for_beside_another_version(world: World) -> None:
    server = GreeterServer("127.0.0.1:0")
    world.serve(metadata={"version": "v1"})
    world.put(f"localhost:{server.address.rpartition(':')[2]}", metadata={"version": "v2"})
    registry = world.registry()
    registry.configure(SERVICE, Policy(match_metadata={"version": "v2"}))
    assert first_call(registry) == server.address
    server.stop(0)


def test_a_registry_that_knows_disabled_endpoints_only_is_no_answer_for_several(
    etcd_world: World, proxy: TcpProxy
) -> None:
    (server,) = etcd_world.serve()
    proxy.black_hole()
    here = MemoryRegistry()
    here.register(grpc_etcd.Endpoint(name=SERVICE, address="127.0.9.9:1", enable=False), allow_unroutable=True)
    there = grpc_etcd.Registry(proxy.address)
    with here, there, grpc_etcd.CompoundRegistry([here, there]) as both, both.insecure_channel(SERVICE) as channel:
        call = say_hello(channel).future("x", timeout=60)
        wait_until(lambda: here.stats()[SERVICE].endpoints, "the disabled one")
        assert both.stats()[SERVICE].cause == "not known yet"
        proxy.heal()
        assert call.result() == server.address


def test_a_registry_that_knows_only_what_nobody_can_dial_is_no_answer_for_several(
    etcd_world: World, proxy: TcpProxy
) -> None:
    (server,) = etcd_world.serve()
    proxy.black_hole()
    here, there = MemoryRegistry(), grpc_etcd.Registry(proxy.address)
    here.set_endpoints(SERVICE, "no-such-host.invalid:80")
    with here, there, grpc_etcd.CompoundRegistry([here, there]) as both, both.insecure_channel(SERVICE) as channel:
        call = say_hello(channel).future("x", timeout=60)
        wait_until(lambda: both.stats()[SERVICE].unusable, "the fault of the name")
        proxy.heal()
        assert call.result() == server.address


class Silent(MemoryEtcd):
    """Lets everybody wait, as an etcd that hangs and still answers pings."""

    def introduce(self, subscription: MemorySubscription) -> None:
        pass


def test_a_registry_that_is_closed_is_waited_for_no_longer() -> None:
    closed, empty = MemoryRegistry(Silent()), MemoryRegistry()
    with closed, empty, grpc_etcd.CompoundRegistry([closed, empty]) as both, both.insecure_channel(SERVICE) as channel:
        call = say_hello(channel).future("x", timeout=60)
        wait_until(lambda: empty.stats()[SERVICE].source == "registry", "the answer of one")
        closed.close()
        assert "the registry has 0 endpoints" in call.details()


def test_a_first_call_that_has_waited_in_vain_says_for_what() -> None:
    """Not that there is no such resource, as gRPC says after 15 seconds."""
    with MemoryRegistry(Silent()) as registry:
        with pytest.raises(grpc.RpcError, match="etcd has not answered yet about /jupiter/greeter/"):
            first_call(registry)
        assert registry.stats()[SERVICE].cause == "not known yet"
