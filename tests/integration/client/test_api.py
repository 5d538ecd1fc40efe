"""What users expect of a registry beside channels: names, callbacks, local development, asyncio, the default one."""

import asyncio
import math
import os
import queue
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

import grpc_etcd
import grpc_etcd.aio
from grpc_etcd import Policy, Registry, Retry, Snapshot, StaticRegistry
from grpc_etcd.layouts.index import make_layout
from grpc_etcd.registry.layout import KeyValue
from grpc_etcd.registry.own import policy_key
from grpc_etcd.registry.policy import write_policy
from grpc_etcd.testing import as_default
from testbed.conditions import until, wait_until
from testbed.greeter import DELAY_HEADER, FAIL_HEADER, say_hello

from .conftest import SERVICE, World, answers, follows

DEADLINE = 60


def test_services_are_listed_by_name(world: World) -> None:
    (greeter,) = world.serve()
    world.put("10.0.0.1:1", "users", zone="a")
    world.etcd.put(world.record("10.0.0.2:1", "broken").key, b"no json")
    world.etcd.put(b"/grpc-etcd/synced/x", b"1")
    services = world.registry().services()
    assert list(services) == ["broken", SERVICE, "users"]
    assert [each.address for each in services[SERVICE]] == [greeter.address]
    assert services["users"][0].zone == "a"
    assert services["broken"] == ()


def test_services_in_several_layouts_and_registries_are_one_listing(world: World) -> None:
    world.put("10.0.0.1:1", "users")
    order = make_layout("kratos").encode("orders", grpc_etcd.Endpoint(name="orders", address="10.0.0.3:1"))
    assert isinstance(order, KeyValue)
    world.etcd.put(order.key, order.value)
    both = world.registry(layouts=["jupiter", "kratos"])
    assert {name: [each.address for each in found] for name, found in both.services().items()} == {
        "orders": ["10.0.0.3:1"],
        "users": ["10.0.0.1:1"],
    }
    compound = grpc_etcd.CompoundRegistry([world.registry(), world.registry(layouts="kratos")])
    assert compound.services() == both.services()
    assert compound.read_endpoints("users") == both.read_endpoints("users")
    compound.close()


def test_all_services_can_be_watched_until_the_registry_is_closed(world: World) -> None:
    registry = world.registry()
    news: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def read() -> None:
        for services in registry.watch_all():
            news.put(sorted(services))
        news.put("over")

    reader = threading.Thread(target=read)
    reader.start()
    assert news.get(timeout=DEADLINE) == []
    world.put("10.0.0.1:1", "users")
    assert news.get(timeout=DEADLINE) == ["users"]
    world.put("10.0.0.1:1", "orders")
    assert news.get(timeout=DEADLINE) == ["orders", "users"]
    world.delete("10.0.0.1:1", "users")
    assert news.get(timeout=DEADLINE) == ["orders"]
    registry.close()
    assert news.get(timeout=DEADLINE) == "over"
    reader.join(DEADLINE)


@pytest.mark.parametrize("fault", [RuntimeError, SystemExit, asyncio.CancelledError])
def test_callbacks_hear_of_changes_whatever_one_of_them_raises(world: World, fault: type[BaseException]) -> None:
    registry = world.registry()
    heard: queue.SimpleQueue[Snapshot] = queue.SimpleQueue()

    def fail(snapshot: Snapshot) -> None:
        raise fault(snapshot.service)

    broken = registry.on_change(SERVICE, fail)
    subscription = registry.on_change("etcd:///greeter", heard.put)
    assert heard.get(timeout=DEADLINE).endpoints == ()
    world.put("10.0.0.1:1")
    assert [each.address for each in heard.get(timeout=DEADLINE).endpoints] == ["10.0.0.1:1"]
    subscription.close()
    with registry.on_change(SERVICE, heard.put):  # the first one has ended: only this one receives
        assert len(heard.get(timeout=DEADLINE).endpoints) == 1
    broken.close()
    with pytest.raises(TypeError, match="cannot be called"):
        registry.on_change(SERVICE, 3)  # type: ignore[arg-type]  # a mistake, as is tested


def test_only_endpoints_that_may_be_called_are_waited_for(world: World) -> None:
    world.put("10.0.0.1:1", enable=False)
    world.put("10.0.0.2:1", healthy=False)
    world.put("10.0.0.3:1", weight=0)
    registry = world.registry()
    wait_until(lambda: len(registry.endpoints(SERVICE).endpoints) == 3, "all that is listed")
    assert (registry.stats()[SERVICE].endpoints, registry.stats()[SERVICE].callable_endpoints) == (3, 0)
    with pytest.raises(TimeoutError):
        registry.wait_for_endpoints(SERVICE, 0.1)
    world.put("10.0.0.4:1")
    assert len(registry.wait_for_endpoints(SERVICE, DEADLINE).endpoints) == 4


async def test_endpoints_that_nobody_can_dial_are_not_waited_for(world: World) -> None:
    world.put("no-such-host.invalid:80")
    registry = world.registry()
    with registry.pinned(SERVICE), grpc_etcd.CompoundRegistry([registry]) as compound, compound.pinned(SERVICE):
        for each in (registry, compound):
            await until(lambda each=each: each.stats()[SERVICE].unusable)
            with pytest.raises(TimeoutError, match=r"no-such-host\.invalid"):
                each.wait_for_endpoints(SERVICE, 0.1)
            with pytest.raises(TimeoutError, match=r"no-such-host\.invalid"):
                await each.aio.wait_for_endpoints(SERVICE, 0.1)
        waiting = asyncio.create_task(registry.aio.wait_for_endpoints(SERVICE, DEADLINE))
        (server,) = world.serve()
        assert server.address in [each.address for each in (await waiting).endpoints]
        with pytest.raises(TimeoutError):
            registry.wait_for_endpoints(SERVICE, 0.1, at_least=2)


def test_who_has_waited_for_an_endpoint_can_call_it(world: World) -> None:
    """Channels are told a moment later than what is known, at most once in 10 ms: who waits, waits for that."""
    server = world.greeter()
    registry = world.registry()
    for number in range(20):
        service = f"late-{number}"
        registry.endpoints(service, DEADLINE)  # it is followed, and empty
        putting = threading.Thread(target=world.put, args=(server.address, service))
        putting.start()
        registry.wait_for_endpoints(service, DEADLINE)
        with registry.insecure_channel(service) as channel:
            assert say_hello(channel)("x", timeout=DEADLINE) == server.address
        putting.join()


async def test_who_has_waited_can_call_over_a_channel_that_has_just_failed(world: World) -> None:
    """A channel in use is told of the set by a stream, and goes by the one before until it has received that."""
    server = world.greeter()
    registry = world.registry()
    async with registry.aio.insecure_channel(SERVICE) as channel:
        hello = say_hello(channel)
        for _ in range(5):
            await fail(hello)
            putting = threading.Timer(0.1, world.put, (server.address,))
            putting.start()
            await registry.aio.wait_for_endpoints(SERVICE, DEADLINE)
            assert await hello("x", timeout=DEADLINE) == server.address
            putting.join()
            world.delete(server.address)


async def fail(hello: Any) -> None:
    """Call until there is no endpoint any more."""
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                await hello("x", timeout=DEADLINE)
            except grpc.RpcError:
                return


async def test_nothing_is_there_before_channels_are_told_of_it(world: World) -> None:
    registry = world.registry()
    followed = registry.follow(SERVICE)
    await until(lambda: followed.sent.view.snapshot)
    followed.not_before = math.inf
    world.put("10.0.0.1:1")
    await until(lambda: registry.endpoints(SERVICE).endpoints)
    with pytest.raises(TimeoutError):
        registry.wait_for_endpoints(SERVICE, 0.1)
    with pytest.raises(TimeoutError):
        await registry.aio.wait_for_endpoints(SERVICE, 0.1)
    followed.not_before = 0.0
    registry.configure(SERVICE, Policy(timeout_seconds=3))  # the publisher looks at it again
    await registry.aio.wait_for_endpoints(SERVICE, DEADLINE)
    registry.wait_for_endpoints(SERVICE, DEADLINE)


def test_a_service_whose_addresses_nobody_can_dial_is_not_ready(world: World) -> None:
    world.put("no-such-host.invalid:80")
    registry = world.registry()
    world.channel(registry)
    wait_until(lambda: registry.stats()[SERVICE].unusable, "the fault of the name")
    stats = registry.stats()
    assert (stats[SERVICE].endpoints, stats[SERVICE].callable_endpoints) == (1, 0)
    assert "no-such-host.invalid" in stats.unready[SERVICE]
    assert not registry.ready()
    world.serve()
    wait_until(registry.ready, "an endpoint that can be dialled")


def test_whoever_looks_through_another_registry_is_told_the_same(world: World) -> None:
    """What a selection seeks, and names that are nearly the same, are in the sentence there too."""
    world.put("10.0.0.1:1", "users", metadata={"version": "v1"})
    registry = world.registry()
    selection = registry.select(metadata={"version": "v2"})
    assert selection.endpoints("users", DEADLINE).endpoints == ()
    with pytest.raises(TimeoutError, match="with the metadata version=v2"):
        selection.wait_for_endpoints("users", 0.5)
    with grpc_etcd.CompoundRegistry([registry]) as compound:
        for each in (selection, compound):
            with each.insecure_channel("userz"):
                wait_until(lambda each=each: "did you mean users" in each.stats()["userz"].reason, "the hint")


def test_calls_go_to_the_endpoints_of_one_version_alone(world: World) -> None:
    old, new = world.greeter(), world.greeter()
    world.put(old.address, metadata={"version": "v1", "team": "shop"})
    world.put(new.address, metadata={"version": "v2", "team": "shop"})
    registry = world.registry()
    everything = world.channel(registry)
    second = registry.select(metadata={"version": "v2"})
    assert registry.select(metadata={"version": "v2"}) is second
    with second.insecure_channel(SERVICE) as channel, second.insecure_channel("etcd:///greeter") as same:
        follows(channel, [new])
        follows(everything, [old, new])
        assert [each.address for each in second.wait_for_endpoints(SERVICE).endpoints] == [new.address]
        assert [each.address for each in second.read_endpoints(SERVICE)] == [new.address]
        assert second.services().keys() == {SERVICE}
        assert registry.select(metadata={"version": "v9"}).services() == {}
        world.put(old.address, metadata={"version": "v2"})
        follows(channel, [old, new])
        world.put(new.address, metadata={"version": "v3"})
        follows(same, [old])
        world.delete(old.address)
        wait_until(lambda: second.endpoints(SERVICE).endpoints == (), "no endpoint of that version")
        follows(everything, [new])
    registry.close()
    assert second.closed
    with pytest.raises(TypeError, match="such as"):
        registry.select(metadata={})
    with pytest.raises(ValueError, match="cannot be used any more"):
        registry.select(metadata={"version": "v3"})


def test_a_wish_that_can_never_work_leaves_the_service_as_it_is(world: World) -> None:
    """What is refused changes nothing, neither for the service nor for any other."""
    servers = world.serve()
    registry = world.registry()
    channel = world.channel(registry)
    follows(channel, servers)
    wrong: Any = grpc_etcd.Balancing.ROUND_ROBIN
    with pytest.raises(TypeError, match=r"Policy.load_balancing"):
        registry.configure(SERVICE, Policy(load_balancing=wrong))
    with pytest.raises(ValueError, match="does not begin with '/'"):
        registry.configure(SERVICE, routes=[grpc_etcd.MethodRoute(method="Get", groups={"": 1})])
    more = world.serve()
    follows(channel, servers + more)


def test_the_registrys_retries_can_be_switched_off(world: World) -> None:
    (server,) = world.serve()
    world.etcd.put(policy_key("jupiter", SERVICE), write_policy(Policy(retry=Retry(attempts=5))))
    registry = world.registry()
    hello = say_hello(world.channel(registry))
    metadata = ((FAIL_HEADER, "UNAVAILABLE"),)

    def tries() -> int:
        before = server.calls
        with pytest.raises(grpc.RpcError):
            hello("x", timeout=20, wait_for_ready=True, metadata=metadata)
        return server.calls - before

    wait_until(lambda: tries() == 5, "the registry's retries")
    registry.configure(SERVICE, Policy(retry=Retry.OFF))
    wait_until(lambda: tries() == 1, "no retry")


def test_the_registrys_timeout_can_be_switched_off(world: World) -> None:
    world.serve()
    world.etcd.put(policy_key("jupiter", SERVICE), write_policy(Policy(timeout_seconds=0.2)))
    registry = world.registry()
    hello = say_hello(world.channel(registry))

    def outcome() -> grpc.StatusCode:
        try:
            hello("x", wait_for_ready=True, metadata=((DELAY_HEADER, "1"),))
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    wait_until(lambda: outcome() is grpc.StatusCode.DEADLINE_EXCEEDED, "the registry's timeout")
    registry.configure(SERVICE, Policy(timeout_seconds=math.inf))
    wait_until(lambda: outcome() is grpc.StatusCode.OK, "no timeout")
    assert registry.default_timeout(SERVICE) is None


def test_a_static_registry_leads_to_fixed_addresses(world: World) -> None:
    servers = [world.greeter(), world.greeter()]
    with StaticRegistry({SERVICE: [server.address for server in servers]}) as registry:
        channel = world.channel(registry)
        follows(channel, servers)
        assert list(registry.services()) == [SERVICE]
        registry.configure(SERVICE, Policy(timeout_seconds=5))
        wait_until(lambda: registry.default_timeout(SERVICE) == 5, "the timeout")


def test_static_services_go_before_etcd(world: World) -> None:
    (in_etcd,) = world.serve(service="users")
    world.put("10.0.0.1:1")
    here = world.greeter()
    registry = world.registry(static={SERVICE: here.address})
    follows(world.channel(registry), [here])
    follows(world.channel(registry, "users"), [in_etcd])
    assert [each.address for each in registry.read_endpoints(SERVICE)] == [here.address]
    assert sorted(registry.services()) == [SERVICE, "users"]
    assert [each.address for each in registry.services()[SERVICE]] == [here.address]


def test_addresses_are_passed_on_to_grpc(world: World) -> None:
    server = world.greeter()
    for target in (server.address, f"dns:///{server.address}", f"ipv4:{server.address}"):
        with grpc_etcd.insecure_channel(target) as channel:
            assert say_hello(channel)("x", timeout=20, wait_for_ready=True) == server.address
    with pytest.raises(ValueError, match="is an address, and a registry finds services by name"):
        world.registry().insecure_channel(server.address)


async def test_asyncio_has_what_threads_have(world: World) -> None:
    world.put("10.0.0.1:1", "users")
    async with world.registry().aio as registry:
        registry.configure(SERVICE, Policy(timeout_seconds=3))
        assert list(await registry.services()) == ["users"]
        assert [each.address for each in await registry.read_endpoints("users")] == ["10.0.0.1:1"]
        await registry.wait_for_endpoints("users", DEADLINE)
        assert registry.stats()["users"].endpoints == 1
        assert registry.ready()
        assert not registry.closed
        assert (await registry.select(metadata={"version": "v2"}).endpoints("users", DEADLINE)).endpoints == ()
        async for snapshot in registry.watch("users"):
            assert len(snapshot.endpoints) == 1
            break
        async for services in registry.watch_all():
            assert list(services) == ["users"]
            break
    with pytest.raises(ValueError, match="cannot be used any more"):
        await registry.endpoints("users")


async def test_waiting_for_etcd_takes_no_thread_of_the_loops_own(own_world: World) -> None:
    """The program needs those, and its look-ups of names do: there are few."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    own_world.store.kill()
    registry = own_world.registry(stop_seconds=0.1)
    endpoints = [grpc_etcd.Endpoint(name=SERVICE, address=f"10.0.0.{number}:1") for number in range(1, 4)]
    registrations = [await registry.aio.register(endpoint) for endpoint in endpoints]
    waits = [asyncio.create_task(registration.wait_async()) for registration in registrations]
    await asyncio.sleep(0)
    assert await asyncio.wait_for(asyncio.to_thread(lambda: "answered"), DEADLINE) == "answered"
    await registry.aio.close()
    assert await asyncio.gather(*waits) == [False] * 3


async def test_closing_does_not_block_the_event_loop(world: World) -> None:
    registry = world.registry()
    await registry.aio.endpoints(SERVICE)
    closing = asyncio.ensure_future(registry.aio.close())
    await asyncio.wait_for(closing, DEADLINE)
    assert registry.closed


CLOSED_AND_MADE_AGAIN = """
import grpc_etcd
with grpc_etcd.default_registry() as first:
    assert first is grpc_etcd.default_registry()
with grpc_etcd.default_registry() as second:
    assert second is not first
    print(second.read_endpoints("greeter")[0].address)
"""


def test_a_default_registry_that_was_closed_is_made_again() -> None:
    environment = os.environ | {"GRPC_ETCD_STATIC": "greeter=127.0.0.1:1"}
    program = [sys.executable, "-W", "error", "-c", CLOSED_AND_MADE_AGAIN]
    answer = subprocess.run(program, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert answer.stdout == "127.0.0.1:1\n", answer.stderr


def test_what_stands_in_for_the_default_one_stands_in_for_the_environment_too(world: World) -> None:
    (server,) = world.serve()
    original = world.registry(zone="a")
    with as_default(original):
        for _ in range(2):  # as an application's lifespan does, once per test client
            with Registry.from_environ(zone="b") as registry:
                assert registry is not original
                assert answers(world.channel(registry), 1).keys() == {server.address}
        assert original.read_endpoints(SERVICE)[0].address == server.address
        assert not original.closed


def test_what_stands_in_for_the_default_one_is_made_again_too(world: World) -> None:
    (server,) = world.serve()
    with as_default(world.registry()):
        for _ in range(2):  # as an application's lifespan does with the default registry, once per test client
            with grpc_etcd.default_registry() as registry:
                assert answers(world.channel(registry), 1).keys() == {server.address}
        left = grpc_etcd.default_registry()
    assert left.closed
