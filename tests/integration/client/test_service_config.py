"""A channel's own `grpc.service_config`, and default timeouts from the first call on."""

import asyncio
import threading
import time

import grpc
import pytest

import grpc_etcd
from grpc_etcd.registry.own import policy_key
from grpc_etcd.registry.policy import Policy, write_policy
from testbed.conditions import Condition, wait_until
from testbed.greeter import DELAY_HEADER, METHOD, decode_text, encode_text, say_hello

from .conftest import SERVICE, World, follows

SLOW = ((DELAY_HEADER, "20"),)
RETRY = """{"methodConfig": [{"name": [{}], "retryPolicy": {
    "maxAttempts": 4, "initialBackoff": "0.02s", "maxBackoff": "0.1s", "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"]}}]}"""


def code_of(call: Condition[object]) -> grpc.StatusCode | None:
    try:
        call()
    except grpc.RpcError as error:
        return error.code()
    return None


def configured(world: World, registry: grpc_etcd.Registry, text: str) -> grpc.Channel:
    return world.channel(registry, options=[("grpc.service_config", text)])


def test_retries_of_a_channel_are_its_own(world: World) -> None:
    good, bad = world.serve(2)
    registry = world.registry()
    retrying, plain = configured(world, registry, RETRY), world.channel(registry)
    for channel in (retrying, plain):
        follows(channel, [good, bad])
    bad.fail_with(grpc.StatusCode.UNAVAILABLE)
    hello = say_hello(retrying)
    assert [code_of(lambda: hello("x", timeout=20)) for _ in range(20)] == [None] * 20
    assert grpc.StatusCode.UNAVAILABLE in [code_of(lambda: say_hello(plain)("x", timeout=20)) for _ in range(20)]


def test_a_timeout_of_a_channel_is_the_most_that_a_call_has(world: World) -> None:
    world.serve(1)
    text = '{"methodConfig": [{"name": [{"service": "helloworld.Greeter"}], "timeout": "0.3s"}]}'
    hello = say_hello(configured(world, world.registry(), text))
    for timeout in (None, 15):
        begun = time.monotonic()
        assert code_of(lambda given=timeout: hello("x", given, SLOW)) is grpc.StatusCode.DEADLINE_EXCEEDED
        assert time.monotonic() - begun < 10
    assert code_of(lambda: hello.future("x", metadata=SLOW).result()) is grpc.StatusCode.DEADLINE_EXCEEDED
    assert code_of(lambda: hello.with_call("x", metadata=SLOW)) is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_timeout_of_a_channel_bounds_streams_too(world: World) -> None:
    world.serve(1)
    channel = configured(world, world.registry(), '{"methodConfig": [{"name": [{}], "timeout": "0.3s"}]}')
    many = channel.unary_stream(METHOD, encode_text, decode_text)
    assert code_of(lambda: list(many("x", metadata=SLOW))) is grpc.StatusCode.DEADLINE_EXCEEDED
    assert code_of(lambda: list(many("x", 15, SLOW))) is grpc.StatusCode.DEADLINE_EXCEEDED


def test_waiting_for_a_server_may_be_a_channels_habit(world: World) -> None:
    channel = configured(world, world.registry(), '{"methodConfig": [{"name": [{}], "waitForReady": true}]}')
    hello = say_hello(channel)
    waiting = hello.future("x", timeout=60)
    assert code_of(lambda: hello("x", timeout=20, wait_for_ready=False)) is grpc.StatusCode.UNAVAILABLE
    server = world.serve(1)[0]
    assert waiting.result() == server.address


def test_what_a_channel_cannot_follow_is_refused(world: World) -> None:
    registry = world.registry()
    for make in (registry.insecure_channel, registry.aio.insecure_channel):
        with pytest.raises(ValueError, match="loadBalancingConfig"):
            make(SERVICE, [("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}')])


def test_the_first_call_of_a_channel_has_the_programs_timeout(world: World) -> None:
    world.serve(1)
    for number in range(5):
        registry = world.registry(name=f"first-{number}-{id(world)}")
        registry.configure(SERVICE, Policy(timeout_seconds=0.4))
        hello = say_hello(world.channel(registry))
        assert code_of(lambda hello=hello: hello("x", metadata=SLOW)) is grpc.StatusCode.DEADLINE_EXCEEDED


def test_the_first_call_after_a_change_has_the_new_timeout(world: World) -> None:
    world.serve(1)
    registry = world.registry()
    hello = say_hello(world.channel(registry))
    hello("x", timeout=20, wait_for_ready=True)
    for number in range(10):
        registry.configure(SERVICE, Policy(timeout_seconds=0.2 + number / 1000))
        assert code_of(lambda: hello("x", metadata=SLOW)) is grpc.StatusCode.DEADLINE_EXCEEDED


def test_the_first_call_of_a_channel_has_the_registrys_timeout(world: World) -> None:
    world.serve(1)
    world.etcd.put(policy_key("jupiter", SERVICE), write_policy(Policy(timeout_seconds=0.4)))
    for number in range(5):
        hello = say_hello(world.channel(world.registry(name=f"theirs-{number}-{id(world)}")))
        assert code_of(lambda hello=hello: hello("x", metadata=SLOW)) is grpc.StatusCode.DEADLINE_EXCEEDED
    world.etcd.delete(policy_key("jupiter", SERVICE))


async def first_call(registry: grpc_etcd.Registry) -> tuple[grpc.StatusCode | None, float]:
    """Make the first call of an asyncio channel; say what came of it, and for how long the loop stood still."""
    stalls = [0.0]

    async def watch() -> None:
        while True:
            begun = time.monotonic()
            await asyncio.sleep(0.01)
            stalls.append(time.monotonic() - begun)

    watching = asyncio.create_task(watch())
    async with registry.aio.insecure_channel(SERVICE) as channel:
        try:
            await say_hello(channel)("x", metadata=SLOW)
        except grpc.aio.AioRpcError as error:
            return error.code(), max(stalls)
        finally:
            watching.cancel()
    return None, max(stalls)


def test_the_first_call_of_an_asyncio_channel_has_the_registrys_timeout(world: World) -> None:
    world.serve(1)
    world.etcd.put(policy_key("jupiter", SERVICE), write_policy(Policy(timeout_seconds=0.4)))
    for number in range(3):
        registry = world.registry(name=f"aio-{number}-{id(world)}")
        code, _ = asyncio.run(first_call(registry))
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    world.etcd.delete(policy_key("jupiter", SERVICE))


def test_a_first_call_waits_for_a_registry_that_is_away_no_longer_than_it_must(own_world: World) -> None:
    own_world.store.kill()
    hello = say_hello(own_world.channel(own_world.registry()))
    ended = threading.Event()

    def call() -> None:
        assert code_of(lambda: hello("x")) is grpc.StatusCode.UNAVAILABLE
        ended.set()

    threading.Thread(target=call, daemon=True).start()
    wait_until(ended.is_set, "the first call to fail", 60)
