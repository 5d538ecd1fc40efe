"""Channels that follow a registry: what an application sees while servers come and go."""

import time

import grpc
import pytest

import grpc_etcd
from grpc_etcd.discovery.publisher import _PAUSE_SECONDS
from grpc_etcd.etcd import ops
from grpc_etcd.registry.layout import KeyValue
from grpc_etcd.registry.policy import Policy
from testbed.conditions import free_port, wait_until
from testbed.greeter import DELAY_HEADER, METHOD, decode_text, encode_text, say_hello

from .conftest import SERVICE, Load, World, answers, follows


def test_calls_are_spread_over_the_registered_servers(world: World) -> None:
    servers = world.serve(3)
    channel = world.channel(world.registry())
    assert isinstance(channel, grpc.Channel)
    follows(channel, servers)
    # Where connections have just changed a picker begins again, and one server is a call ahead.
    wait_until(lambda: set(answers(channel, 90).values()) == {30}, "the same number of calls to each")


def test_a_client_follows_changes_without_a_failed_call(world: World) -> None:
    first, second = world.serve(2)
    channel = world.channel(world.registry())
    follows(channel, [first, second])
    with Load(channel) as load:
        third = world.serve(1)[0]
        wait_until(lambda: load.answers[third.address], "a call to the added server")
        world.delete(first.address)
        follows(channel, [second, third])
        calls_before = first.calls
        first.stop()
        replaced = world.serve(2)
        for gone in (second, third):
            world.delete(gone.address)
        follows(channel, replaced)
        assert first.calls == calls_before
    assert load.failures == []
    assert sum(load.answers.values()) > 100


def test_a_running_call_on_a_removed_endpoint_ends_in_order(world: World) -> None:
    old, new = world.serve(2)
    channel = world.channel(world.registry())
    follows(channel, [old, new])
    hello = channel.unary_unary(METHOD, encode_text, decode_text)
    slow = [hello.future("x", timeout=30, metadata=((DELAY_HEADER, "1.5"),)) for _ in range(4)]
    wait_until(lambda: old.calls + new.calls >= 24, "the slow calls to be under way")
    world.delete(old.address)
    follows(channel, [new])
    assert {call.result() for call in slow} == {old.address, new.address}


def test_an_empty_service_fails_fast_and_wait_for_ready_waits(world: World) -> None:
    channel = world.channel(world.registry())
    with pytest.raises(grpc.RpcError) as failure:
        say_hello(channel)("x", timeout=20)
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
    waiting = channel.unary_unary(METHOD, encode_text, decode_text).future("x", timeout=60, wait_for_ready=True)
    server = world.serve(1)[0]
    assert waiting.result() == server.address


def test_a_target_serves_a_channel_of_ones_own(world: World) -> None:
    server = world.serve(1)[0]
    name = f"mine-{server.address.rpartition(':')[2]}"  # one that no registry of this process had before
    registry = world.registry(name=name)
    assert registry.target(SERVICE) == f"xds://etcd/{name}/{SERVICE}"
    with grpc.insecure_channel(registry.target(SERVICE)) as channel:
        assert set(answers(channel)) == {server.address}


@pytest.mark.parametrize("service", ["shop.v1.Greeter", "with%percent", "grüße", "a:b@c", "q?x=1#y"])
def test_names_of_all_kinds_work(world: World, service: str) -> None:
    server = world.serve(1, service)[0]
    channel = world.channel(world.registry(), service)
    assert set(answers(channel, 3)) == {server.address}


def test_names_that_no_registry_can_hold_are_refused(world: World) -> None:
    with pytest.raises(ValueError, match="'/'"):
        world.registry().insecure_channel("a/b")


def test_several_registries_and_prefixes_share_one_process(world: World) -> None:
    here = world.serve(1)[0]
    other = world.registry(prefix="wsd-reg")
    world.layout = grpc_etcd.layouts.jupiter.Jupiter("wsd-reg")
    there = world.serve(1)[0]
    assert set(answers(world.channel(world.registry()))) == {here.address}
    assert set(answers(world.channel(other))) == {there.address}


def test_two_open_registries_cannot_have_one_name(world: World) -> None:
    first = world.registry(name="twin")
    first.target(SERVICE)
    with pytest.raises(ValueError, match="twin"):
        world.registry(name="twin").target(SERVICE)


def test_a_registry_without_a_name_gets_none_that_another_one_was_given(world: World) -> None:
    world.registry()  # the first one of a process has no number
    number = int(world.registry().name.rpartition("-")[2])
    world.registry(name=f"default-{number + 1}").target(SERVICE)
    unnamed = world.registry()
    assert unnamed.target(SERVICE).startswith(f"xds://etcd/default-{number + 2}/")


def test_a_hundred_services_in_one_process(world: World) -> None:
    server = world.greeter()
    registry = world.registry()
    for number in range(100):
        world.put(server.address, f"service-{number}")
    channels = [world.channel(registry, f"service-{number}") for number in range(100)]
    for channel in channels:
        assert say_hello(channel)("x", timeout=60, wait_for_ready=True) == server.address
    assert len(registry.stats().services) == 100


def test_broken_records_never_hide_good_ones(world: World) -> None:
    server = world.serve(1)[0]
    world.etcd.put(b"/jupiter/greeter/providers/grpc://10.0.0.1:1", b"{broken")
    world.etcd.put(
        b"/jupiter/greeter/providers/grpc://10.0.0.2:99999",
        b'{"name":"greeter","scheme":"grpc","address":"10.0.0.2:99999","weight":1,"enable":true,"kind":1}',
    )
    world.put("no-such-host.invalid:80")
    registry = world.registry()
    channel = world.channel(registry)
    assert set(answers(channel)) == {server.address}
    wait_until(
        lambda: registry.stats()[SERVICE].unusable.keys() >= {"no-such-host.invalid:80"}, "the fault of the name"
    )
    stats = registry.stats()[SERVICE]
    assert "/jupiter/greeter/providers/grpc://10.0.0.1:1" in stats.rejected
    assert "10.0.0.2:99999" in str({**stats.rejected, **stats.unusable})
    assert stats.refusals == 0


def test_duplicates_and_drained_endpoints_do_no_harm(world: World) -> None:
    good, light, off = world.greeter(), world.greeter(), world.greeter()
    registry = world.registry(layouts=["jupiter", "etcd-naming"])
    world.put(good.address)
    world.put(light.address, weight=0)
    world.put(off.address, enable=False)
    naming = grpc_etcd.layouts.index.make_layout("etcd-naming")
    record = naming.encode(SERVICE, grpc_etcd.Endpoint(name=SERVICE, address=good.address))
    assert isinstance(record, KeyValue)
    world.etcd.put(*record)
    channel = world.channel(registry)
    assert set(answers(channel)) == {good.address}
    assert (light.calls, off.calls) == (0, 0)
    assert registry.stats()[SERVICE].refusals == 0


def test_disabling_takes_an_endpoint_out_for_new_calls(world: World) -> None:
    stays, drains = world.serve(2)
    channel = world.channel(world.registry())
    follows(channel, [stays, drains])
    with Load(channel) as load:
        world.put(drains.address, enable=False)
        follows(channel, [stays])
        calls = drains.calls
        assert set(answers(channel)) == {stays.address}
        assert drains.calls == calls
    assert load.failures == []


def test_host_names_are_resolved(world: World) -> None:
    server = world.greeter()
    port = server.address.rpartition(":")[2]
    local = world.greeter()
    assert port
    registry = world.registry()
    world.put(f"localhost:{_listen_on_localhost(world)}")
    world.put(local.address)
    channel = world.channel(registry)
    wait_until(lambda: len(answers(channel, 40)) == 2, "calls to the host name and to the address")
    assert registry.stats()[SERVICE].refusals == 0


def test_ipv6_endpoints(world: World) -> None:
    from testbed.greeter import GreeterServer  # noqa: PLC0415

    with GreeterServer("[::1]:0") as server:
        world.put(server.address)
        assert server.address.startswith("[::1]:")
        assert set(answers(world.channel(world.registry()), 3)) == {server.address}


def _listen_on_localhost(world: World) -> int:
    from testbed.greeter import GreeterServer  # noqa: PLC0415

    server = GreeterServer("127.0.0.1:0")
    world._closers.append(lambda: server.stop(0))
    return int(server.address.rpartition(":")[2])


def test_a_replacement_by_unreachable_endpoints_keeps_the_old_ones_for_a_while(world: World) -> None:
    old = world.serve(1)[0]
    channel = world.channel(world.registry())
    follows(channel, [old])
    dead = f"127.0.7.99:{free_port('127.0.7.99')}"
    good = world.greeter()
    _replace(world, old.address, [dead, good.address])
    follows(channel, [good])


def test_strict_removal_leaves_a_replaced_set_at_once(world: World) -> None:
    old = world.serve(1)[0]
    registry = world.registry()
    registry.configure(SERVICE, strict_removal=True)
    channel = world.channel(registry)
    follows(channel, [old])
    with _black_hole() as hole:
        _replace(world, old.address, [hole])
        wait_until(lambda: registry.endpoints(SERVICE).endpoints[0].address == hole, "the news")
        wait_until(lambda: registry.stats()[SERVICE].updates >= 2, "the update")
        with pytest.raises(grpc.RpcError):
            wait_until(lambda: say_hello(channel)("x", timeout=1) != old.address, "a call that fails")
        calls = old.calls
        with pytest.raises(grpc.RpcError):
            say_hello(channel)("x", timeout=1)
        assert old.calls == calls


def _replace(world: World, old: str, new: list[str]) -> None:
    """Exchange the whole set in one transaction."""
    puts = [world.record(address) for address in new]
    world.etcd.transaction([], [ops.delete(world.record(old).key), *(ops.put(key, value) for key, value in puts)])


class _black_hole:  # noqa: N801 - reads as a function
    """An address where connecting hangs: a listening socket whose backlog is full."""

    def __enter__(self) -> str:
        import socket  # noqa: PLC0415

        self._listener = socket.create_server(("127.0.7.98", 0), backlog=0)
        address = self._listener.getsockname()
        self._clients = []
        for _ in range(4):
            client = socket.socket()
            client.settimeout(0)
            client.connect_ex(address)
            self._clients.append(client)
        return f"{address[0]}:{address[1]}"

    def __exit__(self, *error: object) -> None:
        for each in (*self._clients, self._listener):
            each.close()


def test_large_sets_are_followed_in_a_subset(world: World) -> None:
    server = world.serve(1)[0]
    registry = world.registry(client_id="me")
    addresses = [f"127.9.{number // 250}.{number % 250 + 1}:9" for number in range(1200)]
    for start in range(0, len(addresses), 100):
        world.etcd.transaction([], [ops.put(*world.record(address)) for address in addresses[start : start + 100]])
    registry.configure(SERVICE, Policy(subset=1100))
    channel = world.channel(registry)
    assert len(registry.wait_for_endpoints(SERVICE, 60, at_least=1201).endpoints) == 1201
    registry.configure(SERVICE, Policy(subset=2000))
    assert set(answers(channel, 3)) == {server.address}
    assert registry.stats()[SERVICE].refusals == 0


def test_a_flood_of_changes_is_gathered(world: World) -> None:
    server = world.serve(1)[0]
    registry = world.registry()
    channel = world.channel(registry)
    follows(channel, [server])
    begun, updates = time.monotonic(), registry.stats()[SERVICE].updates
    with Load(channel) as load:
        for number in range(400):
            world.put(f"127.9.0.{number % 200 + 1}:9", weight=number + 1)
        for number in range(200):
            world.delete(f"127.9.0.{number + 1}:9")
        wait_until(lambda: len(registry.endpoints(SERVICE).endpoints) == 1, "the end of the flood")
    stats, seconds = registry.stats()[SERVICE], time.monotonic() - begun
    assert load.failures == []
    # Where etcd is slow each change may have its own update: what is promised is the pause between two of them.
    assert stats.updates - updates <= seconds / _PAUSE_SECONDS + 1


def test_services_that_nobody_wants_are_let_go(world: World) -> None:
    registry = world.registry()
    followed = registry.follow("seldom")
    wait_until(lambda: followed.feed.view.snapshot is not None, "the first listing")
    followed.needed_at = time.monotonic() - 3600
    wait_until(lambda: followed.feed.closed, "the feed to be closed")
    assert registry.stats().services == ()
    assert registry.endpoints("seldom").endpoints == ()
