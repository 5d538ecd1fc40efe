"""Reading: every layout, servers without any operator, several registries, other languages, large sets."""

import asyncio
import json
import subprocess
import sys
import threading

import grpc
import pytest

import grpc_etcd
from grpc_etcd.etcd import Unavailable, ops
from grpc_etcd.layouts.index import LAYOUT_NAMES, make_layout
from grpc_etcd.settings import read_settings
from testbed.conditions import existing, until, wait_until
from testbed.etcd import EtcdServer
from testbed.greeter import say_hello

from .conftest import SERVICE, MemoryStore, RealStore, World, answers, follows


@pytest.mark.parametrize("name", LAYOUT_NAMES)
def test_channels_follow_every_layout(world: World, name: str) -> None:
    world.layout = make_layout(name)
    server = world.serve(1)[0]
    registry = world.registry(layouts=[name])
    channel = world.channel(registry)
    assert set(answers(channel, 5)) == {server.address}
    added = world.serve(1)[0]
    follows(channel, [server, added])
    world.delete(server.address)
    follows(channel, [added])
    assert [endpoint.address for endpoint in registry.list_services(SERVICE)] == [added.address]


def test_a_registry_made_from_settings_is_the_same(etcd_world: World) -> None:
    world = etcd_world
    server = world.serve(1)[0]
    settings = read_settings({"GRPC_ETCD_ENDPOINTS": world.server.endpoints, "GRPC_ETCD_ZONE": "a"})
    with grpc_etcd.Registry.from_settings(settings) as registry, registry.insecure_channel(SERVICE) as channel:
        assert set(answers(channel, 3)) == {server.address}


def test_watching_gives_the_present_set_and_every_newer_one(world: World) -> None:
    registry = world.registry()
    seen: list[tuple[str, ...]] = []

    def watch() -> None:
        for snapshot in registry.watch_services(SERVICE):
            seen.append(tuple(each.address for each in snapshot.endpoints))  # noqa: PERF401 - looked at while it grows

    thread = threading.Thread(target=watch)
    thread.start()
    wait_until(lambda: seen == [()], "the empty set")
    world.put("10.0.0.1:1")
    wait_until(lambda: seen[-1] == ("10.0.0.1:1",), "the endpoint")
    world.put("10.0.0.2:1")
    wait_until(lambda: seen[-1] == ("10.0.0.1:1", "10.0.0.2:1"), "both")
    registry.close()
    thread.join(60)
    assert not thread.is_alive()


def test_waiting_says_what_is_missing(world: World) -> None:
    registry = world.registry()
    assert registry.endpoints(SERVICE, 60).endpoints == ()
    with pytest.raises(TimeoutError, match="the registry has 0 endpoints"):
        registry.wait_for_endpoints(SERVICE, 0.3)
    world.put("10.0.0.1:1")
    assert len(registry.wait_for_endpoints(SERVICE, 60).endpoints) == 1


@pytest.mark.parametrize("is_aio", [True, False])
async def test_who_waits_is_told_that_the_registry_has_been_closed(world: World, *, is_aio: bool) -> None:
    registry = world.registry()
    blocking = registry.wait_for_endpoints
    wait = registry.aio.wait_for_endpoints(SERVICE) if is_aio else asyncio.to_thread(blocking, SERVICE)
    waiting = asyncio.ensure_future(wait)
    await until(lambda: SERVICE in registry.stats())
    await registry.aio.close()
    with pytest.raises(TimeoutError, match="has been closed meanwhile"):
        await waiting


def test_a_closed_registry_says_so_and_its_channels_keep_what_they_know(world: World) -> None:
    server = world.serve(1)[0]
    registry = world.registry()
    channel = world.channel(registry)
    follows(channel, [server])
    registry.close()
    registry.close()
    assert set(answers(channel, 5)) == {server.address}
    with pytest.raises(ValueError, match="closed"):
        registry.insecure_channel(SERVICE)


def test_an_etcd_that_is_away_is_told_by_its_code(own_world: World) -> None:
    """What a program makes of an outage can be tested with the registry in memory."""
    registry = own_world.registry(etcd_timeout_seconds=5)
    assert registry.read_endpoints(SERVICE) == ()
    own_world.store.kill()
    with pytest.raises(Unavailable) as caught:
        registry.read_endpoints(SERVICE)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_two_registries_as_one(world: World, own_etcd: EtcdServer) -> None:
    other = World(RealStore(own_etcd))
    try:
        here, there = world.serve(1)[0], other.greeter()
        other.put(there.address)
        parts = [world.registry(), other.registry()]
        with grpc_etcd.CompoundRegistry(parts) as both, both.insecure_channel(SERVICE) as channel:
            follows(channel, [here, there])
            own_etcd.kill()
            wait_until(lambda: both.stats()[SERVICE].error, "the loss to be said")
            follows(channel, [here, there])
            added = world.serve(1)[0]
            follows(channel, [here, there, added])
    finally:
        own_etcd.restart()
        other.close()


def test_several_registries_are_where_the_first_that_knows_it_is(world: World) -> None:
    parts = [world.registry(), world.registry(zone="a", region="r"), world.registry(zone="b")]
    with grpc_etcd.CompoundRegistry(parts) as both, grpc_etcd.CompoundRegistry(parts, zone="c") as elsewhere:
        assert (both.here.zone, both.here.region) == ("a", "r")
        assert (elsewhere.here.zone, elsewhere.here.region) == ("c", "r")


def test_listing_several_registries_leaves_out_one_that_is_down(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.put("10.0.0.1:1", weight=7)
    elsewhere = World(MemoryStore())
    elsewhere.put("10.0.0.1:1", weight=9)
    elsewhere.put("10.0.0.2:1")
    here, there = world.registry(), elsewhere.registry()
    with grpc_etcd.CompoundRegistry([here, there]) as both:
        found = both.list_services(SERVICE)
        assert [(each.address, each.weight) for each in found] == [("10.0.0.1:1", 7), ("10.0.0.2:1", 100)]
        elsewhere.store.kill()
        assert [each.address for each in both.list_services(SERVICE)] == ["10.0.0.1:1"]
        assert "one of several registries cannot be read" in caplog.text
    with grpc_etcd.CompoundRegistry([there]) as dead, pytest.raises(Unavailable, match="stopped"):
        dead.list_services(SERVICE)
    elsewhere.close()


async def test_several_registries_as_one_on_asyncio(world: World) -> None:
    server = world.serve(1)[0]
    elsewhere = World(MemoryStore())
    endpoint = grpc_etcd.Endpoint(name=SERVICE, address="127.0.7.200:1", enable=False)
    with grpc_etcd.CompoundRegistry([world.registry(), elsewhere.registry()]) as both:
        async with both.aio.registered(endpoint, allow_unroutable=True) as (here, there):
            assert await here.wait_async(30)
            assert await there.wait_async(30)
            assert len(await both.aio.list_services(SERVICE)) == 2
            async for snapshot in both.aio.watch(SERVICE):  # one of the two may not be called: it is not waited for
                if len(snapshot.endpoints) == 2:
                    break
            async with both.aio.insecure_channel(SERVICE) as channel:
                assert await say_hello(channel)("x", timeout=30, wait_for_ready=True) == server.address
        assert [each.address for each in await both.aio.list_services(SERVICE)] == [server.address]
    elsewhere.close()


def test_one_registry_that_is_down_from_the_start_holds_up_nobody(world: World) -> None:
    server = world.serve(1)[0]
    dead = grpc_etcd.Registry("127.0.0.1:9")
    try:
        both = grpc_etcd.CompoundRegistry([dead, world.registry()])
        with both, both.insecure_channel(SERVICE) as channel:
            assert set(answers(channel, 5)) == {server.address}
    finally:
        dead.close()


def test_a_large_set_is_followed_and_cut_to_a_subset(world: World) -> None:
    registry = world.registry(client_id="c")
    addresses = [f"127.{number // 62500 + 40}.{number // 250 % 250}.{number % 250 + 1}:9" for number in range(10_000)]
    for start in range(0, len(addresses), 125):
        world.etcd.transaction([], [ops.put(*world.record(address)) for address in addresses[start : start + 125]])
    followed = registry.follow(SERVICE)
    registry.wait_for_endpoints(SERVICE, 90, at_least=10_000)
    wait_until(lambda: followed.published is not None and followed.published.size == 1000, "the subset", 90)
    world.delete(addresses[0])
    wait_until(lambda: len(registry.endpoints(SERVICE).endpoints) == 9_999, "the change")


# A program that knows nothing of this package: gRPC with a bootstrap that names the stand-alone server.
FOREIGN = """
import sys, grpc
sys.path.insert(0, sys.argv[2])
from testbed.greeter import say_hello
with grpc.insecure_channel(sys.argv[1]) as channel:
    for line in sys.stdin:
        print(say_hello(channel)("x", timeout=30, wait_for_ready=True), flush=True)
"""


@pytest.mark.parametrize("target", ["xds:///greeter", "xds:///default/greeter", "xds://etcd/default/greeter"])
def test_the_stand_alone_server_serves_programs_that_do_not_know_us(world: World, target: str) -> None:
    from testbed.build import ROOT  # noqa: PLC0415

    server = world.serve(1)[0]
    ads = grpc_etcd.serve("127.0.0.1:0", world.registry())
    where = {"server_uri": f"127.0.0.1:{ads.port}", "channel_creds": [{"type": "insecure"}]}
    bootstrap = {"xds_servers": [where], "node": {"id": "n"}, "authorities": {"etcd": {"xds_servers": [where]}}}
    process = subprocess.Popen(
        [sys.executable, "-c", FOREIGN, target, str(ROOT)],
        env={"GRPC_XDS_BOOTSTRAP_CONFIG": json.dumps(bootstrap), "PATH": ""},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    question, answer = existing(process.stdin), existing(process.stdout)

    def ask() -> str:
        question.write("\n")
        question.flush()
        return answer.readline().strip()

    try:
        assert ask() == server.address
        new = world.serve(1)[0]
        world.delete(server.address)
        wait_until(lambda: ask() == new.address, "the foreign client to follow")
    finally:
        question.close()
        assert process.wait(60) == 0
        answer.close()
        ads.stop()


def test_what_grpc_refuses_is_counted(world: World) -> None:
    """The rendering never gives gRPC anything that it refuses; here a refusal is reported as a client would."""
    registry = world.registry()
    followed = registry.follow(SERVICE)
    registry.refused(SERVICE, "no good")
    assert (followed.refusals, registry.stats()[SERVICE].last_refusal) == (1, "no good")


def test_channels_and_calls_survive_opening_and_closing_at_random(world: World) -> None:
    server = world.serve(1)[0]
    registry = world.registry()

    def work() -> None:
        for _ in range(15):
            with registry.insecure_channel(SERVICE) as channel:
                found.append(say_hello(channel)("x", timeout=60, wait_for_ready=True))

    found: list[str] = []
    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert found == [server.address] * 90
