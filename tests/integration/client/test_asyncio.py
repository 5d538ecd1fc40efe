"""grpc.aio channels: one loop, several loops, loops beside threads, and an aio server in the same process."""

import asyncio
import threading
from collections import Counter

import grpc
import pytest
from grpc import aio

from testbed.conditions import wait_until
from testbed.greeter import DELAY_HEADER, FAIL_HEADER, METHOD, decode_text, encode_text, say_hello

from .conftest import SERVICE, Load, World, follows


async def count(channel: aio.Channel, calls: int = 60) -> Counter[str]:
    hello = say_hello(channel)
    return Counter(await asyncio.gather(*(hello("x", timeout=30, wait_for_ready=True) for _ in range(calls))))


async def test_an_aio_channel_follows_the_registry(world: World) -> None:
    first = world.serve(1)[0]
    registry = world.registry()
    async with registry.aio.insecure_channel(SERVICE) as channel:
        assert isinstance(channel, aio.Channel)
        assert set(await count(channel)) == {first.address}
        second = world.serve(1)[0]
        async with asyncio.timeout(60):
            while len(await count(channel)) < 2:
                pass
        world.delete(first.address)
        async with asyncio.timeout(60):
            while set(await count(channel)) != {second.address}:
                pass


async def test_calls_are_spread_once_the_endpoints_are_connected(world: World) -> None:
    servers = world.serve(3)
    registry = world.registry()
    await registry.aio.wait_for_endpoints(SERVICE)
    async with registry.aio.insecure_channel(SERVICE) as channel:
        await channel.channel_ready()
        async with asyncio.timeout(60):
            while len(await count(channel, 10)) < len(servers):
                pass
        assert set(await count(channel, 10)) == {server.address for server in servers}


async def test_reading_without_blocking_the_loop(world: World) -> None:
    registry = world.registry()
    server = world.greeter()
    waiting = asyncio.create_task(registry.aio.wait_for_endpoints(SERVICE, 60))
    watch = registry.aio.watch_services(SERVICE)
    assert (await anext(watch)).endpoints == ()
    world.put(server.address)
    assert [each.address for each in (await anext(watch)).endpoints] == [server.address]
    assert [each.address for each in (await waiting).endpoints] == [server.address]
    assert [each.address for each in await registry.aio.list_services(SERVICE)] == [server.address]
    await watch.aclose()  # type: ignore[attr-defined]  # it is a generator
    assert (await registry.aio.endpoints("nobody", 60)).endpoints == ()
    with pytest.raises(TimeoutError, match="0 endpoints"):
        await registry.aio.wait_for_endpoints("nobody", 0.5)


async def test_streams_and_states_are_grpcs_own(world: World) -> None:
    registry = world.registry()
    channel = registry.aio.insecure_channel(SERVICE)
    assert channel.get_state() is grpc.ChannelConnectivity.IDLE
    server = world.serve(1)[0]
    async with asyncio.timeout(60):
        await channel.channel_ready()
    assert channel.get_state() is grpc.ChannelConnectivity.READY
    hello = channel.unary_unary(METHOD, encode_text, decode_text)
    call = hello("x", timeout=30)
    assert await call == server.address
    assert await call.code() is grpc.StatusCode.OK
    cancelled = hello("x", metadata=((DELAY_HEADER, "5"),))
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    with pytest.raises(aio.AioRpcError) as failure:
        await hello("x", timeout=30, metadata=((FAIL_HEADER, "NOT_FOUND"),))
    assert failure.value.code() is grpc.StatusCode.NOT_FOUND
    await channel.close()


def test_several_loops_after_and_beside_each_other(world: World) -> None:
    server = world.serve(1)[0]
    registry = world.registry()
    found: list[set[str]] = []

    async def main() -> None:
        async with registry.aio.insecure_channel(SERVICE) as channel:
            found.append(set(await count(channel, 200)))

    asyncio.run(main())
    threads = [threading.Thread(target=asyncio.run, args=(main(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert found == [{server.address}] * 4


def test_threads_and_a_loop_call_the_same_service_through_changes(world: World) -> None:
    servers = world.serve(2)
    registry = world.registry()
    channel = world.channel(registry)
    follows(channel, servers)

    async def main() -> Counter[str]:
        async with registry.aio.insecure_channel(SERVICE) as aio_channel:
            total: Counter[str] = Counter()
            for _ in range(20):
                added = await asyncio.to_thread(world.greeter)
                world.put(added.address)
                total += await count(aio_channel, 50)
                world.delete(added.address)
            return total

    with Load(channel) as load:
        total = asyncio.run(main())
    assert load.failures == []
    assert total.total() == 1000


async def test_an_aio_server_that_calls_on_itself(world: World) -> None:
    backend = world.serve(1)[0]
    registry = world.registry()
    server = aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    async with registry.aio.insecure_channel(SERVICE) as inner:

        async def answer(request: str, _: object) -> bytes:
            return encode_text(await say_hello(inner)(request, timeout=30))

        service, method = METHOD.strip("/").split("/")
        handler: grpc.RpcMethodHandler[str, bytes] = grpc.unary_unary_rpc_method_handler(answer, decode_text)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        await server.start()
        async with aio.insecure_channel(f"127.0.0.1:{port}") as outer:
            assert set(await count(outer, 500)) == {backend.address}
        await server.stop(None)


def test_a_loop_that_is_closed_right_after_a_wait_has_no_task_left(world: World) -> None:
    """As where a program runs its own loop, without the last turns that asyncio.run() gives it."""
    world.serve(1)
    registry = world.registry()
    loop = asyncio.new_event_loop()
    for wait in (registry.aio.wait_for_endpoints, registry.aio.endpoints):
        assert loop.run_until_complete(wait(SERVICE, 60)).endpoints
        assert not asyncio.all_tasks(loop)
    loop.close()


async def test_a_forgotten_watch_on_a_closed_loop_harms_nobody(world: World) -> None:
    registry = world.registry()

    async def begin() -> None:
        watch = registry.aio.watch_services(SERVICE)
        await anext(watch)

    await asyncio.to_thread(asyncio.run, begin())
    server = world.serve(1)[0]
    wait_until(lambda: registry.endpoints(SERVICE).endpoints, "the feed to go on")
    assert registry.endpoints(SERVICE).endpoints[0].address == server.address


async def test_a_call_that_waits_for_a_registry_which_is_closed_fails_as_calls_do(own_world: World) -> None:
    own_world.store.kill()
    registry = own_world.registry()
    async with registry.aio.insecure_channel(SERVICE) as channel:
        call = say_hello(channel)("x")  # it begins with the next turn of the loop
        registry.close()
        with pytest.raises(aio.AioRpcError) as failed:
            await call
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_closed_channel_makes_no_call_also_where_the_registry_has_not_answered(own_world: World) -> None:
    own_world.store.kill()
    channel = own_world.registry().aio.insecure_channel(SERVICE)
    hello = say_hello(channel)
    await channel.close()
    with pytest.raises(aio.UsageError):
        await hello("x")
